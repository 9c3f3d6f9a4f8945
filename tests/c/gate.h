/* A gate in a stream: work queued after it waits until the test opens the gate. */
#ifndef GATE_H
#define GATE_H

#include <pthread.h>

#include "check.h"

struct gate {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int reached, open;
};

#define GATE_INIT {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0, 0}

static inline void gate_wait(void *user)
{
    struct gate *gate = (struct gate *)user;
    pthread_mutex_lock(&gate->lock);
    gate->reached = 1;
    pthread_cond_broadcast(&gate->changed);
    while (!gate->open) pthread_cond_wait(&gate->changed, &gate->lock);
    pthread_mutex_unlock(&gate->lock);
}

static inline void gate_open(struct gate *gate)
{
    pthread_mutex_lock(&gate->lock);
    gate->open = 1;
    pthread_cond_broadcast(&gate->changed);
    pthread_mutex_unlock(&gate->lock);
}

/* Waits until the stream has reached the gate. */
static inline void gate_await(struct gate *gate)
{
    pthread_mutex_lock(&gate->lock);
    while (!gate->reached) pthread_cond_wait(&gate->changed, &gate->lock);
    pthread_mutex_unlock(&gate->lock);
}

#endif

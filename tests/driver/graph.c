/* Graphs: what a capture recorded, and its replays.
 *
 * A replay queues the recorded nodes in streams of its own, one for each stream of the capture, so
 * that nodes which the capture did not order run in any order. */
#include <stdlib.h>
#include <string.h>

#include "driver.h"

struct graph {
    struct graph *next;
    CUgraph handle;
    struct recording recording;
};

struct exec {
    struct exec *next;
    CUgraphExec handle;
    struct context *context;
    struct stream *streams[CAPTURE_STREAMS];
    struct recording recording;
};

size_t graphs_live(void)
{
    size_t count = 0;
    for (struct graph *each = driver.graphs; each != NULL; each = each->next) count++;
    return count;
}

size_t execs_live(void)
{
    size_t count = 0;
    for (struct exec *each = driver.execs; each != NULL; each = each->next) count++;
    return count;
}

void recording_add(struct recording *recording, struct node node)
{
    if (recording->count == recording->capacity) {
        recording->capacity = recording->capacity == 0 ? 64 : 2 * recording->capacity;
        struct node *grown = allocate(recording->capacity * sizeof *grown);
        if (recording->count > 0) {
            memcpy(grown, recording->nodes, recording->count * sizeof *grown);
        }
        free(recording->nodes);
        recording->nodes = grown;
    }
    recording->nodes[recording->count++] = node;
}

void recording_free(struct recording *recording)
{
    for (size_t i = 0; i < recording->count; i++) {
        const struct node *node = &recording->nodes[i];
        if (node->kind == NODE_TASK && node->task.once) free(node->task.argument);
    }
    free(recording->nodes);
    memset(recording, 0, sizeof *recording);
}

/* A task with its own argument, if it frees it: a graph and each of its replays need one. */
static struct task task_copy(const struct task *task)
{
    struct task copy = *task;
    if (task->once) copy.argument = memcpy(allocate(task->bytes), task->argument, task->bytes);
    return copy;
}

CUgraph graph_new(struct recording *recording)
{
    struct graph *graph = allocate(sizeof *graph);
    graph->handle = handle_new();
    graph->recording = *recording;
    memset(recording, 0, sizeof *recording);
    graph->next = driver.graphs;
    driver.graphs = graph;
    return graph->handle;
}

CUresult cuGraphDestroy(CUgraph handle)
{
    ENTER(cuGraphDestroy, NEEDS_INIT);
    struct graph **link = &driver.graphs;
    while (*link != NULL && (*link)->handle != handle) link = &(*link)->next;
    if (*link == NULL) return leave(CUDA_ERROR_INVALID_VALUE);
    struct graph *graph = *link;
    *link = graph->next;
    recording_free(&graph->recording);
    free(graph);
    return leave(CUDA_SUCCESS);
}

CUresult cuGraphInstantiateWithFlags(CUgraphExec *made, CUgraph handle, unsigned long long flags)
{
    ENTER(cuGraphInstantiateWithFlags, NEEDS_CONTEXT);
    struct graph *graph = driver.graphs;
    while (graph != NULL && graph->handle != handle) graph = graph->next;
    if (made == NULL || graph == NULL || flags != 0) return leave(CUDA_ERROR_INVALID_VALUE);
    struct exec *exec = allocate(sizeof *exec);
    for (size_t i = 0; i < graph->recording.count; i++) {
        struct node node = graph->recording.nodes[i];
        if (node.kind == NODE_TASK) node.task = task_copy(&node.task);
        recording_add(&exec->recording, node);
    }
    exec->recording.members = graph->recording.members;
    memcpy(exec->recording.progress, graph->recording.progress, sizeof exec->recording.progress);
    exec->handle = handle_new();
    exec->context = context_current();
    for (unsigned m = 0; m < exec->recording.members; m++) {
        exec->streams[m] = stream_new(exec->context, CU_STREAM_NON_BLOCKING, 0);
    }
    exec->next = driver.execs;
    driver.execs = exec;
    *made = exec->handle;
    return leave(CUDA_SUCCESS);
}

static struct exec **exec_find(CUgraphExec handle)
{
    struct exec **link = &driver.execs;
    while (*link != NULL && (*link)->handle != handle) link = &(*link)->next;
    return link;
}

CUresult cuGraphExecDestroy(CUgraphExec handle)
{
    ENTER(cuGraphExecDestroy, NEEDS_INIT);
    struct exec **link = exec_find(handle), *exec = *link;
    if (exec == NULL) return leave(CUDA_ERROR_INVALID_VALUE);
    *link = exec->next;
    /* With its context the streams are retired too. */
    for (unsigned m = 0; exec->context->alive && m < exec->recording.members; m++) {
        stream_retire(exec->streams[m]);
    }
    recording_free(&exec->recording);
    free(exec);
    return leave(CUDA_SUCCESS);
}

/* Queues nothing but an order. */
static void queue_after(struct stream *stream, struct work *after)
{
    work_unreference(stream_queue(stream, (struct task){.kind = TASK_NONE}, after));
}

/* The works of a replay by the positions that the capture's clocks count. */
static struct work **works_of(struct work **works, const struct recording *recording, unsigned m)
{
    for (unsigned before = 0; before < m; before++) works += recording->progress[before] + 1;
    return works;
}

static void replay_node(struct exec *exec, struct work **works, const struct node *node)
{
    struct stream *stream = exec->streams[node->member];
    struct work *work;
    switch (node->kind) {
    case NODE_TASK:
        work = stream_queue(stream, task_copy(&node->task), NULL);
        break;
    case NODE_EXTERNAL_WAIT: {
        struct event *event = event_find(node->event);
        work = stream_queue(stream, (struct task){.kind = TASK_NONE},
                            event == NULL ? NULL : event->recorded);
        break;
    }
    default: /* NODE_WAIT */
        for (unsigned m = 0; m < exec->recording.members; m++) {
            if (m == node->member || node->clock[m] == 0) continue;
            queue_after(stream, works_of(works, &exec->recording, m)[node->clock[m]]);
        }
        return;
    }
    works_of(works, &exec->recording, node->member)[node->clock[node->member]] = work;
}

static void replay(struct exec *exec, struct stream *stream)
{
    const struct recording *recording = &exec->recording;
    size_t count = 0;
    for (unsigned m = 0; m < recording->members; m++) count += recording->progress[m] + 1;
    struct work **works = allocate(count * sizeof(struct work *));
    struct work *begin = stream_queue(stream, (struct task){.kind = TASK_NONE}, NULL);
    for (unsigned m = 0; m < recording->members; m++) {
        works_of(works, recording, m)[1] =
            stream_queue(exec->streams[m], (struct task){.kind = TASK_NONE}, begin);
    }
    work_unreference(begin);
    for (size_t i = 0; i < recording->count; i++) replay_node(exec, works, &recording->nodes[i]);
    for (unsigned m = 0; m < recording->members; m++) queue_after(stream, exec->streams[m]->last);
    for (size_t i = 0; i < count; i++) work_unreference(works[i]);
    free(works);
}

CUresult cuGraphLaunch(CUgraphExec handle, CUstream stream_handle)
{
    ENTER(cuGraphLaunch, NEEDS_CONTEXT);
    struct stream *stream;
    struct exec *exec = *exec_find(handle);
    CUresult result = stream_find(stream_handle, &stream);
    if (result != CUDA_SUCCESS) return leave(result);
    if (exec == NULL || !exec->context->alive) return leave(CUDA_ERROR_INVALID_VALUE);
    if (stream->capture != NULL) return leave(CUDA_ERROR_NOT_SUPPORTED); /* graphs in graphs */
    replay(exec, stream);
    return leave(CUDA_SUCCESS);
}

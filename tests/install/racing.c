/* A race of the program itself: two threads write one number without a lock. They write it often, since
   ThreadSanitizer can miss two writes of the same instant. */
#include <pthread.h>
#include <stdio.h>
#include <weighbridge.h>

static int shared;

static void *write_shared(void *unused)
{
    for (int i = 0; i < 10000; i++) shared++;
    return unused;
}

int main(void)
{
    pthread_t threads[2];
    wb_error error = WB_ERROR_INIT;
    wb_device *device = NULL;
    if (wb_device_open("host", NULL, &device, &error) != WB_OK) return 2;
    wb_device_release(device);
    for (int i = 0; i < 2; i++) pthread_create(&threads[i], NULL, write_shared, NULL);
    for (int i = 0; i < 2; i++) pthread_join(threads[i], NULL);
    printf("%d\n", shared);
    return 0;
}

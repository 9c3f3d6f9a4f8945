/* Memory that is released while queued work uses it: the release waits for the work. */
#include "dlpack_structs.h"
#include "memory.h"

enum { BYTES = 1 << 20 };

/* A copy that waits behind 50 ms of other work, and its source. */
struct queued {
    void *stream;
    wb_buffer *from, *to;
};

static void sleep_a_while(void *user)
{
    (void)user;
    sleep_ms(50);
}

static int queue_copy(struct queued *q, wb_device *device, wb_buffer *from)
{
    q->from = from;
    q->to = new_buffer(device, BYTES);
    if (from == NULL || q->to == NULL) return 0;
    fill(buffer_info(from).data, BYTES);
    return CHECK_OK(wb_device_stream_new(device, &q->stream, &error)) &&
           CHECK_OK(wb_device_stream_call(device, q->stream, sleep_a_while, NULL, &error)) &&
           CHECK_OK(wb_device_copy(device, buffer_info(q->to).data, buffer_info(from).data, BYTES,
                                   q->stream, &error));
}

static void check_copied(struct queued *q, wb_device *device)
{
    CHECK_OK(wb_device_stream_synchronize(device, q->stream, &error));
    CHECK(holds_pattern(buffer_info(q->to).data, 0, BYTES));
    wb_buffer_release(q->to);
    CHECK_OK(wb_device_stream_release(device, q->stream, &error));
    CHECK_OK(wb_device_drain(device, 10000, &error));
    CHECK_SAME(device_stats(device).buffers, 0);
    CHECK_SAME(device_stats(device).views, 0);
}

static wb_buffer *alloc(wb_device *device, wb_tristate pin)
{
    wb_buffer_options options = WB_BUFFER_OPTIONS_INIT;
    wb_buffer *buffer = NULL;
    options.pin = pin;
    CHECK_OK(wb_buffer_alloc(device, BYTES, &options, &buffer, &error));
    return buffer;
}

static void the_source_of_a_queued_copy_is_released(wb_device *device)
{
    for (wb_tristate pin = WB_TRISTATE_ON; pin <= WB_TRISTATE_OFF; pin++) {
        struct queued q;
        REQUIRE(queue_copy(&q, device, alloc(device, pin)));
        wb_buffer_release(q.from);
        check_copied(&q, device);
    }
}

static void the_target_of_a_queued_copy_is_released(wb_device *device)
{
    struct queued q;
    REQUIRE(queue_copy(&q, device, alloc(device, WB_TRISTATE_AUTO)));
    wb_buffer_release(q.to);
    CHECK_OK(wb_device_stream_synchronize(device, q.stream, &error));
    wb_buffer_release(q.from);
    CHECK_OK(wb_device_stream_release(device, q.stream, &error));
}

static void the_last_view_of_a_source_is_released(wb_device *device)
{
    const int64_t count = BYTES;
    struct queued q;
    REQUIRE(queue_copy(&q, device, alloc(device, WB_TRISTATE_AUTO)));
    wb_view *view = new_view(q.from, bytes_layout(&count), WB_ACCESSOR_HOST);
    wb_buffer_release(q.from);
    wb_view_release(view);
    check_copied(&q, device);
}

static void a_consumer_deletes_the_tensor_of_a_source(wb_device *device)
{
    const int64_t count = BYTES;
    struct queued q;
    DLManagedTensor *tensor = NULL;
    REQUIRE(queue_copy(&q, device, alloc(device, WB_TRISTATE_AUTO)));
    wb_view *view = new_view(q.from, bytes_layout(&count), WB_ACCESSOR_HOST);
    REQUIRE_OK(wb_view_to_dlpack(view, &tensor, &error));
    wb_buffer_release(q.from);
    wb_view_release(view);
    tensor->deleter(tensor);
    check_copied(&q, device);
}

static void unmap(void *memory)
{
    munmap(memory, BYTES);
}

static void registered_memory_is_returned_to_its_owner_after_the_copy(wb_device *device)
{
    struct queued q;
    wb_buffer *buffer = NULL;
    void *memory = pages(BYTES);
    REQUIRE(memory != NULL);
    REQUIRE_OK(wb_buffer_register(device, memory, BYTES, NULL, unmap, memory, &buffer, &error));
    REQUIRE(queue_copy(&q, device, buffer));
    wb_buffer_release(buffer);
    check_copied(&q, device);
}

/* The copy runs on a stream of another device object, which the buffer's own does not know. */
static void another_device_object_copies(wb_device *device)
{
    struct queued q;
    wb_device *other = open_device(test_device(), NULL);
    wb_buffer *buffer = alloc(device, WB_TRISTATE_AUTO);
    REQUIRE(other != NULL);
    REQUIRE(queue_copy(&q, other, buffer));
    wb_buffer_release(buffer);
    check_copied(&q, other);
    wb_device_release(other);
}

struct reader {
    const void *memory;
    int read;
};

static void read_slowly(void *user)
{
    struct reader *reader = (struct reader *)user;
    sleep_ms(50);
    reader->read = holds_pattern(reader->memory, 0, BYTES);
}

static void a_host_function_reads_memory_that_is_released(wb_device *device)
{
    wb_buffer *buffer = alloc(device, WB_TRISTATE_AUTO);
    struct reader reader = {NULL, 0};
    void *stream = NULL;
    REQUIRE(buffer != NULL);
    reader.memory = buffer_info(buffer).data;
    fill(buffer_info(buffer).data, BYTES);
    REQUIRE_OK(wb_device_stream_new(device, &stream, &error));
    REQUIRE_OK(wb_device_stream_call(device, stream, read_slowly, &reader, &error));
    wb_buffer_release(buffer);
    CHECK_SAME(reader.read, 1);
    CHECK_OK(wb_device_stream_release(device, stream, &error));
}

static void drop(void *buffer)
{
    wb_buffer_release((wb_buffer *)buffer);
}

/* On the stream's own thread, which a release must not block: the library's thread waits. */
static void a_host_function_releases_memory_that_its_stream_uses_later(wb_device *device)
{
    struct queued q;
    wb_buffer *other = new_buffer(device, 100);
    REQUIRE(other != NULL);
    REQUIRE(queue_copy(&q, device, alloc(device, WB_TRISTATE_AUTO)));
    CHECK_OK(wb_device_stream_call(device, q.stream, drop, q.from, &error));
    CHECK_OK(wb_device_copy(device, buffer_info(q.to).data, buffer_info(q.from).data, BYTES,
                            q.stream, &error));
    CHECK_OK(wb_device_stream_call(device, q.stream, drop, other, &error));
    check_copied(&q, device);
}

struct waiter {
    wb_device *device;
    void *stream;
    wb_status status;
};

static void wait_for_itself(void *user)
{
    struct waiter *waiter = (struct waiter *)user;
    waiter->status = wb_device_stream_synchronize(waiter->device, waiter->stream, NULL);
}

static void a_host_function_that_waits_for_its_stream_fails(wb_device *device)
{
    struct waiter waiter = {device, NULL, WB_OK};
    REQUIRE_OK(wb_device_stream_new(device, &waiter.stream, &error));
    REQUIRE_OK(wb_device_stream_call(device, waiter.stream, wait_for_itself, &waiter, &error));
    CHECK_OK(wb_device_stream_synchronize(device, waiter.stream, &error));
    CHECK_SAME(waiter.status, WB_ERR_INVALID_ARGUMENT);
    CHECK_OK(wb_device_stream_release(device, waiter.stream, &error));
}

CHECK_MAIN(CASE(the_source_of_a_queued_copy_is_released),
           CASE(the_target_of_a_queued_copy_is_released),
           CASE(the_last_view_of_a_source_is_released),
           CASE(a_consumer_deletes_the_tensor_of_a_source),
           CASE(registered_memory_is_returned_to_its_owner_after_the_copy),
           CASE(another_device_object_copies), CASE(a_host_function_reads_memory_that_is_released),
           CASE_ON(HOST_ONLY, a_host_function_releases_memory_that_its_stream_uses_later),
           CASE_ON(HOST_ONLY, a_host_function_that_waits_for_its_stream_fails))

/* A forked child: it gets an error, its exit is clean, and the parent is unharmed. */
#include "dlpack_structs.h"
#include "memory.h"

/* 0 when `in_child` had no failed check and the child ended by exit(). */
static void check_child(void (*in_child)(wb_device *, wb_buffer *, wb_view *), wb_device *device,
                        wb_buffer *buffer, wb_view *view)
{
    int status = 0;
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        alarm(20);
        in_child(device, buffer, view);
        exit(check_failures > 0);
    }
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void asks_for_everything(wb_device *device, wb_buffer *buffer, wb_view *view)
{
    wb_buffer *other = NULL;
    wb_view *copy = NULL;
    void *stream = NULL;
    uint64_t address = 7;
    char memory[100];
    int64_t shape[] = {1};
    wb_layout layout = layout_of(WB_DTYPE_U8, 1, shape, NULL, 0);
    CHECK_ERROR(WB_ERR_FORKED, wb_buffer_alloc(device, 100, NULL, &other, &error), "child|fork");
    CHECK_ERROR(WB_ERR_FORKED, wb_buffer_alloc(device, 0, NULL, &other, &error), "fork");
    CHECK_ERROR(WB_ERR_FORKED,
                wb_buffer_register(device, memory, 100, NULL, NULL, NULL, &other, &error), "fork");
    CHECK_ERROR(WB_ERR_FORKED, wb_buffer_map(device, "/nowhere", 0, 0, NULL, &other, &error),
                "fork");
    CHECK_ERROR(WB_ERR_FORKED,
                wb_view_copy_from(device, memory, &layout, WB_ACCESS_HOST, NULL, &copy, &error),
                "fork");
    CHECK_ERROR(WB_ERR_FORKED, wb_device_alloc(device, 100, &address, &error), "fork");
    CHECK_ERROR(WB_ERR_FORKED, wb_device_stream_new(device, &stream, &error), "fork");
    CHECK_ERROR(WB_ERR_FORKED, wb_device_stream_synchronize(device, NULL, &error), "fork");
    CHECK_ERROR(WB_ERR_FORKED, wb_device_copy(device, 4096, 8192, 1, NULL, &error), "fork");
    CHECK_ERROR(WB_ERR_FORKED, wb_device_drain(device, 100, &error), "fork");
    CHECK_ERROR(WB_ERR_FORKED, wb_buffer_release_after(buffer, NULL, &error), "fork");
    CHECK_ERROR(WB_ERR_FORKED, wb_view_release_after(view, NULL, &error), "fork");
    CHECK(other == NULL && copy == NULL && stream == NULL && address == 7);
}

static void releases_everything(wb_device *device, wb_buffer *buffer, wb_view *view)
{
    DLManagedTensor *tensor = NULL;
    CHECK_OK(wb_view_to_dlpack(view, &tensor, &error));
    wb_device_release(device);
    wb_buffer_release(buffer);
    wb_view_release(view);
    tensor->deleter(tensor);
}

static void leaves_all_as_it_is(wb_device *device, wb_buffer *buffer, wb_view *view)
{
    (void)device;
    (void)buffer;
    CHECK(holds_pattern(describe_view(view).data, 0, 5000));
}

/* What a worker that is forked by an engine does: open devices of its own. */
static void opens_a_device_of_its_own(wb_device *device, wb_buffer *buffer, wb_view *view)
{
    wb_device *own = NULL;
    wb_buffer *memory = NULL;
    (void)device;
    (void)buffer;
    (void)view;
    if (!CHECK_OK(wb_device_open("host", NULL, &own, &error))) return;
    CHECK_OK(wb_buffer_alloc(own, 100, NULL, &memory, &error));
    memset(describe(memory).data, 1, 100);
    wb_buffer_release(memory);
    wb_device_release(own);
}

/* Deferred release in a child: the thread that gives memory back did not survive the fork. */
static void releases_after_a_stream_of_its_own(wb_device *device, wb_buffer *buffer, wb_view *view)
{
    wb_device *own = NULL;
    wb_buffer *memory = NULL;
    (void)device;
    (void)buffer;
    (void)view;
    if (!CHECK_OK(wb_device_open("host", NULL, &own, &error))) return;
    CHECK_OK(wb_buffer_alloc(own, 100, NULL, &memory, &error));
    CHECK_OK(wb_buffer_release_after(memory, NULL, &error));
    CHECK_OK(wb_device_drain(own, 5000, &error));
    CHECK_SAME(measure(own).buffers, 0);
    wb_device_release(own);
}

static void with(void (*in_child)(wb_device *, wb_buffer *, wb_view *), wb_device *device)
{
    wb_buffer *buffer = NULL, *deferred = NULL;
    wb_view *view = NULL;
    int64_t shape[] = {5000};
    wb_layout layout = layout_of(WB_DTYPE_U8, 1, shape, NULL, 0);
    unsigned char seen[5000];
    REQUIRE_OK(wb_buffer_alloc(device, 1, NULL, &deferred, &error));
    CHECK_OK(wb_buffer_release_after(deferred, NULL, &error)); /* its thread runs */
    CHECK_OK(wb_device_drain(device, 10000, &error));
    REQUIRE_OK(wb_buffer_alloc(device, 5000, NULL, &buffer, &error));
    REQUIRE_OK(wb_view_new(buffer, &layout, WB_ACCESS_DEVICE, &view, &error));
    fill(describe(buffer).data, 5000);
    wb_device_usage before = measure(device);
    long long registrations = double_alive("registrations");
    check_child(in_child, device, buffer, view);
    CHECK_USAGE(device, before);
    CHECK_SAME(double_alive("registrations"), registrations);
    CHECK(holds_pattern(describe(buffer).data, 0, 5000));
    CHECK(read_device(device, seen, describe_view(view).device_address, 5000));
    CHECK(holds_pattern(seen, 0, 5000));
    CHECK_OK(wb_view_release_after(view, NULL, &error));
    CHECK_OK(wb_buffer_release_after(buffer, NULL, &error));
    CHECK_OK(wb_device_drain(device, 10000, &error));
}

static void a_child_gets_an_error_from_all_that_makes_something(wb_device *device)
{
    with(asks_for_everything, device);
}

static void a_child_may_release_what_it_inherited(wb_device *device)
{
    with(releases_everything, device);
}

static void a_child_may_end_with_everything_held(wb_device *device)
{
    with(leaves_all_as_it_is, device);
}

static void a_child_may_open_the_host_device_itself(wb_device *device)
{
    with(opens_a_device_of_its_own, device);
}

static void a_child_may_release_after_a_stream_of_its_own(wb_device *device)
{
    with(releases_after_a_stream_of_its_own, device);
}

CHECK_MAIN(CASE(a_child_gets_an_error_from_all_that_makes_something),
           CASE(a_child_may_release_what_it_inherited), CASE(a_child_may_end_with_everything_held),
           CASE(a_child_may_open_the_host_device_itself),
           CASE(a_child_may_release_after_a_stream_of_its_own))

/* A forked child gets an error where it needs the parent's device, exits cleanly, and does not harm the
 * parent. */
#include <pthread.h>

#include "every_function.h"

/* Runs `in_child` in a child. Returns 1 if no check failed in it and it ended by exit(). */
static int passes_in_child(void (*in_child)(void))
{
    int status = 0;
    fflush(NULL);
    const pid_t child = fork();
    if (child == 0) {
        alarm(20);
        in_child();
        exit(check_failures > 0);
    }
    if (!CHECK(waitpid(child, &status, 0) == child)) return 0;
    if (WIFSIGNALED(status)) fprintf(stderr, "  ended by signal %d\n", WTERMSIG(status));
    return CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

/* Objects of the parent. */
static struct {
    wb_device *device;
    wb_buffer *buffer;
    wb_view *view;
} inherited;

static void release_inherited(void)
{
    DLManagedTensor *tensor = NULL;
    CHECK_OK(wb_view_to_dlpack(inherited.view, &tensor, &error));
    wb_device_release(inherited.device);
    wb_buffer_release(inherited.buffer);
    wb_view_release(inherited.view);
    tensor->deleter(tensor);
}

static void read_inherited(void)
{
    CHECK(holds_pattern(view_info(inherited.view).data, 0, 5000));
}

/* A worker process of an engine opens its own devices. The thread for deferred releases does not survive the
 * fork, so the child needs a new one. */
static void use_new_device(void)
{
    wb_device *device = NULL;
    wb_buffer *memory = NULL, *deferred = NULL;
    if (!CHECK_OK(wb_device_open("host", NULL, &device, &error))) return;
    CHECK_OK(wb_buffer_alloc(device, 100, NULL, &memory, &error));
    memset(buffer_info(memory).data, 1, 100);
    wb_buffer_release(memory);
    CHECK_OK(wb_buffer_alloc(device, 100, NULL, &deferred, &error));
    CHECK_OK(wb_buffer_release_after(deferred, NULL, &error));
    CHECK_OK(wb_device_drain(device, 5000, &error));
    CHECK_SAME(device_stats(device).buffers, 0);
    wb_device_release(device);
}

/* Forks with a buffer, a view and a running thread for deferred releases, and checks that they are
 * unchanged. */
static void fork_with_objects(void (*in_child)(void), wb_device *device)
{
    wb_buffer *buffer = NULL, *deferred = NULL;
    wb_view *view = NULL;
    int64_t shape[] = {5000};
    wb_layout layout = layout_of(WB_DTYPE_U8, 1, shape, NULL, 0);
    unsigned char seen[5000];
    REQUIRE_OK(wb_buffer_alloc(device, 1, NULL, &deferred, &error));
    CHECK_OK(wb_buffer_release_after(deferred, NULL, &error));
    CHECK_OK(wb_device_drain(device, 10000, &error));
    REQUIRE_OK(wb_buffer_alloc(device, 5000, NULL, &buffer, &error));
    REQUIRE_OK(wb_view_new(buffer, &layout, WB_ACCESSOR_DEVICE, &view, &error));
    fill(buffer_info(buffer).data, 5000);
    wb_device_stats before = device_stats(device);
    long long registrations = double_alive("registrations");
    inherited.device = device;
    inherited.buffer = buffer;
    inherited.view = view;
    passes_in_child(in_child);
    CHECK_STATS(device, before);
    CHECK_SAME(double_alive("registrations"), registrations);
    CHECK(holds_pattern(buffer_info(buffer).data, 0, 5000));
    CHECK(read_device(device, seen, view_info(view).device_address, 5000));
    CHECK(holds_pattern(seen, 0, 5000));
    CHECK_OK(wb_view_release_after(view, NULL, &error));
    CHECK_OK(wb_buffer_release_after(buffer, NULL, &error));
    CHECK_OK(wb_device_drain(device, 10000, &error));
}

/* Calls every function with the parent's objects. */
static void call_everything_in_child(void)
{
    for (int i = 0; i < EVERY_COUNT; i++) {
        const struct every *each = &every[i];
        const int uses_driver =
            each->call == call_wb_device_open || each->call == call_wb_device_get_cuda_count;
        const int fails = each->needs != NOTHING || (uses_driver && on_cuda());
        const wb_status status = every_call(each);
        if (!CHECK_SAME(status, fails ? WB_ERR_FORKED : WB_OK) ||
            (fails && !CHECK(scene_made_nothing() && strstr(error.message, "fork") != NULL))) {
            fprintf(stderr, "  %s: \"%s\"\n", each->name, error.message);
        }
        scene_release_made(0);
    }
    scene_release(0);
    wb_device_release(scene.watched);
}

static void every_function_works_or_fails_with_forked_in_a_child(wb_device *device)
{
    (void)device;
    every_begin();
    REQUIRE(scene_begin());
    passes_in_child(call_everything_in_child);
    for (int i = 0; i < EVERY_COUNT; i++) { /* the parent's objects still work */
        if (every[i].undo != NULL && strstr(every[i].name, "_retain") == NULL) continue;
        if (!CHECK_SAME(every_call(&every[i]), WB_OK)) {
            fprintf(stderr, "  %s: \"%s\"\n", every[i].name, error.message);
        }
        scene_release_made(1);
        if (every[i].call == call_wb_offloader_add) {
            CHECK_OK(wb_offloader_remove(own.offloader, "third", own.stream, &error));
        }
    }
    scene_end();
}

static volatile int stop;

/* Takes the library's locks all the time. */
static void *keeps_calling(void *user)
{
    struct wb_device *device = (struct wb_device *)user;
    while (!stop) {
        wb_buffer *buffer = NULL;
        wb_view *view = NULL;
        void *stream = NULL;
        void *memory = NULL;
        CHECK_OK(wb_buffer_alloc(device, SCENE_BYTES, NULL, &buffer, &error));
        CHECK_OK(wb_view_new(buffer, &scene.bytes, WB_ACCESSOR_HOST, &view, &error));
        CHECK_OK(wb_device_stream_new(device, &stream, &error));
        CHECK_OK(wb_device_alloc(device, SCENE_BYTES, &memory, &error));
        CHECK_OK(call_wb_offloader_release_group());
        CHECK_OK(wb_offloader_get_parameter_info(own.offloader, 0, &info.offloaded, &error));
        CHECK_OK(wb_view_release_after(view, stream, &error));
        CHECK_OK(wb_device_stream_release(device, stream, &error));
        CHECK_OK(wb_device_free(device, memory, &error));
        wb_buffer_release(buffer);
    }
    return NULL;
}

static void call_everything_and_use_new_device(void)
{
    call_everything_in_child();
    use_new_device();
}

/* A child does not wait for locks that other threads of the parent hold at the fork. */
static void a_child_of_a_busy_process_does_not_hang(wb_device *device)
{
    enum { CALLERS = 3, CHILDREN = 60 };
    pthread_t threads[CALLERS];
    (void)device;
#ifdef __SANITIZE_ADDRESS__
    NOT_RUN("a lock of the sanitizer's allocator may be held at the fork");
#endif
    every_begin();
    REQUIRE(scene_begin());
    for (int i = 0; i < CALLERS; i++) {
        REQUIRE(pthread_create(&threads[i], NULL, keeps_calling, scene.watched) == 0);
    }
    for (int i = 0; i < CHILDREN && passes_in_child(call_everything_and_use_new_device); i++) {}
    stop = 1;
    for (int i = 0; i < CALLERS; i++) pthread_join(threads[i], NULL);
    CHECK_OK(wb_offloader_reset(own.offloader, own.stream, &error));
    scene_end();
}

/* A plan whose texts take a while to make. */
enum { LONG_PLAN = 5000 };
static char long_names[LONG_PLAN][16];
static wb_parameter long_parameters[LONG_PLAN];
static wb_plan *long_plan;
static int texts_first, asking;

static void get_json(void)
{
    CHECK_OK(wb_plan_to_json(long_plan, &info.text, &error));
    CHECK(strstr(info.text, long_names[LONG_PLAN - 1]) != NULL);
}

static void get_texts(void)
{
    CHECK_OK(wb_plan_get_parameter_info(long_plan, LONG_PLAN - 1, &info.planned, &error));
    CHECK(strcmp(info.planned.name, long_names[LONG_PLAN - 1]) == 0);
    CHECK_OK(wb_plan_get_group_info(long_plan, LONG_PLAN - 1, &info.group, &error));
    CHECK(strcmp(info.group.name, long_names[LONG_PLAN - 1]) == 0);
    CHECK_OK(wb_plan_get_warning(long_plan, 0, &info.text, &error));
}

static void get_everything(void)
{
    if (texts_first) get_texts();
    get_json();
    get_texts();
}

static void *gets_everything(void *user)
{
    __atomic_store_n(&asking, 1, __ATOMIC_RELEASE);
    get_everything();
    return user;
}

/* A text that a thread of the parent makes at the fork is made again in the child. */
static void a_child_does_not_wait_for_the_texts_of_a_plan(wb_device *device)
{
    enum { CHILDREN = 20 };
#ifdef __SANITIZE_ADDRESS__
    NOT_RUN("a lock of the sanitizer's allocator may be held at the fork");
#endif
    every_begin();
    REQUIRE(scene_begin());
    device = scene.watched;
    for (int i = 0; i < LONG_PLAN; i++) {
        snprintf(long_names[i], sizeof long_names[i], "a.%d.weight", i);
        long_parameters[i] = scene.parameters[0];
        long_parameters[i].name = long_parameters[i].group = long_names[i];
    }
    scene.plan_options.budget_bytes = 1 << 30;
    for (int i = 0, passed = 1; i < CHILDREN && passed; i++) {
        pthread_t thread;
        texts_first = i % 2;
        asking = 0;
        REQUIRE_OK(wb_plan_new(device, long_parameters, LONG_PLAN, &scene.plan_options, &long_plan,
                               &error));
        REQUIRE(pthread_create(&thread, NULL, gets_everything, NULL) == 0);
        while (!__atomic_load_n(&asking, __ATOMIC_ACQUIRE)) {}
        passed = passes_in_child(get_everything);
        pthread_join(thread, NULL);
        wb_plan_release(long_plan);
    }
    scene_end();
}

static void use_library(void)
{
    if (!scene_begin()) return;
    CHECK_OK(call_wb_offloader_release_group());
    scene_end();
}

/* With nothing to inherit, the child can use any device. */
static void a_child_can_use_the_library_if_its_parent_has_not(wb_device *device)
{
    (void)device;
    every_begin();
    passes_in_child(use_library);
    use_library();
}

static void fork_in_child(void)
{
    use_new_device();
    passes_in_child(use_new_device);
    use_new_device();
}

static void a_grandchild_can_open_a_device(wb_device *device)
{
    (void)device;
    use_new_device();
    passes_in_child(fork_in_child);
    use_new_device();
}

static void a_child_can_release_inherited_objects(wb_device *device)
{
    fork_with_objects(release_inherited, device);
}

static void a_child_can_exit_with_inherited_objects(wb_device *device)
{
    fork_with_objects(read_inherited, device);
}

static void a_child_can_open_a_device_and_defer_a_release(wb_device *device)
{
    fork_with_objects(use_new_device, device);
}

CHECK_MAIN(CASE_ALONE(EVERYWHERE, a_child_can_use_the_library_if_its_parent_has_not),
           CASE_ALONE(EVERYWHERE, every_function_works_or_fails_with_forked_in_a_child),
           CASE_ALONE(EVERYWHERE, a_child_of_a_busy_process_does_not_hang),
           CASE_ALONE(EVERYWHERE, a_child_does_not_wait_for_the_texts_of_a_plan),
           CASE_ALONE(EVERYWHERE, a_grandchild_can_open_a_device),
           CASE(a_child_can_release_inherited_objects),
           CASE(a_child_can_exit_with_inherited_objects),
           CASE(a_child_can_open_a_device_and_defer_a_release))

/* A forked child: it gets an error, its exit is clean, and the parent is unharmed. */
#include <pthread.h>

#include "every.h"

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
static void child_begins_anew(void)
{
    wb_device *own = NULL;
    wb_buffer *memory = NULL;
    if (!CHECK_OK(wb_device_open("host", NULL, &own, &error))) return;
    CHECK_OK(wb_buffer_alloc(own, 100, NULL, &memory, &error));
    CHECK_OK(wb_buffer_release_after(memory, NULL, &error));
    CHECK_OK(wb_device_drain(own, 5000, &error));
    CHECK_SAME(measure(own).buffers, 0);
    wb_device_release(own);
}

static void releases_after_a_stream_of_its_own(wb_device *device, wb_buffer *buffer, wb_view *view)
{
    (void)device;
    (void)buffer;
    (void)view;
    child_begins_anew();
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
    REQUIRE_OK(wb_view_new(buffer, &layout, WB_ACCESSOR_DEVICE, &view, &error));
    fill(describe(buffer).data, 5000);
    wb_device_stats before = measure(device);
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

/* Every function, with what the parent has made. */
static void child_calls_everything(void)
{
    for (int i = 0; i < EVERY_COUNT; i++) {
        const struct every *each = &every[i];
        const int of_driver =
            each->call == call_wb_device_open || each->call == call_wb_cuda_device_count;
        const int fails = each->needs != NOTHING || (of_driver && on_cuda());
        const wb_status status = every_call(each, &scene);
        if (!CHECK_SAME(status, fails ? WB_ERR_FORKED : WB_OK) ||
            (fails && !CHECK(scene_made_nothing(&scene) && strstr(error.message, "fork") != NULL))) {
            fprintf(stderr, "  %s: \"%s\"\n", each->name, error.message);
        }
        scene_release_made(&scene, 0);
    }
    scene_release(&scene, 0);
    wb_device_release(scene.watched);
}

static int ends_well(void (*in_child)(void))
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

static void every_function_answers_a_child(wb_device *device)
{
    (void)device;
    every_begin();
    REQUIRE(scene_begin(&scene));
    ends_well(child_calls_everything);
    for (int i = 0; i < EVERY_COUNT; i++) { /* the parent is unharmed */
        if (every[i].undo != NULL && strstr(every[i].name, "_retain") == NULL) continue;
        if (!CHECK_SAME(every_call(&every[i], &scene), WB_OK)) {
            fprintf(stderr, "  %s: \"%s\"\n", every[i].name, error.message);
        }
        scene_release_made(&scene, 1);
        if (every[i].call == call_wb_offloader_add) {
            CHECK_OK(wb_offloader_remove(scene.offloader, "third", scene.stream, &error));
        }
    }
    scene_end(&scene);
}

static volatile int stop;

/* Goes through the library's locks all the time. */
static void *keeps_calling(void *user)
{
    struct wb_device *device = (struct wb_device *)user;
    while (!stop) {
        wb_buffer *buffer = NULL;
        wb_view *view = NULL;
        void *stream = NULL;
        uint64_t memory = 0;
        CHECK_OK(wb_buffer_alloc(device, SCENE_BYTES, NULL, &buffer, &error));
        CHECK_OK(wb_view_new(buffer, &scene.bytes, WB_ACCESSOR_HOST, &view, &error));
        CHECK_OK(wb_device_stream_new(device, &stream, &error));
        CHECK_OK(wb_device_alloc(device, SCENE_BYTES, &memory, &error));
        CHECK_OK(call_wb_offloader_release_group(&scene));
        CHECK_OK(wb_offloader_get_parameter_info(scene.offloader, "first", &info.offloaded, &error));
        CHECK_OK(wb_view_release_after(view, stream, &error));
        CHECK_OK(wb_device_stream_release(device, stream, &error));
        CHECK_OK(wb_device_free(device, memory, &error));
        wb_buffer_release(buffer);
    }
    return NULL;
}

static void child_calls_and_begins_anew(void)
{
    child_calls_everything();
    child_begins_anew();
}

/* Whatever other threads hold at the fork, the child waits for none of it. */
static void a_child_of_a_busy_process_does_not_hang(wb_device *device)
{
    enum { CALLERS = 3, CHILDREN = 60 };
    pthread_t threads[CALLERS];
    (void)device;
#ifdef __SANITIZE_ADDRESS__
    NOT_RUN("a lock of the sanitizer's own allocator may be held at the fork");
#endif
    every_begin();
    REQUIRE(scene_begin(&scene));
    for (int i = 0; i < CALLERS; i++) {
        REQUIRE(pthread_create(&threads[i], NULL, keeps_calling, scene.watched) == 0);
    }
    for (int i = 0; i < CHILDREN && ends_well(child_calls_and_begins_anew); i++) {}
    stop = 1;
    for (int i = 0; i < CALLERS; i++) pthread_join(threads[i], NULL);
    CHECK_OK(wb_offloader_reset(scene.offloader, scene.stream, &error));
    scene_end(&scene);
}

/* A plan whose words take a while to make. */
enum { LONG_PLAN = 5000 };
static char long_names[LONG_PLAN][16];
static wb_parameter long_parameters[LONG_PLAN];
static wb_plan *long_plan;
static int words_first, asking;

static void ask_for_json(void)
{
    CHECK_OK(wb_plan_to_json(long_plan, &info.text, &error));
    CHECK(strstr(info.text, long_names[LONG_PLAN - 1]) != NULL);
}

static void ask_for_words(void)
{
    CHECK_OK(wb_plan_get_parameter_info(long_plan, LONG_PLAN - 1, &info.planned, &error));
    CHECK(strcmp(info.planned.name, long_names[LONG_PLAN - 1]) == 0);
    CHECK_OK(wb_plan_get_group_info(long_plan, LONG_PLAN - 1, &info.group, &error));
    CHECK(strcmp(info.group.name, long_names[LONG_PLAN - 1]) == 0);
    CHECK_OK(wb_plan_get_warning(long_plan, 0, &info.text, &error));
}

static void ask_for_all(void)
{
    if (words_first) ask_for_words();
    ask_for_json();
    ask_for_words();
}

static void *asks_for_all(void *user)
{
    __atomic_store_n(&asking, 1, __ATOMIC_RELEASE);
    ask_for_all();
    return user;
}

/* What a thread is making when the process forks is made anew in the child. */
static void a_child_waits_for_no_words_of_a_plan(wb_device *device)
{
    enum { CHILDREN = 20 };
#ifdef __SANITIZE_ADDRESS__
    NOT_RUN("a lock of the sanitizer's own allocator may be held at the fork");
#endif
    every_begin();
    REQUIRE(scene_begin(&scene));
    device = scene.watched;
    for (int i = 0; i < LONG_PLAN; i++) {
        snprintf(long_names[i], sizeof long_names[i], "a.%d.weight", i);
        long_parameters[i] = scene.parameters[0];
        long_parameters[i].name = long_parameters[i].group = long_names[i];
    }
    scene.plan_options.offload_bytes = 1 << 30;
    for (int i = 0, ended_well = 1; i < CHILDREN && ended_well; i++) {
        pthread_t thread;
        words_first = i % 2;
        asking = 0;
        REQUIRE_OK(wb_plan_new(device, long_parameters, LONG_PLAN, &scene.plan_options, &long_plan,
                               &error));
        REQUIRE(pthread_create(&thread, NULL, asks_for_all, NULL) == 0);
        while (!__atomic_load_n(&asking, __ATOMIC_ACQUIRE)) {}
        ended_well = ends_well(ask_for_all);
        pthread_join(thread, NULL);
        wb_plan_release(long_plan);
    }
    scene_end(&scene);
}

/* Before the library was used there is nothing to inherit: the child may do all, on any device. */
static void child_uses_the_library_first(void)
{
    if (!scene_begin(&scene)) return;
    CHECK_OK(call_wb_offloader_release_group(&scene));
    scene_end(&scene);
}

static void a_child_may_use_the_library_if_its_parent_has_not(wb_device *device)
{
    (void)device;
    every_begin();
    ends_well(child_uses_the_library_first);
    child_uses_the_library_first();
}

static void child_forks_itself(void)
{
    child_begins_anew();
    ends_well(child_begins_anew);
    child_begins_anew();
}

static void a_childs_child_may_begin_anew_too(wb_device *device)
{
    (void)device;
    child_begins_anew();
    ends_well(child_forks_itself);
    child_begins_anew();
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

CHECK_MAIN(CASE_ALONE(EVERYWHERE, a_child_may_use_the_library_if_its_parent_has_not),
           CASE_ALONE(EVERYWHERE, every_function_answers_a_child),
           CASE_ALONE(EVERYWHERE, a_child_of_a_busy_process_does_not_hang),
           CASE_ALONE(EVERYWHERE, a_child_waits_for_no_words_of_a_plan),
           CASE_ALONE(EVERYWHERE, a_childs_child_may_begin_anew_too),
           CASE(a_child_may_release_what_it_inherited), CASE(a_child_may_end_with_everything_held),
           CASE(a_child_may_open_the_host_device_itself),
           CASE(a_child_may_release_after_a_stream_of_its_own))

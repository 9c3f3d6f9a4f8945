/* Limits of the kernel and of the device, each met for real: an error by name that says what was asked,
 * what was found and what to do; nothing is left of it; and what fits succeeds. */
#include <sched.h>
#include <sys/mount.h>
#include <sys/resource.h>

#include "every.h"

static wb_device *opened(const wb_device_options *options)
{
    wb_device *device = NULL;
    CHECK_OK(wb_device_open(test_device(), options, &device, &error));
    return device;
}

/* A request of this size is met afterwards as before. */
static void small_requests_succeed(wb_device *device, wb_device_stats before)
{
    wb_buffer *buffer = NULL;
    CHECK_USAGE(device, before);
    CHECK_OK(wb_buffer_alloc(device, 1 << 20, NULL, &buffer, &error));
    wb_buffer_release(buffer);
    CHECK_USAGE(device, before);
}

/* The folder of this process's own memory control group, and the names that its kind has for a limit and
 * for the processes in it. */
static int memory_group(char *folder, size_t room, const char **limit)
{
    char line[4096];
    int found = 0;
    FILE *groups = fopen("/proc/self/cgroup", "r");
    while (groups != NULL && !found && fgets(line, sizeof line, groups) != NULL) {
        char *controllers = strchr(line, ':'), *path = NULL;
        if (controllers == NULL || (path = strchr(controllers + 1, ':')) == NULL) continue;
        *path++ = '\0';
        path[strcspn(path, "\n")] = '\0';
        const int first = strcmp(controllers + 1, "memory") == 0;
        if (!first && controllers[1] != '\0') continue;
        *limit = first ? "memory.limit_in_bytes" : "memory.max";
        snprintf(folder, room, "/sys/fs/cgroup%s%s", first ? "/memory" : "", path);
        char known[4400];
        snprintf(known, sizeof known, "%s/%s", folder, *limit);
        found = access(known, F_OK) == 0;
    }
    if (groups != NULL) fclose(groups);
    return found;
}

static int write_text(const char *folder, const char *name, const char *text)
{
    char path[4400];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    int file = open(path, O_WRONLY);
    if (file < 0) return 0;
    int done = write(file, text, strlen(text)) == (ssize_t)strlen(text);
    return close(file) == 0 && done;
}

/* Pinning makes pages present: those that are there already need no room, the others do. */
static void what_exists_asks_for_room_as_well(wb_device *device)
{
    const uint64_t bytes = 1 << 30, there = 150 << 20;
    wb_buffer_options options = WB_BUFFER_OPTIONS_INIT;
    wb_buffer *buffer = NULL;
    char path[300];
    char *memory = (char *)pages(bytes);
    REQUIRE(memory != NULL);
    options.pin = WB_TRISTATE_ON;
    CHECK_ERROR(WB_ERR_CGROUP,
                wb_buffer_register(device, memory, bytes, &options, NULL, NULL, &buffer, &error),
                "asked|control group|weighbridge-|256.0 MiB");
    memset(memory, 1, there);
    if (CHECK_OK(wb_buffer_register(device, memory, there, &options, NULL, NULL, &buffer, &error))) {
        wb_buffer_release(buffer);
        buffer = NULL;
    }
    munmap(memory, bytes);
    file_name(path, sizeof path, "group");
    int file = open(path, O_CREAT | O_RDWR, 0600);
    REQUIRE(file >= 0 && ftruncate(file, (off_t)bytes) == 0);
    close(file);
    CHECK_ERROR(WB_ERR_CGROUP, wb_buffer_map_file(device, path, 0, 0, &options, &buffer, &error),
                "asked|control group");
    CHECK(buffer == NULL);
    unlink(path);
}

static void a_control_group_that_is_full_is_an_error_and_no_kill(wb_device *device)
{
    char own[4200], inner[4300], self[16];
    const char *limit = NULL;
    wb_buffer *buffer = NULL, *held = NULL;
    if (!memory_group(own, sizeof own, &limit)) NOT_RUN("no memory control group is mounted");
    snprintf(inner, sizeof inner, "%s/weighbridge-%d", own, (int)getpid());
    snprintf(self, sizeof self, "%d", (int)getpid());
    if (mkdir(inner, 0700) != 0) NOT_RUN("this user may not make a control group");
    if (!write_text(inner, limit, "268435456") || !write_text(inner, "cgroup.procs", self)) {
        rmdir(inner);
        NOT_RUN("the control group takes no limit, or not this process");
    }
    device = opened(NULL);
    wb_device_stats before = measure(device);
    CHECK_ERROR(WB_ERR_CGROUP, wb_buffer_alloc(device, 1 << 30, NULL, &buffer, &error),
                "asked 1.0 GiB|control group|weighbridge-|256.0 MiB|raise its memory limit");
    CHECK(buffer == NULL);
    CHECK_OK(wb_buffer_alloc(device, 128 << 20, NULL, &held, &error));
    CHECK_ERROR(WB_ERR_CGROUP, wb_buffer_alloc(device, 200 << 20, NULL, &buffer, &error),
                "control group");
    wb_buffer_release(held);
    CHECK_OK(wb_buffer_alloc(device, 200 << 20, NULL, &buffer, &error)); /* there is room again */
    wb_buffer_release(buffer);
    what_exists_asks_for_room_as_well(device);
    small_requests_succeed(device, before);
    wb_device_release(device);
    CHECK(write_text(own, "cgroup.procs", self));
    CHECK(rmdir(inner) == 0);
}

/* Takes mappings until the kernel gives no more; those of even number may be read, so that neighbours
 * stay apart. How many there are. */
static size_t take_all_mappings(char **from, size_t pages_taken)
{
    size_t taken = 0;
    *from = (char *)mmap(NULL, pages_taken * page_bytes(), PROT_NONE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (*from == MAP_FAILED) return 0;
    while (taken < pages_taken &&
           mprotect(*from + taken * page_bytes(), page_bytes(), PROT_READ) == 0) {
        taken += 2;
    }
    return taken;
}

static void mappings_that_are_used_up_are_an_error(wb_device *device)
{
    enum { MOST = 400000 };
    wb_buffer *buffer = NULL;
    char *from = NULL;
    char path[300];
    device = opened(NULL);
    file_name(path, sizeof path, "maps");
    REQUIRE(write_pattern(path, 5000));
    wb_device_stats before = measure(device);
    small_requests_succeed(device, before);
    const size_t taken = take_all_mappings(&from, MOST);
    if (taken == 0 || taken >= MOST) NOT_RUN("vm.max_map_count is too large here to be used up");
    const uint64_t mapped = process_bytes("VmSize:");
    for (int i = 0; i < 3; i++) {
        CHECK_ERROR(WB_ERR_OUT_OF_MEMORY, wb_buffer_alloc(device, 8 << 20, NULL, &buffer, &error),
                    "asked 8.0 MiB|vm.max_map_count");
        CHECK(buffer == NULL);
    }
    wb_status mapping = wb_buffer_map_file(device, path, 0, 0, NULL, &buffer, &error);
    if (mapping != WB_OK) {
        CHECK_SAME(mapping, WB_ERR_OUT_OF_MEMORY);
        CHECK(strstr(error.message, "vm.max_map_count") != NULL);
    }
    wb_buffer_release(buffer);
    CHECK_USAGE(device, before);
    CHECK(process_bytes("VmSize:") <= mapped + (1 << 20)); /* and no address space is lost */
    CHECK(munmap(from, MOST * page_bytes()) == 0);
    small_requests_succeed(device, before);
    wb_device_release(device);
    unlink(path);
}

static void address_space_that_has_no_room_for_a_file_is_out_of_memory(wb_device *device)
{
    wb_buffer_options options = WB_BUFFER_OPTIONS_INIT;
    wb_buffer *buffer = NULL;
    struct rlimit limit;
    char path[300];
    device = opened(NULL);
    file_name(path, sizeof path, "space");
    int file = open(path, O_CREAT | O_RDWR, 0600);
    REQUIRE(file >= 0 && ftruncate(file, (off_t)2 << 30) == 0);
    close(file);
    wb_device_stats before = measure(device);
    options.pin = WB_TRISTATE_OFF;
    limit.rlim_cur = limit.rlim_max = process_bytes("VmSize:") + (256 << 20);
    REQUIRE(setrlimit(RLIMIT_AS, &limit) == 0);
    CHECK_ERROR(WB_ERR_OUT_OF_MEMORY, wb_buffer_map_file(device, path, 0, 0, &options, &buffer, &error),
                "2.0 GiB|RLIMIT_AS");
    CHECK(buffer == NULL);
    CHECK_USAGE(device, before);
    CHECK_OK(wb_buffer_map_file(device, path, 0, 1 << 20, &options, &buffer, &error));
    wb_buffer_release(buffer);
    small_requests_succeed(device, before);
    wb_device_release(device);
    unlink(path);
}

/* Leaves none for the process: what it opened stays open. */
static int take_all_files(void)
{
    struct rlimit limit;
    int file, last = -1;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return 0;
    limit.rlim_cur = 64;
    if (setrlimit(RLIMIT_NOFILE, &limit) != 0) return 0;
    while ((file = open("/dev/null", O_RDONLY)) >= 0) last = file;
    return last;
}

static void files_that_cannot_be_opened_are_errors(wb_device *device)
{
    wb_buffer *buffer = NULL;
    wb_safetensors *file = NULL;
    wb_buffer_stats usage = WB_BUFFER_STATS_INIT;
    unsigned char *memory = (unsigned char *)pages(SCENE_BYTES);
    device = opened(NULL);
    REQUIRE(write_tensors_file() && memory != NULL);
    wb_device_stats before = measure(device);
    small_requests_succeed(device, before);
    const int last = take_all_files();
    REQUIRE(last > 0);
    CHECK_ERROR(WB_ERR_FILE_IO, wb_buffer_map_file(device, scene_path, 0, 0, NULL, &buffer, &error),
                "cannot be opened|os error 24");
    CHECK_SAME(error.driver_code, 24); /* EMFILE */
    CHECK_ERROR(WB_ERR_FILE_IO, wb_safetensors_open(device, scene_path, NULL, &file, &error),
                "cannot be opened");
    CHECK_ERROR(WB_ERR_INTERNAL,
                wb_buffer_register(device, memory, SCENE_BYTES, NULL, NULL, NULL, &buffer, &error),
                "maps|os error 24");
    CHECK(buffer == NULL && file == NULL);
    CHECK_USAGE(device, before);
    if (!on_cuda()) { /* needs none; a driver, or its double, does */
        CHECK_OK(wb_buffer_alloc(device, 1 << 20, NULL, &buffer, &error));
        CHECK_ERROR(WB_ERR_INTERNAL, wb_buffer_get_stats(buffer, &usage, &error),
                    "smaps|os error 24");
        wb_buffer_release(buffer);
    }
    close(last);
    buffer = NULL;
    close(last - 1);
    CHECK_OK(wb_buffer_map_file(device, scene_path, 0, 0, NULL, &buffer, &error));
    wb_buffer_release(buffer);
    small_requests_succeed(device, before);
    wb_device_release(device);
    unlink(scene_path);
}

/* No thread can be started: root has no such limit, so this becomes nobody. */
static int may_start_no_thread(void)
{
    const struct rlimit none = {0, 0};
    if (geteuid() == 0 && setuid(65534) != 0) return 0;
    return setrlimit(RLIMIT_NPROC, &none) == 0;
}

static void threads_that_cannot_be_had_are_errors_or_not_needed(wb_device *device)
{
    wb_buffer_options options = WB_BUFFER_OPTIONS_INIT;
    wb_buffer *buffer = NULL, *deferred = NULL;
    void *stream = NULL;
    device = opened(NULL);
    REQUIRE_OK(wb_buffer_alloc(device, SCENE_BYTES, NULL, &deferred, &error));
    CHECK_OK(wb_device_stream_call(device, NULL, scene_called, &scene.called, &error));
    CHECK_OK(wb_device_stream_synchronize(device, NULL, &error)); /* the stream has its thread */
    wb_device_stats before = measure(device);
    if (!may_start_no_thread()) NOT_RUN("this process cannot become a user with a limit of threads");
    options.threads = 8;
    options.pin = WB_TRISTATE_OFF;
    CHECK_OK(wb_buffer_alloc(device, 100 << 20, &options, &buffer, &error)); /* by this thread alone */
    wb_buffer_release(buffer);
    if (!on_cuda()) {
        CHECK_ERROR(WB_ERR_OUT_OF_MEMORY, wb_device_stream_new(device, &stream, &error),
                    "thread|RLIMIT_NPROC");
        CHECK(stream == NULL);
    }
    CHECK_ERROR(WB_ERR_OUT_OF_MEMORY, wb_buffer_release_after(deferred, NULL, &error),
                "thread|RLIMIT_NPROC");
    CHECK_USAGE(device, before);
    wb_buffer_release(deferred); /* the reference is still ours */
    CHECK_SAME(measure(device).buffers, 0);
    wb_device_release(device);
}

/* A real device's memory is everybody's: it is not filled here, only asked for too much. */
static int on_hardware(void)
{
    return on_cuda() && !on_double();
}

static void more_than_the_device_has_is_an_error(wb_device *device)
{
    uint64_t address = 0;
    device = opened(NULL);
    wb_device_stats before = measure(device);
    CHECK_ERROR(WB_ERR_DEVICE_MEMORY,
                wb_device_alloc(device, (uint64_t)1 << 50, &address, &error),
                on_cuda() ? "cuMemAlloc_v2" : "1048576.0 GiB");
    CHECK(address == 0);
    small_requests_succeed(device, before);
    wb_device_release(device);
}

static void device_memory_that_is_used_up_is_an_error(wb_device *device)
{
    if (on_hardware()) NOT_RUN("it would fill the device: the double has a small one");
    wb_device_options options = WB_DEVICE_OPTIONS_INIT;
    uint64_t first = 0, second = 0;
    if (on_cuda()) {
        setenv("WB_DOUBLE_CAPACITY", "8388608", 1);
    } else {
        options.capacity_bytes = 8 << 20;
    }
    device = opened(&options);
    wb_device_stats before = measure(device);
    CHECK_OK(wb_device_alloc(device, 6 << 20, &first, &error));
    CHECK_ERROR(WB_ERR_DEVICE_MEMORY, wb_device_alloc(device, 4 << 20, &second, &error),
                on_cuda() ? "cuMemAlloc_v2" : "asked 4.0 MiB|2.0 MiB|8.0 MiB");
    CHECK(second == 0);
    CHECK_OK(wb_device_alloc(device, 1 << 20, &second, &error));
    CHECK_OK(wb_device_free(device, second, &error));
    CHECK_OK(wb_device_free(device, first, &error));
    double bandwidth = 0;
    CHECK_OK(wb_device_alloc(device, 1 << 20, &first, &error));
    CHECK_ERROR(WB_ERR_DEVICE_MEMORY, wb_device_measure_link(device, &bandwidth, &error), "");
    CHECK_OK(wb_device_free(device, first, &error));
    CHECK(bandwidth == 0);
    small_requests_succeed(device, before);
    wb_device_release(device);
}

/* The slots have to grow for a larger parameter, and the device has no room for them. */
static void slots_that_find_no_room_are_an_error_until_there_is(wb_device *device)
{
    enum { LARGE = 3 << 20 };
    wb_device_options options = WB_DEVICE_OPTIONS_INIT;
    int64_t shape[] = {LARGE};
    wb_layout layout = layout_of(WB_DTYPE_U8, 1, shape, NULL, 0);
    unsigned char *large = (unsigned char *)pages(LARGE);
    unsigned char seen[16];
    uint64_t taken = 0;
    if (on_hardware()) NOT_RUN("it would fill the device: the double has a small one");
    REQUIRE(large != NULL);
    memset(large, 77, LARGE);
    if (on_cuda()) {
        setenv("WB_DOUBLE_CAPACITY", "16777216", 1);
    } else {
        options.capacity_bytes = 16 << 20;
    }
    every_begin();
    device = opened(&options);
    REQUIRE(scene_begin_on(&scene, device));
    CHECK_OK(wb_device_alloc(scene.device, 14 << 20, &taken, &error));
    CHECK_ERROR(WB_ERR_DEVICE_MEMORY,
                wb_offloader_replace(scene.offloader, "first", number(large), &layout,
                                     scene.stream, &error),
                "");
    CHECK_ERROR(WB_ERR_DEVICE_MEMORY,
                wb_offloader_acquire_group(scene.offloader, 0, scene.stream, &error),
                "slot|wb_offloader_compact");
    CHECK_ERROR(WB_ERR_DEVICE_MEMORY,
                wb_offloader_compact(scene.offloader, scene.stream, &error), "");
    CHECK_OK(wb_device_free(scene.device, taken, &error));
    CHECK_OK(wb_offloader_compact(scene.offloader, scene.stream, &error));
    CHECK_OK(wb_offloader_acquire_group(scene.offloader, 0, scene.stream, &error));
    CHECK_OK(wb_offloader_get_parameter_info(scene.offloader, "first", &info.offloaded, &error));
    CHECK_OK(wb_device_copy(scene.device, number(seen), info.offloaded.device_address, sizeof seen,
                            scene.stream, &error));
    CHECK_OK(wb_device_stream_synchronize(scene.device, scene.stream, &error));
    CHECK(seen[0] == 77 && seen[15] == 77);
    CHECK_OK(wb_offloader_release_group(scene.offloader, 0, scene.stream, &error));
    scene_end(&scene);
    munmap(large, LARGE);
}

/* A file system without room, as a full /dev/shm: files on it are mapped and read as anywhere, and
 * nothing here needs room on it. */
static void a_full_tmpfs_is_not_needed(wb_device *device)
{
    char folder[300], path[400];
    wb_buffer *buffer = NULL;
    file_name(folder, sizeof folder, "tmpfs");
    if (unshare(CLONE_NEWNS) != 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0) {
        NOT_RUN("this user may not have a mount namespace of its own");
    }
    REQUIRE(mkdir(folder, 0700) == 0);
    REQUIRE(mount("tmpfs", folder, "tmpfs", 0, "size=1m") == 0);
    REQUIRE(mount("tmpfs", "/dev/shm", "tmpfs", 0, "size=4k") == 0);
    CHECK(!write_pattern("/dev/shm/full", 1 << 20)); /* takes all that there is */
    snprintf(path, sizeof path, "%s/weights", folder);
    CHECK(!write_pattern(path, 8 << 20)); /* what got there is a file that was cut off */
    device = opened(NULL);
    wb_device_stats before = measure(device);
    CHECK_ERROR(WB_ERR_OUT_OF_RANGE, wb_buffer_map_file(device, path, 0, 8 << 20, NULL, &buffer, &error),
                "asked for 8388608 bytes");
    CHECK_OK(wb_buffer_map_file(device, path, 0, 0, NULL, &buffer, &error));
    CHECK(holds_pattern(describe(buffer).data, 0, 1000));
    wb_buffer_release(buffer);
    small_requests_succeed(device, before);
    wb_device_release(device);
    umount("/dev/shm");
    umount(folder);
    rmdir(folder);
}

CHECK_MAIN(CASE_ALONE(EVERYWHERE, a_control_group_that_is_full_is_an_error_and_no_kill),
           CASE_ALONE(EVERYWHERE, mappings_that_are_used_up_are_an_error),
           CASE_ALONE(EVERYWHERE, address_space_that_has_no_room_for_a_file_is_out_of_memory),
           CASE_ALONE(EVERYWHERE, files_that_cannot_be_opened_are_errors),
           CASE_ALONE(EVERYWHERE, threads_that_cannot_be_had_are_errors_or_not_needed),
           CASE_ALONE(EVERYWHERE, more_than_the_device_has_is_an_error),
           CASE_ALONE(EVERYWHERE, device_memory_that_is_used_up_is_an_error),
           CASE_ALONE(EVERYWHERE, slots_that_find_no_room_are_an_error_until_there_is),
           CASE_ALONE(EVERYWHERE, a_full_tmpfs_is_not_needed))

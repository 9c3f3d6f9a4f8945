/* Exhausted resources of the kernel and the device. A call fails with the status for it and a message of what
 * was asked, what was found and what to do; it leaves nothing allocated, and a request that fits succeeds. */
#include <pthread.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/resource.h>

#include "every_function.h"

static void check_small_request(wb_device *device, wb_device_stats before)
{
    wb_buffer *buffer = NULL;
    CHECK_STATS(device, before);
    CHECK_OK(wb_buffer_alloc(device, 1 << 20, NULL, &buffer, &error));
    wb_buffer_release(buffer);
    CHECK_STATS(device, before);
}

/* Finds the folder of this process's memory control group, and the name of the file with its limit. */
static int memory_group(char *folder, size_t capacity, const char **limit)
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
        snprintf(folder, capacity, "/sys/fs/cgroup%s%s", first ? "/memory" : "", path);
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

/* Pinning makes pages present: only pages that are not present yet count against the limit. */
static void check_existing_memory_and_files(wb_device *device)
{
    const uint64_t bytes = 1 << 30, present = 150 << 20;
    wb_buffer_options options = WB_BUFFER_OPTIONS_INIT;
    wb_buffer *buffer = NULL;
    char path[300];
    char *memory = (char *)pages(bytes);
    REQUIRE(memory != NULL);
    options.pin = WB_TRISTATE_ON;
    CHECK_ERROR(WB_ERR_CGROUP,
                wb_buffer_register(device, memory, bytes, &options, NULL, NULL, &buffer, &error),
                "asked|control group|weighbridge-|256.0 MiB");
    memset(memory, 1, present);
    if (CHECK_OK(wb_buffer_register(device, memory, present, &options, NULL, NULL, &buffer, &error))) {
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

struct asked {
    wb_device *device;
    pthread_barrier_t *start;
    wb_buffer *buffer;
    wb_status status;
};

static void *ask(void *user)
{
    struct asked *asked = (struct asked *)user;
    wb_buffer_options options = WB_BUFFER_OPTIONS_INIT;
    options.threads = 1;
    pthread_barrier_wait(asked->start);
    asked->status = wb_buffer_alloc(asked->device, 160 << 20, &options, &asked->buffer, NULL);
    return NULL;
}

/* Each request fits alone, and neither is present when the other is checked. */
static void check_two_requests_at_once(wb_device *device)
{
    pthread_t threads[2];
    pthread_barrier_t start;
    struct asked asked[2] = {{device, &start, NULL, WB_OK}, {device, &start, NULL, WB_OK}};
    REQUIRE(pthread_barrier_init(&start, NULL, 2) == 0);
    for (int i = 0; i < 2; i++) REQUIRE(pthread_create(&threads[i], NULL, ask, &asked[i]) == 0);
    for (int i = 0; i < 2; i++) pthread_join(threads[i], NULL);
    CHECK((asked[0].status == WB_OK) != (asked[1].status == WB_OK));
    for (int i = 0; i < 2; i++) {
        CHECK(asked[i].status == WB_OK || asked[i].status == WB_ERR_CGROUP);
        wb_buffer_release(asked[i].buffer);
    }
    pthread_barrier_destroy(&start);
}

static void a_full_control_group_is_an_error_and_not_a_kill(wb_device *device)
{
    char group[4200], inner[4300], self[16];
    const char *limit = NULL;
    wb_buffer *buffer = NULL, *held = NULL;
    if (!memory_group(group, sizeof group, &limit)) NOT_RUN("no memory control group is mounted");
    snprintf(inner, sizeof inner, "%s/weighbridge-%d", group, (int)getpid());
    snprintf(self, sizeof self, "%d", (int)getpid());
    if (mkdir(inner, 0700) != 0) NOT_RUN("this user cannot make a control group");
    if (!write_text(inner, limit, "268435456") || !write_text(inner, "cgroup.procs", self)) {
        rmdir(inner);
        NOT_RUN("the control group does not accept a limit or this process");
    }
    device = open_device(test_device(), NULL);
    wb_device_stats before = device_stats(device);
    CHECK_ERROR(WB_ERR_CGROUP, wb_buffer_alloc(device, 1 << 30, NULL, &buffer, &error),
                "asked 1.0 GiB|control group|weighbridge-|256.0 MiB|raise its memory limit");
    CHECK(buffer == NULL);
    CHECK_OK(wb_buffer_alloc(device, 128 << 20, NULL, &held, &error));
    CHECK_ERROR(WB_ERR_CGROUP, wb_buffer_alloc(device, 200 << 20, NULL, &buffer, &error),
                "control group");
    wb_buffer_release(held);
    CHECK_OK(wb_buffer_alloc(device, 200 << 20, NULL, &buffer, &error));
    wb_buffer_release(buffer);
    check_existing_memory_and_files(device);
    check_two_requests_at_once(device);
    check_small_request(device, before);
    wb_device_release(device);
    CHECK(write_text(group, "cgroup.procs", self));
    CHECK(rmdir(inner) == 0);
}

/* Makes mappings until the kernel refuses. Every second page is readable, so that the kernel cannot merge
 * them. Returns their number. */
static size_t use_up_mappings(char **from, size_t most_pages)
{
    size_t taken = 0;
    *from = (char *)mmap(NULL, most_pages * page_bytes(), PROT_NONE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (*from == MAP_FAILED) return 0;
    while (taken < most_pages &&
           mprotect(*from + taken * page_bytes(), page_bytes(), PROT_READ) == 0) {
        taken += 2;
    }
    return taken;
}

static void exhausted_mappings_are_an_error(wb_device *device)
{
    enum { MOST = 400000 };
    wb_buffer *buffer = NULL;
    char *from = NULL;
    char path[300];
    device = open_device(test_device(), NULL);
    file_name(path, sizeof path, "maps");
    REQUIRE(write_pattern(path, 5000));
    wb_device_stats before = device_stats(device);
    check_small_request(device, before);
    const size_t taken = use_up_mappings(&from, MOST);
    if (taken == 0 || taken >= MOST) NOT_RUN("vm.max_map_count is too large to use up");
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
    CHECK_STATS(device, before);
    CHECK(process_bytes("VmSize:") <= mapped + (1 << 20)); /* no address space leaks */
    CHECK(munmap(from, MOST * page_bytes()) == 0);
    check_small_request(device, before);
    wb_device_release(device);
    unlink(path);
}

static void mapping_a_file_past_the_address_space_limit_is_out_of_memory(wb_device *device)
{
    wb_buffer_options options = WB_BUFFER_OPTIONS_INIT;
    wb_buffer *buffer = NULL;
    struct rlimit limit;
    char path[300];
    device = open_device(test_device(), NULL);
    file_name(path, sizeof path, "space");
    int file = open(path, O_CREAT | O_RDWR, 0600);
    REQUIRE(file >= 0 && ftruncate(file, (off_t)2 << 30) == 0);
    close(file);
    wb_device_stats before = device_stats(device);
    options.pin = WB_TRISTATE_OFF;
    limit.rlim_cur = limit.rlim_max = process_bytes("VmSize:") + (256 << 20);
    REQUIRE(setrlimit(RLIMIT_AS, &limit) == 0);
    CHECK_ERROR(WB_ERR_OUT_OF_MEMORY, wb_buffer_map_file(device, path, 0, 0, &options, &buffer, &error),
                "2.0 GiB|RLIMIT_AS");
    CHECK(buffer == NULL);
    CHECK_STATS(device, before);
    CHECK_OK(wb_buffer_map_file(device, path, 0, 1 << 20, &options, &buffer, &error));
    wb_buffer_release(buffer);
    check_small_request(device, before);
    wb_device_release(device);
    unlink(path);
}

/* Opens files up to the limit. Returns the last descriptor. */
static int use_up_descriptors(void)
{
    struct rlimit limit;
    int file, last = -1;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return 0;
    limit.rlim_cur = 64;
    if (setrlimit(RLIMIT_NOFILE, &limit) != 0) return 0;
    while ((file = open("/dev/null", O_RDONLY)) >= 0) last = file;
    return last;
}

static void exhausted_file_descriptors_are_errors(wb_device *device)
{
    wb_buffer *buffer = NULL;
    wb_safetensors *file = NULL;
    wb_buffer_stats usage = WB_BUFFER_STATS_INIT;
    unsigned char *memory = (unsigned char *)pages(SCENE_BYTES);
    device = open_device(test_device(), NULL);
    REQUIRE(write_tensors_file() && memory != NULL);
    wb_device_stats before = device_stats(device);
    check_small_request(device, before);
    const int last = use_up_descriptors();
    REQUIRE(last > 0);
    CHECK_ERROR(WB_ERR_FILE_IO, wb_buffer_map_file(device, scene_path, 0, 0, NULL, &buffer, &error),
                "cannot be opened|os error 24");
    CHECK_SAME(error.code, 24); /* EMFILE */
    CHECK_SAME(error.code_domain, WB_CODE_ERRNO);
    CHECK_ERROR(WB_ERR_FILE_IO, wb_safetensors_open(device, scene_path, NULL, &file, &error),
                "cannot be opened");
    CHECK_ERROR(WB_ERR_INTERNAL,
                wb_buffer_register(device, memory, SCENE_BYTES, NULL, NULL, NULL, &buffer, &error),
                "maps|os error 24");
    CHECK(buffer == NULL && file == NULL);
    CHECK_STATS(device, before);
    if (!on_cuda()) { /* the host device needs no descriptor to allocate */
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
    check_small_request(device, before);
    wb_device_release(device);
    unlink(scene_path);
}

/* Makes every new thread fail. The limit does not apply to root, so this changes the user. */
static int forbid_threads(void)
{
    const struct rlimit none = {0, 0};
    if (geteuid() == 0 && setuid(65534) != 0) return 0;
    return setrlimit(RLIMIT_NPROC, &none) == 0;
}

static void exhausted_threads_are_errors_or_not_needed(wb_device *device)
{
    wb_buffer_options options = WB_BUFFER_OPTIONS_INIT;
    wb_buffer *buffer = NULL, *deferred = NULL;
    void *stream = NULL;
    device = open_device(test_device(), NULL);
    REQUIRE_OK(wb_buffer_alloc(device, SCENE_BYTES, NULL, &deferred, &error));
    CHECK_OK(wb_device_stream_call(device, NULL, scene_called, &scene.called, &error));
    CHECK_OK(wb_device_stream_synchronize(device, NULL, &error)); /* starts the thread of the stream */
    wb_device_stats before = device_stats(device);
    if (!forbid_threads()) NOT_RUN("this process cannot become a user with a thread limit");
    options.threads = 8;
    options.pin = WB_TRISTATE_OFF;
    CHECK_OK(wb_buffer_alloc(device, 100 << 20, &options, &buffer, &error)); /* uses this thread alone */
    wb_buffer_release(buffer);
    if (!on_cuda()) {
        CHECK_ERROR(WB_ERR_OUT_OF_MEMORY, wb_device_stream_new(device, &stream, &error),
                    "thread|RLIMIT_NPROC");
        CHECK(stream == NULL);
    }
    CHECK_ERROR(WB_ERR_OUT_OF_MEMORY, wb_buffer_release_after(deferred, NULL, &error),
                "thread|RLIMIT_NPROC");
    CHECK_STATS(device, before);
    wb_buffer_release(deferred); /* the failed call did not release it */
    CHECK_SAME(device_stats(device).buffers, 0);
    wb_device_release(device);
}

/* Other processes use the memory of a real device, so it is not filled. */
static int on_hardware(void)
{
    return on_cuda() && !on_double();
}

static void allocating_more_than_the_device_has_is_an_error(wb_device *device)
{
    void *address = NULL;
    device = open_device(test_device(), NULL);
    wb_device_stats before = device_stats(device);
    CHECK_ERROR(WB_ERR_DEVICE_MEMORY,
                wb_device_alloc(device, (uint64_t)1 << 50, &address, &error),
                on_cuda() ? "cuMemAlloc_v2" : "1048576.0 GiB");
    CHECK(address == NULL);
    check_small_request(device, before);
    wb_device_release(device);
}

static void exhausted_device_memory_is_an_error(wb_device *device)
{
    if (on_hardware()) NOT_RUN("it would fill the device");
    wb_device_options options = WB_DEVICE_OPTIONS_INIT;
    void *first = NULL, *second = NULL;
    if (on_cuda()) {
        setenv("WB_DOUBLE_CAPACITY", "8388608", 1);
    } else {
        options.capacity_bytes = 8 << 20;
    }
    device = open_device(test_device(), &options);
    wb_device_stats before = device_stats(device);
    CHECK_OK(wb_device_alloc(device, 6 << 20, &first, &error));
    CHECK_ERROR(WB_ERR_DEVICE_MEMORY, wb_device_alloc(device, 4 << 20, &second, &error),
                on_cuda() ? "cuMemAlloc_v2" : "asked 4.0 MiB|2.0 MiB|8.0 MiB");
    CHECK(second == NULL);
    CHECK_OK(wb_device_alloc(device, 1 << 20, &second, &error));
    CHECK_OK(wb_device_free(device, second, &error));
    CHECK_OK(wb_device_free(device, first, &error));
    double bandwidth = 0;
    CHECK_OK(wb_device_alloc(device, 1 << 20, &first, &error));
    CHECK_ERROR(WB_ERR_DEVICE_MEMORY, wb_device_measure_link(device, &bandwidth, &error), "");
    CHECK_OK(wb_device_free(device, first, &error));
    CHECK(bandwidth == 0);
    check_small_request(device, before);
    wb_device_release(device);
}

/* A larger parameter needs larger slots, and the device has no memory for them. */
static void slots_that_do_not_fit_fail_until_memory_is_freed(wb_device *device)
{
    enum { LARGE = 3 << 20 };
    wb_device_options options = WB_DEVICE_OPTIONS_INIT;
    int64_t shape[] = {LARGE};
    wb_layout layout = layout_of(WB_DTYPE_U8, 1, shape, NULL, 0);
    unsigned char *large = (unsigned char *)pages(LARGE);
    unsigned char seen[16];
    void *taken = NULL;
    if (on_hardware()) NOT_RUN("it would fill the device");
    REQUIRE(large != NULL);
    memset(large, 77, LARGE);
    if (on_cuda()) {
        setenv("WB_DOUBLE_CAPACITY", "25165824", 1);
    } else {
        options.capacity_bytes = 24 << 20; /* of which 8 MiB are slots behind fixed addresses */
    }
    every_begin();
    device = open_device(test_device(), &options);
    REQUIRE(scene_begin_on(device));
    CHECK_OK(wb_device_alloc(own.device, 14 << 20, &taken, &error));
    CHECK_ERROR(WB_ERR_DEVICE_MEMORY,
                wb_offloader_replace(own.offloader, "first", large, &layout, own.stream, &error),
                "");
    CHECK_ERROR(WB_ERR_DEVICE_MEMORY,
                wb_offloader_acquire_group(own.offloader, 0, own.stream, &error),
                "slot|wb_offloader_compact");
    CHECK_ERROR(WB_ERR_DEVICE_MEMORY,
                wb_offloader_compact(own.offloader, own.stream, &error), "");
    CHECK_OK(wb_device_free(own.device, taken, &error));
    CHECK_OK(wb_offloader_compact(own.offloader, own.stream, &error));
    CHECK_OK(wb_offloader_acquire_group(own.offloader, 0, own.stream, &error));
    CHECK_OK(wb_offloader_get_parameter_info(own.offloader, 0, &info.offloaded, &error));
    CHECK_OK(wb_device_copy(own.device, seen, info.offloaded.device_address, sizeof seen, own.stream,
                            &error));
    CHECK_OK(wb_device_stream_synchronize(own.device, own.stream, &error));
    CHECK(seen[0] == 77 && seen[15] == 77);
    CHECK_OK(wb_offloader_release_group(own.offloader, 0, own.stream, &error));
    scene_end();
    munmap(large, LARGE);
}

/* Files on a full file system, such as /dev/shm, can be mapped and read; nothing else needs space there. */
static void a_full_tmpfs_does_not_matter(wb_device *device)
{
    char folder[300], path[400];
    wb_buffer *buffer = NULL;
    file_name(folder, sizeof folder, "tmpfs");
    if (unshare(CLONE_NEWNS) != 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0) {
        NOT_RUN("this user cannot make a mount namespace");
    }
    REQUIRE(mkdir(folder, 0700) == 0);
    REQUIRE(mount("tmpfs", folder, "tmpfs", 0, "size=1m") == 0);
    REQUIRE(mount("tmpfs", "/dev/shm", "tmpfs", 0, "size=4k") == 0);
    CHECK(!write_pattern("/dev/shm/full", 1 << 20)); /* fills it */
    snprintf(path, sizeof path, "%s/weights", folder);
    CHECK(!write_pattern(path, 8 << 20)); /* leaves a truncated file */
    device = open_device(test_device(), NULL);
    wb_device_stats before = device_stats(device);
    CHECK_ERROR(WB_ERR_OUT_OF_RANGE, wb_buffer_map_file(device, path, 0, 8 << 20, NULL, &buffer, &error),
                "asked for 8388608 bytes");
    CHECK_OK(wb_buffer_map_file(device, path, 0, 0, NULL, &buffer, &error));
    CHECK(holds_pattern(buffer_info(buffer).data, 0, 1000));
    wb_buffer_release(buffer);
    check_small_request(device, before);
    wb_device_release(device);
    umount("/dev/shm");
    umount(folder);
    rmdir(folder);
}

CHECK_MAIN(CASE_ALONE(EVERYWHERE, a_full_control_group_is_an_error_and_not_a_kill),
           CASE_ALONE(EVERYWHERE, exhausted_mappings_are_an_error),
           CASE_ALONE(EVERYWHERE, mapping_a_file_past_the_address_space_limit_is_out_of_memory),
           CASE_ALONE(EVERYWHERE, exhausted_file_descriptors_are_errors),
           CASE_ALONE(EVERYWHERE, exhausted_threads_are_errors_or_not_needed),
           CASE_ALONE(EVERYWHERE, allocating_more_than_the_device_has_is_an_error),
           CASE_ALONE(EVERYWHERE, exhausted_device_memory_is_an_error),
           CASE_ALONE(EVERYWHERE, slots_that_do_not_fit_fail_until_memory_is_freed),
           CASE_ALONE(EVERYWHERE, a_full_tmpfs_does_not_matter))

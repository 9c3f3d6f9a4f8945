/* Cancelled work, and memory that cannot be locked, mapped or backed by huge pages. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <linux/capability.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include "memory.h"

struct stop {
    wb_phase phase;
    uint64_t at;
    int calls_after;
    int stopped;
};

static int32_t stop_at(void *user, wb_phase phase, uint64_t done, uint64_t total)
{
    struct stop *stop = (struct stop *)user;
    (void)total;
    if (stop->stopped) stop->calls_after++;
    stop->stopped |= phase == stop->phase && done >= stop->at;
    return stop->stopped;
}

static void work_cancelled_in_any_phase_leaves_nothing(wb_device *device)
{
    const uint64_t bytes = 100 << 20;
    const struct stop stops[] = {{WB_PHASE_FAULT, 0, 0, 0}, {WB_PHASE_FAULT, 40 << 20, 0, 0},
                                 {WB_PHASE_PIN, 0, 0, 0},   {WB_PHASE_PIN, 50 << 20, 0, 0},
                                 {WB_PHASE_READ, 0, 0, 0},  {WB_PHASE_READ, 40 << 20, 0, 0}};
    wb_device_stats before = device_stats(device);
    uint64_t locked = process_bytes("VmLck:");
    char path[300];
    file_name(path, sizeof path, "cancel");
    int file = open(path, O_CREAT | O_RDWR, 0600);
    REQUIRE(file >= 0 && ftruncate(file, (off_t)bytes) == 0);
    close(file);
    for (size_t i = 0; i < sizeof stops / sizeof stops[0]; i++) {
        struct stop stop = stops[i];
        wb_buffer_options options = WB_BUFFER_OPTIONS_INIT;
        wb_buffer *buffer = NULL;
        options.pin = WB_TRISTATE_ON;
        options.chunk_bytes = 10 << 20;
        options.file_mode = WB_FILE_MODE_READ;
        options.progress = stop_at;
        options.progress_user = &stop;
        CHECK_ERROR(WB_ERR_CANCELLED,
                    stop.phase == WB_PHASE_READ
                        ? wb_buffer_map_file(device, path, 0, 0, &options, &buffer, &error)
                        : wb_buffer_alloc(device, bytes, &options, &buffer, &error),
                    "cancelled");
        CHECK(buffer == NULL);
        CHECK_SAME(stop.calls_after, 0);
        CHECK_STATS(device, before);
        CHECK_SAME(process_bytes("VmLck:"), locked);
        CHECK_SAME(double_alive("registrations"), 0);
    }
    unlink(path);
}

/* Returns 0 if this process can now lock no more than the limit. */
static int drop_capability_to_lock(uint64_t limit)
{
    struct rlimit memlock = {limit, limit};
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2];
    if (setrlimit(RLIMIT_MEMLOCK, &memlock) != 0) return -1;
    if (syscall(SYS_capget, &header, data) != 0) return -1;
    data[0].effective &= ~(1u << CAP_IPC_LOCK);
    data[0].permitted &= ~(1u << CAP_IPC_LOCK);
    data[0].inheritable &= ~(1u << CAP_IPC_LOCK);
    return (int)syscall(SYS_capset, &header, data);
}

static void pinning_past_the_lock_limit_is_an_error_that_names_it(wb_device *device)
{
    wb_buffer_options options = WB_BUFFER_OPTIONS_INIT;
    wb_buffer *buffer = NULL;
    char path[300];
    (void)device;
    file_name(path, sizeof path, "memlock");
    REQUIRE(write_pattern(path, 1 << 20));
    if (drop_capability_to_lock(65536) != 0) NOT_RUN("this process cannot drop CAP_IPC_LOCK");
    REQUIRE_OK(wb_device_open("host", NULL, &device, &error));
    wb_device_info info = describe_device(device);
    CHECK_SAME(info.memlock_limit, 65536);
    CHECK_SAME(info.pin, 0);
    CHECK(strstr(info.pin_reason, "RLIMIT_MEMLOCK is 64.0 KiB") != NULL ||
          strstr(info.pin_reason, "RLIMIT_MEMLOCK is 65536") != NULL);
    options.pin = WB_TRISTATE_ON;
    wb_device_stats before = device_stats(device);
    CHECK_ERROR(WB_ERR_MEMLOCK, wb_buffer_alloc(device, 1 << 20, &options, &buffer, &error),
                "asked 1.0 MiB|RLIMIT_MEMLOCK is|65536 bytes|WEIGHBRIDGE_DISABLE_PIN_MEMORY=1");
    CHECK_SAME(error.code_domain, WB_CODE_ERRNO);
    CHECK_SAME(error.code, ENOMEM);
    CHECK_ERROR(WB_ERR_MEMLOCK, wb_buffer_map_file(device, path, 0, 0, &options, &buffer, &error),
                "RLIMIT_MEMLOCK");
    options.chunk_bytes = 16384; /* the first chunks are locked, then unlocked */
    CHECK_ERROR(WB_ERR_MEMLOCK, wb_buffer_alloc(device, 1 << 20, &options, &buffer, &error),
                "RLIMIT_MEMLOCK");
    CHECK(buffer == NULL);
    CHECK_STATS(device, before);
    CHECK_SAME(process_bytes("VmLck:"), 0);
    CHECK_OK(wb_buffer_alloc(device, 32768, &options, &buffer, &error));
    wb_buffer_release(buffer);
    CHECK_OK(wb_buffer_alloc(device, 1 << 20, NULL, &buffer, &error)); /* the policy does not pin it */
    CHECK_SAME(buffer_info(buffer).pinning, WB_PINNING_NONE);
    CHECK(strstr(buffer_info(buffer).fallback_reason, "RLIMIT_MEMLOCK") != NULL);
    wb_buffer_release(buffer);
    wb_device_release(device);
    unlink(path);
}

/* In a user namespace, as in a rootless container, the process has every capability, but mlock needs
 * CAP_IPC_LOCK in the initial namespace. */
static void a_user_namespace_does_not_lift_the_lock_limit(wb_device *device)
{
    struct rlimit memlock = {65536, 65536};
    wb_buffer *buffer = NULL;
    (void)device;
    REQUIRE(setrlimit(RLIMIT_MEMLOCK, &memlock) == 0);
    if (unshare(CLONE_NEWUSER) != 0) NOT_RUN("the machine forbids user namespaces");
    REQUIRE_OK(wb_device_open("host", NULL, &device, &error));
    CHECK_SAME(describe_device(device).memlock_limit, 65536);
    CHECK_SAME(describe_device(device).pin, 0);
    CHECK_OK(wb_buffer_alloc(device, 1 << 20, NULL, &buffer, &error));
    CHECK_SAME(buffer_info(buffer).pinning, WB_PINNING_NONE);
    wb_buffer_release(buffer);
    wb_device_release(device);
}

static void required_huge_pages_are_all_huge_or_an_error(wb_device *device)
{
    const uint64_t bytes = (32 << 20) + 5;
    wb_buffer_options options = WB_BUFFER_OPTIONS_INIT;
    wb_buffer *buffer = NULL;
    wb_device_stats before = device_stats(device);
    options.huge_pages = WB_HUGE_PAGES_REQUIRE;
    wb_status status = wb_buffer_alloc(device, bytes, &options, &buffer, &error);
    if (status == WB_OK) {
        CHECK(buffer_usage(buffer).huge_bytes >= 32 << 20);
        CHECK_SAME(buffer_info(buffer).mapped_bytes, whole_pages(bytes));
        wb_buffer_release(buffer);
        return;
    }
    CHECK_SAME(status, WB_ERR_HUGE_PAGES);
    CHECK(strstr(error.message, "WB_HUGE_PAGES_TRY") != NULL);
    CHECK_STATS(device, before);
}

static void required_huge_pages_that_are_disabled_are_an_error(wb_device *device)
{
    wb_buffer_options options = WB_BUFFER_OPTIONS_INIT;
    wb_buffer *buffer = NULL;
    (void)device;
    if (prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0) != 0) NOT_RUN("the kernel has no PR_SET_THP_DISABLE");
    REQUIRE_OK(wb_device_open(test_device(), NULL, &device, &error));
    wb_device_stats before = device_stats(device);
    options.huge_pages = WB_HUGE_PAGES_REQUIRE;
    CHECK_ERROR(WB_ERR_HUGE_PAGES, wb_buffer_alloc(device, 8 << 20, &options, &buffer, &error),
                "required|WB_HUGE_PAGES_TRY");
    CHECK(buffer == NULL);
    CHECK_STATS(device, before);
    options.huge_pages = WB_HUGE_PAGES_TRY;
    CHECK_OK(wb_buffer_alloc(device, 8 << 20, &options, &buffer, &error));
    CHECK_SAME(buffer_usage(buffer).huge_bytes, 0);
    wb_buffer_release(buffer);
    wb_device_release(device);
}

static void allocating_past_the_address_space_limit_is_out_of_memory(wb_device *device)
{
    wb_buffer *buffer = NULL;
    struct rlimit limit;
    (void)device;
    REQUIRE_OK(wb_device_open(test_device(), NULL, &device, &error));
    limit.rlim_cur = limit.rlim_max = process_bytes("VmSize:") + (256 << 20);
    REQUIRE(setrlimit(RLIMIT_AS, &limit) == 0);
    wb_device_stats before = device_stats(device);
    CHECK_ERROR(WB_ERR_OUT_OF_MEMORY, wb_buffer_alloc(device, 1 << 30, NULL, &buffer, &error),
                "asked 1.0 GiB (1073741824 bytes)|RLIMIT_AS");
    CHECK(buffer == NULL);
    CHECK_STATS(device, before);
    CHECK_OK(wb_buffer_alloc(device, 1 << 20, NULL, &buffer, &error));
    wb_buffer_release(buffer);
    wb_device_release(device);
}

/* Files in memory count, and the kernel would end the process with SIGXFSZ. */
static void addresses_past_the_file_size_limit_are_an_error(wb_device *device)
{
    static unsigned char bytes[1 << 20];
    const int64_t shape[] = {sizeof bytes};
    const wb_layout layout = layout_of(WB_DTYPE_U8, 1, shape, NULL, 0);
    const struct rlimit limit = {1 << 20, 1 << 20};
    wb_parameter parameter = WB_PARAMETER_INIT;
    wb_plan_options options = WB_PLAN_OPTIONS_INIT;
    wb_plan *plan = NULL;
    wb_offloader *offloader = NULL;
    (void)device;
    REQUIRE_OK(wb_device_open(test_device(), NULL, &device, &error));
    parameter.name = parameter.group = "table";
    parameter.layout = &layout;
    parameter.source = bytes;
    options.budget_kind = WB_BUDGET_OFFLOAD_BYTES;
    options.budget_bytes = sizeof bytes;
    options.fixed_addresses = WB_TRISTATE_ON;
    REQUIRE_OK(wb_plan_new(device, &parameter, 1, &options, &plan, &error));
    REQUIRE(setrlimit(RLIMIT_FSIZE, &limit) == 0);
    CHECK_ERROR(WB_ERR_FILE_IO, wb_offloader_new(plan, NULL, NULL, &offloader, &error), "RLIMIT_FSIZE");
    CHECK(offloader == NULL);
    wb_plan_release(plan);
    wb_device_release(device);
}

CHECK_MAIN(CASE_ALONE(HOST_ONLY, pinning_past_the_lock_limit_is_an_error_that_names_it),
           CASE_ALONE(HOST_ONLY, a_user_namespace_does_not_lift_the_lock_limit),
           CASE_ALONE(EVERYWHERE, required_huge_pages_that_are_disabled_are_an_error),
           CASE_ALONE(HOST_ONLY, addresses_past_the_file_size_limit_are_an_error),
           CASE_ALONE(EVERYWHERE, allocating_past_the_address_space_limit_is_out_of_memory),
           CASE(work_cancelled_in_any_phase_leaves_nothing),
           CASE(required_huge_pages_are_all_huge_or_an_error))

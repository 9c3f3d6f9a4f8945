/* Files that cannot be mapped: each reason has its status, and nothing stays open or mapped. */
#include <dirent.h>
#include <errno.h>

#include "memory.h"

static int open_files(void)
{
    int count = 0;
    DIR *folder = opendir("/proc/self/fd");
    while (folder != NULL && readdir(folder) != NULL) count++;
    if (folder != NULL) closedir(folder);
    return count;
}

static void check_refused(wb_device *device, const char *path, uint64_t offset, uint64_t bytes,
                          wb_status status, const char *words)
{
    wb_buffer *buffer = NULL;
    wb_device_stats before = measure(device);
    int files = open_files();
    for (wb_file_mode mode = WB_FILE_MODE_AUTO; mode <= WB_FILE_MODE_READ; mode++) {
        wb_buffer_options options = WB_BUFFER_OPTIONS_INIT;
        options.file_mode = mode;
        CHECK_ERROR(status,
                    wb_buffer_map_file(device, path, offset, bytes, &options, &buffer, &error),
                    words);
    }
    if (status == WB_ERR_FILE_MISSING) {
        CHECK_SAME(error.code, ENOENT);
        CHECK_SAME(error.code_domain, WB_CODE_ERRNO);
    }
    CHECK(buffer == NULL);
    CHECK_SAME(open_files(), files);
    CHECK_USAGE(device, before);
}

static void a_missing_file_is_refused(wb_device *device)
{
    wb_safetensors *file = NULL;
    check_refused(device, "/nowhere/model.safetensors", 0, 0, WB_ERR_FILE_MISSING,
                  "/nowhere/model.safetensors does not exist");
    CHECK_ERROR(WB_ERR_FILE_MISSING, wb_safetensors_open(device, "/nowhere/x", NULL, &file, &error),
                "/nowhere/x");
    CHECK(file == NULL);
}

static void an_empty_file_is_refused(wb_device *device)
{
    char path[300];
    file_name(path, sizeof path, "empty");
    REQUIRE(write_file(path, "", 0));
    check_refused(device, path, 0, 0, WB_ERR_FILE_EMPTY, "-empty is empty");
    unlink(path);
}

static void folders_and_device_files_are_refused(wb_device *device)
{
    check_refused(device, "/tmp", 0, 0, WB_ERR_FILE_ACCESS, "/tmp|not a regular file");
    check_refused(device, "/dev/zero", 0, 0, WB_ERR_FILE_ACCESS, "/dev/zero|not a regular file");
}

/* Checks a path in a child process, as another user if `unprivileged`, and removes it. Returns the
 * status of the child, which exits with 77 if it cannot become another user. */
static int check_refused_in_child(const char *path, int unprivileged, const char *words)
{
    int status = 0;
    pid_t child = fork();
    if (child == 0) {
        alarm(20); /* ends a wait for a writer */
        if (unprivileged && geteuid() == 0 && setuid(65534) != 0) _exit(77);
        wb_device *device = open_device(test_device(), NULL);
        if (device != NULL) check_refused(device, path, 0, 0, WB_ERR_FILE_ACCESS, words);
        wb_device_release(device);
        _exit(check_failures > 0);
    }
    waitpid(child, &status, 0);
    unlink(path);
    return status;
}

static void a_fifo_is_refused_without_waiting_for_a_writer(wb_device *device)
{
    char path[300];
    (void)device;
    file_name(path, sizeof path, "fifo");
    REQUIRE(mkfifo(path, 0600) == 0);
    int status = check_refused_in_child(path, 0, "not a regular file");
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

/* Root can read every file. */
static void an_unreadable_file_is_refused(wb_device *device)
{
    char path[300];
    (void)device;
    REQUIRE(pattern_file(path, sizeof path, "secret", 100));
    REQUIRE(chmod(path, 0) == 0);
    int status = check_refused_in_child(path, 1, "may not be read");
    if (WIFEXITED(status) && WEXITSTATUS(status) == 77) {
        NOT_RUN("this process cannot become another user");
    }
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void a_range_past_the_end_is_refused(wb_device *device)
{
    char path[300];
    REQUIRE(pattern_file(path, sizeof path, "range", 1000));
    check_refused(device, path, 1000, 0, WB_ERR_OUT_OF_RANGE, "from byte 1000|1000 bytes");
    check_refused(device, path, 1000, 1, WB_ERR_OUT_OF_RANGE, "asked for 1 bytes");
    check_refused(device, path, 0, 1001, WB_ERR_OUT_OF_RANGE, "asked for 1001 bytes|has 1000");
    check_refused(device, path, 999, 2, WB_ERR_OUT_OF_RANGE, "from byte 999");
    check_refused(device, path, UINT64_MAX, 0, WB_ERR_OUT_OF_RANGE, "18446744073709551615");
    check_refused(device, path, 1, UINT64_MAX, WB_ERR_OUT_OF_RANGE, "18446744073709551615");
    unlink(path);
}

static void truncation_of_a_mapped_file_is_detected(wb_device *device)
{
    char path[300];
    wb_view *view = NULL;
    const int64_t count = 10;
    const wb_layout layout = bytes_layout(&count);
    REQUIRE(pattern_file(path, sizeof path, "cut", 50000));
    wb_buffer *buffer = map_file(device, path, 100, 20000, NULL);
    REQUIRE(buffer != NULL);
    REQUIRE(truncate(path, 20100) == 0); /* the mapped range is complete */
    wb_view_release(new_view(buffer, layout, WB_ACCESSOR_HOST));
    wb_device_stats before = measure(device);
    REQUIRE(truncate(path, 4000) == 0);
    CHECK_ERROR(WB_ERR_FILE_TRUNCATED,
                wb_view_new(buffer, &layout, WB_ACCESSOR_HOST, &view, &error),
                "truncated|20100 bytes|4000 bytes");
    CHECK(view == NULL);
    CHECK_USAGE(device, before);
    wb_buffer_release(buffer);
    unlink(path);
}

static void a_file_cannot_be_mapped_write_combined(wb_device *device)
{
    char path[300];
    wb_buffer_options options = WB_BUFFER_OPTIONS_INIT;
    wb_buffer *buffer = NULL;
    REQUIRE(pattern_file(path, sizeof path, "combined", 100));
    options.write_combined = WB_TRISTATE_ON;
    CHECK_ERROR(WB_ERR_NOT_SUPPORTED,
                wb_buffer_map_file(device, path, 0, 0, &options, &buffer, &error),
                "write-combined");
    CHECK(buffer == NULL);
    unlink(path);
}

CHECK_MAIN(CASE_ALONE(EVERYWHERE, an_unreadable_file_is_refused),
           CASE_ALONE(EVERYWHERE, a_fifo_is_refused_without_waiting_for_a_writer),
           CASE(a_missing_file_is_refused), CASE(an_empty_file_is_refused),
           CASE(folders_and_device_files_are_refused), CASE(a_range_past_the_end_is_refused),
           CASE(truncation_of_a_mapped_file_is_detected),
           CASE(a_file_cannot_be_mapped_write_combined))

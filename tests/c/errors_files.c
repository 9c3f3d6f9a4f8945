/* Files that cannot be mapped: a status of its own for each, and nothing left open or mapped. */
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
        CHECK_ERROR(status, wb_buffer_map_file(device, path, offset, bytes, &options, &buffer, &error),
                    words);
    }
    if (status == WB_ERR_FILE_MISSING) CHECK_SAME(error.driver_code, ENOENT);
    CHECK(buffer == NULL);
    CHECK_SAME(open_files(), files);
    CHECK_USAGE(device, before);
}

static void a_file_that_is_not_there(wb_device *device)
{
    wb_safetensors *file = NULL;
    check_refused(device, "/nowhere/model.safetensors", 0, 0, WB_ERR_FILE_MISSING,
                  "/nowhere/model.safetensors does not exist");
    CHECK_ERROR(WB_ERR_FILE_MISSING, wb_safetensors_open(device, "/nowhere/x", NULL, &file, &error),
                "/nowhere/x");
    CHECK(file == NULL);
}

static void a_file_that_is_empty(wb_device *device)
{
    char path[300];
    file_name(path, sizeof path, "empty");
    REQUIRE(write_file(path, "", 0));
    check_refused(device, path, 0, 0, WB_ERR_FILE_EMPTY, "-empty is empty");
    unlink(path);
}

static void a_folder_or_a_device_is_no_file(wb_device *device)
{
    check_refused(device, "/tmp", 0, 0, WB_ERR_FILE_ACCESS, "/tmp|not a regular file");
    check_refused(device, "/dev/zero", 0, 0, WB_ERR_FILE_ACCESS, "/dev/zero|not a regular file");
}

/* A queue in the file system: to open it for reading must not wait for a writer. */
static void a_fifo_is_refused_without_waiting_for_a_writer(wb_device *device)
{
    char path[300];
    int status = 0;
    (void)device;
    file_name(path, sizeof path, "fifo");
    REQUIRE(mkfifo(path, 0600) == 0);
    pid_t child = fork();
    if (child == 0) {
        wb_device *own = NULL;
        alarm(5);
        if (CHECK_OK(wb_device_open(test_device(), NULL, &own, &error))) {
            check_refused(own, path, 0, 0, WB_ERR_FILE_ACCESS, "not a regular file");
            wb_device_release(own);
        }
        _exit(check_failures > 0);
    }
    waitpid(child, &status, 0);
    unlink(path);
    CHECK(!WIFSIGNALED(status)); /* by the alarm: it waited */
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

/* Root may read everything, so an ordinary user has to ask: a process of its own becomes one. */
static void a_file_that_may_not_be_read(wb_device *device)
{
    char path[300];
    int status = 0;
    (void)device;
    file_name(path, sizeof path, "secret");
    REQUIRE(write_pattern(path, 100));
    REQUIRE(chmod(path, 0) == 0);
    pid_t child = fork();
    if (child == 0) {
        wb_device *own = NULL;
        if (geteuid() == 0 && setuid(65534) != 0) _exit(77);
        if (CHECK_OK(wb_device_open(test_device(), NULL, &own, &error))) {
            check_refused(own, path, 0, 0, WB_ERR_FILE_ACCESS, "may not be read");
            wb_device_release(own);
        }
        _exit(check_failures > 0);
    }
    waitpid(child, &status, 0);
    unlink(path);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 77) {
        NOT_RUN("this process may not become another user");
    }
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void a_range_behind_the_end(wb_device *device)
{
    char path[300];
    file_name(path, sizeof path, "range");
    REQUIRE(write_pattern(path, 1000));
    check_refused(device, path, 1000, 0, WB_ERR_OUT_OF_RANGE, "from byte 1000|1000 bytes");
    check_refused(device, path, 1000, 1, WB_ERR_OUT_OF_RANGE, "asked for 1 bytes");
    check_refused(device, path, 0, 1001, WB_ERR_OUT_OF_RANGE, "asked for 1001 bytes|has 1000");
    check_refused(device, path, 999, 2, WB_ERR_OUT_OF_RANGE, "from byte 999");
    check_refused(device, path, UINT64_MAX, 0, WB_ERR_OUT_OF_RANGE, "18446744073709551615");
    check_refused(device, path, 1, UINT64_MAX, WB_ERR_OUT_OF_RANGE, "18446744073709551615");
    unlink(path);
}

static void a_file_cut_off_while_it_is_mapped(wb_device *device)
{
    char path[300];
    wb_buffer *buffer = NULL;
    wb_view *view = NULL;
    int64_t shape[] = {10};
    wb_layout layout = layout_of(WB_DTYPE_U8, 1, shape, NULL, 0);
    file_name(path, sizeof path, "cut");
    REQUIRE(write_pattern(path, 50000));
    REQUIRE_OK(wb_buffer_map_file(device, path, 100, 20000, NULL, &buffer, &error));
    REQUIRE(truncate(path, 20100) == 0); /* all that is mapped is still there */
    CHECK_OK(wb_view_new(buffer, &layout, WB_ACCESSOR_HOST, &view, &error));
    wb_view_release(view);
    view = NULL;
    wb_device_stats before = measure(device);
    REQUIRE(truncate(path, 4000) == 0);
    CHECK_ERROR(WB_ERR_FILE_TRUNCATED, wb_view_new(buffer, &layout, WB_ACCESSOR_HOST, &view, &error),
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
    file_name(path, sizeof path, "combined");
    REQUIRE(write_pattern(path, 100));
    options.write_combined = WB_TRISTATE_ON;
    CHECK_ERROR(WB_ERR_NOT_SUPPORTED, wb_buffer_map_file(device, path, 0, 0, &options, &buffer, &error),
                "write-combined");
    CHECK(buffer == NULL);
    unlink(path);
}

CHECK_MAIN(CASE_ALONE(EVERYWHERE, a_file_that_may_not_be_read),
           CASE_ALONE(EVERYWHERE, a_fifo_is_refused_without_waiting_for_a_writer),
           CASE(a_file_that_is_not_there), CASE(a_file_that_is_empty),
           CASE(a_folder_or_a_device_is_no_file), CASE(a_range_behind_the_end),
           CASE(a_file_cut_off_while_it_is_mapped), CASE(a_file_cannot_be_mapped_write_combined))

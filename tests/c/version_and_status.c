/* Version, names of statuses, the log callback, error structs. */
#include <errno.h>
#include <stddef.h>

#include "check.h"
#include "weighbridge/python.h"

static void the_library_has_the_version_of_its_header(wb_device *device)
{
    (void)device;
    CHECK_SAME(wb_version(), WB_VERSION);
    CHECK_SAME(wb_version() >> 16, WB_VERSION_MAJOR);
    CHECK_SAME(wb_version() >> 8 & 0xff, WB_VERSION_MINOR);
    CHECK_SAME(wb_version() & 0xff, WB_VERSION_PATCH);
}

#define NAMED(status) {status, #status}
static const struct { wb_status status; const char *name; } statuses[] = {
    NAMED(WB_OK), NAMED(WB_ERR_INTERNAL), NAMED(WB_ERR_INVALID_ARGUMENT), NAMED(WB_ERR_HANDLE),
    NAMED(WB_ERR_STRUCT_SIZE), NAMED(WB_ERR_OVERFLOW), NAMED(WB_ERR_OUT_OF_RANGE),
    NAMED(WB_ERR_NOT_MAPPED), NAMED(WB_ERR_UNALIGNED), NAMED(WB_ERR_ALREADY_REGISTERED),
    NAMED(WB_ERR_UNMAPPED_RANGE), NAMED(WB_ERR_WOULD_COPY), NAMED(WB_ERR_NO_DEVICE),
    NAMED(WB_ERR_NO_DRIVER), NAMED(WB_ERR_DRIVER_TOO_OLD), NAMED(WB_ERR_DRIVER),
    NAMED(WB_ERR_NOT_SUPPORTED), NAMED(WB_ERR_MEMLOCK), NAMED(WB_ERR_CGROUP),
    NAMED(WB_ERR_OUT_OF_MEMORY), NAMED(WB_ERR_DEVICE_MEMORY), NAMED(WB_ERR_HUGE_PAGES),
    NAMED(WB_ERR_FILE_MISSING), NAMED(WB_ERR_FILE_ACCESS), NAMED(WB_ERR_FILE_EMPTY),
    NAMED(WB_ERR_FILE_TRUNCATED), NAMED(WB_ERR_FILE_IO), NAMED(WB_ERR_FORMAT),
    NAMED(WB_ERR_NOT_FOUND), NAMED(WB_ERR_CANCELLED), NAMED(WB_ERR_TIMEOUT),
    NAMED(WB_ERR_CAPTURING), NAMED(WB_ERR_FORKED), NAMED(WB_ERR_DLPACK),
    NAMED(WB_ERR_NOTHING_OFFLOADED), NAMED(WB_ERR_SELECTOR), NAMED(WB_ERR_EVERYTHING_FITS),
    NAMED(WB_ERR_BUDGET), NAMED(WB_ERR_SLOTS_BUDGET), NAMED(WB_ERR_BUSY), NAMED(WB_ERR_STAGING),
    NAMED(WB_ERR_NOT_FINITE), NAMED(WB_ERR_DAMAGED),
};

static void every_status_has_its_number_and_name(wb_device *device)
{
    (void)device;
    int count = (int)(sizeof statuses / sizeof statuses[0]);
    for (int i = 0; i < count; i++) {
        const char *name = wb_status_name(statuses[i].status);
        CHECK_SAME(statuses[i].status, i);
        CHECK(name != NULL && strcmp(name, statuses[i].name) == 0);
    }
    CHECK(wb_status_name(count) == NULL);
    CHECK(wb_status_name(-1) == NULL);
    CHECK(wb_status_name(INT32_MIN) == NULL);
}

struct logged {
    int count;
    wb_error last;
};

static void record_error(void *user, const wb_error *failure)
{
    struct logged *logged = (struct logged *)user;
    logged->count++;
    logged->last = *failure;
}

static void errors_that_cannot_be_returned_are_logged_and_counted(wb_device *device)
{
    struct logged logged = {0, WB_ERROR_INIT};
    uint64_t before = device_stats(device).errors_logged;
    CHECK_OK(wb_log_set_callback(record_error, &logged));
    wb_buffer_retain(NULL); /* an error that the void function cannot return */
    CHECK_SAME(logged.count, 1);
    CHECK_SAME(logged.last.struct_size, sizeof(wb_error));
    CHECK_SAME(logged.last.status, WB_ERR_INVALID_ARGUMENT);
    CHECK_SAME(logged.last.code, 0);
    CHECK_SAME(logged.last.code_domain, WB_CODE_NONE);
    CHECK(strstr(logged.last.message, "wb_buffer") != NULL);
    CHECK_OK(wb_log_set_callback(NULL, NULL));
    wb_view_retain(NULL);
    CHECK_SAME(logged.count, 1);
    CHECK_SAME(device_stats(device).errors_logged - before, 2);
    check_logged = 2;
}

static void the_domain_of_an_error_names_the_numbering_of_its_code(wb_device *device)
{
    wb_buffer *buffer = NULL;
    void *address = NULL;
    CHECK_NULL(wb_device_get_info(device, NULL, &error), "");
    CHECK_SAME(error.code_domain, WB_CODE_NONE);
    CHECK_SAME(error.code, 0);
    CHECK_ERROR(WB_ERR_FILE_MISSING,
                wb_buffer_map_file(device, "/nowhere", 0, 0, NULL, &buffer, &error), "/nowhere");
    CHECK_SAME(error.code_domain, WB_CODE_ERRNO);
    CHECK_SAME(error.code, ENOENT);
    if (on_double()) {
        CHECK_INJECTED("cuMemAlloc_v2:1:2", WB_ERR_DEVICE_MEMORY,
                       wb_device_alloc(device, 100, &address, &error), "cuMemAlloc_v2");
        CHECK_SAME(error.code_domain, WB_CODE_CUDA);
        CHECK_SAME(error.code, 2);
    }
    /* A later error without a code leaves no code of an earlier one. */
    CHECK_NULL(wb_device_get_info(NULL, NULL, &error), "");
    CHECK_SAME(error.code_domain, WB_CODE_NONE);
    CHECK_SAME(error.code, 0);
}

/* The kernel has no address space of this size. */
static void a_mapping_that_fails_gives_its_errno(wb_device *device)
{
    wb_buffer *buffer = NULL;
    const wb_status status = wb_buffer_alloc(device, (uint64_t)1 << 50, NULL, &buffer, &error);
    if (status == WB_ERR_CGROUP) NOT_RUN("the limit of the control group is checked first");
    CHECK_SAME(status, WB_ERR_OUT_OF_MEMORY);
    CHECK_SAME(error.code_domain, WB_CODE_ERRNO);
    /* Under valgrind the call fails with EINVAL. */
    CHECK(error.code == ENOMEM || error.code == EINVAL);
}

static void releasing_null_is_a_no_op(wb_device *device)
{
    (void)device;
    wb_device_release(NULL);
    wb_buffer_release(NULL);
    wb_view_release(NULL);
    wb_safetensors_release(NULL);
    wb_python_capsule_destroy(NULL);
    CHECK_SAME(wb_safetensors_get_tensor_count(NULL), 0);
    CHECK(wb_safetensors_get_header(NULL) == NULL);
}

static void an_error_is_written_up_to_the_size_of_the_callers_struct(wb_device *device)
{
    struct { wb_error head; char next[8]; } small;
    memset(&small, 'x', sizeof small);
    /* Space for 19 characters and the NUL. */
    small.head.struct_size = offsetof(wb_error, message) + 20;
    CHECK_SAME(wb_device_get_info(device, NULL, &small.head), WB_ERR_INVALID_ARGUMENT);
    CHECK_SAME(small.head.status, WB_ERR_INVALID_ARGUMENT);
    CHECK(memchr(small.head.message, '\0', 20) != NULL);
    CHECK(small.head.message[20] == 'x');
    small.head.struct_size = offsetof(wb_error, message); /* no space for a message */
    small.head.status = 77;
    CHECK_SAME(wb_device_get_info(device, NULL, &small.head), WB_ERR_INVALID_ARGUMENT);
    CHECK_SAME(small.head.status, 77);
    CHECK_SAME(wb_device_get_info(device, NULL, NULL), WB_ERR_INVALID_ARGUMENT);
    wb_error larger = WB_ERROR_INIT;
    larger.struct_size += 64; /* as in a newer header */
    CHECK_SAME(wb_device_get_info(device, NULL, &larger), WB_ERR_INVALID_ARGUMENT);
    CHECK(larger.message[0] != '\0');
    wb_error untouched = WB_ERROR_INIT;
    untouched.status = 77;
    wb_device_info info = WB_DEVICE_INFO_INIT;
    CHECK_SAME(wb_device_get_info(device, &info, &untouched), WB_OK);
    CHECK_SAME(untouched.status, 77);
}

CHECK_MAIN(CASE(the_library_has_the_version_of_its_header),
           CASE(every_status_has_its_number_and_name),
           CASE(errors_that_cannot_be_returned_are_logged_and_counted),
           CASE(the_domain_of_an_error_names_the_numbering_of_its_code),
           CASE(a_mapping_that_fails_gives_its_errno), CASE(releasing_null_is_a_no_op),
           CASE(an_error_is_written_up_to_the_size_of_the_callers_struct))

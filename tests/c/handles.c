/* A debug build of the library detects handles that are released or of another kind. */
#include "memory.h"

static void a_handle_after_its_last_release_is_refused(wb_device *device)
{
    wb_buffer *buffer = NULL;
    wb_view *view = NULL;
    wb_buffer_info info = WB_BUFFER_INFO_INIT;
    int64_t shape[] = {1};
    wb_layout layout = bytes_layout(shape);
    REQUIRE_OK(wb_buffer_alloc(device, 1, NULL, &buffer, &error));
    wb_buffer_retain(buffer);
    wb_buffer_release(buffer);
    CHECK_OK(wb_buffer_get_info(buffer, &info, &error)); /* one reference is left */
    wb_buffer_release(buffer);
    CHECK_ERROR(WB_ERR_HANDLE, wb_buffer_get_info(buffer, &info, &error), "released too often");
    CHECK_ERROR(WB_ERR_HANDLE, wb_view_new(buffer, &layout, WB_ACCESSOR_HOST, &view, &error),
                "wb_buffer");
    uint64_t before = device_stats(device).errors_logged;
    wb_buffer_release(buffer);
    CHECK_SAME(device_stats(device).errors_logged - before, 1);
    check_logged = 1;
}

static void a_handle_of_another_kind_is_refused(wb_device *device)
{
    wb_buffer_info info = WB_BUFFER_INFO_INIT;
    CHECK_ERROR(WB_ERR_HANDLE, wb_buffer_get_info((wb_buffer *)(void *)device, &info, &error),
                "wb_device, not a wb_buffer");
}

CHECK_MAIN(CASE(a_handle_after_its_last_release_is_refused),
           CASE(a_handle_of_another_kind_is_refused))

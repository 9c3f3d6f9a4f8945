/* Allocates pinned memory and makes a view that the device reads in place. */
#include <stdio.h>
#include <weighbridge.h>

int main(void)
{
    wb_error error = WB_ERROR_INIT;
    wb_device *device = NULL;
    wb_buffer *weights = NULL;
    wb_view *view = NULL;
    wb_view_info info = WB_VIEW_INFO_INIT;
    const int64_t shape[] = {1000, 4096};
    const wb_layout layout = {
        .struct_size = sizeof layout, .dtype = WB_DTYPE_BF16, .ndim = 2, .shape = shape};

    if (wb_device_open("host", NULL, &device, &error) ||      /* or "cuda:0" */
        wb_buffer_alloc(device, 1000 * 4096 * 2, NULL, &weights, &error) ||
        wb_view_new(weights, &layout, WB_ACCESSOR_DEVICE, &view, &error) ||
        wb_view_get_info(view, &info, &error))
        return fprintf(stderr, "%s\n", error.message), 1;

    printf("%zu weights at %p, on the device at %p\n", (size_t)info.elements, info.data,
           info.device_address);
    wb_view_release(view);
    wb_buffer_release(weights);
    wb_device_release(device);
    return 0;
}

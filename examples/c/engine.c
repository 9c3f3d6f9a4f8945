/* Copies weights from host memory to the device, and releases the host memory after the copy.
 *
 *     engine [device [file]]           engine cuda:0 model.bin
 *
 * With a file, its bytes are mapped and registered in place; without one, memory is allocated and
 * filled. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <weighbridge.h>

/* Every call returns a status; the error says what was asked, what was found, and what to do. */
static wb_error error = WB_ERROR_INIT;

static void must(wb_status status)
{
    if (status == WB_OK) return;
    fprintf(stderr, "%s: %s\n", wb_status_name(status), error.message);
    exit(1);
}

static wb_buffer *load_weights(const wb_device *device, const char *path)
{
    wb_buffer *buffer = NULL;
    wb_buffer_info info = WB_BUFFER_INFO_INIT;
    if (path != NULL) {
        must(wb_buffer_map_file(device, path, 0, 0, NULL, &buffer, &error));
        return buffer;
    }
    must(wb_buffer_alloc(device, 8u << 20, NULL, &buffer, &error));
    must(wb_buffer_get_info(buffer, &info, &error));
    unsigned char *bytes = info.data;
    for (uint64_t i = 0; i < info.asked_bytes; i++) bytes[i] = (unsigned char)(i % 251);
    return buffer;
}

int main(int argc, char **argv)
{
    wb_device *device = NULL;
    wb_view *view = NULL;
    void *stream = NULL; /* an engine passes its own CUstream instead */
    void *device_address = NULL;
    wb_buffer_info info = WB_BUFFER_INFO_INIT;

    must(wb_device_open(argc > 1 ? argv[1] : "host", NULL, &device, &error));
    wb_buffer *weights = load_weights(device, argc > 2 ? argv[2] : NULL);
    must(wb_buffer_get_info(weights, &info, &error));
    printf("%zu bytes asked, %zu mapped, %zu pinned%s%s\n", (size_t)info.asked_bytes,
           (size_t)info.mapped_bytes, (size_t)info.pinned_bytes,
           info.fallback_reason[0] ? ": " : "", info.fallback_reason);

    /* The view holds the buffer, so the buffer's own reference may be dropped now. */
    const int64_t shape[] = {(int64_t)info.asked_bytes};
    const wb_layout layout = {
        .struct_size = sizeof layout, .dtype = WB_DTYPE_U8, .ndim = 1, .shape = shape};
    must(wb_view_new(weights, &layout, WB_ACCESSOR_HOST, &view, &error));
    wb_buffer_release(weights);

    /* The copy is queued, and the release after it: the host does not wait, and the weights stay
     * allocated until the copy has completed. */
    must(wb_device_stream_new(device, &stream, &error));
    must(wb_device_alloc(device, info.asked_bytes, &device_address, &error));
    unsigned char *back = malloc(info.asked_bytes), *expected = malloc(info.asked_bytes);
    if (back == NULL || expected == NULL) return 1;
    memcpy(expected, info.data, info.asked_bytes);
    must(wb_device_copy(device, device_address, info.data, info.asked_bytes, stream, &error));
    must(wb_view_release_after(view, stream, &error));

    must(wb_device_copy(device, back, device_address, info.asked_bytes, stream, &error));
    must(wb_device_stream_synchronize(device, stream, &error));
    must(wb_device_drain(device, 10000, &error));
    int same = memcmp(back, expected, info.asked_bytes) == 0;

    wb_device_stats stats = WB_DEVICE_STATS_INIT;
    must(wb_device_get_stats(device, &stats, &error));
    printf("%s; %zu bytes pinned, %zu on the device\n", same ? "bit-identical" : "DIFFERENT",
           (size_t)stats.pinned_bytes, (size_t)stats.device_bytes);

    free(back);
    free(expected);
    must(wb_device_free(device, device_address, &error));
    must(wb_device_stream_release(device, stream, &error));
    wb_device_release(device);
    return same ? 0 : 1;
}

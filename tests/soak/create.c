/* New handles, of every origin. */
#include "soak.h"

static uint64_t new_key(struct worker *worker)
{
    return draw(&worker->random, UINT64_MAX);
}

static wb_buffer_options random_options(struct worker *worker)
{
    wb_buffer_options chosen = WB_BUFFER_OPTIONS_INIT;
    if (draw(&worker->random, 4) == 0) chosen.pin = WB_TRISTATE_OFF;
    if (draw(&worker->random, 4) == 0) chosen.huge_pages = WB_HUGE_PAGES_OFF;
    if (draw(&worker->random, 4) == 0) {
        chosen.chunk_bytes = page_bytes() * (1 + draw(&worker->random, 64));
    }
    chosen.threads = (uint32_t)draw(&worker->random, 3);
    return chosen;
}

struct handle create_buffer(struct worker *worker)
{
    wb_buffer *buffer = NULL;
    wb_buffer_options chosen = random_options(worker);
    const uint64_t key = new_key(worker), bytes = draw_bytes(&worker->random, 19);
    if (on_cuda() && chosen.pin == WB_TRISTATE_AUTO && bytes < 5000) {
        chosen.write_combined = WB_TRISTATE_ON;
    }
    if (!CHECK_OK(wb_buffer_alloc(worker->round->device, bytes, &chosen, &buffer, &error))) {
        return no_handle;
    }
    const wb_buffer_info info = buffer_info(buffer);
    CHECK_SAME(info.asked_bytes, bytes);
    if (info.pinning == WB_PINNING_REGISTERED) CHECK_SAME(info.pinned_bytes, whole_pages(bytes));
    content_fill(info.data, bytes, key);
    if (options.defect == DEFECT_BYTES && draw(&worker->random, 100) == 0) {
        ((unsigned char *)info.data)[bytes / 2] ^= 1;
    }
    count(ALLOCATED);
    return handle_of_buffer(buffer, key, 0);
}

/* Of the host device's pinning, the kernel reports whether the memory is locked. */
static void check_locked(struct worker *worker, const wb_buffer *buffer)
{
    if (on_cuda() || buffer_info(buffer).pinned_bytes == 0 || draw(&worker->random, 8) > 0) return;
    CHECK(buffer_usage(buffer).locked_bytes >= buffer_info(buffer).asked_bytes);
}

struct handle create_registered(struct worker *worker)
{
    wb_buffer *buffer = NULL;
    wb_buffer_options chosen = random_options(worker);
    const uint64_t key = new_key(worker), bytes = draw_bytes(&worker->random, 15);
    struct borrowed *borrowed = borrowed_new(bytes, key);
    if (!CHECK_OK(wb_buffer_register(worker->round->device, borrowed_memory(borrowed), bytes,
                                     &chosen, borrowed_delete, borrowed, &buffer, &error))) {
        borrowed_delete(borrowed);
        return no_handle;
    }
    check_locked(worker, buffer);
    count(REGISTERED);
    return handle_of_buffer(buffer, key, 0);
}

struct handle create_mapped(struct worker *worker)
{
    const struct files *files = worker->round->files;
    wb_buffer *buffer = NULL;
    wb_buffer_options chosen = random_options(worker);
    const uint64_t offset = draw(&worker->random, files->plain_bytes);
    const uint64_t bytes = draw(&worker->random, files->plain_bytes - offset);
    if (draw(&worker->random, 3) == 0) chosen.file_mode = WB_FILE_MODE_READ;
    if (!CHECK_OK(wb_buffer_map_file(worker->round->device, files->plain, offset, bytes, &chosen,
                                     &buffer, &error))) {
        return no_handle;
    }
    count(MAPPED);
    return handle_of_buffer(buffer, files->key, offset);
}

struct handle create_from_model_file(struct worker *worker)
{
    const struct files *files = worker->round->files;
    struct handle made = {SAFETENSORS, {NULL}, NULL, NULL, 0, 0, 0};
    wb_safetensors *file = NULL;
    wb_safetensors_tensor_info info = WB_SAFETENSORS_TENSOR_INFO_INIT;
    wb_view *view = NULL;
    int32_t copied = 0;
    if (!CHECK_OK(wb_safetensors_open(worker->round->device, files->model, NULL, &file, &error))) {
        return no_handle;
    }
    count(OPENED);
    made.as.file = file;
    if (draw(&worker->random, 4) == 0) return made;
    const uint64_t index = draw(&worker->random, wb_safetensors_get_tensor_count(file));
    CHECK_OK(wb_safetensors_get_tensor_info(file, index, &info, &error));
    made = no_handle;
    if (CHECK_OK(wb_safetensors_load_view(file, index, WB_ACCESSOR_HOST, 64, NULL, &view, &copied,
                                          &error))) {
        made = handle_of_view(view, files->key, info.offset_bytes);
        CHECK(copied == 1 || (uintptr_t)made.data % 64 == 0);
        count(LOADED);
    }
    wb_safetensors_release(file);
    return made;
}

struct handle create_copy(struct worker *worker)
{
    wb_view *view = NULL;
    const wb_buffer_options chosen = random_options(worker);
    const uint64_t key = new_key(worker);
    const int64_t bytes = (int64_t)draw_bytes(&worker->random, 12);
    const wb_layout layout = bytes_layout(&bytes);
    unsigned char *memory = content_new((uint64_t)bytes, key);
    const int made = CHECK_OK(wb_view_copy_from(worker->round->device, memory, &layout,
                                                WB_ACCESSOR_HOST, &chosen, &view, &error));
    free(memory);
    count(COPIED_FROM);
    return made ? handle_of_view(view, key, 0) : no_handle;
}

struct handle create_imported(struct worker *worker)
{
    wb_device *device = worker->round->device;
    const uint64_t key = new_key(worker), bytes = draw_bytes(&worker->random, 15);
    struct borrowed *borrowed = borrowed_new(bytes, key);
    wb_view *view = NULL;
    const int versioned = draw(&worker->random, 2) == 0;
    if (!CHECK_OK(versioned
                      ? wb_view_from_dlpack_versioned(device, borrowed_versioned_tensor(borrowed),
                                                      WB_ACCESSOR_HOST, NULL, &view, &error)
                      : wb_view_from_dlpack(device, borrowed_tensor(borrowed), WB_ACCESSOR_HOST,
                                            NULL, &view, &error))) {
        borrowed_delete(borrowed);
        return no_handle;
    }
    count(IMPORTED);
    return handle_of_view(view, key, 0);
}

/* Returns the buffer of a handle, with a new reference; NULL if it has none. */
static wb_buffer *buffer_of(const struct handle *handle)
{
    wb_buffer *buffer = NULL;
    if (handle->kind == BUFFER) {
        wb_buffer_retain(handle->as.buffer);
        return handle->as.buffer;
    }
    if (handle->kind == VIEW) CHECK_OK(wb_view_get_buffer(handle->as.view, &buffer, &error));
    return buffer;
}

struct handle create_view(struct worker *worker, const struct handle *of)
{
    wb_buffer *buffer = buffer_of(of);
    if (buffer == NULL) return no_handle;
    const wb_buffer_info info = buffer_info(buffer);
    wb_view *view = NULL;
    struct handle made = no_handle;
    /* Rows with gaps between them, in the part of the buffer whose content is known. */
    const uint64_t start = (uint64_t)(of->data - (const unsigned char *)info.data);
    const uint64_t skipped = draw(&worker->random, of->bytes);
    const uint64_t stride = 1 + draw(&worker->random, of->bytes - skipped);
    const uint64_t rows = 1 + draw(&worker->random, (of->bytes - skipped) / stride);
    const int64_t shape[] = {(int64_t)rows, (int64_t)(1 + draw(&worker->random, stride))};
    const int64_t strides[] = {(int64_t)stride, 1};
    const wb_layout layout = layout_of(WB_DTYPE_U8, 2, shape, strides, start + skipped);
    const int device = info.device_address != NULL && draw(&worker->random, 2) == 0;
    const wb_accessor accessor = device ? WB_ACCESSOR_DEVICE : WB_ACCESSOR_HOST;
    if (CHECK_OK(wb_view_new(buffer, &layout, accessor, &view, &error))) {
        made = handle_of_view(view, of->key, of->offset + skipped);
        CHECK(made.data == of->data + skipped);
        CHECK(device == (made.device_address != NULL));
        count(VIEWED);
    }
    wb_buffer_release(buffer);
    return made;
}

/* Checks what a consumer of the tensor sees; it does not know the view. */
static void check_tensor(const struct handle *of, const DLTensor *tensor)
{
    if (tensor->device.device_type == kDLCPU) {
        CHECK(tensor->data == of->data);
    } else {
        CHECK(tensor->data == of->device_address);
    }
    CHECK_SAME(tensor->byte_offset, 0);
}

struct handle create_exported(struct worker *worker, const struct handle *of)
{
    struct handle made = *of;
    made.kind = NO_HANDLE;
    if (of->kind != VIEW) return made;
    /* Read-only memory has no other kind of tensor. */
    const int versioned = draw(&worker->random, 2) || view_info(of->as.view).read_only;
    if (!versioned) {
        if (CHECK_OK(wb_view_to_dlpack(of->as.view, &made.as.tensor, &error))) {
            check_tensor(of, &made.as.tensor->dl_tensor);
            made.kind = TENSOR;
        }
    } else if (CHECK_OK(wb_view_to_dlpack_versioned(of->as.view, &made.as.versioned, &error))) {
        check_tensor(of, &made.as.versioned->dl_tensor);
        made.kind = VERSIONED_TENSOR;
    }
    count(EXPORTED);
    return made;
}

enum { PLAIN_BYTES = 300007, TENSORS = 7, HEADER_CAPACITY = 2048 };

/* Eight bytes with the header's length, the header, then the tensors, some of them unaligned. */
static int write_model(const struct files *files)
{
    static const uint64_t sizes[TENSORS] = {4096, 1, 50001, 64, 7777, 131072, 3};
    char header[HEADER_CAPACITY];
    uint64_t length = 1, end = 0;
    header[0] = '{';
    for (int tensor = 0; tensor < TENSORS; tensor++) {
        length += (uint64_t)snprintf(
            header + length, sizeof header - length,
            "%s\"tensor.%d\":{\"dtype\":\"U8\",\"shape\":[%" PRIu64 "],\"data_offsets\":[%" PRIu64
            ",%" PRIu64 "]}", tensor > 0 ? "," : "", tensor, sizes[tensor], end,
            end + sizes[tensor]);
        end += sizes[tensor];
    }
    header[length++] = '}';
    unsigned char *content = content_new(8 + length + end, files->key);
    for (int byte = 0; byte < 8; byte++) content[byte] = (unsigned char)(length >> 8 * byte);
    memcpy(content + 8, header, length);
    const int done = write_file(files->model, content, 8 + length + end);
    free(content);
    return done;
}

int files_write(struct files *files)
{
    file_name(files->plain, sizeof files->plain, "soak.bin");
    file_name(files->model, sizeof files->model, "soak.safetensors");
    files->plain_bytes = PLAIN_BYTES;
    files->key = options.seed ^ 0xf11e;
    unsigned char *content = content_new(PLAIN_BYTES, files->key);
    const int done = write_file(files->plain, content, PLAIN_BYTES);
    free(content);
    return done && write_model(files);
}

void files_remove(const struct files *files)
{
    unlink(files->plain);
    unlink(files->model);
}

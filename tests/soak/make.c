/* New memory and new views of it, in every way that there is. */
#include "content.h"
#include "counts.h"
#include "lent.h"
#include "worker.h"

static const struct thing nothing = {NOTHING, {NULL}, NULL, 0, 0, 0, 0};

static uint64_t new_key(struct worker *worker)
{
    return draw(&worker->random, UINT64_MAX);
}

static wb_buffer_options random_options(struct worker *worker)
{
    wb_buffer_options options = WB_BUFFER_OPTIONS_INIT;
    if (draw(&worker->random, 4) == 0) options.pin = WB_TRISTATE_OFF;
    if (draw(&worker->random, 4) == 0) options.huge_pages = WB_HUGE_PAGES_OFF;
    if (draw(&worker->random, 4) == 0) {
        options.chunk_bytes = page_bytes() * (1 + draw(&worker->random, 64));
    }
    options.threads = (uint32_t)draw(&worker->random, 3);
    return options;
}

struct thing make_buffer(struct worker *worker)
{
    wb_buffer *buffer = NULL;
    wb_buffer_options options = random_options(worker);
    const uint64_t key = new_key(worker), bytes = draw_bytes(&worker->random, 19);
    if (on_cuda() && options.pin == WB_TRISTATE_AUTO && bytes < 5000) options.write_combined = WB_TRISTATE_ON;
    if (!CHECK_OK(wb_buffer_alloc(worker->round->device, bytes, &options, &buffer, &error))) {
        return nothing;
    }
    const wb_buffer_info info = describe(buffer);
    CHECK_SAME(info.asked_bytes, bytes);
    if (info.pinning == WB_PINNING_REGISTERED) CHECK_SAME(info.pinned_bytes, whole_pages(bytes));
    content_fill(info.data, bytes, key);
    if (settings.broken == BROKEN_BYTES && draw(&worker->random, 100) == 0) {
        ((unsigned char *)info.data)[bytes / 2] ^= 1;
    }
    count(ALLOCATED);
    return thing_of_buffer(buffer, key, 0);
}

/* On the host device the kernel says whether registered memory is locked; elsewhere it is not. */
static void check_locked(struct worker *worker, const wb_buffer *buffer)
{
    if (on_cuda() || describe(buffer).pinned_bytes == 0 || draw(&worker->random, 8) > 0) return;
    CHECK(buffer_usage(buffer).locked_bytes >= describe(buffer).asked_bytes);
}

struct thing make_registered(struct worker *worker)
{
    wb_buffer *buffer = NULL;
    wb_buffer_options options = random_options(worker);
    const uint64_t key = new_key(worker), bytes = draw_bytes(&worker->random, 15);
    struct lent *lent = lent_new(bytes, key);
    if (!CHECK_OK(wb_buffer_register(worker->round->device, lent_memory(lent), bytes, &options,
                                     lent_back, lent, &buffer, &error))) {
        lent_back(lent);
        return nothing;
    }
    check_locked(worker, buffer);
    count(REGISTERED);
    return thing_of_buffer(buffer, key, 0);
}

struct thing make_mapped(struct worker *worker)
{
    const wb_file_mode modes[] = {WB_FILE_MODE_AUTO, WB_FILE_MODE_AUTO, WB_FILE_MODE_READ};
    const struct files *files = worker->round->files;
    wb_buffer *buffer = NULL;
    wb_buffer_options options = random_options(worker);
    const uint64_t offset = draw(&worker->random, files->bytes);
    const uint64_t bytes = draw(&worker->random, files->bytes - offset);
    options.file_mode = modes[draw(&worker->random, 3)];
    if (!CHECK_OK(wb_buffer_map_file(worker->round->device, files->plain, offset, bytes, &options,
                                &buffer, &error))) {
        return nothing;
    }
    count(MAPPED);
    return thing_of_buffer(buffer, files->key, offset);
}

/* The file itself, or one of its tensors. */
struct thing make_of_model_file(struct worker *worker)
{
    const struct files *files = worker->round->files;
    wb_safetensors *file = NULL;
    struct thing made = {A_FILE, {NULL}, NULL, 0, 0, 0, 0};
    wb_safetensors_tensor_info info = WB_SAFETENSORS_TENSOR_INFO_INIT;
    wb_view *view = NULL;
    int32_t copied = 0;
    if (!CHECK_OK(wb_safetensors_open(worker->round->device, files->model, NULL, &file, &error))) {
        return nothing;
    }
    count(OPENED);
    made.as.file = file;
    if (draw(&worker->random, 4) == 0) return made;
    const uint64_t index = draw(&worker->random, wb_safetensors_get_tensor_count(file));
    CHECK_OK(wb_safetensors_get_tensor_info(file, index, &info, &error));
    if (CHECK_OK(wb_safetensors_load_view(file, index, WB_ACCESSOR_HOST, 64, NULL, &view, &copied,
                                     &error))) {
        made = thing_of_view(view, files->key, info.offset_bytes);
        CHECK(copied == 1 || number(made.data) % 64 == 0);
        count(TENSOR_VIEWED);
    } else {
        made = nothing;
    }
    wb_safetensors_release(file);
    return made;
}

struct thing make_copy(struct worker *worker)
{
    wb_view *view = NULL;
    const wb_buffer_options options = random_options(worker);
    const uint64_t key = new_key(worker), bytes = draw_bytes(&worker->random, 12);
    const int64_t shape[] = {(int64_t)bytes};
    const wb_layout layout = layout_of(WB_DTYPE_U8, 1, shape, NULL, 0);
    unsigned char *memory = (unsigned char *)malloc(bytes);
    if (memory == NULL) abort();
    content_fill(memory, bytes, key);
    const int made = CHECK_OK(wb_view_copy_from(worker->round->device, memory, &layout,
                                                WB_ACCESSOR_HOST, &options, &view, &error));
    free(memory);
    count(COPIED_FROM);
    return made ? thing_of_view(view, key, 0) : nothing;
}

/* The buffer behind a thing, with a reference of its own; NULL where there is none. */
static wb_buffer *buffer_of(const struct thing *thing)
{
    wb_buffer *buffer = NULL;
    if (thing->kind == A_BUFFER) {
        wb_buffer_retain(thing->as.buffer);
        return thing->as.buffer;
    }
    if (thing->kind == A_VIEW) CHECK_OK(wb_view_get_buffer(thing->as.view, &buffer, &error));
    return buffer;
}

struct thing make_view(struct worker *worker, const struct thing *of)
{
    wb_buffer *buffer = buffer_of(of);
    if (buffer == NULL) return nothing;
    const wb_buffer_info info = describe(buffer);
    wb_view *view = NULL;
    /* Rows of bytes with gaps between, somewhere in the part whose content is known. */
    const uint64_t start = (uint64_t)(of->data - (const unsigned char *)info.data);
    const uint64_t skipped = draw(&worker->random, of->bytes);
    const uint64_t stride = 1 + draw(&worker->random, of->bytes - skipped);
    const uint64_t rows = 1 + draw(&worker->random, (of->bytes - skipped) / stride);
    const int64_t shape[] = {(int64_t)rows, (int64_t)(1 + draw(&worker->random, stride))};
    const int64_t strides[] = {(int64_t)stride, 1};
    const wb_layout layout = layout_of(WB_DTYPE_U8, 2, shape, strides, start + skipped);
    const int device = info.device_address != 0 && draw(&worker->random, 2) == 0;
    const wb_accessor access = device ? WB_ACCESSOR_DEVICE : WB_ACCESSOR_HOST;
    struct thing made = nothing;
    if (CHECK_OK(wb_view_new(buffer, &layout, access, &view, &error))) {
        made = thing_of_view(view, of->key, of->offset + skipped);
        CHECK(made.data == of->data + skipped);
        CHECK(device == (made.device_address != 0));
        count(VIEWED);
    }
    wb_buffer_release(buffer);
    return made;
}

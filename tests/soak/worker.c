/* Threads that make, use, pass on and release handles at random. */
#include "soak.h"

static int inbox_put(struct inbox *inbox, const struct handle *handle)
{
    pthread_mutex_lock(&inbox->lock);
    const int fits = inbox->count < INBOX;
    if (fits) inbox->handles[inbox->count++] = *handle;
    pthread_mutex_unlock(&inbox->lock);
    return fits;
}

struct handle inbox_take(struct inbox *inbox, struct random *random)
{
    struct handle taken = no_handle;
    pthread_mutex_lock(&inbox->lock);
    if (inbox->count > 0) {
        const uint64_t at = draw(random, (uint64_t)inbox->count);
        taken = inbox->handles[at];
        inbox->handles[at] = inbox->handles[--inbox->count];
    }
    pthread_mutex_unlock(&inbox->lock);
    return taken;
}

/* The handle stays where it is if the other worker's inbox is full. */
static void hand_over(struct worker *worker, struct handle *handle)
{
    const uint64_t to = draw(&worker->random, (uint64_t)options.threads);
    if (handle->kind != NO_HANDLE && inbox_put(&worker->round->inboxes[to], handle)) {
        handle->kind = NO_HANDLE;
        count(HANDED_OVER);
    }
}

/* Waits for the last read by the device, and checks the bytes. */
static void check_readback(struct worker *worker)
{
    if (worker->in_flight.kind == NO_HANDLE) return;
    CHECK_OK(wb_device_stream_synchronize(worker->round->device, worker->stream, &error));
    worker->in_flight.data = (const unsigned char *)buffer_info(worker->readback).data;
    handle_check(&worker->in_flight);
    worker->in_flight.kind = NO_HANDLE;
    count(READ_BY_DEVICE);
}

/* Queues a copy after a delay. The reference may be released after the stream meanwhile: memory that is
 * freed too early gives wrong bytes. */
static void read_by_device(struct worker *worker, const struct handle *handle)
{
    static const long delays_us[] = {0, 20, 100, 500};
    const void *from = handle->device_address != NULL ? handle->device_address : handle->data;
    wb_device *device = worker->round->device;
    if (handle->kind == NO_HANDLE || from == NULL) return;
    check_readback(worker);
    const uint64_t bytes = handle->bytes < READBACK_BYTES ? handle->bytes : READBACK_BYTES;
    void *to = buffer_info(worker->readback).data;
    delay_stream(device, worker->stream, &delays_us[draw(&worker->random, 4)]);
    if (!CHECK_OK(wb_device_copy(device, to, from, bytes, worker->stream, &error))) return;
    worker->in_flight = *handle;
    worker->in_flight.bytes = bytes;
    /* A tensor's deleter is not stream-ordered: a consumer waits for its stream first. */
    if (handle->kind == TENSOR || handle->kind == VERSIONED_TENSOR) check_readback(worker);
}

static void use_device_memory(struct worker *worker)
{
    wb_device *device = worker->round->device;
    const uint64_t key = draw(&worker->random, UINT64_MAX), bytes = draw_bytes(&worker->random, 15);
    unsigned char *from = content_new(bytes, key), *to = content_new(bytes, ~key);
    void *address = NULL;
    if (CHECK_OK(wb_device_alloc(device, bytes, &address, &error))) {
        CHECK_OK(wb_device_copy(device, address, from, bytes, worker->stream, &error));
        CHECK_OK(wb_device_copy(device, to, address, bytes, worker->stream, &error));
        CHECK_OK(wb_device_stream_synchronize(device, worker->stream, &error));
        CHECK(has_content(to, 0, bytes, key));
        CHECK_OK(wb_device_free(device, address, &error));
        count(DEVICE_MEMORY);
    }
    free(from);
    free(to);
}

/* Returns the value of an e4m3 code: 4 bits of exponent with a bias of 7, 3 of mantissa. */
static float value_of_code(unsigned char code)
{
    const int exponent = code >> 3 & 15, mantissa = code & 7;
    float value = exponent > 0 ? (float)(8 + mantissa) / 8 : (float)mantissa / 4;
    for (int power = exponent; power > 7; power--) value *= 2;
    for (int power = exponent; power < 7; power++) value /= 2;
    return code & 0x80 ? -value : value;
}

/* Quantizes rows of values that have codes and dequantizes them: each row has the largest value, so its
 * scale is 1 and every value is exact. */
static void quantize(struct worker *worker)
{
    enum { ROWS = 8, COLS = 33, LARGEST = 0x7e };
    unsigned char expected[ROWS][COLS], codes[ROWS][COLS];
    float values[ROWS][COLS], scales[ROWS], dequantized[ROWS][COLS];
    const int64_t shape[] = {ROWS, COLS};
    const wb_layout matrix = layout_of(WB_DTYPE_F32, 2, shape, NULL, 0);
    wb_quantize_options rows = WB_QUANTIZE_OPTIONS_INIT;
    wb_quantizer *quantizer = worker->round->quantizer;
    rows.block_rows = 1;
    for (int row = 0; row < ROWS; row++) {
        for (int col = 0; col < COLS; col++) {
            const unsigned char code = (unsigned char)(1 + draw(&worker->random, LARGEST));
            const unsigned char sign = draw(&worker->random, 2) ? 0x80 : 0;
            expected[row][col] = col == row ? LARGEST : code | sign;
            values[row][col] = value_of_code(expected[row][col]);
        }
    }
    if (draw(&worker->random, 4) == 0) {
        REQUIRE_OK(wb_quantizer_new(worker->round->device, 1 << 20, &quantizer, &error));
    } else {
        wb_quantizer_retain(quantizer);
    }
    CHECK_OK(wb_quantizer_quantize(quantizer, values, &matrix, codes, scales, &rows, NULL, &error));
    CHECK(memcmp(codes, expected, sizeof codes) == 0);
    for (int row = 0; row < ROWS; row++) CHECK(scales[row] == 1);
    CHECK_OK(wb_quantizer_dequantize(quantizer, codes, scales, dequantized, &matrix, &rows, NULL,
                                     &error));
    CHECK(memcmp(dequantized, values, sizeof dequantized) == 0);
    wb_quantizer_release(quantizer);
    count(QUANTIZED);
}

static void renew_stream(struct worker *worker)
{
    wb_device *device = worker->round->device;
    check_readback(worker);
    CHECK_OK(wb_device_stream_release(device, worker->stream, &error));
    CHECK_OK(wb_device_stream_new(device, &worker->stream, &error));
    count(STREAM_MADE);
}

static void use_another_device(void)
{
    wb_device *device = NULL;
    wb_buffer *buffer = NULL;
    REQUIRE_OK(wb_device_open(test_device(), NULL, &device, &error));
    if (CHECK_OK(wb_buffer_alloc(device, 777, NULL, &buffer, &error))) {
        CHECK_SAME(device_stats(device).asked_bytes, 777);
        wb_buffer_release(buffer);
    }
    CHECK_SAME(device_stats(device).asked_bytes, 0);
    wb_device_release(device);
    count(DEVICE_OPENED);
}

static void view_past_the_end(wb_buffer *buffer)
{
    const int64_t bytes = (int64_t)buffer_info(buffer).asked_bytes + 1;
    const wb_layout layout = bytes_layout(&bytes);
    wb_view *view = NULL;
    CHECK_ERROR(WB_ERR_OUT_OF_RANGE,
                wb_view_new(buffer, &layout, WB_ACCESSOR_HOST, &view, &error), NULL);
}

/* Memory that is pinned cannot be registered again. */
static void register_twice(struct worker *worker)
{
    wb_device *device = worker->round->device;
    struct borrowed *borrowed = borrowed_new(100, worker->round->number);
    void *memory = borrowed_memory(borrowed);
    wb_buffer *first = NULL, *second = NULL;
    REQUIRE_OK(wb_buffer_register(device, memory, 100, NULL, borrowed_delete, borrowed, &first,
                                  &error));
    if (buffer_info(first).pinned_bytes > 0) {
        CHECK_ERROR(WB_ERR_ALREADY_REGISTERED,
                    wb_buffer_register(device, memory, 1, NULL, borrowed_delete, borrowed, &second,
                                       &error),
                    "overlaps");
    }
    wb_buffer_release(first);
}

static int cancel(void *user, wb_phase phase, uint64_t done, uint64_t total)
{
    (void)user, (void)phase, (void)done, (void)total;
    return 1;
}

/* Makes a call that must fail, and must leave nothing allocated. */
static void call_in_error(struct worker *worker, const struct handle *handle)
{
    wb_device *device = worker->round->device;
    const char *plain = worker->round->files->plain;
    wb_buffer_options cancelled = WB_BUFFER_OPTIONS_INIT;
    wb_buffer *buffer = NULL;
    wb_safetensors *file = NULL;
    switch (draw(&worker->random, 4)) {
    case 0:
        if (handle->kind != BUFFER) return;
        view_past_the_end(handle->as.buffer);
        break;
    case 1: register_twice(worker); break;
    case 2:
        cancelled.progress = cancel;
        CHECK_ERROR(WB_ERR_CANCELLED, wb_buffer_alloc(device, 50000, &cancelled, &buffer, &error),
                    NULL);
        break;
    default:
        CHECK_ERROR(WB_ERR_FORMAT, wb_safetensors_open(device, plain, NULL, &file, &error), NULL);
    }
    count(REFUSED);
}

static void release(struct worker *worker, struct handle *handle)
{
    switch (draw(&worker->random, 4)) {
    case 0:
        read_by_device(worker, handle);
        handle_release_after(handle, worker->stream);
        return;
    case 1:
        hand_over(worker, handle);
        break;
    default:
        break;
    }
    handle_release(handle);
}

static struct handle create(struct worker *worker, const struct handle *other)
{
    switch (draw(&worker->random, 16)) {
    case 0: case 1: case 2: return create_buffer(worker);
    case 3: return create_registered(worker);
    case 4: return create_mapped(worker);
    case 5: return create_from_model_file(worker);
    case 6: return create_copy(worker);
    case 7: return create_imported(worker);
    case 8: case 9: return handle_retain(other);
    case 10: case 11: return inbox_take(&worker->round->inboxes[worker->index], &worker->random);
    case 12: case 13: return create_exported(worker, other);
    default: return create_view(worker, other);
    }
}

static void work(struct worker *worker)
{
    struct handle *slot = &worker->held[draw(&worker->random, HELD)];
    struct handle *other = &worker->held[draw(&worker->random, HELD)];
    switch (draw(&worker->random, 40)) {
    case 0: use_device_memory(worker); break;
    case 1: quantize(worker); break;
    case 2: call_in_error(worker, other); break;
    case 3:
        read_by_device(worker, other);
        check_readback(worker); /* no release after the stream protects this reference */
        break;
    case 4: hand_over(worker, other); break;
    case 5: CHECK(device_stats(worker->round->device).asked_bytes > 0); break;
    case 6:
        if (draw(&worker->random, 10) == 0) renew_stream(worker);
        break;
    case 7:
        if (draw(&worker->random, 10) == 0) use_another_device();
        break;
    default:
        if (slot->kind != NO_HANDLE) release(worker, slot);
        *slot = create(worker, other);
    }
}

void *worker_run(void *user)
{
    struct worker *worker = (struct worker *)user;
    wb_device *device = worker->round->device;
    worker->random = random_of(worker->round->number * 1000 + (uint64_t)worker->index);
    if (!CHECK_OK(wb_device_stream_new(device, &worker->stream, &error))) return NULL;
    if (CHECK_OK(wb_buffer_alloc(device, READBACK_BYTES, NULL, &worker->readback, &error))) {
        while (!stopped(worker->round)) work(worker);
        for (int slot = 0; slot < HELD; slot++) release(worker, &worker->held[slot]);
        check_readback(worker);
        wb_buffer_release(worker->readback);
    }
    CHECK_OK(wb_device_stream_release(device, worker->stream, &error));
    return NULL;
}

/* What streams and the device do. */
#include "content.h"
#include "counts.h"
#include "worker.h"

static void pause_stream(void *user)
{
    sleep_us(*(const long *)user);
}

/* Checks what the last read brought. */
void read_check(struct worker *worker)
{
    if (worker->in_flight.kind == NOTHING) return;
    CHECK_OK(wb_device_stream_synchronize(worker->round->device, worker->stream, &error));
    worker->in_flight.data = (const unsigned char *)describe(worker->landing).data;
    thing_check(&worker->in_flight);
    worker->in_flight.kind = NOTHING;
    count(READ_BY_DEVICE);
}

/* Queues a read of the thing behind a pause: its reference may be let go behind it, and what is freed
 * too early is not what arrives. */
void read_by_device(struct worker *worker, const struct thing *thing)
{
    static const long pauses[] = {0, 20, 100, 500};
    const uint64_t from = thing->device_address != 0 ? thing->device_address : number(thing->data);
    wb_device *device = worker->round->device;
    if (thing->kind == NOTHING || from == 0) return;
    read_check(worker);
    const uint64_t bytes = thing->bytes < LANDING_BYTES ? thing->bytes : LANDING_BYTES;
    const uint64_t to = number(describe(worker->landing).data);
    const long *pause = &pauses[draw(&worker->random, 4)];
    CHECK_OK(wb_device_stream_call(device, worker->stream, pause_stream, (void *)(uintptr_t)pause,
                                   &error));
    if (!CHECK_OK(wb_device_copy(device, to, from, bytes, worker->stream, &error))) return;
    worker->in_flight = *thing;
    worker->in_flight.bytes = bytes;
    /* A tensor's deleter runs behind nothing: its consumer waits, as a stream of its own would. */
    if (thing->kind == A_TENSOR || thing->kind == A_VERSIONED_TENSOR) read_check(worker);
}

void use_device_memory(struct worker *worker)
{
    wb_device *device = worker->round->device;
    const uint64_t key = draw(&worker->random, UINT64_MAX), bytes = draw_bytes(&worker->random, 15);
    unsigned char *there = (unsigned char *)malloc(bytes), *back = (unsigned char *)malloc(bytes);
    uint64_t address = 0;
    if (there == NULL || back == NULL) abort();
    content_fill(there, bytes, key);
    if (CHECK_OK(wb_device_alloc(device, bytes, &address, &error))) {
        CHECK_OK(wb_device_copy(device, address, number(there), bytes, worker->stream, &error));
        CHECK_OK(wb_device_copy(device, number(back), address, bytes, worker->stream, &error));
        CHECK_OK(wb_device_stream_synchronize(device, worker->stream, &error));
        CHECK(content_is(back, 0, bytes, key));
        CHECK_OK(wb_device_free(device, address, &error));
        count(DEVICE_MEMORY);
    }
    free(there);
    free(back);
}

/* The number that an e4m3 code stands for: 4 bits of exponent with a bias of 7, 3 of mantissa. */
static float number_of_code(unsigned char code)
{
    const int exponent = code >> 3 & 15, mantissa = code & 7;
    float value = exponent > 0 ? (float)(8 + mantissa) / 8 : (float)mantissa / 4;
    for (int power = exponent; power > 7; power--) value *= 2;
    for (int power = exponent; power < 7; power++) value /= 2;
    return code & 0x80 ? -value : value;
}

/* Rows of numbers that have codes, the largest of them in each: its scale is 1 and they come back. */
void quantize(struct worker *worker)
{
    enum { ROWS = 8, COLS = 33, LARGEST = 0x7e };
    unsigned char wanted[ROWS][COLS], codes[ROWS][COLS];
    float numbers[ROWS][COLS], scales[ROWS], back[ROWS][COLS];
    const int64_t shape[] = {ROWS, COLS};
    const wb_layout matrix = layout_of(WB_DTYPE_F32, 2, shape, NULL, 0);
    wb_quantize_options options = WB_QUANTIZE_OPTIONS_INIT;
    wb_quantizer *quantizer = worker->round->quantizer;
    options.block_rows = 1;
    for (int row = 0; row < ROWS; row++) {
        for (int col = 0; col < COLS; col++) {
            const unsigned char code = (unsigned char)(1 + draw(&worker->random, LARGEST));
            wanted[row][col] = col == row ? LARGEST : code | (draw(&worker->random, 2) ? 0x80 : 0);
            numbers[row][col] = number_of_code(wanted[row][col]);
        }
    }
    if (draw(&worker->random, 4) == 0) {
        REQUIRE_OK(wb_quantizer_new(worker->round->device, 1 << 20, &quantizer, &error));
    } else {
        wb_quantizer_retain(quantizer);
    }
    CHECK_OK(wb_quantizer_quantize(quantizer, number(numbers), &matrix, number(codes),
                                   number(scales), &options, NULL, &error));
    CHECK(memcmp(codes, wanted, sizeof codes) == 0);
    for (int row = 0; row < ROWS; row++) CHECK(scales[row] == 1);
    CHECK_OK(wb_quantizer_dequantize(quantizer, number(codes), number(scales), number(back),
                                     &matrix, &options, NULL, &error));
    CHECK(memcmp(back, numbers, sizeof back) == 0);
    wb_quantizer_release(quantizer);
    count(QUANTIZED);
}

void renew_stream(struct worker *worker)
{
    wb_device *device = worker->round->device;
    read_check(worker);
    CHECK_OK(wb_device_stream_release(device, worker->stream, &error));
    CHECK_OK(wb_device_stream_new(device, &worker->stream, &error));
    count(STREAM_MADE);
}

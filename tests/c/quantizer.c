/* Quantizers: exact codes and scales, invalid arguments, alignment, progress. */
#include "memory.h"

#ifdef __SSE__
#include <xmmintrin.h>
#else
static inline unsigned _mm_getcsr(void)
{
    return 0;
}
static inline void _mm_setcsr(unsigned modes)
{
    (void)modes;
}
#endif

enum { ROWS = 3, COLS = 4 };

static const float numbers[ROWS][COLS] = {{448, -224, 1, 0}, {0, 0, 0, 0}, {-896, 2, 3, 896}};
static const unsigned char expected[ROWS][COLS] = {
    {0x7e, 0xf6, 0x38, 0x00}, {0, 0, 0, 0}, {0xfe, 0x38, 0x3c, 0x7e}};
static const float expected_scales[ROWS] = {1, 1, 2};

static wb_layout matrix_layout(int64_t *shape)
{
    shape[0] = ROWS;
    shape[1] = COLS;
    return layout_of(WB_DTYPE_F32, 2, shape, NULL, 0);
}

static wb_status quantize(wb_quantizer *quantizer, const void *source, const wb_layout *layout,
                          void *codes, void *scales, const wb_quantize_options *options,
                          wb_quantizer_result *done)
{
    return wb_quantizer_quantize(quantizer, source, layout, codes, scales, options, done, &error);
}

static wb_status dequantize(wb_quantizer *quantizer, const void *codes, const void *scales,
                            void *target, const wb_layout *layout,
                            const wb_quantize_options *options, wb_quantizer_result *done)
{
    return wb_quantizer_dequantize(quantizer, codes, scales, target, layout, options, done,
                                   &error);
}

static void rows_have_their_own_scales(wb_device *device)
{
    int64_t shape[2];
    const wb_layout matrix = matrix_layout(shape);
    wb_quantizer *quantizer = NULL;
    wb_quantize_options options = WB_QUANTIZE_OPTIONS_INIT;
    wb_quantizer_result done = WB_QUANTIZER_RESULT_INIT;
    wb_quantizer_scales_info info = WB_QUANTIZER_SCALES_INFO_INIT;
    unsigned char codes[ROWS][COLS];
    float scales[ROWS], back[ROWS][COLS];
    options.block_rows = 1;
    REQUIRE_OK(wb_quantizer_new(device, 0, &quantizer, &error));
    CHECK_OK(wb_quantizer_get_scales_info(&matrix, &options, &info, &error));
    CHECK(info.matrices == 1 && info.rows == ROWS && info.cols == 1 && info.bytes == 12);
    CHECK_OK(quantize(quantizer, numbers, &matrix, codes, scales, &options, &done));
    CHECK(memcmp(codes, expected, sizeof codes) == 0);
    CHECK(memcmp(scales, expected_scales, sizeof scales) == 0);
    CHECK_SAME(done.nonfinite, 0);
    CHECK_SAME(done.passes, 1);
    CHECK_OK(dequantize(quantizer, codes, scales, back, &matrix, &options, NULL));
    CHECK(memcmp(back, numbers, sizeof back) == 0);
    wb_quantizer_retain(quantizer);
    wb_quantizer_release(quantizer);
    wb_quantizer_release(quantizer);
}

/* Large enough for several threads, which gather its rows or quantize parts of it. */
static void a_large_matrix_with_gaps_is_quantized(wb_device *device)
{
    enum { LARGE_ROWS = 2100, LARGE_COLS = 1024, STRIDE = LARGE_COLS + 8 };
    const int64_t shape[] = {LARGE_ROWS, LARGE_COLS}, strides[] = {STRIDE, 1};
    const wb_layout matrix = layout_of(WB_DTYPE_F32, 2, shape, strides, 0);
    wb_quantizer *quantizer = NULL;
    wb_quantize_options options = WB_QUANTIZE_OPTIONS_INIT;
    float *from = (float *)malloc(sizeof(float) * LARGE_ROWS * STRIDE);
    float *scales = (float *)malloc(sizeof(float) * LARGE_ROWS);
    unsigned char *codes = (unsigned char *)malloc((size_t)LARGE_ROWS * LARGE_COLS);
    size_t wrong = 0;
    if (from == NULL || scales == NULL || codes == NULL) abort();
    for (size_t at = 0; at < (size_t)LARGE_ROWS * STRIDE; at++) from[at] = numbers[0][at % COLS];
    options.block_rows = 1;
    REQUIRE_OK(wb_quantizer_new(device, 0, &quantizer, &error));
    CHECK_OK(quantize(quantizer, from, &matrix, codes, scales, &options, NULL));
    for (size_t at = 0; at < (size_t)LARGE_ROWS * LARGE_COLS; at++) {
        wrong += codes[at] != expected[0][at % COLS];
    }
    for (size_t row = 0; row < LARGE_ROWS; row++) wrong += scales[row] != 1;
    CHECK_SAME(wrong, 0);
    wb_quantizer_release(quantizer);
    free(from);
    free(scales);
    free(codes);
}

/* Flush to zero, subnormals as zero and each rounding, of the thread that makes the quantizer and its
 * stream and of the one that calls it. A product that is subnormal, a product that is rounded, and
 * quotients that are rounded to subnormal codes. */
static void the_callers_floating_point_modes_change_no_bit(wb_device *device)
{
    const float tiny = 0.001953125f; /* 2^-9, the smallest number in E4M3 */
    const float from[2][COLS] = {{448, 1.25f * tiny, -1.25f * tiny, 1.75f * tiny}, {448, 0, 0, 0}};
    const unsigned char codes_wanted[COLS] = {0x7e, 0x01, 0x81, 0x02};
    const unsigned char to_decode[2][COLS] = {{0x38, 0xb8, 0x39, 0x01}, {0x39, 0xb9, 0x38, 0}};
    /* 2^-130, and 1 + 2^-23 */
    const uint32_t scales[2] = {0x00080000u, 0x3f800001u};
    const uint32_t numbers_wanted[2][COLS] = {
        {0x00080000u, 0x80080000u, 0x00090000u, 0x00000400u},
        {0x3f900001u, 0xbf900001u, 0x3f800001u, 0}};
    const int64_t shape[] = {2, COLS};
    const wb_layout matrix = layout_of(WB_DTYPE_F32, 2, shape, NULL, 0);
    wb_quantize_options options = WB_QUANTIZE_OPTIONS_INIT;
    const unsigned callers = _mm_getcsr();
    options.block_rows = 1;
    for (unsigned modes = 0; modes < 8; modes++) {
        wb_quantizer *quantizer = NULL;
        unsigned char codes[2][COLS];
        float found[2];
        uint32_t back[2][COLS];
        const unsigned set = 0x1f80u | (modes & 3u) << 13 | (modes & 4u ? 0x8040u : 0u);
        _mm_setcsr(set);
        const wb_status made = wb_quantizer_new(device, 0, &quantizer, &error);
        const wb_status there = made != WB_OK ? made : quantize(quantizer, from, &matrix, codes, found, &options, NULL);
        const wb_status and_back = made != WB_OK ? made : dequantize(quantizer, to_decode, scales, back, &matrix, &options, NULL);
        const unsigned left = _mm_getcsr();
        _mm_setcsr(callers);
        REQUIRE_OK(made);
        CHECK_OK(there);
        CHECK_OK(and_back);
#ifdef __SSE__
        CHECK_SAME(left & 0xffc0u, set & 0xffc0u);
#else
        (void)left;
#endif
        CHECK(memcmp(codes[0], codes_wanted, sizeof codes_wanted) == 0);
        CHECK(memcmp(back, numbers_wanted, sizeof back) == 0);
        wb_quantizer_release(quantizer);
    }
}

static void invalid_arguments_are_refused(wb_device *device)
{
    int64_t shape[2];
    const wb_layout matrix = matrix_layout(shape);
    wb_layout integers = matrix;
    wb_quantizer *quantizer = NULL, *none = NULL;
    wb_quantize_options options = WB_QUANTIZE_OPTIONS_INIT;
    wb_quantizer_scales_info info = WB_QUANTIZER_SCALES_INFO_INIT;
    unsigned char codes[ROWS][COLS] = {{0}};
    float scales[ROWS] = {7, 7, 7};
    integers.dtype = WB_DTYPE_I32;
    CHECK_NULL(wb_quantizer_new(NULL, 0, &none, &error), "wb_device");
    CHECK_NULL(wb_quantizer_new(device, 0, NULL, &error), "quantizer");
    REQUIRE_OK(wb_quantizer_new(device, 0, &quantizer, &error));
#define REFUSED(status, words, source, layout, codes, scales) \
    CHECK_ERROR(status, quantize(quantizer, source, layout, codes, scales, &options, NULL), words)
    REFUSED(WB_ERR_INVALID_ARGUMENT, "source|48 bytes", NULL, &matrix, codes, scales);
    REFUSED(WB_ERR_INVALID_ARGUMENT, "layout", numbers, NULL, codes, scales);
    REFUSED(WB_ERR_INVALID_ARGUMENT, "FP8 target|12 bytes", numbers, &matrix, NULL, scales);
    REFUSED(WB_ERR_INVALID_ARGUMENT, "scales|4 bytes", numbers, &matrix, codes, NULL);
    REFUSED(WB_ERR_NOT_SUPPORTED, "int32", numbers, &integers, codes, scales);
    options.format = WB_DTYPE_BF16;
    REFUSED(WB_ERR_NOT_SUPPORTED, "bfloat16", numbers, &matrix, codes, scales);
    options.format = WB_DTYPE_F8_E4M3FN;
    options.scale_dtype = WB_DTYPE_F16;
    REFUSED(WB_ERR_INVALID_ARGUMENT, "scale_dtype", numbers, &matrix, codes, scales);
    options.scale_dtype = WB_DTYPE_F32;
    options.use_given_scales = 2;
    REFUSED(WB_ERR_INVALID_ARGUMENT, "use_given_scales", numbers, &matrix, codes, scales);
    options.use_given_scales = 0;
    options.reserved[3] = 1;
    REFUSED(WB_ERR_INVALID_ARGUMENT, "wb_quantize_options", numbers, &matrix, codes, scales);
    CHECK_NULL(wb_quantizer_get_scales_info(NULL, NULL, &info, &error), "layout");
    CHECK_NULL(wb_quantizer_get_scales_info(&matrix, NULL, NULL, &error),
               "wb_quantizer_scales_info");
    CHECK(scales[0] == 7 && none == NULL);
    wb_quantizer_release(quantizer);
    wb_quantizer_release(NULL);
}

/* Whichever call of the driver failed, nothing of the failed task is counted in the next one. */
static void a_failed_call_does_not_affect_the_next_count(wb_device *device)
{
    int64_t shape[2];
    const wb_layout matrix = matrix_layout(shape);
    wb_quantizer *quantizer = NULL;
    unsigned char codes[ROWS][COLS];
    float scales[ROWS], nonfinite[ROWS][COLS];
    wb_status status = WB_ERR_DRIVER;
    const uint64_t logged = device_stats(device).errors_logged;
    memset(nonfinite, 0xff, sizeof nonfinite); /* all are NaN */
    REQUIRE_OK(wb_quantizer_new(device, 0, &quantizer, &error));
    /* Allocates the staging memory. */
    CHECK_OK(quantize(quantizer, numbers, &matrix, codes, scales, NULL, NULL));
    for (int call = 1; call < 1000 && status != WB_OK; call++) {
        wb_quantizer_result done = WB_QUANTIZER_RESULT_INIT;
        char failure[64];
        snprintf(failure, sizeof failure, "*:%d:999", call);
        double_set("WB_DOUBLE_FAIL", failure);
        status = quantize(quantizer, nonfinite, &matrix, codes, scales, NULL, NULL);
        double_set("WB_DOUBLE_FAIL", "");
        CHECK_OK(quantize(quantizer, numbers, &matrix, codes, scales, NULL, &done));
        if (!CHECK_SAME(done.nonfinite, 0)) break;
    }
    CHECK_SAME(status, WB_OK);
    check_logged = (int)(device_stats(device).errors_logged - logged); /* by failed releases */
    wb_quantizer_release(quantizer);
}

/* A device accesses only naturally aligned elements; unaligned codes and scales are copied. */
static void unaligned_device_addresses_are_refused(wb_device *device)
{
    enum { MEMORY_BYTES = 256 };
    static const wb_dtype types[] = {WB_DTYPE_F32, WB_DTYPE_F16, WB_DTYPE_BF16};
    int64_t shape[2];
    wb_layout matrix = matrix_layout(shape);
    wb_quantizer *quantizer = NULL;
    void *memory[3] = {NULL, NULL, NULL};
    float back[ROWS][COLS];
    REQUIRE_OK(wb_quantizer_new(device, 0, &quantizer, &error));
    for (int i = 0; i < 3; i++) {
        REQUIRE_OK(wb_device_alloc(device, MEMORY_BYTES, &memory[i], &error));
    }
    char *source = (char *)memory[0], *target = (char *)memory[1], *scales = (char *)memory[2];
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
        const uint64_t size = types[i] == WB_DTYPE_F32 ? 4 : 2;
        matrix.dtype = types[i];
        for (uint64_t off = 1; off < size; off++) {
            CHECK_ERROR(WB_ERR_UNALIGNED,
                        wb_quantizer_quantize(quantizer, source + off, &matrix, target, scales,
                                              NULL, NULL, &error),
                        "device memory|multiple of");
            CHECK_ERROR(WB_ERR_UNALIGNED,
                        wb_quantizer_dequantize(quantizer, target, scales, source + off, &matrix,
                                                NULL, NULL, &error),
                        "device memory|multiple of");
        }
    }
    matrix.dtype = WB_DTYPE_F32;
    CHECK_OK(wb_device_copy(device, source + 4, numbers, sizeof numbers, NULL, &error));
    CHECK_OK(wb_device_stream_synchronize(device, NULL, &error));
    CHECK_OK(wb_quantizer_quantize(quantizer, source + 4, &matrix, target + 3, scales + 1, NULL,
                                   NULL, &error));
    CHECK_OK(wb_quantizer_dequantize(quantizer, target + 3, scales + 1, source + 8, &matrix, NULL,
                                     NULL, &error));
    CHECK(read_device(device, back, source + 8, sizeof back));
    CHECK(back[2][0] == -896 && back[2][3] == 896);
    for (int i = 0; i < 3; i++) CHECK_OK(wb_device_free(device, memory[i], &error));
    wb_quantizer_release(quantizer);
}

/* Tensors in a mapped file begin where its header ends. */
static void host_addresses_may_be_unaligned(wb_device *device)
{
    static const uint16_t f16[ROWS][COLS] = {
        {0x5f00, 0xdb00, 0x3c00, 0}, {0}, {0xe300, 0x4000, 0x4200, 0x6300}};
    static const uint16_t bf16[ROWS][COLS] = {
        {0x43e0, 0xc360, 0x3f80, 0}, {0}, {0xc460, 0x4000, 0x4040, 0x4460}};
    static const struct {
        wb_dtype dtype;
        const void *numbers;
        size_t bytes;
    } types[] = {{WB_DTYPE_F32, numbers, sizeof numbers},
                 {WB_DTYPE_F16, f16, sizeof f16},
                 {WB_DTYPE_BF16, bf16, sizeof bf16}};
    int64_t shape[2];
    wb_layout matrix = matrix_layout(shape);
    wb_quantizer *quantizer = NULL;
    wb_quantize_options options = WB_QUANTIZE_OPTIONS_INIT;
    options.block_rows = 1;
    REQUIRE_OK(wb_quantizer_new(device, 0, &quantizer, &error));
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
        for (size_t off = 0; off < 4; off++) {
            float aligned[16], scales[ROWS + 1];
            unsigned char *at = (unsigned char *)aligned + off, codes[ROWS][COLS];
            unsigned char *scales_at = (unsigned char *)scales + off;
            matrix.dtype = types[i].dtype;
            memcpy(at, types[i].numbers, types[i].bytes);
            CHECK_OK(quantize(quantizer, at, &matrix, codes, scales_at, &options, NULL));
            CHECK(memcmp(codes, expected, sizeof codes) == 0);
            CHECK(memcmp(scales_at, expected_scales, sizeof expected_scales) == 0);
            memset(aligned, 0xaa, sizeof aligned);
            CHECK_OK(dequantize(quantizer, codes, scales_at, at, &matrix, &options, NULL));
            CHECK(memcmp(at, types[i].numbers, types[i].bytes) == 0);
        }
    }
    wb_quantizer_release(quantizer);
}

static wb_quantizer *busy;

static int32_t call_from_progress(void *user, wb_phase phase, uint64_t done, uint64_t total)
{
    int64_t shape[2];
    const wb_layout matrix = matrix_layout(shape);
    unsigned char codes[ROWS][COLS];
    float scales[ROWS];
    (void)phase;
    (void)done;
    (void)total;
    CHECK_ERROR(WB_ERR_BUSY,
                quantize(busy, numbers, &matrix, codes, scales, NULL, NULL),
                "progress");
    ++*(int *)user;
    return 0;
}

static void a_call_from_its_progress_callback_is_refused(wb_device *device)
{
    int64_t shape[2];
    const wb_layout matrix = matrix_layout(shape);
    wb_quantize_options options = WB_QUANTIZE_OPTIONS_INIT;
    unsigned char codes[ROWS][COLS];
    float scales[ROWS];
    int calls = 0;
    options.block_rows = 1;
    options.progress = call_from_progress;
    options.progress_user = &calls;
    REQUIRE_OK(wb_quantizer_new(device, 0, &busy, &error));
    CHECK_OK(quantize(busy, numbers, &matrix, codes, scales, &options, NULL));
    CHECK(calls > 0);
    CHECK(memcmp(codes, expected, sizeof codes) == 0);
    wb_quantizer_release(busy);
}

static wb_device *device_of_busy;

static int32_t release_from_progress(void *user, wb_phase phase, uint64_t done, uint64_t total)
{
    (void)phase;
    (void)done;
    (void)total;
    if (busy != NULL) {
        wb_quantizer_release(busy);
        busy = NULL;
        *(uint64_t *)user = device_stats(device_of_busy).device_bytes;
    }
    return 0;
}

/* A call holds its quantizer: the last reference may be dropped meanwhile. */
static void a_release_during_a_call_frees_after_it(wb_device *device)
{
    int64_t shape[2];
    const wb_layout matrix = matrix_layout(shape);
    wb_quantize_options options = WB_QUANTIZE_OPTIONS_INIT;
    unsigned char codes[ROWS][COLS];
    float scales[ROWS];
    uint64_t held = 0;
    options.block_rows = 1;
    options.progress = release_from_progress;
    options.progress_user = &held;
    device_of_busy = device;
    REQUIRE_OK(wb_quantizer_new(device, 0, &busy, &error));
    CHECK_OK(quantize(busy, numbers, &matrix, codes, scales, &options, NULL));
    CHECK(busy == NULL && held > 0);
    CHECK_SAME(device_stats(device).device_bytes, 0);
    CHECK(memcmp(codes, expected, sizeof codes) == 0);
}

/* A failed call has no effect, even if only its result cannot be written. */
static void an_invalid_result_struct_fails_before_the_work(wb_device *device)
{
    int64_t shape[2];
    const wb_layout matrix = matrix_layout(shape);
    wb_quantizer *quantizer = NULL;
    wb_quantizer_result done = WB_QUANTIZER_RESULT_INIT;
    unsigned char codes[ROWS][COLS];
    float scales[ROWS] = {7, 7, 7}, back[ROWS][COLS];
    memset(codes, 0xaa, sizeof codes);
    memset(back, 0x55, sizeof back);
    done.struct_size += 8;
    REQUIRE_OK(wb_quantizer_new(device, 0, &quantizer, &error));
    CHECK_ERROR(WB_ERR_STRUCT_SIZE,
                quantize(quantizer, numbers, &matrix, codes, scales, NULL, &done),
                "wb_quantizer_result");
    CHECK(codes[0][0] == 0xaa && codes[ROWS - 1][COLS - 1] == 0xaa && scales[0] == 7);
    CHECK_ERROR(WB_ERR_STRUCT_SIZE,
                dequantize(quantizer, codes, scales, back, &matrix, NULL, &done),
                "wb_quantizer_result");
    CHECK(((unsigned char *)back)[0] == 0x55 && ((unsigned char *)back)[sizeof back - 1] == 0x55);
    wb_quantizer_release(quantizer);
}

CHECK_MAIN(CASE(rows_have_their_own_scales), CASE(a_large_matrix_with_gaps_is_quantized),
           CASE(the_callers_floating_point_modes_change_no_bit),
           CASE(invalid_arguments_are_refused),
           CASE_ON(DOUBLE_ONLY, a_failed_call_does_not_affect_the_next_count),
           CASE(unaligned_device_addresses_are_refused), CASE(host_addresses_may_be_unaligned),
           CASE(a_call_from_its_progress_callback_is_refused),
           CASE(a_release_during_a_call_frees_after_it),
           CASE(an_invalid_result_struct_fails_before_the_work))

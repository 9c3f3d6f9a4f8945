/* Quantizing: exact codes and scales, and what cannot be is an error with nothing lost. */
#include "check.h"
#include "memory.h"

enum { ROWS = 3, COLS = 4 };

static const float numbers[ROWS][COLS] = {{448, -224, 1, 0}, {0, 0, 0, 0}, {-896, 2, 3, 896}};
static const unsigned char wanted[ROWS][COLS] = {
    {0x7e, 0xf6, 0x38, 0x00}, {0, 0, 0, 0}, {0xfe, 0x38, 0x3c, 0x7e}};
static const float wanted_scales[ROWS] = {1, 1, 2};

static uint64_t number(const void *memory)
{
    return (uint64_t)(uintptr_t)memory;
}

static wb_layout layout(int64_t *shape)
{
    shape[0] = ROWS;
    shape[1] = COLS;
    return layout_of(WB_DTYPE_F32, 2, shape, NULL, 0);
}

static void rows_have_their_own_scales(wb_device *device)
{
    int64_t shape[2];
    const wb_layout matrix = layout(shape);
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
    CHECK_OK(wb_quantizer_quantize(quantizer, number(numbers), &matrix, number(codes),
                                   number(scales), &options, &done, &error));
    CHECK(memcmp(codes, wanted, sizeof codes) == 0);
    CHECK(memcmp(scales, wanted_scales, sizeof scales) == 0);
    CHECK_SAME(done.nonfinite, 0);
    CHECK_SAME(done.passes, 1);
    CHECK_OK(wb_quantizer_dequantize(quantizer, number(codes), number(scales), number(back),
                                     &matrix, &options, NULL, &error));
    CHECK(memcmp(back, numbers, sizeof back) == 0);
    wb_quantizer_retain(quantizer);
    wb_quantizer_release(quantizer);
    wb_quantizer_release(quantizer);
}

/* Large enough for several threads, which gather its rows or quantize parts of them. */
static void a_large_matrix_with_gaps_is_quantized(wb_device *device)
{
    enum { MANY = 2100, WIDE = 1024, STRIDE = WIDE + 8 };
    const int64_t shape[] = {MANY, WIDE}, strides[] = {STRIDE, 1};
    const wb_layout matrix = layout_of(WB_DTYPE_F32, 2, shape, strides, 0);
    wb_quantizer *quantizer = NULL;
    wb_quantize_options options = WB_QUANTIZE_OPTIONS_INIT;
    float *from = (float *)malloc(sizeof(float) * MANY * STRIDE);
    float *scales = (float *)malloc(sizeof(float) * MANY);
    unsigned char *codes = (unsigned char *)malloc((size_t)MANY * WIDE);
    size_t wrong = 0;
    if (from == NULL || scales == NULL || codes == NULL) abort();
    for (size_t at = 0; at < (size_t)MANY * STRIDE; at++) from[at] = numbers[0][at % COLS];
    options.block_rows = 1;
    REQUIRE_OK(wb_quantizer_new(device, 0, &quantizer, &error));
    CHECK_OK(wb_quantizer_quantize(quantizer, number(from), &matrix, number(codes), number(scales),
                                   &options, NULL, &error));
    for (size_t at = 0; at < (size_t)MANY * WIDE; at++) wrong += codes[at] != wanted[0][at % COLS];
    for (size_t row = 0; row < MANY; row++) wrong += scales[row] != 1;
    CHECK_SAME(wrong, 0);
    wb_quantizer_release(quantizer);
    free(from);
    free(scales);
    free(codes);
}

static void what_cannot_be_is_an_error(wb_device *device)
{
    int64_t shape[2];
    const wb_layout matrix = layout(shape);
    wb_layout integers = matrix;
    wb_quantizer *quantizer = NULL, *none = NULL;
    wb_quantize_options options = WB_QUANTIZE_OPTIONS_INIT;
    wb_quantizer_scales_info info = WB_QUANTIZER_SCALES_INFO_INIT;
    unsigned char codes[ROWS][COLS] = {{0}};
    float scales[ROWS] = {7, 7, 7};
    integers.dtype = WB_DTYPE_I32;
    CHECK_ERROR(WB_ERR_INVALID_ARGUMENT, wb_quantizer_new(NULL, 0, &none, &error), "wb_device");
    CHECK_ERROR(WB_ERR_INVALID_ARGUMENT, wb_quantizer_new(device, 0, NULL, &error), "quantizer");
    REQUIRE_OK(wb_quantizer_new(device, 0, &quantizer, &error));
#define REFUSED(status, words, source, of, target, to)                                            \
    CHECK_ERROR(status,                                                                           \
                wb_quantizer_quantize(quantizer, source, of, target, to, &options, NULL, &error), \
                words)
    REFUSED(WB_ERR_INVALID_ARGUMENT, "source", 0, &matrix, number(codes), number(scales));
    REFUSED(WB_ERR_INVALID_ARGUMENT, "layout", number(numbers), NULL, number(codes), number(scales));
    REFUSED(WB_ERR_INVALID_ARGUMENT, "8-bit numbers|12 bytes", number(numbers), &matrix, 0, number(scales));
    REFUSED(WB_ERR_INVALID_ARGUMENT, "scales|4 bytes", number(numbers), &matrix, number(codes), 0);
    REFUSED(WB_ERR_NOT_SUPPORTED, "int32", number(numbers), &integers, number(codes),
            number(scales));
    options.format = WB_DTYPE_BF16;
    REFUSED(WB_ERR_NOT_SUPPORTED, "bfloat16", number(numbers), &matrix, number(codes),
            number(scales));
    options.format = WB_DTYPE_F8_E4M3FN;
    options.scale_type = WB_DTYPE_F16;
    REFUSED(WB_ERR_INVALID_ARGUMENT, "scale_type", number(numbers), &matrix, number(codes), number(scales));
    options.scale_type = WB_DTYPE_F32;
    options.given_scales = 2;
    REFUSED(WB_ERR_INVALID_ARGUMENT, "given_scales", number(numbers), &matrix, number(codes), number(scales));
    options.given_scales = 0;
    options.reserved[3] = 1;
    REFUSED(WB_ERR_INVALID_ARGUMENT, "wb_quantize_options", number(numbers), &matrix, number(codes),
            number(scales));
    CHECK_ERROR(WB_ERR_INVALID_ARGUMENT, wb_quantizer_get_scales_info(NULL, NULL, &info, &error), "layout");
    CHECK_ERROR(WB_ERR_INVALID_ARGUMENT, wb_quantizer_get_scales_info(&matrix, NULL, NULL, &error), "wb_quantizer_scales_info");
    CHECK(scales[0] == 7 && none == NULL);
    wb_quantizer_release(quantizer);
    wb_quantizer_release(NULL);
}

/* Nothing of a task that failed is in the count of the next, wherever the driver failed. */
static void a_count_is_of_one_tensor_only(wb_device *device)
{
    int64_t shape[2];
    const wb_layout matrix = layout(shape);
    wb_quantizer *quantizer = NULL;
    unsigned char codes[ROWS][COLS];
    float scales[ROWS], odd[ROWS][COLS];
    wb_status status = WB_ERR_DRIVER;
    const uint64_t logged = measure(device).errors_logged;
    memset(odd, 0xff, sizeof odd); /* all are NaN */
    REQUIRE_OK(wb_quantizer_new(device, 0, &quantizer, &error));
    CHECK_OK(wb_quantizer_quantize(quantizer, number(numbers), &matrix, number(codes),
                                   number(scales), NULL, NULL, &error)); /* staging is there */
    for (int call = 1; call < 1000 && status != WB_OK; call++) {
        wb_quantizer_result done = WB_QUANTIZER_RESULT_INIT;
        char failure[64];
        snprintf(failure, sizeof failure, "*:%d:999", call);
        double_set("WB_DOUBLE_FAIL", failure);
        status = wb_quantizer_quantize(quantizer, number(odd), &matrix, number(codes),
                                       number(scales), NULL, NULL, &error);
        double_set("WB_DOUBLE_FAIL", "");
        CHECK_OK(wb_quantizer_quantize(quantizer, number(numbers), &matrix, number(codes),
                                       number(scales), NULL, &done, &error));
        if (!CHECK_SAME(done.nonfinite, 0)) break;
    }
    CHECK_SAME(status, WB_OK);
    check_logged = (int)(measure(device).errors_logged - logged); /* of what was given back */
    wb_quantizer_release(quantizer);
}

/* A device reads and writes numbers where their size divides the address; the rest is copied. */
static void numbers_that_no_device_can_read_are_refused(wb_device *device)
{
    enum { ROOM = 256 };
    static const wb_dtype types[] = {WB_DTYPE_F32, WB_DTYPE_F16, WB_DTYPE_BF16};
    int64_t shape[2];
    wb_layout matrix = layout(shape);
    wb_quantizer *quantizer = NULL;
    uint64_t wide = 0, narrow = 0, scales = 0;
    float back[ROWS][COLS];
    REQUIRE_OK(wb_quantizer_new(device, 0, &quantizer, &error));
    REQUIRE_OK(wb_device_alloc(device, ROOM, &wide, &error));
    REQUIRE_OK(wb_device_alloc(device, ROOM, &narrow, &error));
    REQUIRE_OK(wb_device_alloc(device, ROOM, &scales, &error));
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
        const uint64_t size = types[i] == WB_DTYPE_F32 ? 4 : 2;
        matrix.dtype = types[i];
        for (uint64_t off = 1; off < size; off++) {
            CHECK_ERROR(WB_ERR_UNALIGNED,
                        wb_quantizer_quantize(quantizer, wide + off, &matrix, narrow, scales, NULL,
                                              NULL, &error),
                        "device memory|multiple of");
            CHECK_ERROR(WB_ERR_UNALIGNED,
                        wb_quantizer_dequantize(quantizer, narrow, scales, wide + off, &matrix,
                                                NULL, NULL, &error),
                        "device memory|multiple of");
        }
    }
    matrix.dtype = WB_DTYPE_F32;
    CHECK_OK(wb_device_copy(device, wide + 4, number(numbers), sizeof numbers, NULL, &error));
    CHECK_OK(wb_device_stream_synchronize(device, NULL, &error));
    CHECK_OK(wb_quantizer_quantize(quantizer, wide + 4, &matrix, narrow + 3, scales + 1, NULL, NULL,
                                   &error));
    CHECK_OK(wb_quantizer_dequantize(quantizer, narrow + 3, scales + 1, wide + 8, &matrix, NULL,
                                     NULL, &error));
    CHECK(read_device(device, back, wide + 8, sizeof back));
    CHECK(back[2][0] == -896 && back[2][3] == 896);
    CHECK_OK(wb_device_free(device, wide, &error));
    CHECK_OK(wb_device_free(device, narrow, &error));
    CHECK_OK(wb_device_free(device, scales, &error));
    wb_quantizer_release(quantizer);
}

/* A mapped file's numbers lie where its header ends. */
static void host_numbers_may_lie_anywhere(wb_device *device)
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
    wb_layout matrix = layout(shape);
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
            CHECK_OK(wb_quantizer_quantize(quantizer, number(at), &matrix, number(codes),
                                           number(scales_at), &options, NULL, &error));
            CHECK(memcmp(codes, wanted, sizeof codes) == 0);
            CHECK(memcmp(scales_at, wanted_scales, sizeof wanted_scales) == 0);
            memset(aligned, 0xaa, sizeof aligned);
            CHECK_OK(wb_quantizer_dequantize(quantizer, number(codes), number(scales_at),
                                             number(at), &matrix, &options, NULL, &error));
            CHECK(memcmp(at, types[i].numbers, types[i].bytes) == 0);
        }
    }
    wb_quantizer_release(quantizer);
}

static wb_quantizer *at_work;

static int32_t calls_back(void *user, wb_phase phase, uint64_t done, uint64_t total)
{
    int64_t shape[2];
    const wb_layout matrix = layout(shape);
    unsigned char codes[ROWS][COLS];
    float scales[ROWS];
    (void)phase;
    (void)done;
    (void)total;
    CHECK_ERROR(WB_ERR_BUSY,
                wb_quantizer_quantize(at_work, number(numbers), &matrix, number(codes),
                                      number(scales), NULL, NULL, &error),
                "progress");
    ++*(int *)user;
    return 0;
}

static void its_own_progress_function_is_not_waited_for(wb_device *device)
{
    int64_t shape[2];
    const wb_layout matrix = layout(shape);
    wb_quantize_options options = WB_QUANTIZE_OPTIONS_INIT;
    unsigned char codes[ROWS][COLS];
    float scales[ROWS];
    int calls = 0;
    options.block_rows = 1;
    options.progress = calls_back;
    options.progress_user = &calls;
    REQUIRE_OK(wb_quantizer_new(device, 0, &at_work, &error));
    CHECK_OK(wb_quantizer_quantize(at_work, number(numbers), &matrix, number(codes), number(scales),
                                   &options, NULL, &error));
    CHECK(calls > 0);
    CHECK(memcmp(codes, wanted, sizeof codes) == 0);
    wb_quantizer_release(at_work);
}

/* A call that fails has done nothing, also where only its answer cannot be written. */
static void an_answer_that_cannot_be_written_is_refused_before_the_work(wb_device *device)
{
    int64_t shape[2];
    const wb_layout matrix = layout(shape);
    wb_quantizer *quantizer = NULL;
    wb_quantizer_result done = WB_QUANTIZER_RESULT_INIT;
    unsigned char codes[ROWS][COLS];
    float scales[ROWS] = {7, 7, 7}, back[ROWS][COLS];
    memset(codes, 0xaa, sizeof codes);
    memset(back, 0x55, sizeof back);
    done.struct_size += 8;
    REQUIRE_OK(wb_quantizer_new(device, 0, &quantizer, &error));
    CHECK_ERROR(WB_ERR_STRUCT_SIZE,
                wb_quantizer_quantize(quantizer, number(numbers), &matrix, number(codes),
                                      number(scales), NULL, &done, &error),
                "wb_quantizer_result");
    CHECK(codes[0][0] == 0xaa && codes[ROWS - 1][COLS - 1] == 0xaa && scales[0] == 7);
    CHECK_ERROR(WB_ERR_STRUCT_SIZE,
                wb_quantizer_dequantize(quantizer, number(codes), number(scales), number(back),
                                        &matrix, NULL, &done, &error),
                "wb_quantizer_result");
    CHECK(((unsigned char *)back)[0] == 0x55 && ((unsigned char *)back)[sizeof back - 1] == 0x55);
    wb_quantizer_release(quantizer);
}

CHECK_MAIN(CASE(rows_have_their_own_scales), CASE(a_large_matrix_with_gaps_is_quantized),
           CASE(what_cannot_be_is_an_error),
           CASE_ON(DOUBLE_ONLY, a_count_is_of_one_tensor_only),
           CASE(numbers_that_no_device_can_read_are_refused),
           CASE(host_numbers_may_lie_anywhere), CASE(its_own_progress_function_is_not_waited_for),
           CASE(an_answer_that_cannot_be_written_is_refused_before_the_work))

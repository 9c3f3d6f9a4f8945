/* Weights that an offloader keeps in 8 bits, and that change. */
#include <math.h>

#include "check.h"
#include "weights.h"

static void numbers_that_are_refused_change_nothing(wb_device *device)
{
    static const char *const stays[] = {"*"};
    const int64_t shape[] = {32, 32};
    const wb_layout layout = layout_of(WB_DTYPE_F32, 2, shape, NULL, 0);
    static float numbers[1024];
    static unsigned char kept[1024];
    for (uint32_t resident = 0; resident < 2; resident++) {
        struct offload o = {device, NULL, NULL, NULL, NULL};
        wb_plan_options options = options_of(WB_TRANSFER_MODE_PREFETCH);
        wb_quantize_options quantize = WB_QUANTIZE_OPTIONS_INIT;
        for (int i = 0; i < 1024; i++) numbers[i] = (float)i;
        model_init(&model);
        model.parameters[0].layout = &layout;
        model.parameters[0].source = (uint64_t)(uintptr_t)numbers;
        quantize.refuse_nonfinite = 1;
        options.quantize = &quantize;
        options.allow = WB_ALLOW_EVERYTHING_FITS | WB_ALLOW_NOTHING_OFFLOADED;
        options.exclude = stays;
        options.exclude_count = resident;
        REQUIRE_OK(wb_device_stream_new(device, &o.stream, &error));
        REQUIRE_OK(wb_plan_new(device, model.parameters, 1, &options, &o.plan, &error));
        REQUIRE_OK(wb_offloader_new(o.plan, o.stream, NULL, &o.offloader, &error));
        REQUIRE_OK(wb_buffer_alloc(device, BYTES, NULL, &o.back, &error));
        CHECK_SAME(where(&o, 0).carrier, resident ? WB_CARRIER_NONE : WB_TRANSFER_MODE_PREFETCH);
        CHECK_SAME(where(&o, 0).span_bytes, sizeof kept);
        memset(kept, 0, sizeof kept);
        CHECK(!device_holds(&o, model.groups[0], 0, kept, sizeof kept));
        memcpy(kept, describe(o.back).data, sizeof kept); /* what it read */
        for (int i = 0; i < 1024; i++) numbers[i] = (float)-i;
        numbers[5] = NAN;
        CHECK_ERROR(WB_ERR_NOT_FINITE,
                    wb_offloader_replace(o.offloader, model.names[0], model.parameters[0].source,
                                         &layout, o.stream, &error),
                    "1 of 1024");
        CHECK(device_holds(&o, model.groups[0], 0, kept, sizeof kept));
        numbers[5] = 0;
        CHECK_OK(wb_offloader_replace(o.offloader, model.names[0], model.parameters[0].source,
                                      &layout, o.stream, &error));
        CHECK(!device_holds(&o, model.groups[0], 0, kept, sizeof kept));
        end(&o);
    }
}

enum { ROWS = 32, COLS = 64, NUMBERS = ROWS * COLS };

static float numbers[NUMBERS];

/* Plans and commits the first parameters, quantized where they are matrices of wide numbers. */
static int begin_quantized(struct offload *o, wb_device *device, uint64_t count)
{
    const struct offload none = {device, NULL, NULL, NULL, NULL};
    const wb_quantize_options quantize = WB_QUANTIZE_OPTIONS_INIT;
    wb_plan_options options = options_of(WB_TRANSFER_MODE_PREFETCH);
    *o = none;
    options.quantize = &quantize;
    return CHECK_OK(wb_device_stream_new(device, &o->stream, &error)) &&
           CHECK_OK(wb_plan_new(device, model.parameters, count, &options, &o->plan, &error)) &&
           CHECK_OK(wb_offloader_new(o->plan, o->stream, NULL, &o->offloader, &error)) &&
           CHECK_OK(wb_buffer_alloc(device, BYTES, NULL, &o->back, &error));
}

static void matrix_of(int parameter, const wb_layout *layout)
{
    for (int i = 0; i < NUMBERS; i++) numbers[i] = (float)(i % 101);
    model.parameters[parameter].layout = layout;
    model.parameters[parameter].source = (uint64_t)(uintptr_t)numbers;
}

/* The same bytes in another layout are other numbers in 8 bits. */
static void a_matrix_and_its_transpose_are_two(wb_device *device)
{
    const int64_t shape[] = {ROWS, COLS}, turned[] = {COLS, ROWS}, strides[] = {1, COLS};
    const wb_layout layout = layout_of(WB_DTYPE_F32, 2, shape, NULL, 0);
    const wb_layout other = layout_of(WB_DTYPE_F32, 2, turned, strides, 0);
    unsigned char found[2][NUMBERS];
    struct offload o;
    model_init(&model);
    matrix_of(0, &layout);
    matrix_of(1, &other);
    REQUIRE(begin_quantized(&o, device, 2));
    CHECK_SAME(stats_of(&o).offloaded_bytes, 2 * (NUMBERS + sizeof(float)));
    for (int i = 0; i < 2; i++) memcpy(found[i], where(&o, i).host_address, NUMBERS);
    for (int row = 0; row < ROWS; row++) {
        for (int col = 0; col < COLS; col++) {
            CHECK_SAME(found[0][row * COLS + col], found[1][col * ROWS + row]);
        }
    }
    end(&o);
    /* In one layout they are one. */
    matrix_of(1, &layout);
    REQUIRE(begin_quantized(&o, device, 2));
    CHECK_SAME(stats_of(&o).offloaded_bytes, NUMBERS + sizeof(float));
    CHECK(memcmp(where(&o, 0).host_address, found[0], NUMBERS) == 0);
    CHECK(where(&o, 0).host_address == where(&o, 1).host_address);
    end(&o);
}

static void storage_numbers_are_the_callers(wb_device *device)
{
    static const unsigned char others[NUMBERS] = {7};
    static const uint64_t ties[] = {1, 2, UINT64_MAX, UINT64_MAX - 1};
    const int64_t shape[] = {ROWS, COLS}, flat[] = {NUMBERS};
    const wb_layout layout = layout_of(WB_DTYPE_F32, 2, shape, NULL, 0);
    const wb_layout other = layout_of(WB_DTYPE_U8, 1, flat, NULL, 0);
    for (size_t i = 0; i < sizeof ties / sizeof ties[0]; i++) {
        unsigned char before[NUMBERS];
        struct offload o;
        model_init(&model);
        matrix_of(0, &layout);
        model.parameters[1].layout = &other;
        model.parameters[1].source = 0;
        model.parameters[1].storage = ties[i];
        REQUIRE(begin_quantized(&o, device, 2));
        memcpy(before, where(&o, 0).host_address, NUMBERS);
        CHECK_OK(wb_offloader_replace(o.offloader, model.names[1], (uint64_t)(uintptr_t)others, &other,
                                      o.stream, &error));
        CHECK(memcmp(before, where(&o, 0).host_address, NUMBERS) == 0);
        CHECK(memcmp(others, where(&o, 1).host_address, NUMBERS) == 0);
        end(&o);
    }
}

static void numbers_that_are_quantized_again_are_of_the_plans_type(wb_device *device)
{
    static const unsigned char narrow_bytes[NUMBERS] = {1};
    const int64_t shape[] = {ROWS, COLS}, strides[] = {1, ROWS};
    const wb_layout layout = layout_of(WB_DTYPE_F32, 2, shape, NULL, 0);
    const wb_layout narrow = layout_of(WB_DTYPE_F8_E5M2, 2, shape, strides, 0);
    unsigned char before[NUMBERS];
    struct offload o;
    wb_view *view = NULL;
    model_init(&model);
    matrix_of(0, &layout);
    REQUIRE(begin_quantized(&o, device, 1));
    memcpy(before, where(&o, 0).host_address, NUMBERS);
    CHECK_OK(wb_offloader_replace(o.offloader, model.names[0], (uint64_t)(uintptr_t)narrow_bytes,
                                  &narrow, o.stream, &error));
    CHECK_OK(wb_offloader_replace(o.offloader, model.names[0], (uint64_t)(uintptr_t)numbers, &layout,
                                  o.stream, &error));
    CHECK_OK(wb_offloader_get_host_view(o.offloader, model.names[0], &view, &error));
    CHECK_SAME(describe_view(view).dtype, WB_DTYPE_F8_E4M3FN);
    CHECK_SAME(describe_view(view).strides[0], COLS);
    CHECK(memcmp(before, where(&o, 0).host_address, NUMBERS) == 0);
    wb_view_release(view);
    end(&o);
}

CHECK_MAIN(CASE(numbers_that_are_refused_change_nothing), CASE(a_matrix_and_its_transpose_are_two),
           CASE(storage_numbers_are_the_callers),
           CASE(numbers_that_are_quantized_again_are_of_the_plans_type))

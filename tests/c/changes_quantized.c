/* Changed parameters that an offloader keeps in FP8. */
#include <math.h>

#include "changes.h"

static void a_refused_replacement_changes_nothing(wb_device *device)
{
    static const char *const all[] = {"*"};
    const int64_t shape[] = {32, 32};
    const wb_layout layout = layout_of(WB_DTYPE_F32, 2, shape, NULL, 0);
    static float numbers[1024];
    static unsigned char expected[1024];
    for (uint32_t resident = 0; resident < 2; resident++) {
        struct offload o;
        wb_plan_options options = prefetch_options();
        wb_quantize_options quantize = WB_QUANTIZE_OPTIONS_INIT;
        for (int i = 0; i < 1024; i++) numbers[i] = (float)i;
        model_init(&model);
        model.parameters[0].layout = &layout;
        model.parameters[0].source = numbers;
        quantize.reject_nonfinite = 1;
        options.quantize = &quantize;
        options.allow = WB_ALLOW_EVERYTHING_FITS | WB_ALLOW_NOTHING_OFFLOADED;
        options.exclude = all;
        options.exclude_count = resident;
        REQUIRE(offload_begin_first(&o, device, 1, options));
        CHECK_SAME(info_of(&o, 0).placement,
                   resident ? WB_PLACEMENT_RESIDENT : WB_PLACEMENT_OFFLOADED);
        CHECK_SAME(info_of(&o, 0).span_bytes, sizeof expected);
        memset(expected, 0, sizeof expected);
        CHECK(!device_holds(&o, model.groups[0], 0, expected, sizeof expected));
        memcpy(expected, buffer_info(o.back).data, sizeof expected); /* what the device read */
        for (int i = 0; i < 1024; i++) numbers[i] = (float)-i;
        numbers[5] = NAN;
        CHECK_ERROR(WB_ERR_NOT_FINITE, replace_from(&o, 0, model.parameters[0].source, &layout),
                    "1 of 1024");
        CHECK(device_holds(&o, model.groups[0], 0, expected, sizeof expected));
        numbers[5] = 0;
        CHECK_OK(replace_from(&o, 0, model.parameters[0].source, &layout));
        CHECK(!device_holds(&o, model.groups[0], 0, expected, sizeof expected));
        offload_end(&o);
    }
}

enum { ROWS = 32, COLS = 64, NUMBERS = ROWS * COLS };

static float numbers[NUMBERS];

/* Plans and commits the first parameters; those of a floating-point type are quantized. */
static int begin_quantized(struct offload *o, wb_device *device, int count)
{
    const wb_quantize_options quantize = WB_QUANTIZE_OPTIONS_INIT;
    wb_plan_options options = prefetch_options();
    options.quantize = &quantize;
    return offload_begin_first(o, device, count, options);
}

static void set_matrix(int parameter, const wb_layout *layout)
{
    for (int i = 0; i < NUMBERS; i++) numbers[i] = (float)(i % 101);
    model.parameters[parameter].layout = layout;
    model.parameters[parameter].source = numbers;
}

static void a_quantized_parameter_without_a_source_is_unfilled_until_it_is_replaced(wb_device *device)
{
    const int64_t shape[] = {ROWS, COLS};
    const wb_layout layout = layout_of(WB_DTYPE_F32, 2, shape, NULL, 0);
    struct offload o;
    model_init(&model);
    set_matrix(0, &layout);
    set_matrix(1, &layout);
    model.parameters[1].source = NULL;
    REQUIRE(begin_quantized(&o, device, 2));
    CHECK_SAME(stats_of(&o).offloaded_bytes, 2 * (NUMBERS + sizeof(float)));
    CHECK_SAME(stats_of(&o).unfilled_bytes, NUMBERS + sizeof(float)); /* with its scale */
    CHECK_OK(replace_from(&o, 1, numbers, &layout));
    CHECK_SAME(stats_of(&o).unfilled_bytes, 0);
    CHECK_SAME(stats_of(&o).offloaded_bytes, 2 * (NUMBERS + sizeof(float)));
    offload_end(&o);
}

/* The quantized bytes depend on the layout, so that the same source in two layouts is not tied. */
static void a_matrix_and_its_transpose_are_quantized_separately(wb_device *device)
{
    const int64_t shape[] = {ROWS, COLS}, transposed[] = {COLS, ROWS}, strides[] = {1, COLS};
    const wb_layout layout = layout_of(WB_DTYPE_F32, 2, shape, NULL, 0);
    const wb_layout other = layout_of(WB_DTYPE_F32, 2, transposed, strides, 0);
    unsigned char found[2][NUMBERS];
    struct offload o;
    model_init(&model);
    set_matrix(0, &layout);
    set_matrix(1, &other);
    REQUIRE(begin_quantized(&o, device, 2));
    CHECK_SAME(stats_of(&o).offloaded_bytes, 2 * (NUMBERS + sizeof(float)));
    for (int i = 0; i < 2; i++) memcpy(found[i], info_of(&o, i).host_address, NUMBERS);
    for (int row = 0; row < ROWS; row++) {
        for (int col = 0; col < COLS; col++) {
            CHECK_SAME(found[0][row * COLS + col], found[1][col * ROWS + row]);
        }
    }
    offload_end(&o);
    /* In the same layout they are tied. */
    set_matrix(1, &layout);
    REQUIRE(begin_quantized(&o, device, 2));
    CHECK_SAME(stats_of(&o).offloaded_bytes, NUMBERS + sizeof(float));
    CHECK(memcmp(info_of(&o, 0).host_address, found[0], NUMBERS) == 0);
    CHECK(info_of(&o, 0).host_address == info_of(&o, 1).host_address);
    offload_end(&o);
}

static void storage_ids_of_the_caller_do_not_collide_with_internal_ones(wb_device *device)
{
    static const unsigned char other_bytes[NUMBERS] = {7};
    static const uint64_t ids[] = {1, 2, UINT64_MAX, UINT64_MAX - 1};
    const int64_t shape[] = {ROWS, COLS}, flat[] = {NUMBERS};
    const wb_layout layout = layout_of(WB_DTYPE_F32, 2, shape, NULL, 0);
    const wb_layout other = bytes_layout(flat);
    for (size_t i = 0; i < sizeof ids / sizeof ids[0]; i++) {
        unsigned char before[NUMBERS];
        struct offload o;
        model_init(&model);
        set_matrix(0, &layout);
        model.parameters[1].layout = &other;
        model.parameters[1].source = NULL;
        model.parameters[1].storage_id = ids[i];
        REQUIRE(begin_quantized(&o, device, 2));
        memcpy(before, info_of(&o, 0).host_address, NUMBERS);
        CHECK_OK(replace_from(&o, 1, other_bytes, &other));
        CHECK(memcmp(before, info_of(&o, 0).host_address, NUMBERS) == 0);
        CHECK(memcmp(other_bytes, info_of(&o, 1).host_address, NUMBERS) == 0);
        offload_end(&o);
    }
}

static void a_replacement_is_quantized_to_the_planned_type(wb_device *device)
{
    static const unsigned char fp8_bytes[NUMBERS] = {1};
    const int64_t shape[] = {ROWS, COLS}, strides[] = {1, ROWS};
    const wb_layout layout = layout_of(WB_DTYPE_F32, 2, shape, NULL, 0);
    const wb_layout fp8_layout = layout_of(WB_DTYPE_F8_E5M2, 2, shape, strides, 0);
    unsigned char before[NUMBERS];
    struct offload o;
    wb_view *view = NULL;
    model_init(&model);
    set_matrix(0, &layout);
    REQUIRE(begin_quantized(&o, device, 1));
    memcpy(before, info_of(&o, 0).host_address, NUMBERS);
    CHECK_OK(replace_from(&o, 0, fp8_bytes, &fp8_layout));
    CHECK_OK(replace_from(&o, 0, numbers, &layout));
    CHECK_OK(wb_offloader_get_host_view(o.offloader, index_of(&o, model.names[0]), &view, &error));
    CHECK_SAME(view_info(view).dtype, WB_DTYPE_F8_E4M3FN);
    CHECK_SAME(view_info(view).strides[0], COLS);
    CHECK(memcmp(before, info_of(&o, 0).host_address, NUMBERS) == 0);
    wb_view_release(view);
    offload_end(&o);
}

CHECK_MAIN(CASE(a_refused_replacement_changes_nothing),
           CASE(a_quantized_parameter_without_a_source_is_unfilled_until_it_is_replaced),
           CASE(a_matrix_and_its_transpose_are_quantized_separately),
           CASE(storage_ids_of_the_caller_do_not_collide_with_internal_ones),
           CASE(a_replacement_is_quantized_to_the_planned_type))

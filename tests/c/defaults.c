/* Zero is the default of every option: a struct that is only initialized equals NULL. */
#include "memory.h"

#define CHECK_INIT(type, init)                                      \
    do {                                                            \
        const type initial = init;                                  \
        type zeros;                                                 \
        memset(&zeros, 0, sizeof zeros);                            \
        zeros.struct_size = sizeof zeros;                           \
        CHECK(memcmp(&initial, &zeros, sizeof zeros) == 0);         \
    } while (0)

static void every_init_macro_is_the_size_and_zeros(wb_device *device)
{
    (void)device;
    CHECK_INIT(wb_error, WB_ERROR_INIT);
    CHECK_INIT(wb_device_options, WB_DEVICE_OPTIONS_INIT);
    CHECK_INIT(wb_device_info, WB_DEVICE_INFO_INIT);
    CHECK_INIT(wb_device_stats, WB_DEVICE_STATS_INIT);
    CHECK_INIT(wb_buffer_options, WB_BUFFER_OPTIONS_INIT);
    CHECK_INIT(wb_buffer_info, WB_BUFFER_INFO_INIT);
    CHECK_INIT(wb_buffer_stats, WB_BUFFER_STATS_INIT);
    CHECK_INIT(wb_layout, WB_LAYOUT_INIT);
    CHECK_INIT(wb_view_info, WB_VIEW_INFO_INIT);
    CHECK_INIT(wb_safetensors_tensor_info, WB_SAFETENSORS_TENSOR_INFO_INIT);
    CHECK_INIT(wb_parameter, WB_PARAMETER_INIT);
    CHECK_INIT(wb_plan_options, WB_PLAN_OPTIONS_INIT);
    CHECK_INIT(wb_plan_info, WB_PLAN_INFO_INIT);
    CHECK_INIT(wb_plan_parameter_info, WB_PLAN_PARAMETER_INFO_INIT);
    CHECK_INIT(wb_plan_group_info, WB_PLAN_GROUP_INFO_INIT);
    CHECK_INIT(wb_offloader_parameter_info, WB_OFFLOADER_PARAMETER_INFO_INIT);
    CHECK_INIT(wb_offloader_stats, WB_OFFLOADER_STATS_INIT);
    CHECK_INIT(wb_offloader_group_stats, WB_OFFLOADER_GROUP_STATS_INIT);
    CHECK_INIT(wb_offloader_reconcile_result, WB_OFFLOADER_RECONCILE_RESULT_INIT);
    CHECK_INIT(wb_offloader_resize_options, WB_OFFLOADER_RESIZE_OPTIONS_INIT);
    CHECK_INIT(wb_offloader_resize_progress, WB_OFFLOADER_RESIZE_PROGRESS_INIT);
    CHECK_INIT(wb_offloader_rebalance_progress, WB_OFFLOADER_REBALANCE_PROGRESS_INIT);
    CHECK_INIT(wb_arbiter_options, WB_ARBITER_OPTIONS_INIT);
    CHECK_INIT(wb_arbiter_progress, WB_ARBITER_PROGRESS_INIT);
    CHECK_INIT(wb_arbiter_member_info, WB_ARBITER_MEMBER_INFO_INIT);
    CHECK_INIT(wb_codec_info, WB_CODEC_INFO_INIT);
    CHECK_INIT(wb_quantize_options, WB_QUANTIZE_OPTIONS_INIT);
    CHECK_INIT(wb_quantizer_scales_info, WB_QUANTIZER_SCALES_INFO_INIT);
    CHECK_INIT(wb_quantizer_result, WB_QUANTIZER_RESULT_INIT);
    CHECK_INIT(wb_expert_tensor, WB_EXPERT_TENSOR_INIT);
    CHECK_INIT(wb_expert_cache_options, WB_EXPERT_CACHE_OPTIONS_INIT);
    CHECK_INIT(wb_expert_cache_size, WB_EXPERT_CACHE_SIZE_INIT);
    CHECK_INIT(wb_expert_route_options, WB_EXPERT_ROUTE_OPTIONS_INIT);
    CHECK_INIT(wb_expert_cache_info, WB_EXPERT_CACHE_INFO_INIT);
    CHECK_INIT(wb_expert_slots_info, WB_EXPERT_SLOTS_INFO_INIT);
    CHECK_INIT(wb_expert_cache_stats, WB_EXPERT_CACHE_STATS_INIT);
}

static void initialized_device_options_equal_null(wb_device *device)
{
    const wb_device_options options = WB_DEVICE_OPTIONS_INIT;
    wb_device *by_options = open_device(test_device(), &options);
    REQUIRE(by_options != NULL);
    wb_device_info expected = describe_device(device), info = describe_device(by_options);
    expected.free_bytes = info.free_bytes = 0; /* changes at any time */
    CHECK(memcmp(&info, &expected, sizeof info) == 0);
    wb_device_release(by_options);
}

/* Everything but the addresses. */
static int same_kind(const wb_buffer *a, const wb_buffer *b)
{
    wb_buffer_info one = buffer_info(a), other = buffer_info(b);
    one.data = other.data = one.device_address = other.device_address = NULL;
    return memcmp(&one, &other, sizeof one) == 0;
}

static void initialized_buffer_options_equal_null(wb_device *device)
{
    enum { BYTES = 3 << 20 };
    const wb_buffer_options options = WB_BUFFER_OPTIONS_INIT;
    char path[300];
    wb_buffer *by_options = NULL, *by_null = new_buffer(device, BYTES);
    REQUIRE_OK(wb_buffer_alloc(device, BYTES, &options, &by_options, &error));
    CHECK(same_kind(by_options, by_null));
    wb_buffer_release(by_options);
    wb_buffer_release(by_null);
    REQUIRE(pattern_file(path, sizeof path, "defaults", BYTES));
    by_options = map_file(device, path, 0, 0, &options);
    by_null = map_file(device, path, 0, 0, NULL);
    REQUIRE(by_options != NULL && by_null != NULL);
    CHECK(same_kind(by_options, by_null));
    wb_buffer_release(by_options);
    wb_buffer_release(by_null);
    unlink(path);
}

static void initialized_quantize_options_equal_null(wb_device *device)
{
    enum { ROWS = 4, COLS = 8 };
    const int64_t shape[] = {ROWS, COLS};
    const wb_layout layout = layout_of(WB_DTYPE_F32, 2, shape, NULL, 0);
    const wb_quantize_options options = WB_QUANTIZE_OPTIONS_INIT, *each[] = {&options, NULL};
    float numbers[ROWS][COLS], scales[2] = {0, 0};
    unsigned char codes[2][ROWS][COLS];
    wb_quantizer_scales_info infos[2] = {WB_QUANTIZER_SCALES_INFO_INIT,
                                         WB_QUANTIZER_SCALES_INFO_INIT};
    wb_quantizer *quantizer = NULL;
    for (int i = 0; i < ROWS * COLS; i++) numbers[i / COLS][i % COLS] = (float)(i - 7);
    REQUIRE_OK(wb_quantizer_new(device, 0, &quantizer, &error));
    for (int i = 0; i < 2; i++) {
        CHECK_OK(wb_quantizer_get_scales_info(&layout, each[i], &infos[i], &error));
        CHECK_OK(wb_quantizer_quantize(quantizer, numbers, &layout, codes[i], &scales[i], each[i],
                                       NULL, &error));
    }
    CHECK(memcmp(&infos[0], &infos[1], sizeof infos[0]) == 0);
    CHECK_SAME(infos[0].bytes, sizeof scales[0]); /* one float32 scale for the tensor */
    CHECK(scales[0] > 0 && scales[0] == scales[1]);
    CHECK(memcmp(codes[0], codes[1], sizeof codes[0]) == 0);
    wb_quantizer_release(quantizer);
}

CHECK_MAIN(CASE(every_init_macro_is_the_size_and_zeros),
           CASE(initialized_device_options_equal_null),
           CASE(initialized_buffer_options_equal_null),
           CASE(initialized_quantize_options_equal_null))

/* Extreme integers: each is accepted, or refused with an error that names it. None overflows, panics
 * or allocates terabytes. */
#include "dlpack_structs.h"
#include "model.h"

static void extreme_options_are_accepted(wb_device *device)
{
    wb_buffer_options options = WB_BUFFER_OPTIONS_INIT;
    wb_plan_options plan_options = budget_options(WB_BUDGET_OFFLOAD_BYTES, UINT64_MAX);
    wb_buffer *buffer = NULL;
    wb_plan *plan = NULL;
    wb_offloader *offloader = NULL;
    options.chunk_bytes = UINT64_MAX;
    options.threads = UINT32_MAX;
    CHECK_OK(wb_buffer_alloc(device, 10000, &options, &buffer, &error));
    wb_buffer_release(buffer);
    model_init(&model);
    plan_options.slot_bytes = UINT64_MAX;
    plan_options.depth = UINT32_MAX;
    CHECK_OK(wb_plan_new(device, model.parameters, COUNT, &plan_options, &plan, &error));
    CHECK_OK(wb_offloader_new(plan, NULL, NULL, &offloader, &error));
    wb_offloader_release(offloader);
    wb_plan_release(plan);
    plan_options.budget_kind = WB_BUDGET_DEVICE_BYTES;
    plan = NULL;
    CHECK_ERROR(WB_ERR_EVERYTHING_FITS,
                wb_plan_new(device, model.parameters, COUNT, &plan_options, &plan, &error), "fit");
    CHECK(plan == NULL);
}

/* Eight times 2^61 bytes overflow 64 bits to 0. */
static void a_model_whose_size_overflows_is_refused(wb_device *device)
{
    const int64_t shape[] = {(int64_t)1 << 61};
    wb_layout layout = bytes_layout(shape);
    wb_plan *plan = NULL;
    model_init(&model);
    for (int i = 0; i < COUNT; i++) {
        model.parameters[i].layout = &layout;
        model.parameters[i].source = NULL;
    }
    for (int budget = 0; budget < 4; budget++) {
        const wb_plan_options options =
            budget_options(budget < 2 ? WB_BUDGET_OFFLOAD_BYTES : WB_BUDGET_DEVICE_BYTES,
                           budget % 2 ? UINT64_MAX : 1 << 20);
        CHECK_ERROR(WB_ERR_OVERFLOW,
                    wb_plan_new(device, model.parameters, COUNT, &options, &plan, &error), "2^63");
    }
    /* Two groups that share one storage count it twice. */
    const int64_t half[] = {(int64_t)3 << 61};
    layout.shape = half;
    model.parameters[0].storage_id = model.parameters[EACH].storage_id = 7;
    model.parameters[1] = model.parameters[EACH];
    const wb_plan_options options = budget_options(WB_BUDGET_OFFLOAD_BYTES, UINT64_MAX);
    CHECK_ERROR(WB_ERR_OVERFLOW,
                wb_plan_new(device, model.parameters, 2, &options, &plan, &error), "2^63");
    CHECK(plan == NULL);
}

static void a_source_past_the_last_address_is_refused(wb_device *device)
{
    struct offload o;
    wb_parameter parameter;
    REQUIRE(offload_begin(&o, device, WB_TRANSFER_MODE_PREFETCH));
    parameter = model.parameters[0];
    parameter.name = "layers.0.more";
    parameter.source = to_pointer(UINT64_MAX - 10);
    CHECK_ERROR(WB_ERR_OVERFLOW, wb_offloader_add(o.offloader, &parameter, o.stream, &error),
                "layers.0.more|last address");
    CHECK_ERROR(WB_ERR_OVERFLOW,
                wb_offloader_replace(o.offloader, model.names[0], parameter.source,
                                     &model.layout, o.stream, &error),
                "last address");
    offload_end(&o);
}

static void matrices_are_counted_without_being_listed(wb_device *device)
{
    const int64_t many[] = {(int64_t)1 << 40, 1, 1}, more[] = {(int64_t)1 << 31, 1 << 16, 1 << 15};
    wb_layout layout = layout_of(WB_DTYPE_F32, 3, many, NULL, 0);
    wb_quantize_options options = WB_QUANTIZE_OPTIONS_INIT;
    wb_quantizer_scales_info info = WB_QUANTIZER_SCALES_INFO_INIT;
    (void)device;
    REQUIRE_OK(wb_quantizer_get_scales_info(&layout, NULL, &info, &error));
    CHECK_SAME(info.matrices, (uint64_t)1 << 40);
    CHECK_SAME(info.bytes, (uint64_t)4 << 40);
    layout = layout_of(WB_DTYPE_U8, 3, more, NULL, 0);
    options.block_rows = options.block_cols = 1;
    CHECK_ERROR(WB_ERR_OUT_OF_RANGE, wb_quantizer_get_scales_info(&layout, &options, &info, &error),
                "matrices|larger blocks");
    options.block_rows = options.block_cols = UINT64_MAX;
    CHECK_OK(wb_quantizer_get_scales_info(&layout, &options, &info, &error));
    CHECK_SAME(info.bytes, (uint64_t)4 << 31);
}

static void quantizer_addresses_past_the_last_are_refused(wb_device *device)
{
    const int64_t shape[] = {2, 64};
    static float numbers[128], scale;
    static unsigned char codes[128];
    void *last = to_pointer(UINT64_MAX - 2);
    wb_layout layout = layout_of(WB_DTYPE_F32, 2, shape, NULL, 0);
    wb_quantizer *quantizer = NULL;
    REQUIRE_OK(wb_quantizer_new(device, UINT64_MAX, &quantizer, &error));
#define QUANTIZE(source, target, scales) \
    wb_quantizer_quantize(quantizer, source, &layout, target, scales, NULL, NULL, &error)
    CHECK_ERROR(WB_ERR_OVERFLOW, QUANTIZE(last, codes, &scale), "last address");
    CHECK_ERROR(WB_ERR_OVERFLOW, QUANTIZE(numbers, last, &scale), "FP8 target|last address");
    CHECK_ERROR(WB_ERR_OVERFLOW, QUANTIZE(numbers, codes, last), "scales|last address");
    CHECK_OK(QUANTIZE(numbers, codes, &scale));
    wb_quantizer_release(quantizer);
}

static void the_stride_of_a_single_row_or_column_is_ignored(wb_device *device)
{
    const int64_t shapes[][2] = {{1, 64}, {64, 1}, {1, 1}};
    const int64_t strides[][2] = {
        {INT64_MAX, 1}, {1, INT64_MIN}, {INT64_MIN, INT64_MAX}};
    static float numbers[64], scale;
    static unsigned char codes[64];
    wb_quantizer *quantizer = NULL;
    REQUIRE_OK(wb_quantizer_new(device, 0, &quantizer, &error));
    for (int i = 0; i < 64; i++) numbers[i] = i % 2 ? 448.0f : -448.0f;
    for (int i = 0; i < 3; i++) {
        wb_layout layout = layout_of(WB_DTYPE_F32, 2, shapes[i], strides[i], 0);
        codes[0] = codes[63] = 0;
        CHECK_OK(wb_quantizer_quantize(quantizer, numbers, &layout, codes, &scale, NULL, NULL,
                                       &error));
        CHECK_SAME(codes[0], 0xfe);
        CHECK_SAME(codes[63], i < 2 ? 0x7e : 0);
    }
    wb_quantizer_release(quantizer);
}

static int deleted;

static void count_deleted(DLManagedTensor *tensor)
{
    (void)tensor;
    deleted++;
}

static void an_invalid_dlpack_tensor_is_refused_and_stays_with_the_caller(wb_device *device)
{
    static unsigned char bytes[16];
    int64_t valid[] = {4, 4}, large[] = {INT64_MAX, 4}, negative[] = {4, -4};
    const struct { int64_t *shape; int ndim; uint64_t offset; wb_status status; } tensors[] = {
        {valid, -1, 0, WB_ERR_INVALID_ARGUMENT},    {valid, 65, 0, WB_ERR_INVALID_ARGUMENT},
        {valid, INT32_MAX, 0, WB_ERR_INVALID_ARGUMENT}, {NULL, 2, 0, WB_ERR_INVALID_ARGUMENT},
        {negative, 2, 0, WB_ERR_INVALID_ARGUMENT}, {large, 2, 0, WB_ERR_OVERFLOW},
        {valid, 2, UINT64_MAX, WB_ERR_OVERFLOW},    {valid, 2, UINT64_MAX - 15, WB_ERR_OVERFLOW}};
    for (size_t i = 0; i < sizeof tensors / sizeof tensors[0]; i++) {
        DLManagedTensor tensor;
        wb_view *view = NULL;
        memset(&tensor, 0, sizeof tensor);
        tensor.deleter = count_deleted;
        tensor.dl_tensor.data = bytes;
        tensor.dl_tensor.device.device_type = kDLCPU;
        tensor.dl_tensor.dtype.code = kDLUInt;
        tensor.dl_tensor.dtype.bits = 8;
        tensor.dl_tensor.dtype.lanes = 1;
        tensor.dl_tensor.ndim = tensors[i].ndim;
        tensor.dl_tensor.shape = tensors[i].shape;
        tensor.dl_tensor.byte_offset = tensors[i].offset;
        CHECK_ERROR(tensors[i].status,
                    wb_view_from_dlpack(device, &tensor, WB_ACCESSOR_HOST, NULL, &view, &error),
                    "");
        CHECK(view == NULL && deleted == 0);
    }
}

/* Matching recurses once for each star; without a limit, this many would overflow the stack. */
static void a_selector_of_a_million_stars_is_refused(wb_device *device)
{
    enum { STARS = 1000000 };
    char *selector = (char *)malloc(2 * STARS + 1), *name = (char *)malloc(2 * STARS + 1);
    const char *select[1];
    wb_plan_options options = budget_options(WB_BUDGET_OFFLOAD_BYTES, 1 << 20);
    wb_plan *plan = NULL;
    REQUIRE(selector != NULL && name != NULL);
    memset(name, 'a', 2 * STARS);
    for (int i = 0; i < STARS; i++) memcpy(selector + 2 * i, "*a", 2);
    selector[2 * STARS] = name[2 * STARS] = '\0';
    model_init(&model);
    model.parameters[0].name = name;
    options.select = select;
    options.select_count = 1;
    select[0] = selector;
    CHECK_ERROR(WB_ERR_SELECTOR, wb_plan_new(device, model.parameters, 1, &options, &plan, &error),
                "64 stars");
    CHECK(plan == NULL);
    free(selector);
    free(name);
}

/* One of a million parameters is found by its index. */
static void an_error_names_the_element_of_an_array(wb_device *device)
{
    const int64_t negative[] = {-1};
    const wb_layout layout = layout_of(WB_DTYPE_U8, 1, negative, NULL, 0);
    const char *select[] = {"layers", NULL};
    wb_plan_options options = budget_options(WB_BUDGET_OFFLOAD_BYTES, 1 << 20);
    wb_plan *plan = NULL;
    model_init(&model);
    model.parameters[3].layout = &layout;
    CHECK_ERROR(WB_ERR_INVALID_ARGUMENT,
                wb_plan_new(device, model.parameters, COUNT, &options, &plan, &error),
                "parameters[3]|shape [-1]");
    model_init(&model);
    model.parameters[2].name = NULL;
    CHECK_ERROR(WB_ERR_INVALID_ARGUMENT,
                wb_plan_new(device, model.parameters, COUNT, &options, &plan, &error),
                "parameters[2]|name is NULL");
    model_init(&model);
    options.select = select;
    options.select_count = 2;
    CHECK_ERROR(WB_ERR_INVALID_ARGUMENT,
                wb_plan_new(device, model.parameters, COUNT, &options, &plan, &error),
                "select[1] is NULL");
    CHECK(plan == NULL);
}

CHECK_MAIN(CASE(extreme_options_are_accepted), CASE(an_error_names_the_element_of_an_array),
           CASE(a_model_whose_size_overflows_is_refused),
           CASE(a_source_past_the_last_address_is_refused),
           CASE(matrices_are_counted_without_being_listed),
           CASE(quantizer_addresses_past_the_last_are_refused),
           CASE(an_invalid_dlpack_tensor_is_refused_and_stays_with_the_caller),
           CASE(the_stride_of_a_single_row_or_column_is_ignored),
           CASE(a_selector_of_a_million_stars_is_refused))

/* Numbers at the ends of their types: each is taken, or refused by name. None wraps, none panics, and
 * none asks for memory by the terabyte. */
#include "dlpack_structs.h"
#include "model.h"

static const uint64_t all = UINT64_MAX - 1; /* UINT64_MAX is WB_UNSET */

static void options_at_the_ends_are_taken(wb_device *device)
{
    wb_buffer_options options = WB_BUFFER_OPTIONS_INIT;
    wb_plan_options planning = WB_PLAN_OPTIONS_INIT;
    wb_buffer *buffer = NULL;
    wb_plan *plan = NULL;
    options.chunk_bytes = UINT64_MAX;
    options.threads = UINT32_MAX;
    CHECK_OK(wb_buffer_alloc(device, 10000, &options, &buffer, &error));
    wb_buffer_release(buffer);
    model_init(&model);
    planning.offload_bytes = planning.slot_bytes = all;
    planning.depth = UINT32_MAX;
    CHECK_OK(wb_plan_new(device, model.parameters, COUNT, &planning, &plan, &error));
    wb_plan_release(plan);
    planning.offload_bytes = WB_UNSET;
    planning.device_bytes = all;
    plan = NULL;
    CHECK_ERROR(WB_ERR_EVERYTHING_FITS,
                wb_plan_new(device, model.parameters, COUNT, &planning, &plan, &error), "fit");
    CHECK(plan == NULL);
}

/* Eight times 2^61 bytes are 0 in 64 bits. */
static void a_model_that_cannot_be_counted_is_refused(wb_device *device)
{
    const int64_t shape[] = {(int64_t)1 << 61};
    wb_layout layout = layout_of(WB_DTYPE_U8, 1, shape, NULL, 0);
    wb_plan *plan = NULL;
    model_init(&model);
    for (int i = 0; i < COUNT; i++) {
        model.parameters[i].layout = &layout;
        model.parameters[i].source = 0;
    }
    for (int budget = 0; budget < 4; budget++) {
        wb_plan_options options = WB_PLAN_OPTIONS_INIT;
        *(budget < 2 ? &options.offload_bytes : &options.device_bytes) = budget % 2 ? all : 1 << 20;
        CHECK_ERROR(WB_ERR_OVERFLOW,
                    wb_plan_new(device, model.parameters, COUNT, &options, &plan, &error), "2^63");
    }
    /* Two groups that share one storage use it twice. */
    const int64_t half[] = {(int64_t)3 << 61};
    layout.shape = half;
    model.parameters[0].storage = model.parameters[EACH].storage = 7;
    model.parameters[1] = model.parameters[EACH];
    wb_plan_options options = WB_PLAN_OPTIONS_INIT;
    options.offload_bytes = all;
    CHECK_ERROR(WB_ERR_OVERFLOW,
                wb_plan_new(device, model.parameters, 2, &options, &plan, &error), "2^63");
    CHECK(plan == NULL);
}

static void a_source_past_the_last_address_is_refused(wb_device *device)
{
    struct offload o;
    wb_parameter parameter;
    REQUIRE(begin(&o, device, WB_TRANSFER_MODE_PREFETCH));
    parameter = model.parameters[0];
    parameter.name = "layers.0.more";
    parameter.source = UINT64_MAX - 10;
    CHECK_ERROR(WB_ERR_OVERFLOW, wb_offloader_add(o.offloader, &parameter, o.stream, &error),
                "layers.0.more|last address");
    CHECK_ERROR(WB_ERR_OVERFLOW,
                wb_offloader_replace(o.offloader, model.names[0], UINT64_MAX - 10, &model.layout,
                                     o.stream, &error),
                "last address");
    end(&o);
}

static void as_many_matrices_as_can_be_are_counted_and_not_listed(wb_device *device)
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

static void numbers_past_the_last_address_are_refused(wb_device *device)
{
    const int64_t shape[] = {2, 64};
    static float numbers[128], scale;
    static unsigned char codes[128];
    const uint64_t source = (uint64_t)(uintptr_t)numbers, target = (uint64_t)(uintptr_t)codes;
    const uint64_t scales = (uint64_t)(uintptr_t)&scale, last = UINT64_MAX - 2;
    wb_layout layout = layout_of(WB_DTYPE_F32, 2, shape, NULL, 0);
    wb_quantizer *quantizer = NULL;
    REQUIRE_OK(wb_quantizer_new(device, UINT64_MAX, &quantizer, &error));
#define QUANTIZE(source, target, scales) \
    wb_quantizer_quantize(quantizer, source, &layout, target, scales, NULL, NULL, &error)
    CHECK_ERROR(WB_ERR_OVERFLOW, QUANTIZE(last, target, scales), "last address");
    CHECK_ERROR(WB_ERR_OVERFLOW, QUANTIZE(source, last, scales), "8-bit|last address");
    CHECK_ERROR(WB_ERR_OVERFLOW, QUANTIZE(source, target, last), "scales|last address");
    CHECK_OK(QUANTIZE(source, target, scales));
    wb_quantizer_release(quantizer);
}

static void the_stride_of_a_single_row_or_column_may_be_any_number(wb_device *device)
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
        CHECK_OK(wb_quantizer_quantize(quantizer, (uint64_t)(uintptr_t)numbers, &layout,
                                       (uint64_t)(uintptr_t)codes, (uint64_t)(uintptr_t)&scale,
                                       NULL, NULL, &error));
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

static void a_dlpack_tensor_s_numbers_are_checked_and_it_stays_the_caller_s(wb_device *device)
{
    static unsigned char bytes[16];
    int64_t good[] = {4, 4}, large[] = {INT64_MAX, 4}, negative[] = {4, -4};
    const struct { int64_t *shape; int ndim; uint64_t offset; wb_status status; } wrong[] = {
        {good, -1, 0, WB_ERR_INVALID_ARGUMENT},    {good, 65, 0, WB_ERR_INVALID_ARGUMENT},
        {good, INT32_MAX, 0, WB_ERR_INVALID_ARGUMENT}, {NULL, 2, 0, WB_ERR_INVALID_ARGUMENT},
        {negative, 2, 0, WB_ERR_INVALID_ARGUMENT}, {large, 2, 0, WB_ERR_OVERFLOW},
        {good, 2, UINT64_MAX, WB_ERR_OVERFLOW},    {good, 2, UINT64_MAX - 15, WB_ERR_OVERFLOW}};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        DLManagedTensor tensor;
        wb_view *view = NULL;
        memset(&tensor, 0, sizeof tensor);
        tensor.deleter = count_deleted;
        tensor.dl_tensor.data = bytes;
        tensor.dl_tensor.device.device_type = kDLCPU;
        tensor.dl_tensor.dtype.code = kDLUInt;
        tensor.dl_tensor.dtype.bits = 8;
        tensor.dl_tensor.dtype.lanes = 1;
        tensor.dl_tensor.ndim = wrong[i].ndim;
        tensor.dl_tensor.shape = wrong[i].shape;
        tensor.dl_tensor.byte_offset = wrong[i].offset;
        CHECK_ERROR(wrong[i].status,
                    wb_view_from_dlpack(device, &tensor, WB_ACCESSOR_HOST, NULL, &view, &error), "");
        CHECK(view == NULL && deleted == 0);
    }
}

/* Each star takes a piece of the stack: as many as these end a process that does not count them. */
static void a_selector_of_a_million_stars_is_refused(wb_device *device)
{
    enum { STARS = 1000000 };
    char *selector = (char *)malloc(2 * STARS + 1), *name = (char *)malloc(2 * STARS + 1);
    const char *select[1];
    wb_plan_options options = WB_PLAN_OPTIONS_INIT;
    wb_plan *plan = NULL;
    REQUIRE(selector != NULL && name != NULL);
    memset(name, 'a', 2 * STARS);
    for (int i = 0; i < STARS; i++) memcpy(selector + 2 * i, "*a", 2);
    selector[2 * STARS] = name[2 * STARS] = '\0';
    model_init(&model);
    model.parameters[0].name = name;
    options.offload_bytes = 1 << 20;
    options.select = select;
    options.select_count = 1;
    select[0] = selector;
    CHECK_ERROR(WB_ERR_SELECTOR, wb_plan_new(device, model.parameters, 1, &options, &plan, &error),
                "64 stars");
    CHECK(plan == NULL);
    free(selector);
    free(name);
}

CHECK_MAIN(CASE(options_at_the_ends_are_taken), CASE(a_model_that_cannot_be_counted_is_refused),
           CASE(a_source_past_the_last_address_is_refused),
           CASE(as_many_matrices_as_can_be_are_counted_and_not_listed),
           CASE(numbers_past_the_last_address_are_refused),
           CASE(a_dlpack_tensor_s_numbers_are_checked_and_it_stays_the_caller_s),
           CASE(the_stride_of_a_single_row_or_column_may_be_any_number),
           CASE(a_selector_of_a_million_stars_is_refused))

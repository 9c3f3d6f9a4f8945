/* What wb_offloader_reconcile judges: parameters without sources, and lists that it refuses. */
#include "changes.h"

static const int64_t three[] = {2048, 2048, 2048};

static wb_status reconcile(struct offload *o, const wb_parameter *now, uint64_t count,
                           wb_offloader_reconcile_result *done)
{
    const wb_offloader_reconcile_result none = WB_OFFLOADER_RECONCILE_RESULT_INIT;
    *done = none;
    return wb_offloader_reconcile(o->offloader, now, count, o->stream, done, &error);
}

/* The unchanged parameters, without sources. */
static void without_sources(wb_parameter *now, int count)
{
    for (int i = 0; i < count; i++) {
        now[i] = model.parameters[i];
        now[i].source = NULL;
    }
}

/* 0 and 1 are offloaded, 2 stays. */
static int begin(struct offload *o, wb_device *device)
{
    static const char *const stays[] = {"layers.1.w0"};
    wb_plan_options options = prefetch_options();
    options.exclude = stays;
    options.exclude_count = 1;
    model_init(&model);
    return offload_begin_sizes(o, device, three, 3, 0, options);
}

static void without_a_source_a_parameter_takes_a_layout_of_its_bytes(wb_device *device)
{
    int64_t shape[] = {16, 64}, strides[] = {1, 16};
    const wb_layout other = layout_of(WB_DTYPE_U16, 2, shape, strides, 0);
    struct offload o;
    wb_parameter now[3];
    wb_offloader_reconcile_result done;
    REQUIRE(begin(&o, device));
    without_sources(now, 3);
    CHECK_OK(reconcile(&o, now, 3, &done));
    CHECK_SAME(done.kept, 3);
    now[1].layout = now[2].layout = &other;
    CHECK_OK(reconcile(&o, now, 3, &done));
    CHECK_SAME(done.kept, 1);
    CHECK_SAME(done.replaced, 2);
    for (int i = 0; i < 3; i++) {
        const wb_offloader_parameter_info info = info_of(&o, i);
        CHECK_SAME(info.dtype, i == 0 ? WB_DTYPE_U8 : WB_DTYPE_U16);
        CHECK_SAME(info.ndim, i == 0 ? 1 : 2);
        CHECK_SAME(info.shape[0], i == 0 ? 2048 : 16);
        CHECK_SAME(info.strides[0], 1);
        CHECK(device_holds(&o, model.names[i], i, model.bytes[i], 2048));
    }
    CHECK_OK(reconcile(&o, now, 3, &done));
    CHECK_SAME(done.kept, 3);
    offload_end(&o);
}

/* Also for the numbers that a matrix was quantized from, which take other bytes. */
static void without_a_source_another_number_of_bytes_is_refused(wb_device *device)
{
    const int64_t bytes[] = {2047, 2049, 4096};
    struct offload o;
    wb_parameter now[3];
    wb_offloader_reconcile_result done;
    REQUIRE(begin(&o, device));
    for (int i = 0; i < 9; i++) {
        const wb_layout layout = bytes_layout(&bytes[i / 3]);
        without_sources(now, 3);
        now[i % 3].layout = &layout;
        now[(i + 1) % 3].source = fresh_bytes((i + 1) % 3); /* is not replaced, either */
        CHECK_ERROR(WB_ERR_INVALID_ARGUMENT, reconcile(&o, now, 3, &done),
                    "without a source|2048|give the address");
        for (int w = 0; w < 3; w++) {
            CHECK(device_holds(&o, model.names[w], w, model.bytes[w], 2048));
        }
    }
    offload_end(&o);
}

static void a_quantized_parameter_without_a_source_is_kept(wb_device *device)
{
    const wb_quantize_options quantize = WB_QUANTIZE_OPTIONS_INIT;
    int64_t half[] = {SIDE / 2, SIDE};
    const wb_layout same_bytes = layout_of(WB_DTYPE_BF16, 2, half, NULL, 0);
    struct offload o;
    wb_parameter now[2];
    wb_offloader_reconcile_result done;
    wb_offloader_parameter_info scales;
    wb_plan_options options = prefetch_options();
    options.quantize = &quantize;
    options.allow |= WB_ALLOW_EVERYTHING_FITS;
    model_init(&model);
    memset(model.bytes[0], 0x3c, BYTES);
    REQUIRE(offload_begin_first(&o, device, 1, options));
    without_sources(now, 1);
    scales = info_by_name(&o, "layers.0.w0_scale");
    const wb_layout of_scales =
        layout_of(scales.dtype, scales.ndim, scales.shape, scales.strides, 0);
    now[1] = now[0];
    now[1].name = "layers.0.w0_scale";
    now[1].layout = &of_scales;
    CHECK_OK(reconcile(&o, now, 2, &done)); /* in the type that was quantized */
    CHECK_SAME(done.kept, 2);
    now[0].layout = &same_bytes;
    CHECK_ERROR(WB_ERR_INVALID_ARGUMENT, reconcile(&o, now, 2, &done),
                "without a source|bfloat16|float8_e4m3fn");
    CHECK_SAME(info_of(&o, 0).dtype, WB_DTYPE_F8_E4M3FN);
    offload_end(&o);
}

static void a_list_with_a_fault_changes_nothing(wb_device *device)
{
    struct offload o;
    wb_parameter now[4];
    wb_offloader_reconcile_result done;
    REQUIRE(begin(&o, device));
    for (int fault = 0; fault < 2; fault++) {
        without_sources(now, 3);
        now[0].source = fresh_bytes(0);
        now[3] = now[2];
        now[3].source = fresh_bytes(3);
        if (fault == 0) {
            now[3].name = model.names[0];
            CHECK_ERROR(WB_ERR_INVALID_ARGUMENT, reconcile(&o, now, 4, &done),
                        "\"layers.0.w0\" is given twice");
        } else {
            now[3].name = "new";
            now[3].group = "unknown";
            CHECK_ERROR(WB_ERR_INVALID_ARGUMENT, reconcile(&o, now, 4, &done),
                        "\"unknown\", which the plan does not have");
        }
        CHECK_SAME(stats_of(&o).parameters, 3);
        CHECK(device_holds(&o, model.names[0], 0, model.bytes[0], 2048));
    }
    offload_end(&o);
}

CHECK_MAIN(CASE(without_a_source_a_parameter_takes_a_layout_of_its_bytes),
           CASE(without_a_source_another_number_of_bytes_is_refused),
           CASE(a_quantized_parameter_without_a_source_is_kept),
           CASE(a_list_with_a_fault_changes_nothing))

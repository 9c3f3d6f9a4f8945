/* Replacements whose source is memory of the offloader: another layout, name or order. No byte is
 * lost. */
#include "changes.h"

static const int64_t four[] = {2048, 2048, 2048, 2048};

static wb_status reconcile(struct offload *o, const wb_parameter *now, uint64_t count,
                           wb_offloader_reconcile_result *done)
{
    const wb_offloader_reconcile_result none = WB_OFFLOADER_RECONCILE_RESULT_INIT;
    *done = none;
    return wb_offloader_reconcile(o->offloader, now, count, o->stream, done, &error);
}

/* The parameters, with the addresses at which the offloader keeps them. */
static void current_parameters(struct offload *o, wb_parameter *now, int count)
{
    for (int i = 0; i < count; i++) {
        now[i] = model.parameters[i];
        now[i].source = info_of(o, i).host_address;
        if (now[i].source == NULL) now[i].source = info_of(o, i).device_address;
    }
}

static wb_layout transposed(int64_t shape[2], int64_t strides[2])
{
    shape[0] = 32;
    shape[1] = 64;
    strides[0] = 1;
    strides[1] = 32;
    return layout_of(WB_DTYPE_U8, 2, shape, strides, 0);
}

/* By the host and device addresses of an offloaded parameter, and the address of a resident one. */
static void another_layout_of_the_same_bytes_keeps_the_memory(wb_device *device)
{
    static const wb_transfer_mode modes[] = {
        WB_TRANSFER_MODE_PREFETCH, WB_TRANSFER_MODE_ON_DEMAND, WB_TRANSFER_MODE_ZERO_COPY};
    static const char *const stays[] = {"layers.1.w1"};
    int64_t shape[2], strides[2];
    const wb_layout layout = transposed(shape, strides);
    for (int i = 0; i < 6; i++) {
        struct offload o;
        wb_parameter now[4];
        wb_offloader_reconcile_result done;
        wb_plan_options options = offload_options(modes[i / 2]);
        options.exclude = stays;
        options.exclude_count = 1;
        model_init(&model);
        REQUIRE(offload_begin_sizes(&o, device, four, 4, 0, options));
        const uint64_t used = measure(device).device_bytes;
        const void *stayed = info_of(&o, 3).device_address;
        current_parameters(&o, now, 4);
        now[2].layout = now[3].layout = &layout;
        if (i % 2 == 1) now[2].source = info_of(&o, 2).device_address;
        CHECK_OK(reconcile(&o, now, 4, &done));
        CHECK_SAME(done.kept, 2);
        CHECK_SAME(done.replaced, 2);
        CHECK_SAME(measure(device).device_bytes, used);
        CHECK(info_of(&o, 3).device_address == stayed);
        for (int w = 0; w < 4; w++) {
            CHECK(device_holds(&o, model.names[w], w, model.bytes[w], 2048));
        }
        /* And back to the first layout, by a single replacement. */
        CHECK_OK(replace_from(&o, 2, info_of(&o, 2).device_address, model.parameters[2].layout));
        CHECK(device_holds(&o, model.names[2], 2, model.bytes[2], 2048));
        offload_end(&o);
    }
}

static void parameters_can_swap_their_memory(wb_device *device)
{
    static const char *const stay[] = {"layers.1.w0", "layers.1.w1"};
    struct offload o;
    wb_parameter now[4];
    wb_offloader_reconcile_result done;
    wb_plan_options options = prefetch_options();
    options.exclude = stay;
    options.exclude_count = 2;
    model_init(&model);
    REQUIRE(offload_begin_sizes(&o, device, four, 4, 0, options));
    current_parameters(&o, now, 4);
    for (int i = 0; i < 4; i++) { /* offloaded and resident ones */
        const wb_offloader_parameter_info other = info_of(&o, i ^ 1);
        now[i].source = i < 2 ? other.host_address : other.device_address;
    }
    CHECK_OK(reconcile(&o, now, 4, &done));
    CHECK_SAME(done.replaced, 4);
    for (int i = 0; i < 4; i++) {
        CHECK(device_holds(&o, model.names[i], i, model.bytes[i ^ 1], 2048));
    }
    offload_end(&o);
}

/* In another order; by host addresses, and by addresses in the slots. */
static void parameters_can_be_renamed(wb_device *device)
{
    for (int in_slots = 0; in_slots < 2; in_slots++) {
        struct offload o;
        wb_parameter now[2];
        wb_offloader_reconcile_result done;
        model_init(&model);
        REQUIRE(offload_begin_sizes(&o, device, four, 2, 2, prefetch_options()));
        for (int i = 0; i < 2; i++) {
            const wb_offloader_parameter_info info = info_of(&o, 1 - i);
            now[i] = model.parameters[1 - i];
            now[i].name = i == 0 ? "new1" : "new0";
            now[i].source = in_slots ? info.device_address : info.host_address;
        }
        CHECK_OK(reconcile(&o, now, 2, &done));
        CHECK_SAME(done.added, 2);
        CHECK_SAME(done.removed, 2);
        CHECK(memcmp(info_by_name(&o, "new1").host_address, model.bytes[1], 2048) == 0);
        CHECK(memcmp(info_by_name(&o, "new0").host_address, model.bytes[0], 2048) == 0);
        offload_end(&o);
    }
}

/* Removing the old name releases the buffer. */
static void a_parameter_with_its_own_buffer_can_be_renamed(wb_device *device)
{
    const int64_t grown = 4096;
    const wb_layout layout = bytes_layout(&grown);
    struct offload o;
    wb_parameter now[2];
    wb_offloader_reconcile_result done;
    model_init(&model);
    REQUIRE(offload_begin_sizes(&o, device, four, 2, 0, prefetch_options()));
    CHECK_OK(replace(&o, 0, grown));
    current_parameters(&o, now, 2);
    now[0].name = "new";
    now[0].layout = &layout;
    CHECK_OK(reconcile(&o, now, 2, &done));
    CHECK(memcmp(info_by_name(&o, "new").host_address, fresh_bytes(0), (size_t)grown) == 0);
    CHECK(device_holds(&o, model.names[1], 1, model.bytes[1], 2048));
    offload_end(&o);
}

/* The contents of another group's slot may change at any time. */
static void a_slot_of_another_group_is_refused_as_source(wb_device *device)
{
    const int64_t wide = 2 * 2048;
    const wb_layout layout = bytes_layout(&wide);
    struct offload o;
    model_init(&model);
    REQUIRE(offload_begin_sizes(&o, device, four, 4, 0, prefetch_options()));
    CHECK(info_of(&o, 0).device_address != info_of(&o, 1).device_address);
    CHECK_ERROR(WB_ERR_INVALID_ARGUMENT,
                replace_from(&o, 1, info_of(&o, 0).device_address, model.parameters[1].layout),
                "slots|host's memory");
    CHECK_ERROR(WB_ERR_INVALID_ARGUMENT,
                replace_from(&o, 0, info_of(&o, 0).device_address, &layout),
                "slots|host's memory");
    for (int i = 0; i < 4; i++) CHECK(device_holds(&o, model.names[i], i, model.bytes[i], 2048));
    /* Its host memory is a valid source. */
    CHECK_OK(replace_from(&o, 1, info_of(&o, 0).host_address, model.parameters[1].layout));
    CHECK(device_holds(&o, model.names[1], 1, model.bytes[0], 2048));
    CHECK_OK(add_bytes(&o, "x", model.names[2], 2048, info_of(&o, 3).host_address,
                       WB_PLACEMENT_AUTO));
    CHECK(memcmp(info_by_name(&o, "x").host_address, model.bytes[3], 2048) == 0);
    offload_end(&o);
}

static void a_parameter_can_become_empty(wb_device *device)
{
    const int64_t none = 0;
    const wb_layout layout = bytes_layout(&none);
    struct offload o;
    wb_parameter now[2];
    wb_offloader_reconcile_result done;
    model_init(&model);
    REQUIRE(offload_begin_sizes(&o, device, four, 2, 0, prefetch_options()));
    current_parameters(&o, now, 2);
    now[0].layout = &layout;
    now[0].source = NULL;
    CHECK_OK(reconcile(&o, now, 2, &done));
    CHECK_SAME(done.replaced, 1);
    CHECK_SAME(info_of(&o, 0).span_bytes, 0);
    CHECK_SAME(stats_of(&o).offloaded_bytes, 2048);
    offload_end(&o);
}

CHECK_MAIN(CASE(another_layout_of_the_same_bytes_keeps_the_memory),
           CASE(parameters_can_swap_their_memory), CASE(parameters_can_be_renamed),
           CASE(a_parameter_with_its_own_buffer_can_be_renamed),
           CASE(a_slot_of_another_group_is_refused_as_source), CASE(a_parameter_can_become_empty))

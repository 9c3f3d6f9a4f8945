/* Weights that an engine brings from the offloader's own memory: looked at in another layout, under
 * another name, in another order. No byte is lost on the way. */
#include "check.h"
#include "weights.h"

static const int64_t four[] = {2048, 2048, 2048, 2048};

static wb_status reconcile(struct offload *o, const wb_parameter *now, uint64_t count,
                           wb_offloader_reconcile_result *done)
{
    const wb_offloader_reconcile_result none = WB_OFFLOADER_RECONCILE_RESULT_INIT;
    *done = none;
    return wb_offloader_reconcile(o->offloader, now, count, o->stream, done, &error);
}

/* The parameters, each where the offloader says that it is. */
static void ask(struct offload *o, wb_parameter *now, int count)
{
    for (int i = 0; i < count; i++) {
        now[i] = model.parameters[i];
        now[i].source = (uint64_t)(uintptr_t)where(o, i).host_address;
        if (now[i].source == 0) now[i].source = where(o, i).device_address;
    }
}

static wb_offloader_parameter_info named(struct offload *o, const char *name)
{
    wb_offloader_parameter_info info = WB_OFFLOADER_PARAMETER_INFO_INIT;
    CHECK_OK(wb_offloader_get_parameter_info(o->offloader, name, &info, &error));
    return info;
}

static wb_layout turned(int64_t shape[2], int64_t strides[2])
{
    shape[0] = 32;
    shape[1] = 64;
    strides[0] = 1;
    strides[1] = 32;
    return layout_of(WB_DTYPE_U8, 2, shape, strides, 0);
}

/* By its address on the host, in its slot or in place, and on the device where it stays. */
static void another_layout_of_the_same_bytes_moves_none(wb_device *device)
{
    static const wb_transfer_mode carriers[] = {WB_TRANSFER_MODE_PREFETCH, WB_TRANSFER_MODE_ON_DEMAND, WB_TRANSFER_MODE_ZERO_COPY};
    static const char *const stays[] = {"layers.1.w1"};
    int64_t shape[2], strides[2];
    const wb_layout layout = turned(shape, strides);
    for (int i = 0; i < 6; i++) {
        struct offload o;
        wb_parameter now[4];
        wb_offloader_reconcile_result done;
        wb_plan_options options = options_of(carriers[i / 2]);
        options.exclude = stays;
        options.exclude_count = 1;
        model_init(&model);
        REQUIRE(begin_of(&o, device, four, 4, 0, options));
        const uint64_t used = measure(device).device_bytes, stayed = where(&o, 3).device_address;
        ask(&o, now, 4);
        now[2].layout = now[3].layout = &layout;
        if (i % 2 == 1) now[2].source = where(&o, 2).device_address;
        CHECK_OK(reconcile(&o, now, 4, &done));
        CHECK_SAME(done.kept, 2);
        CHECK_SAME(done.replaced, 2);
        CHECK_SAME(measure(device).device_bytes, used);
        CHECK_SAME(where(&o, 3).device_address, stayed);
        for (int w = 0; w < 4; w++) CHECK(device_holds(&o, model.names[w], w, model.bytes[w], 2048));
        /* And by itself, back again. */
        CHECK_OK(wb_offloader_replace(o.offloader, model.names[2], where(&o, 2).device_address,
                                      model.parameters[2].layout, o.stream, &error));
        CHECK(device_holds(&o, model.names[2], 2, model.bytes[2], 2048));
        end(&o);
    }
}

static void weights_are_exchanged(wb_device *device)
{
    static const char *const stay[] = {"layers.1.w0", "layers.1.w1"};
    struct offload o;
    wb_parameter now[4];
    wb_offloader_reconcile_result done;
    wb_plan_options options = options_of(WB_TRANSFER_MODE_PREFETCH);
    options.exclude = stay;
    options.exclude_count = 2;
    model_init(&model);
    REQUIRE(begin_of(&o, device, four, 4, 0, options));
    ask(&o, now, 4);
    for (int i = 0; i < 4; i++) { /* those that are offloaded, and those that stay */
        const uint64_t address = where(&o, i ^ 1).device_address;
        now[i].source = i < 2 ? (uint64_t)(uintptr_t)where(&o, i ^ 1).host_address : address;
    }
    CHECK_OK(reconcile(&o, now, 4, &done));
    CHECK_SAME(done.replaced, 4);
    for (int i = 0; i < 4; i++) CHECK(device_holds(&o, model.names[i], i, model.bytes[i ^ 1], 2048));
    end(&o);
}

/* Told in another order; by the addresses on the host, and by those of the slots. */
static void weights_are_renamed(wb_device *device)
{
    for (int in_slots = 0; in_slots < 2; in_slots++) {
        struct offload o;
        wb_parameter now[2];
        wb_offloader_reconcile_result done;
        model_init(&model);
        REQUIRE(begin_of(&o, device, four, 2, 2, options_of(WB_TRANSFER_MODE_PREFETCH)));
        for (int i = 0; i < 2; i++) {
            const wb_offloader_parameter_info info = where(&o, 1 - i);
            now[i] = model.parameters[1 - i];
            now[i].name = i == 0 ? "new1" : "new0";
            now[i].source = in_slots ? info.device_address : (uint64_t)(uintptr_t)info.host_address;
        }
        CHECK_OK(reconcile(&o, now, 2, &done));
        CHECK_SAME(done.added, 2);
        CHECK_SAME(done.removed, 2);
        CHECK(memcmp(named(&o, "new1").host_address, model.bytes[1], 2048) == 0);
        CHECK(memcmp(named(&o, "new0").host_address, model.bytes[0], 2048) == 0);
        end(&o);
    }
}

/* Its buffer goes with the old name. */
static void a_weight_with_memory_of_its_own_is_renamed(wb_device *device)
{
    const int64_t grown = 4096;
    const wb_layout layout = layout_of(WB_DTYPE_U8, 1, &grown, NULL, 0);
    struct offload o;
    wb_parameter now[2];
    wb_offloader_reconcile_result done;
    model_init(&model);
    REQUIRE(begin_of(&o, device, four, 2, 0, options_of(WB_TRANSFER_MODE_PREFETCH)));
    CHECK_OK(replace(&o, 0, grown));
    ask(&o, now, 2);
    now[0].name = "new";
    now[0].layout = &layout;
    CHECK_OK(reconcile(&o, now, 2, &done));
    CHECK(memcmp(named(&o, "new").host_address, fresh_bytes(0), (size_t)grown) == 0);
    CHECK(device_holds(&o, model.names[1], 1, model.bytes[1], 2048));
    end(&o);
}

/* Another group's slot holds what it holds now; nobody knows for how long. */
static void a_slot_of_another_group_is_no_source(wb_device *device)
{
    const int64_t wide = 2 * 2048;
    const wb_layout layout = layout_of(WB_DTYPE_U8, 1, &wide, NULL, 0);
    struct offload o;
    model_init(&model);
    REQUIRE(begin_of(&o, device, four, 4, 0, options_of(WB_TRANSFER_MODE_PREFETCH)));
    CHECK(where(&o, 0).device_address != where(&o, 1).device_address);
    CHECK_ERROR(WB_ERR_INVALID_ARGUMENT,
                wb_offloader_replace(o.offloader, model.names[1], where(&o, 0).device_address,
                                     model.parameters[1].layout, o.stream, &error),
                "slots|host's memory");
    CHECK_ERROR(WB_ERR_INVALID_ARGUMENT,
                wb_offloader_replace(o.offloader, model.names[0], where(&o, 0).device_address, &layout,
                                     o.stream, &error),
                "slots|host's memory");
    for (int i = 0; i < 4; i++) CHECK(device_holds(&o, model.names[i], i, model.bytes[i], 2048));
    /* Its host's bytes are a source as any. */
    CHECK_OK(wb_offloader_replace(o.offloader, model.names[1],
                                  (uint64_t)(uintptr_t)where(&o, 0).host_address,
                                  model.parameters[1].layout, o.stream, &error));
    CHECK(device_holds(&o, model.names[1], 1, model.bytes[0], 2048));
    CHECK_OK(add_bytes(&o, "x", model.names[2], 2048, where(&o, 3).host_address, WB_TRANSFER_MODE_AUTO));
    CHECK(memcmp(named(&o, "x").host_address, model.bytes[3], 2048) == 0);
    end(&o);
}

static void a_weight_that_became_empty_is_empty(wb_device *device)
{
    const int64_t none = 0;
    const wb_layout layout = layout_of(WB_DTYPE_U8, 1, &none, NULL, 0);
    struct offload o;
    wb_parameter now[2];
    wb_offloader_reconcile_result done;
    model_init(&model);
    REQUIRE(begin_of(&o, device, four, 2, 0, options_of(WB_TRANSFER_MODE_PREFETCH)));
    ask(&o, now, 2);
    now[0].layout = &layout;
    now[0].source = 0;
    CHECK_OK(reconcile(&o, now, 2, &done));
    CHECK_SAME(done.replaced, 1);
    CHECK_SAME(where(&o, 0).span_bytes, 0);
    CHECK_SAME(stats_of(&o).offloaded_bytes, 2048);
    end(&o);
}

CHECK_MAIN(CASE(another_layout_of_the_same_bytes_moves_none), CASE(weights_are_exchanged),
           CASE(weights_are_renamed), CASE(a_weight_with_memory_of_its_own_is_renamed),
           CASE(a_slot_of_another_group_is_no_source), CASE(a_weight_that_became_empty_is_empty))

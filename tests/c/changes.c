/* Weights of an offloader that change: where their bytes go, what stays of the others, what a budget and
 * an error leave. */
#include <math.h>

#include "check.h"
#include "model.h"

/* Plans and commits `count` weights of so many bytes; the first `together` are one group, each other is
 * one of its own. */
static int begin_of(struct offload *o, wb_device *device, const int64_t *sizes, int count,
                    int together, wb_plan_options options)
{
    static wb_layout layouts[COUNT];
    static int64_t shapes[COUNT];
    const struct offload none = {device, NULL, NULL, NULL, NULL};
    *o = none;
    options.allow |= WB_ALLOW_EVERYTHING_FITS;
    for (int i = 0; i < count; i++) {
        shapes[i] = sizes[i];
        layouts[i] = layout_of(WB_DTYPE_U8, 1, &shapes[i], NULL, 0);
        model.parameters[i].layout = &layouts[i];
        model.parameters[i].group = i < together ? "together" : model.names[i];
    }
    return CHECK_OK(wb_device_stream_new(device, &o->stream, &error)) &&
           CHECK_OK(wb_plan_new(device, model.parameters, (uint64_t)count, &options, &o->plan,
                                &error)) &&
           CHECK_OK(wb_offloader_new(o->plan, o->stream, NULL, &o->offloader, &error)) &&
           CHECK_OK(wb_buffer_alloc(device, BYTES, NULL, &o->back, &error));
}

static wb_plan_options options_of(wb_carrier carrier)
{
    wb_plan_options options = WB_PLAN_OPTIONS_INIT;
    options.offload_bytes = 1 << 20;
    options.carrier = carrier;
    return options;
}

static const unsigned char *fresh_bytes(int parameter)
{
    static unsigned char fresh[COUNT][BYTES];
    memset(fresh[parameter], 10 + parameter, BYTES);
    return fresh[parameter];
}

static wb_status replace(struct offload *o, int parameter, int64_t bytes)
{
    const wb_layout layout = layout_of(WB_DTYPE_U8, 1, &bytes, NULL, 0);
    return wb_offloader_replace(o->offloader, model.names[parameter],
                                (uint64_t)(uintptr_t)fresh_bytes(parameter), &layout, o->stream,
                                &error);
}

/* What the device finds while the group is acquired. */
static int device_holds(struct offload *o, const char *group, int parameter,
                        const unsigned char *expected, size_t bytes)
{
    unsigned char *back = (unsigned char *)describe(o->back).data;
    uint64_t number = 0;
    int holds = 0;
    memset(back, 0xee, bytes);
    if (!CHECK_OK(wb_offloader_group(o->offloader, group, &number, &error)) ||
        !CHECK_OK(wb_offloader_acquire_group(o->offloader, number, o->stream, &error))) {
        return 0;
    }
    CHECK_OK(wb_device_copy(o->device, (uint64_t)(uintptr_t)back, where(o, parameter).device_address,
                            bytes, o->stream, &error));
    CHECK_OK(wb_device_stream_synchronize(o->device, o->stream, &error));
    holds = memcmp(back, expected, bytes) == 0;
    CHECK_OK(wb_offloader_release_group(o->offloader, number, o->stream, &error));
    return holds;
}

/* Replaced, and then on the host and on the device. */
static void replace_by(struct offload *o, const char *group, int parameter, int64_t bytes)
{
    if (!CHECK_OK(replace(o, parameter, bytes))) return;
    CHECK_SAME(where(o, parameter).span_bytes, (uint64_t)bytes);
    CHECK(memcmp(where(o, parameter).host_address, fresh_bytes(parameter), (size_t)bytes) == 0);
    CHECK(bytes == 0 || device_holds(o, group, parameter, fresh_bytes(parameter), (size_t)bytes));
}

static void a_weight_of_no_bytes_stands_in_nobodys_way(wb_device *device)
{
    struct offload o;
    const int64_t sizes[] = {256, 4096, 4096};
    model_init(&model);
    REQUIRE(begin_of(&o, device, sizes, 3, 3, options_of(WB_CARRIER_PREFETCH)));
    replace_by(&o, "together", 1, 0);
    const uint64_t mapped = stats_of(&o).mapped_bytes;
    replace_by(&o, "together", 0, 512); /* where the second one was: they begin at the same place */
    replace_by(&o, "together", 0, 4096);
    CHECK_SAME(stats_of(&o).mapped_bytes, mapped);
    replace_by(&o, "together", 2, BYTES);
    replace_by(&o, "together", 1, 4096);
    end(&o);
}

static void what_was_tied_has_the_room_to_itself(wb_device *device)
{
    const int64_t sizes[] = {1024, 256, 1024}, bytes[] = {128, 1024, 256};
    for (int i = 0; i < 3; i++) {
        struct offload o;
        model_init(&model);
        model.parameters[1].source = model.parameters[0].source + 768; /* a part of the first */
        REQUIRE(begin_of(&o, device, sizes, 3, 3, options_of(WB_CARRIER_PREFETCH)));
        CHECK_SAME(stats_of(&o).offloaded_bytes, 2048);
        CHECK_OK(wb_offloader_remove(o.offloader, model.names[0], o.stream, &error));
        replace_by(&o, "together", 1, bytes[i]);
        CHECK(device_holds(&o, "together", 2, model.bytes[2], 1024));
        CHECK_OK(wb_offloader_compact(o.offloader, o.stream, &error));
        CHECK(device_holds(&o, "together", 1, fresh_bytes(1), (size_t)bytes[i]));
        CHECK(device_holds(&o, "together", 2, model.bytes[2], 1024));
        end(&o);
    }
}

static void a_replacement_without_memory_is_made_again_where_it_belongs(wb_device *device)
{
    struct offload o;
    const int64_t sizes[] = {1024, 1024};
    model_init(&model);
    REQUIRE(begin_of(&o, device, sizes, 2, 1, options_of(WB_CARRIER_PREFETCH)));
    double_set("WB_DOUBLE_FAIL", "cuMemHostRegister_v2:1:2");
    CHECK_ERROR(WB_ERR_OUT_OF_MEMORY, replace(&o, 0, 4096), "");
    double_set("WB_DOUBLE_FAIL", "");
    CHECK_SAME(where(&o, 0).carrier, WB_CARRIER_PREFETCH);
    CHECK_SAME(where(&o, 0).device_address, 0);
    wb_view *view = NULL;
    CHECK_ERROR(WB_ERR_NOT_FOUND, wb_offloader_host_view(o.offloader, model.names[0], &view, &error),
                "replace it again");
    CHECK(device_holds(&o, model.names[1], 1, model.bytes[1], 1024));
    replace_by(&o, "together", 0, 4096);
    CHECK_SAME(where(&o, 0).carrier, WB_CARRIER_PREFETCH);
    CHECK_SAME(stats_of(&o).resident_bytes, 0);
    end(&o);
}

/* Two weights that stay and two that are copied ahead through one slot: the budget is used up. */
static int begin_full(struct offload *o, wb_device *device)
{
    static const char *const stay[] = {"layers.0.w0", "layers.0.w1"};
    const int64_t sizes[] = {4096, 4096, 4096, 4096};
    wb_plan_options options = options_of(WB_CARRIER_PREFETCH);
    options.offload_bytes = WB_UNSET;
    options.device_bytes = 3 * 4096;
    options.exclude = stay;
    options.exclude_count = 2;
    return begin_of(o, device, sizes, 4, 0, options);
}

static int within_budget(struct offload *o)
{
    const wb_offloader_stats stats = stats_of(o);
    return stats.resident_bytes + stats.slot_bytes <= 3 * 4096 &&
           measure(o->device).device_bytes <= 3 * 4096;
}

static void what_stays_keeps_to_the_budget(wb_device *device)
{
    struct offload o;
    model_init(&model);
    REQUIRE(begin_full(&o, device));
    const uint64_t address = where(&o, 0).device_address;
    CHECK_OK(replace(&o, 0, 4096));
    CHECK_SAME(where(&o, 0).device_address, address); /* where it was: no memory is taken for it */
    CHECK(device_holds(&o, model.names[0], 0, fresh_bytes(0), 4096));
    CHECK(device_holds(&o, model.names[1], 1, model.bytes[1], 4096));
    CHECK(within_budget(&o));
    CHECK_ERROR(WB_ERR_BUDGET, replace(&o, 0, 4097), "12288");
    CHECK(device_holds(&o, model.names[0], 0, fresh_bytes(0), 4096));
    CHECK_OK(replace(&o, 0, 100));
    CHECK(within_budget(&o));
    end(&o);
}

static void what_is_still_to_come_has_its_place_in_the_budget(wb_device *device)
{
    struct offload o;
    model_init(&model);
    model.parameters[0].source = 0;
    REQUIRE(begin_full(&o, device));
    CHECK_OK(wb_offloader_compact(o.offloader, o.stream, &error));
    CHECK_ERROR(WB_ERR_BUDGET, replace(&o, 0, 4097), "12288");
    CHECK_OK(replace(&o, 0, 4096));
    CHECK(within_budget(&o));
    end(&o);
}

static void slots_keep_to_the_budget_when_a_weight_goes(wb_device *device)
{
    static const char *const stay[] = {"layers.0.w0", "layers.0.w1"};
    const int64_t sizes[] = {4096, 4096, 4096, 4096, 4096, 4096, 4096};
    struct offload o;
    wb_plan_options options = options_of(WB_CARRIER_PREFETCH);
    options.offload_bytes = WB_UNSET;
    options.device_bytes = 5 * 4096;
    options.exclude = stay;
    options.exclude_count = 2;
    model_init(&model);
    model.parameters[2].carrier = WB_CARRIER_ON_DEMAND;
    REQUIRE(begin_of(&o, device, sizes, 7, 0, options));
    CHECK(stats_of(&o).resident_bytes + stats_of(&o).slot_bytes <= 5 * 4096);
    CHECK_OK(wb_offloader_remove(o.offloader, model.names[0], o.stream, &error));
    CHECK_OK(wb_offloader_compact(o.offloader, o.stream, &error));
    CHECK(stats_of(&o).resident_bytes + stats_of(&o).slot_bytes <= 5 * 4096);
    CHECK(measure(device).device_bytes <= 5 * 4096);
    for (int i = 2; i < 7; i++) CHECK(device_holds(&o, model.names[i], i, model.bytes[i], 4096));
    end(&o);
}

static wb_status add(struct offload *o, int parameter, wb_carrier carrier)
{
    wb_parameter added = model.parameters[parameter];
    added.group = "together";
    added.carrier = carrier;
    return wb_offloader_add(o->offloader, &added, o->stream, &error);
}

static void what_cannot_be_added_is_not_there(wb_device *device)
{
    struct offload o;
    const int64_t sizes[] = {1024, 1024};
    model_init(&model);
    REQUIRE(begin_of(&o, device, sizes, 2, 1, options_of(WB_CARRIER_PREFETCH)));
    /* Its slot, and then the one that was there before it. */
    double_set("WB_DOUBLE_FAIL", "cuMemAlloc_v2:1:2");
    CHECK_ERROR(WB_ERR_DEVICE_MEMORY, add(&o, 2, WB_CARRIER_AUTO), "");
    double_set("WB_DOUBLE_FAIL", "");
    CHECK(device_holds(&o, "together", 0, model.bytes[0], 1024));
    double_set("WB_DOUBLE_FAIL", "cuMemAlloc_v2:0:2");
    CHECK_ERROR(WB_ERR_DEVICE_MEMORY, add(&o, 2, WB_CARRIER_AUTO), "");
    double_set("WB_DOUBLE_FAIL", "");
    /* Without slots nothing has an address, and nothing is acquired. */
    CHECK_SAME(where(&o, 0).device_address, 0);
    CHECK_ERROR(WB_ERR_DEVICE_MEMORY, wb_offloader_acquire_group(o.offloader, 0, o.stream, &error),
                "wb_offloader_compact");
    CHECK_OK(add(&o, 2, WB_CARRIER_AUTO));
    CHECK(device_holds(&o, "together", 0, model.bytes[0], 1024));
    CHECK(device_holds(&o, "together", 2, model.bytes[2], BYTES));
    end(&o);
}

static void what_is_written_again_has_its_slots_again(wb_device *device)
{
    struct offload o;
    const int64_t sizes[] = {1024, 1024};
    model_init(&model);
    REQUIRE(begin_of(&o, device, sizes, 2, 1, options_of(WB_CARRIER_PREFETCH)));
    double_set("WB_DOUBLE_FAIL", "cuMemAlloc_v2:0:2");
    CHECK_ERROR(WB_ERR_DEVICE_MEMORY, replace(&o, 0, 4096), "");
    double_set("WB_DOUBLE_FAIL", "");
    replace_by(&o, "together", 0, 4096);
    end(&o);
}

static void a_view_is_not_added_where_there_are_none(wb_device *device)
{
    struct offload o;
    const int64_t sizes[] = {1024, 1024};
    wb_device_options options = WB_DEVICE_OPTIONS_INIT;
    wb_device *blind = NULL;
    (void)device;
    options.views = WB_OFF;
    REQUIRE_OK(wb_device_open(test_device(), &options, &blind, &error));
    model_init(&model);
    REQUIRE(begin_of(&o, blind, sizes, 2, 1, options_of(WB_CARRIER_PREFETCH)));
    CHECK_ERROR(WB_ERR_NOT_MAPPED, add(&o, 2, WB_CARRIER_VIEW), "in place|no views|options");
    CHECK_OK(add(&o, 2, WB_CARRIER_AUTO));
    CHECK(device_holds(&o, "together", 2, model.bytes[2], BYTES));
    end(&o);
    wb_device_release(blind);
}

static void a_reset_that_fails_is_made_again(wb_device *device)
{
    struct offload o;
    const int64_t sizes[] = {1024, 1024};
    model_init(&model);
    REQUIRE(begin_of(&o, device, sizes, 2, 0, options_of(WB_CARRIER_PREFETCH)));
    CHECK_OK(wb_offloader_acquire_group(o.offloader, 0, o.stream, &error));
    CHECK_OK(wb_offloader_acquire_group(o.offloader, 1, o.stream, &error));
    double_set("WB_DOUBLE_FAIL", "cuEventRecord:2:999");
    CHECK_ERROR(WB_ERR_DRIVER, wb_offloader_reset(o.offloader, o.stream, &error), "cuEventRecord");
    double_set("WB_DOUBLE_FAIL", "");
    CHECK_OK(wb_offloader_release_group(o.offloader, 0, o.stream, &error));
    CHECK_OK(wb_offloader_reset(o.offloader, o.stream, &error));
    CHECK_ERROR(WB_ERR_INVALID_ARGUMENT,
                wb_offloader_release_group(o.offloader, 1, o.stream, &error), "not acquired");
    end(&o);
}

static void numbers_that_are_refused_change_nothing(wb_device *device)
{
    static const char *const stays[] = {"*"};
    const int64_t shape[] = {32, 32};
    const wb_layout layout = layout_of(WB_DTYPE_F32, 2, shape, NULL, 0);
    static float numbers[1024];
    static unsigned char kept[1024];
    for (uint32_t resident = 0; resident < 2; resident++) {
        struct offload o = {device, NULL, NULL, NULL, NULL};
        wb_plan_options options = options_of(WB_CARRIER_PREFETCH);
        wb_quantize_options quantize = WB_QUANTIZE_OPTIONS_INIT;
        for (int i = 0; i < 1024; i++) numbers[i] = (float)i;
        model_init(&model);
        model.parameters[0].layout = &layout;
        model.parameters[0].source = (uint64_t)(uintptr_t)numbers;
        quantize.refuse_nonfinite = 1;
        options.quantize = &quantize;
        options.allow = WB_ALLOW_EVERYTHING_FITS | WB_ALLOW_NOTHING;
        options.exclude = stays;
        options.exclude_count = resident;
        REQUIRE_OK(wb_device_stream_new(device, &o.stream, &error));
        REQUIRE_OK(wb_plan_new(device, model.parameters, 1, &options, &o.plan, &error));
        REQUIRE_OK(wb_offloader_new(o.plan, o.stream, NULL, &o.offloader, &error));
        REQUIRE_OK(wb_buffer_alloc(device, BYTES, NULL, &o.back, &error));
        CHECK_SAME(where(&o, 0).carrier, resident ? WB_CARRIER_NONE : WB_CARRIER_PREFETCH);
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

static void what_cannot_be_told_is_not_done(wb_device *device)
{
    struct offload o;
    const int64_t sizes[] = {1024, 1024};
    wb_reconciled reconciled = WB_RECONCILED_INIT;
    model_init(&model);
    REQUIRE(begin_of(&o, device, sizes, 2, 1, options_of(WB_CARRIER_PREFETCH)));
    reconciled.struct_size += 8;
    CHECK_ERROR(WB_ERR_STRUCT_SIZE,
                wb_offloader_reconcile(o.offloader, model.parameters, 1, o.stream, &reconciled,
                                       &error),
                "wb_reconciled");
    CHECK_ERROR(WB_ERR_NULL, wb_offloader_reconcile(o.offloader, model.parameters, 1, o.stream, NULL,
                                                    &error), "");
    CHECK(device_holds(&o, model.names[1], 1, model.bytes[1], 1024)); /* not removed */
    end(&o);
}

CHECK_MAIN(CASE(a_weight_of_no_bytes_stands_in_nobodys_way),
           CASE(what_was_tied_has_the_room_to_itself),
           CASE_ON(DOUBLE_ONLY, a_replacement_without_memory_is_made_again_where_it_belongs),
           CASE(what_stays_keeps_to_the_budget),
           CASE(what_is_still_to_come_has_its_place_in_the_budget),
           CASE(slots_keep_to_the_budget_when_a_weight_goes),
           CASE_ON(DOUBLE_ONLY, what_cannot_be_added_is_not_there),
           CASE_ON(DOUBLE_ONLY, what_is_written_again_has_its_slots_again),
           CASE(a_view_is_not_added_where_there_are_none),
           CASE(what_cannot_be_told_is_not_done),
           CASE(numbers_that_are_refused_change_nothing),
           CASE_ON(DOUBLE_ONLY, a_reset_that_fails_is_made_again))

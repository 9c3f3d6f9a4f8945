/* Changed parameters of an offloader and its budgets: host memory, device memory, slots. */
#include "changes.h"

static wb_plan_options device_options(uint64_t device_bytes)
{
    wb_plan_options options = budget_options(WB_BUDGET_DEVICE_BYTES, device_bytes);
    options.transfer_mode = WB_TRANSFER_MODE_PREFETCH;
    return options;
}

/* The first two parameters are resident. */
static wb_plan_options resident_options(uint64_t device_bytes)
{
    static const char *const resident[] = {"layers.0.w0", "layers.0.w1"};
    wb_plan_options options = device_options(device_bytes);
    options.exclude = resident;
    options.exclude_count = 2;
    return options;
}

/* Two resident parameters and two that share a prefetch slot: the budget is used up. */
static int begin_full(struct offload *o, wb_device *device)
{
    const int64_t sizes[] = {4096, 4096, 4096, 4096};
    return offload_begin_sizes(o, device, sizes, 4, 0, resident_options(3 * 4096));
}

static int within_budget(struct offload *o)
{
    const wb_offloader_stats stats = stats_of(o);
    return stats.resident_bytes + stats.slot_bytes <= 3 * 4096 &&
           device_stats(o->device).device_bytes <= 3 * 4096;
}

static void resident_parameters_stay_within_the_budget(wb_device *device)
{
    struct offload o;
    model_init(&model);
    REQUIRE(begin_full(&o, device));
    const void *address = info_of(&o, 0).device_address;
    CHECK_OK(replace(&o, 0, 4096));
    CHECK(info_of(&o, 0).device_address == address); /* in place: without another allocation */
    CHECK(device_holds(&o, model.names[0], 0, fresh_bytes(0), 4096));
    CHECK(device_holds(&o, model.names[1], 1, model.bytes[1], 4096));
    CHECK(within_budget(&o));
    CHECK_ERROR(WB_ERR_BUDGET, replace(&o, 0, 4097), "12288");
    CHECK(device_holds(&o, model.names[0], 0, fresh_bytes(0), 4096));
    CHECK_OK(replace(&o, 0, 100));
    CHECK(within_budget(&o));
    offload_end(&o);
}

/* Each alone is within the budget: the slots that the offloaded one needs are not there yet when the
 * resident one grows. */
static void one_list_does_not_exceed_the_budget(wb_device *device)
{
    const int64_t sizes[] = {4096, 4096, 4096, 4096}, larger = 6144 - 512;
    const uint64_t budget = 3 * 4096 + 2048;
    const wb_layout layout = bytes_layout(&larger);
    static unsigned char bytes[2][6144];
    wb_offloader_reconcile_result done = WB_OFFLOADER_RECONCILE_RESULT_INIT;
    struct offload o;
    model_init(&model);
    REQUIRE(offload_begin_sizes(&o, device, sizes, 4, 0, resident_options(budget)));
    wb_parameter now[4];
    for (int i = 0; i < 4; i++) {
        now[i] = model.parameters[3 - i];
        now[i].source = NULL;
    }
    now[0].layout = now[3].layout = &layout; /* the last, offloaded, and the first, resident */
    now[0].source = bytes[0];
    now[3].source = bytes[1];
    CHECK_ERROR(WB_ERR_BUDGET,
                wb_offloader_reconcile(o.offloader, now, 4, o.stream, &done, &error), "14336");
    CHECK_SAME(info_of(&o, 3).span_bytes, (uint64_t)larger);
    CHECK_SAME(info_of(&o, 0).span_bytes, 4096);
    CHECK(device_stats(device).device_bytes <= budget);
    CHECK(device_holds(&o, model.names[2], 2, model.bytes[2], 4096));
    offload_end(&o);
}

static void parameters_without_a_source_count_against_the_budget(wb_device *device)
{
    struct offload o;
    model_init(&model);
    model.parameters[0].source = NULL;
    REQUIRE(begin_full(&o, device));
    CHECK_OK(wb_offloader_compact(o.offloader, o.stream, &error));
    CHECK_ERROR(WB_ERR_BUDGET, replace(&o, 0, 4097), "12288");
    CHECK_OK(replace(&o, 0, 4096));
    CHECK(within_budget(&o));
    offload_end(&o);
}

static void slots_stay_within_the_budget_after_a_removal(wb_device *device)
{
    const int64_t sizes[] = {4096, 4096, 4096, 4096, 4096, 4096, 4096};
    struct offload o;
    model_init(&model);
    model.parameters[2].transfer_mode = WB_TRANSFER_MODE_ON_DEMAND;
    REQUIRE(offload_begin_sizes(&o, device, sizes, 7, 0, resident_options(5 * 4096)));
    CHECK(stats_of(&o).resident_bytes + stats_of(&o).slot_bytes <= 5 * 4096);
    CHECK_OK(wb_offloader_remove(o.offloader, model.names[0], o.stream, &error));
    CHECK_OK(wb_offloader_compact(o.offloader, o.stream, &error));
    CHECK(stats_of(&o).resident_bytes + stats_of(&o).slot_bytes <= 5 * 4096);
    CHECK(device_stats(device).device_bytes <= 5 * 4096);
    for (int i = 2; i < 7; i++) CHECK(device_holds(&o, model.names[i], i, model.bytes[i], 4096));
    offload_end(&o);
}

static void free_host_space_is_used_only_if_its_slots_fit_the_budget(wb_device *device)
{
    static const unsigned char bytes[4608] = {0};
    const int64_t sizes[] = {4608, 1536};
    struct offload o;
    model_init(&model);
    REQUIRE(offload_begin_sizes(&o, device, sizes, 2, 0, device_options(4608)));
    CHECK_SAME(stats_of(&o).slot_bytes, 4608);
    CHECK_OK(wb_offloader_remove(o.offloader, model.names[1], o.stream, &error));
    CHECK_OK(add_bytes(&o, "x", model.names[1], 4608, bytes, WB_PLACEMENT_AUTO));
    /* There is space for it where the second one was. */
    CHECK_ERROR(WB_ERR_BUDGET,
                add_bytes(&o, "y", model.names[1], 1536, bytes, WB_PLACEMENT_AUTO), "4608");
    CHECK_SAME(stats_of(&o).slot_bytes, 4608);
    CHECK_SAME(stats_of(&o).resident_bytes, 0);
    CHECK_SAME(device_stats(device).device_bytes, 4608);
    offload_end(&o);
}

static void replaced_bytes_need_no_slot(wb_device *device)
{
    const int64_t sizes[] = {4608, 1536};
    struct offload o;
    model_init(&model);
    REQUIRE(offload_begin_sizes(&o, device, sizes, 2, 0, device_options(4608)));
    CHECK_OK(replace(&o, 1, 4608));
    CHECK_SAME(stats_of(&o).slot_bytes, 4608);
    CHECK(device_holds(&o, model.names[1], 1, fresh_bytes(1), 4608));
    CHECK(device_holds(&o, model.names[0], 0, model.bytes[0], 4608));
    offload_end(&o);
}

static void slots_stay_within_slot_bytes(wb_device *device)
{
    const int64_t sizes[] = {2048, 2048};
    static const unsigned char bytes[4096] = {0};
    struct offload o;
    wb_plan_options options = prefetch_options();
    options.slot_bytes = 2048;
    model_init(&model);
    REQUIRE(offload_begin_sizes(&o, device, sizes, 2, 0, options));
    CHECK_SAME(stats_of(&o).slot_bytes, 2048);
    CHECK_ERROR(WB_ERR_SLOTS_BUDGET, replace(&o, 0, 4096), "4096|2048|slot_bytes");
    CHECK_OK(add_bytes(&o, "x", model.names[0], 4096, bytes, WB_PLACEMENT_AUTO));
    CHECK_SAME(info_by_name(&o, "x").placement, WB_PLACEMENT_RESIDENT);
    CHECK_SAME(stats_of(&o).slot_bytes, 2048);
    CHECK(device_holds(&o, model.names[0], 0, model.bytes[0], 2048));
    offload_end(&o);
}

static void sizes_that_overflow_are_refused(wb_device *device)
{
    static const unsigned char bytes[100] = {0};
    const int64_t sizes[] = {2048, 2048};
    struct offload o;
    model_init(&model);
    REQUIRE(offload_begin_sizes(&o, device, sizes, 2, 0, prefetch_options()));
    for (int i = 0; i < 3; i++) {
        char name[] = "x0";
        name[1] = (char)('0' + i);
        CHECK_ERROR(WB_ERR_OVERFLOW,
                    add_bytes(&o, name, model.names[0], INT64_MAX, NULL, WB_PLACEMENT_RESIDENT),
                    "counted");
    }
    CHECK_OK(add_bytes(&o, "small", model.names[0], 100, bytes, WB_PLACEMENT_RESIDENT));
    offload_end(&o);
}

CHECK_MAIN(CASE(resident_parameters_stay_within_the_budget),
           CASE(one_list_does_not_exceed_the_budget),
           CASE(parameters_without_a_source_count_against_the_budget),
           CASE(slots_stay_within_the_budget_after_a_removal),
           CASE(free_host_space_is_used_only_if_its_slots_fit_the_budget),
           CASE(replaced_bytes_need_no_slot), CASE(slots_stay_within_slot_bytes),
           CASE(sizes_that_overflow_are_refused))

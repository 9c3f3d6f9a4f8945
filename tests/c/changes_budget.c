/* Weights of an offloader that change, and its budgets: of host memory, of device memory, of slots. */
#include "check.h"
#include "weights.h"

/* Two weights that stay and two that are copied ahead through one slot: the budget is used up. */
static int begin_full(struct offload *o, wb_device *device)
{
    static const char *const stay[] = {"layers.0.w0", "layers.0.w1"};
    const int64_t sizes[] = {4096, 4096, 4096, 4096};
    wb_plan_options options = options_of(WB_TRANSFER_MODE_PREFETCH);
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
    wb_plan_options options = options_of(WB_TRANSFER_MODE_PREFETCH);
    options.offload_bytes = WB_UNSET;
    options.device_bytes = 5 * 4096;
    options.exclude = stay;
    options.exclude_count = 2;
    model_init(&model);
    model.parameters[2].carrier = WB_TRANSFER_MODE_ON_DEMAND;
    REQUIRE(begin_of(&o, device, sizes, 7, 0, options));
    CHECK(stats_of(&o).resident_bytes + stats_of(&o).slot_bytes <= 5 * 4096);
    CHECK_OK(wb_offloader_remove(o.offloader, model.names[0], o.stream, &error));
    CHECK_OK(wb_offloader_compact(o.offloader, o.stream, &error));
    CHECK(stats_of(&o).resident_bytes + stats_of(&o).slot_bytes <= 5 * 4096);
    CHECK(measure(device).device_bytes <= 5 * 4096);
    for (int i = 2; i < 7; i++) CHECK(device_holds(&o, model.names[i], i, model.bytes[i], 4096));
    end(&o);
}

static int begin_on(struct offload *o, wb_device *device, const int64_t *sizes, int count,
                    uint64_t device_bytes)
{
    wb_plan_options options = options_of(WB_TRANSFER_MODE_PREFETCH);
    options.offload_bytes = WB_UNSET;
    options.device_bytes = device_bytes;
    return begin_of(o, device, sizes, count, 0, options);
}

static void room_that_is_free_counts_with_the_slots_it_needs(wb_device *device)
{
    static const unsigned char bytes[4608] = {0};
    const int64_t sizes[] = {4608, 1536};
    struct offload o;
    model_init(&model);
    REQUIRE(begin_on(&o, device, sizes, 2, 4608));
    CHECK_SAME(stats_of(&o).slot_bytes, 4608);
    CHECK_OK(wb_offloader_remove(o.offloader, model.names[1], o.stream, &error));
    CHECK_OK(add_bytes(&o, "x", model.names[1], 4608, bytes, WB_TRANSFER_MODE_AUTO));
    /* There is room for it where the second one was. */
    CHECK_ERROR(WB_ERR_BUDGET,
                add_bytes(&o, "y", model.names[1], 1536, bytes, WB_TRANSFER_MODE_AUTO), "4608");
    CHECK_SAME(stats_of(&o).slot_bytes, 4608);
    CHECK_SAME(stats_of(&o).resident_bytes, 0);
    CHECK_SAME(measure(device).device_bytes, 4608);
    end(&o);
}

static void what_is_given_up_needs_no_slot(wb_device *device)
{
    const int64_t sizes[] = {4608, 1536};
    struct offload o;
    model_init(&model);
    REQUIRE(begin_on(&o, device, sizes, 2, 4608));
    CHECK_OK(replace(&o, 1, 4608));
    CHECK_SAME(stats_of(&o).slot_bytes, 4608);
    CHECK(device_holds(&o, model.names[1], 1, fresh_bytes(1), 4608));
    CHECK(device_holds(&o, model.names[0], 0, model.bytes[0], 4608));
    end(&o);
}

static void slots_keep_to_their_own_budget(wb_device *device)
{
    const int64_t sizes[] = {2048, 2048};
    static const unsigned char bytes[4096] = {0};
    struct offload o;
    wb_plan_options options = options_of(WB_TRANSFER_MODE_PREFETCH);
    wb_offloader_parameter_info added = WB_OFFLOADER_PARAMETER_INFO_INIT;
    options.slot_bytes = 2048;
    model_init(&model);
    REQUIRE(begin_of(&o, device, sizes, 2, 0, options));
    CHECK_SAME(stats_of(&o).slot_bytes, 2048);
    CHECK_ERROR(WB_ERR_SLOTS_BUDGET, replace(&o, 0, 4096), "4096|2048|slot_bytes");
    CHECK_OK(add_bytes(&o, "x", model.names[0], 4096, bytes, WB_TRANSFER_MODE_AUTO));
    CHECK_OK(wb_offloader_get_parameter_info(o.offloader, "x", &added, &error));
    CHECK_SAME(added.carrier, WB_CARRIER_NONE);
    CHECK_SAME(stats_of(&o).slot_bytes, 2048);
    CHECK(device_holds(&o, model.names[0], 0, model.bytes[0], 2048));
    end(&o);
}

static void what_cannot_be_counted_is_refused(wb_device *device)
{
    static const unsigned char bytes[100] = {0};
    const int64_t sizes[] = {2048, 2048};
    struct offload o;
    model_init(&model);
    REQUIRE(begin_of(&o, device, sizes, 2, 0, options_of(WB_TRANSFER_MODE_PREFETCH)));
    for (int i = 0; i < 3; i++) {
        char name[] = "x0";
        name[1] = (char)('0' + i);
        CHECK_ERROR(WB_ERR_OVERFLOW,
                    add_bytes(&o, name, model.names[0], INT64_MAX, NULL, WB_CARRIER_NONE), "counted");
    }
    CHECK_OK(add_bytes(&o, "small", model.names[0], 100, bytes, WB_CARRIER_NONE));
    end(&o);
}

CHECK_MAIN(CASE(what_stays_keeps_to_the_budget),
           CASE(what_is_still_to_come_has_its_place_in_the_budget),
           CASE(slots_keep_to_the_budget_when_a_weight_goes),
           CASE(room_that_is_free_counts_with_the_slots_it_needs),
           CASE(what_is_given_up_needs_no_slot), CASE(slots_keep_to_their_own_budget),
           CASE(what_cannot_be_counted_is_refused))

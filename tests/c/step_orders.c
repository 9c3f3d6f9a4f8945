/* Orders of groups that an engine tells, and the transfers of each group. */
#include "model.h"

/* Bytes of a group in a slot, where each parameter is aligned. */
enum { MOVED = EACH * ((BYTES + 255) / 256 * 256) };

static int begin(struct offload *o, wb_device *device, wb_transfer_mode mode)
{
    wb_plan_options options = offload_options(mode);
    model_init(&model);
    options.depth = mode == WB_TRANSFER_MODE_PREFETCH ? 2 : 0;
    return offload_begin_first(o, device, COUNT, options);
}

static void step(struct offload *o, const uint64_t *groups, int count)
{
    unsigned char *back = (unsigned char *)buffer_info(o->back).data;
    for (int at = 0; at < count; at++) {
        const int parameter = (int)groups[at] * EACH;
        CHECK_OK(wb_offloader_acquire_group(o->offloader, groups[at], o->stream, &error));
        CHECK_OK(wb_device_copy(o->device, back, info_of(o, parameter).device_address, BYTES,
                                o->stream, &error));
        CHECK_OK(wb_offloader_release_group(o->offloader, groups[at], o->stream, &error));
        CHECK_OK(wb_device_stream_synchronize(o->device, o->stream, &error));
        CHECK(holds_parameter(back, parameter, 0));
    }
}

/* Bytes and late copies of a step, once steps like it repeat. */
static void check_step_of(struct offload *o, const uint64_t *groups, int count, uint64_t copies)
{
    for (int turn = 0; turn < 3; turn++) {
        const wb_offloader_stats before = stats_of(o);
        CHECK_OK(wb_offloader_begin_step(o->offloader, o->stream, &error));
        step(o, groups, count);
        const wb_offloader_stats after = stats_of(o);
        CHECK_SAME(after.copies - before.copies, copies);
        CHECK_SAME(after.moved_bytes - before.moved_bytes, copies * MOVED);
        CHECK_SAME(after.late_copies - before.late_copies, 1); /* of its first group */
    }
}

static const uint64_t forwards[] = {0, 1, 2, 3}, backwards[] = {3, 2, 1, 0};

static void a_step_that_ends_early_moves_its_groups_only(wb_device *device)
{
    struct offload o;
    REQUIRE(begin(&o, device, WB_TRANSFER_MODE_PREFETCH));
    check_step_of(&o, forwards, LAYERS, LAYERS);
    check_step_of(&o, forwards, 2, 4); /* prefetches the other two for nothing */
    CHECK_OK(wb_offloader_expect(o.offloader, forwards, 2, &error));
    check_step_of(&o, forwards, 2, 2);
    CHECK_OK(wb_offloader_expect(o.offloader, forwards, 1, &error));
    check_step_of(&o, forwards, 1, 1);
    CHECK_OK(wb_offloader_expect(o.offloader, NULL, 0, &error));
    check_step_of(&o, forwards, LAYERS, LAYERS);
    offload_end(&o);
}

static void a_reversed_step_is_prefetched(wb_device *device)
{
    struct offload o;
    REQUIRE(begin(&o, device, WB_TRANSFER_MODE_PREFETCH));
    CHECK_OK(wb_offloader_expect(o.offloader, backwards, LAYERS, &error));
    check_step_of(&o, backwards, LAYERS, LAYERS);
    check_step_of(&o, backwards, 3, 4);
    offload_end(&o);
}

/* Until a graph exists, the end of a step prefetches the first group that is expected next. */
static void the_next_step_begins_with_an_expected_group(wb_device *device)
{
    struct offload o;
    REQUIRE(begin(&o, device, WB_TRANSFER_MODE_PREFETCH));
    CHECK_OK(wb_offloader_expect(o.offloader, backwards, LAYERS, &error));
    step(&o, backwards, LAYERS);
    const wb_offloader_stats before = stats_of(&o);
    step(&o, backwards, LAYERS);
    CHECK_SAME(stats_of(&o).late_copies, before.late_copies);
    offload_end(&o);
}

static void an_invalid_order_is_refused_and_changes_nothing(wb_device *device)
{
    struct offload o;
    const uint64_t twice[] = {1, 0, 1}, outside[] = {0, LAYERS};
    REQUIRE(begin(&o, device, WB_TRANSFER_MODE_PREFETCH));
    CHECK_ERROR(WB_ERR_INVALID_ARGUMENT, wb_offloader_expect(o.offloader, twice, 3, &error),
                "group 1|more than once|once");
    CHECK_ERROR(WB_ERR_OUT_OF_RANGE, wb_offloader_expect(o.offloader, outside, 2, &error), "4");
    check_step_of(&o, forwards, LAYERS, LAYERS);
    offload_end(&o);
}

/* An order stays through a change of the parameters. */
static void an_order_holds_until_the_next(wb_device *device)
{
    struct offload o;
    REQUIRE(begin(&o, device, WB_TRANSFER_MODE_PREFETCH));
    CHECK_OK(wb_offloader_expect(o.offloader, forwards, 2, &error));
    CHECK_OK(wb_offloader_compact(o.offloader, o.stream, &error));
    check_step_of(&o, forwards, 2, 2);
    offload_end(&o);
}

static wb_offloader_group_stats group_stats(struct offload *o, uint64_t group)
{
    wb_offloader_group_stats stats = WB_OFFLOADER_GROUP_STATS_INIT;
    CHECK_OK(wb_offloader_get_group_stats(o->offloader, group, &stats, &error));
    return stats;
}

static void the_transfers_of_groups_add_up(wb_device *device)
{
    static const wb_transfer_mode modes[] = {WB_TRANSFER_MODE_PREFETCH, WB_TRANSFER_MODE_ON_DEMAND};
    for (int at = 0; at < 2; at++) {
        struct offload o;
        uint64_t acquires = 0, moved = 0, copies = 0, late = 0;
        double waited = 0;
        REQUIRE(begin(&o, device, modes[at]));
        for (int turn = 0; turn < 2; turn++) {
            CHECK_OK(wb_offloader_begin_step(o.offloader, o.stream, &error));
            step(&o, forwards, LAYERS - 1);
        }
        CHECK_OK(wb_offloader_compact(o.offloader, o.stream, &error)); /* keeps them */
        for (uint64_t group = 0; group < LAYERS; group++) {
            const wb_offloader_group_stats stats = group_stats(&o, group);
            CHECK_SAME(stats.acquires, group < LAYERS - 1 ? 2 : 0);
            CHECK_SAME(stats.moved_bytes, stats.copies * MOVED);
            CHECK(stats.copies >= stats.acquires && stats.waits <= stats.acquires);
            CHECK((stats.waited_seconds > 0) <= (stats.waits > 0));
            const int first = group == 0 && modes[at] == WB_TRANSFER_MODE_PREFETCH;
            CHECK_SAME(stats.late_copies, first ? 2 : 0);
            acquires += stats.acquires;
            moved += stats.moved_bytes;
            copies += stats.copies;
            late += stats.late_copies;
            waited += stats.waited_seconds;
        }
        const wb_offloader_stats all = stats_of(&o);
        CHECK_SAME(all.acquires, acquires);
        CHECK_SAME(all.moved_bytes, moved);
        CHECK_SAME(all.copies, copies);
        CHECK_SAME(all.late_copies, late);
        CHECK(all.waited_seconds == waited);
        wb_offloader_group_stats stats = WB_OFFLOADER_GROUP_STATS_INIT;
        CHECK_ERROR(WB_ERR_OUT_OF_RANGE,
                    wb_offloader_get_group_stats(o.offloader, LAYERS, &stats, &error), "group|4");
        offload_end(&o);
    }
}

static void a_late_copy_that_is_repeated_counts_once(wb_device *device)
{
    struct offload o;
    REQUIRE(begin(&o, device, WB_TRANSFER_MODE_PREFETCH));
    const wb_offloader_stats before = stats_of(&o);
    CHECK_INJECTED("cuMemcpyAsync:1:999", WB_ERR_DRIVER,
                   wb_offloader_acquire_group(o.offloader, 3, o.stream, &error), "");
    step(&o, backwards, 1);
    CHECK_SAME(stats_of(&o).late_copies - before.late_copies, 1);
    offload_end(&o);
}

CHECK_MAIN(CASE(a_step_that_ends_early_moves_its_groups_only), CASE(a_reversed_step_is_prefetched),
           CASE(the_next_step_begins_with_an_expected_group),
           CASE(an_invalid_order_is_refused_and_changes_nothing),
           CASE(an_order_holds_until_the_next), CASE(the_transfers_of_groups_add_up),
           CASE_ON(DOUBLE_ONLY, a_late_copy_that_is_repeated_counts_once))

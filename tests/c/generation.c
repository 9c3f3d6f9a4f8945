/* The generation: the same as long as every address is, and only so long. */
#include "changes.h"

static const int64_t four[] = {1024, 2048, 2048, 2048};

static uint64_t generation_of(struct offload *o)
{
    uint64_t generation = 0;
    CHECK_OK(wb_offloader_get_generation(o->offloader, &generation, &error));
    CHECK_SAME(stats_of(o).generation, generation);
    return generation;
}

struct addresses {
    uint64_t generation;
    uint64_t count;
    wb_offloader_parameter_info infos[COUNT];
};

static struct addresses addresses_of(struct offload *o)
{
    const wb_offloader_parameter_info empty = WB_OFFLOADER_PARAMETER_INFO_INIT;
    struct addresses now;
    now.generation = generation_of(o);
    now.count = stats_of(o).parameters;
    for (int i = 0; i < COUNT; i++) now.infos[i] = empty;
    CHECK_OK(wb_offloader_get_parameter_infos(o->offloader, 0, now.count, now.infos, &error));
    return now;
}

/* Whether an address that was given before is no longer its parameter's. */
static int addresses_differ(const struct addresses *before, const struct addresses *now)
{
    for (uint64_t i = 0; i < before->count; i++) {
        int found = 0;
        for (uint64_t k = 0; k < now->count; k++) {
            const wb_offloader_parameter_info *a = &before->infos[i], *b = &now->infos[k];
            found |= a->name == b->name && a->device_address == b->device_address &&
                     a->host_address == b->host_address;
        }
        if (!found) return 1;
    }
    return 0;
}

/* Whether the generation, and addresses, have changed since `before`, which becomes now. */
static int moved(struct offload *o, struct addresses *before)
{
    const struct addresses now = addresses_of(o);
    const int changed = now.generation != before->generation;
    CHECK(now.generation >= before->generation);
    CHECK_SAME(addresses_differ(before, &now), changed);
    *before = now;
    return changed;
}

static wb_status reconcile_first(struct offload *o, const wb_parameter *now, uint64_t count)
{
    wb_offloader_reconcile_result done = WB_OFFLOADER_RECONCILE_RESULT_INIT;
    return wb_offloader_reconcile(o->offloader, now, count, o->stream, &done, &error);
}

static void it_changes_exactly_when_addresses_do(wb_device *device)
{
    static const char *const stays[] = {"layers.1.w1"};
    const int64_t fewer = 1024;
    int64_t shape[] = {8, 256};
    const wb_layout wide = layout_of(WB_DTYPE_U8, 2, shape, NULL, 0);
    struct offload o;
    wb_parameter now[4];
    wb_plan_options options = prefetch_options();
    options.exclude = stays;
    options.exclude_count = 1;
    model_init(&model);
    REQUIRE(offload_begin_sizes(&o, device, four, 4, 3, options));
    struct addresses before = addresses_of(&o);
    /* Steps, and other bytes at the same places. */
    for (uint64_t group = 0; group < 2; group++) {
        CHECK_OK(wb_offloader_acquire_group(o.offloader, group, o.stream, &error));
        CHECK_OK(wb_offloader_release_group(o.offloader, group, o.stream, &error));
    }
    CHECK_OK(wb_offloader_reset(o.offloader, o.stream, &error));
    CHECK(!moved(&o, &before));
    for (int i = 1; i < 4; i++) CHECK_OK(replace(&o, i, 2048));
    CHECK(!moved(&o, &before));
    for (int i = 0; i < 4; i++) {
        now[i] = model.parameters[i];
        now[i].source = i == 0 ? info_of(&o, i).host_address : model.bytes[i];
        if (i == 1) now[i].layout = &wide;
    }
    CHECK_OK(reconcile_first(&o, now, 4));
    CHECK(!moved(&o, &before));
    CHECK_OK(wb_offloader_compact(o.offloader, o.stream, &error));
    CHECK(!moved(&o, &before));
    /* Resident ones move no others. */
    CHECK_OK(add_bytes(&o, "added.stays", model.names[3], 512, model.bytes[3],
                       WB_PLACEMENT_RESIDENT));
    CHECK(!moved(&o, &before));
    CHECK_OK(wb_offloader_remove(o.offloader, "added.stays", o.stream, &error));
    CHECK(moved(&o, &before));
    CHECK_OK(replace(&o, 3, 4096));
    CHECK(moved(&o, &before));
    /* Larger, more, fewer, and without gaps. */
    CHECK_OK(replace(&o, 0, 4096));
    CHECK(moved(&o, &before));
    CHECK_OK(add_bytes(&o, "added", "together", 8192, model.bytes[0], WB_PLACEMENT_AUTO));
    CHECK(generation_of(&o) > before.generation);
    before = addresses_of(&o);
    CHECK_OK(wb_offloader_remove(o.offloader, model.names[1], o.stream, &error));
    CHECK(moved(&o, &before));
    CHECK_OK(replace(&o, 2, fewer));
    CHECK(generation_of(&o) > before.generation);
    before = addresses_of(&o);
    CHECK_OK(wb_offloader_compact(o.offloader, o.stream, &error));
    CHECK(moved(&o, &before));
    CHECK_OK(wb_offloader_compact(o.offloader, o.stream, &error));
    CHECK(!moved(&o, &before));
    offload_end(&o);
}

/* The first element of the same bytes in reverse is elsewhere. */
static void a_layout_that_moves_the_first_element_changes_it(wb_device *device)
{
    int64_t shape[] = {2048}, strides[] = {-1};
    const wb_layout reversed = layout_of(WB_DTYPE_U8, 1, shape, strides, 0);
    struct offload o;
    model_init(&model);
    REQUIRE(offload_begin_sizes(&o, device, four, 3, 3, prefetch_options()));
    struct addresses before = addresses_of(&o);
    const unsigned char *last = (const unsigned char *)info_of(&o, 1).host_address + 2047;
    CHECK_OK(replace_from(&o, 1, last, &reversed));
    CHECK(moved(&o, &before));
    CHECK(info_of(&o, 1).host_address == last);
    CHECK(*last == model.bytes[1][2047]);
    offload_end(&o);
}

CHECK_MAIN(CASE(it_changes_exactly_when_addresses_do),
           CASE(a_layout_that_moves_the_first_element_changes_it))

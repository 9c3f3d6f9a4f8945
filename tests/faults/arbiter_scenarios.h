/* Sequences of calls with offloaders that share a budget. */
#ifndef ARBITER_SCENARIOS_H
#define ARBITER_SCENARIOS_H

#include "offload_scenarios.h"

enum { SHARING = 2, SHARED_LAYERS = 2 };

/* Reads the first parameter of each group, which must be its own. Returns 0 if the scenario has ended. */
static int steps_shared(struct world *world, struct offload *o)
{
    unsigned char *back = (unsigned char *)buffer_info(o->back).data;
    memset(back, 0xEE, SHARED_LAYERS * BYTES);
    for (int group = 0; group < SHARED_LAYERS; group++) {
        wb_offloader_parameter_info info = WB_OFFLOADER_PARAMETER_INFO_INIT;
        CHECK_OK(wb_offloader_get_parameter_info(o->offloader, (uint64_t)(group * EACH), &info, &error));
        STEP(wb_offloader_acquire_group(o->offloader, (uint64_t)group, o->stream, &error));
        STEP(wb_device_copy(o->device, back + group * BYTES, info.device_address, BYTES, o->stream, &error));
        STEP(wb_offloader_release_group(o->offloader, (uint64_t)group, o->stream, &error));
    }
    STEP(wb_device_stream_synchronize(o->device, o->stream, &error));
    for (int group = 0; group < SHARED_LAYERS; group++) {
        CHECK(holds_parameter(back + group * BYTES, group * EACH, 0));
    }
    return 1;
out:
    return 0;
}

static wb_arbiter_member_info member_of(const wb_arbiter *arbiter, const struct offload *o)
{
    wb_arbiter_member_info info = WB_ARBITER_MEMBER_INFO_INIT;
    CHECK_OK(wb_arbiter_get_member_info(arbiter, o->offloader, &info, &error));
    return info;
}

/* Two offloaders give memory to one another; the budget holds also after a call that failed, which goes
 * on when it is repeated. */
static void shares(struct world *world)
{
    enum { USE, LOWER, RAISE };
    /* The last budget leaves nothing for the one that is idle. */
    static const struct { int call, at, fits_both; } turns[] = {
        {USE, 0, 1}, {USE, 1, 1}, {LOWER, 1, 0}, {USE, 0, 0}, {RAISE, 0, 1}, {USE, 1, 1}};
    wb_plan_options options = offload_options(WB_TRANSFER_MODE_PREFETCH);
    struct offload all[SHARING] = {{world->device, NULL, NULL, NULL, NULL},
                                   {world->device, NULL, NULL, NULL, NULL}};
    wb_arbiter *arbiter = NULL;
    wb_arbiter_progress progress = WB_ARBITER_PROGRESS_INIT;
    wb_offloader_resize_progress held = WB_OFFLOADER_RESIZE_PROGRESS_INIT;
    model_init(&model);
    options.fixed_addresses = WB_TRISTATE_ON;
    world->works_beside = 1;
    for (int at = 0; at < SHARING; at++) {
        struct offload *o = &all[at];
        STEP(wb_device_stream_new(o->device, &o->stream, &error));
        STEP(wb_plan_new(o->device, model.parameters, SHARED_LAYERS * EACH, &options, &o->plan, &error));
        STEP(wb_offloader_new(o->plan, o->stream, NULL, &o->offloader, &error));
        STEP(wb_buffer_alloc(o->device, SHARED_LAYERS * BYTES, NULL, &o->back, &error));
    }
    const uint64_t slots = stats_of(&all[0]).slot_bytes, whole = slots + SHARED_LAYERS * PIECE;
    uint64_t budget = whole + slots;
    STEP(wb_arbiter_new(world->device, budget, &arbiter, &error));
    for (int at = 0; at < SHARING; at++) {
        wb_arbiter_options member = WB_ARBITER_OPTIONS_INIT;
        member.stream = all[at].stream;
        STEP(wb_arbiter_add(arbiter, all[at].offloader, &member, &error));
    }
    world->resizes = 1;
    world->most_device_bytes = budget;
    for (size_t turn = 0; turn < sizeof turns / sizeof turns[0]; turn++) {
        const int at = turns[turn].at;
        const uint64_t rest = turns[turn].fits_both ? slots : 0;
        budget = whole + rest;
        if (turns[turn].call == USE) {
            STEP(wb_arbiter_use(arbiter, all[at].offloader, &progress, &error));
        } else {
            STEP(wb_arbiter_resize(arbiter, budget, &progress, &error));
        }
        sleep_ms(2); /* the copies end, so that few calls ask for that */
        STEP(wb_arbiter_wait(arbiter, 10000, &progress, &error));
        world->most_device_bytes = budget;
        CHECK(progress.pending_offloaders == 0 && progress.device_bytes <= budget);
        CHECK_SAME(device_stats(world->device).device_bytes, progress.device_bytes);
        CHECK_SAME(member_of(arbiter, &all[at]).device_bytes, whole);
        CHECK_SAME(progress.ready, 1);
        if (!steps_shared(world, &all[at])) goto out;
        const wb_arbiter_member_info other = member_of(arbiter, &all[1 - at]);
        CHECK(other.asleep ? other.device_bytes == 0 : other.device_bytes <= rest);
        if (!other.asleep && !steps_shared(world, &all[1 - at])) goto out;
    }
    STEP(wb_arbiter_remove(arbiter, all[0].offloader, &error));
    STEP(wb_offloader_resize_advance(all[0].offloader, all[0].stream, &held, &error));
    world->resizes = 0;
    world->most_device_bytes = 0;
    wb_arbiter_release(arbiter);
    arbiter = NULL;
    for (int at = 0; at < SHARING; at++) {
        release_objects(&all[at]);
        STEP(wb_device_stream_release(world->device, all[at].stream, &error));
        all[at].stream = NULL;
    }
out:
    wb_arbiter_release(arbiter);
    for (int at = 0; at < SHARING; at++) {
        release_objects(&all[at]);
        release_stream(world->device, all[at].stream);
    }
}

#endif

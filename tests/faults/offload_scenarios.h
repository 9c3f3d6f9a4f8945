/* Sequences of calls with plans and offloaders. */
#ifndef OFFLOAD_SCENARIOS_H
#define OFFLOAD_SCENARIOS_H

#include "memory_scenarios.h"
#include "model.h"

#define PIECE ((uint64_t)2 << 20) /* of fixed addresses */

static void release_objects(struct offload *o)
{
    wb_plan_release(o->plan);
    wb_offloader_release(o->offloader);
    wb_buffer_release(o->back);
    o->plan = NULL;
    o->offloader = NULL;
    o->back = NULL;
}

/* Three steps of an offloader, with a check of every weight and a replacement after each. */
static void offloads_by(struct world *world, wb_transfer_mode mode)
{
    static unsigned char fresh[BYTES];
    const wb_plan_options options = offload_options(mode);
    struct offload o = {world->device, NULL, NULL, NULL, NULL};
    model_init(&model);
    STEP(wb_device_stream_new(o.device, &o.stream, &error));
    STEP(wb_plan_new(o.device, model.parameters, COUNT, &options, &o.plan, &error));
    STEP(wb_offloader_new(o.plan, o.stream, NULL, &o.offloader, &error));
    STEP(wb_buffer_alloc(o.device, BYTES, NULL, &o.back, &error));
    unsigned char *back = (unsigned char *)buffer_info(o.back).data;
    for (int step = 0; step < 3; step++) {
        for (int group = 0; group < LAYERS; group++) {
            STEP(wb_offloader_acquire_group(o.offloader, (uint64_t)group, o.stream, &error));
            for (int i = group * EACH; i < (group + 1) * EACH; i++) {
                wb_offloader_parameter_info info = WB_OFFLOADER_PARAMETER_INFO_INIT;
                CHECK_OK(wb_offloader_get_parameter_info(o.offloader, (uint64_t)i, &info, &error));
                STEP(wb_device_copy(o.device, back, info.device_address, BYTES, o.stream, &error));
                STEP(wb_device_stream_synchronize(o.device, o.stream, &error));
                CHECK(holds_parameter(back, i, i == 3 ? step : 0));
            }
            STEP(wb_offloader_release_group(o.offloader, (uint64_t)group, o.stream, &error));
        }
        fill_parameter(fresh, 3, step + 1);
        STEP(wb_offloader_replace(o.offloader, model.names[3], fresh, &model.layout, o.stream,
                                  &error));
    }
    STEP(wb_offloader_join(o.offloader, o.stream, &error));
    release_objects(&o);
    STEP(wb_device_stream_release(o.device, o.stream, &error));
    o.stream = NULL;
out:
    release_objects(&o);
    release_stream(o.device, o.stream);
}

/* Resized in every direction, and asleep; each step has its bytes, and a failed call goes on when it is
 * repeated. */
static void resizes(struct world *world)
{
    wb_plan_options options = offload_options(WB_TRANSFER_MODE_PREFETCH);
    struct offload o = {world->device, NULL, NULL, NULL, NULL};
    wb_offloader_resize_options to = WB_OFFLOADER_RESIZE_OPTIONS_INIT;
    to.budget_kind = WB_BUDGET_DEVICE_BYTES;
    wb_offloader_resize_progress progress = WB_OFFLOADER_RESIZE_PROGRESS_INIT;
    model_init(&model);
    options.budget_bytes = 2 * 5120 * EACH; /* of two layers */
    options.fixed_addresses = WB_TRISTATE_ON;
    world->works_beside = 1;
    STEP(wb_device_stream_new(o.device, &o.stream, &error));
    STEP(wb_plan_new(o.device, model.parameters, COUNT, &options, &o.plan, &error));
    STEP(wb_offloader_new(o.plan, o.stream, NULL, &o.offloader, &error));
    STEP(wb_buffer_alloc(o.device, LAYERS * BYTES, NULL, &o.back, &error));
    unsigned char *back = (unsigned char *)buffer_info(o.back).data;
    STEP(wb_offloader_resize_advance(o.offloader, o.stream, &progress, &error));
    const uint64_t whole = LAYERS * PIECE + stats_of(&o).slot_bytes;
    const uint64_t budgets[] = {whole, stats_of(&o).slot_bytes, 0, whole};
    uint64_t before = progress.device_bytes;
    for (int turn = 0; turn < 4; turn++) {
        to.budget_bytes = budgets[turn];
        world->resizes = 1;
        world->most_device_bytes = before > budgets[turn] ? before : budgets[turn];
        STEP(wb_offloader_resize(o.offloader, &to, o.stream, &progress, &error));
        sleep_ms(2); /* the copies end, so that few calls ask for that */
        STEP(wb_offloader_resize_wait(o.offloader, o.stream, 10000, &progress, &error));
        world->resizes = 0;
        world->most_device_bytes = 0;
        before = budgets[turn];
        CHECK(progress.pending_units == 0 && progress.device_bytes <= budgets[turn]);
        CHECK_SAME(device_stats(o.device).device_bytes, progress.device_bytes);
        if (budgets[turn] == 0) continue;
        memset(back, 0xEE, LAYERS * BYTES);
        for (int group = 0; group < LAYERS; group++) {
            wb_offloader_parameter_info info = WB_OFFLOADER_PARAMETER_INFO_INIT;
            CHECK_OK(wb_offloader_get_parameter_info(o.offloader, (uint64_t)(group * EACH), &info, &error));
            STEP(wb_offloader_acquire_group(o.offloader, (uint64_t)group, o.stream, &error));
            STEP(wb_device_copy(o.device, back + group * BYTES, info.device_address, BYTES, o.stream,
                                &error));
            STEP(wb_offloader_release_group(o.offloader, (uint64_t)group, o.stream, &error));
        }
        STEP(wb_device_stream_synchronize(o.device, o.stream, &error));
        for (int group = 0; group < LAYERS; group++) {
            CHECK(holds_parameter(back + group * BYTES, group * EACH, 0));
        }
    }
    release_objects(&o);
    STEP(wb_device_stream_release(o.device, o.stream, &error));
    o.stream = NULL;
out:
    release_objects(&o);
    release_stream(o.device, o.stream);
}

/* A large resident parameter goes to sleep through staging memory, on a thread, and wakes up; a failed call
 * goes on when it is repeated. */
static void sleeps(struct world *world)
{
    enum { LARGE = 9 << 20, READ = 4096 };
    static unsigned char bytes[LARGE], small[READ];
    static const char *const names[] = {"large", "small"};
    const int64_t shapes[] = {LARGE, READ};
    const wb_layout layouts[] = {layout_of(WB_DTYPE_U8, 1, shapes, NULL, 0),
                                 layout_of(WB_DTYPE_U8, 1, shapes + 1, NULL, 0)};
    const wb_parameter empty = WB_PARAMETER_INIT;
    wb_parameter parameters[2];
    wb_plan_options options = offload_options(WB_TRANSFER_MODE_PREFETCH);
    struct offload o = {world->device, NULL, NULL, NULL, NULL};
    wb_offloader_parameter_info info = WB_OFFLOADER_PARAMETER_INFO_INIT;
    wb_offloader_resize_options to = WB_OFFLOADER_RESIZE_OPTIONS_INIT;
    to.budget_kind = WB_BUDGET_DEVICE_BYTES;
    wb_offloader_resize_progress progress = WB_OFFLOADER_RESIZE_PROGRESS_INIT;
    for (int at = 0; at < LARGE; at++) bytes[at] = (unsigned char)(at % 251 + at / 4099);
    for (int at = 0; at < 2; at++) {
        parameters[at] = empty;
        parameters[at].name = parameters[at].group = names[at];
        parameters[at].layout = &layouts[at];
        parameters[at].source = at == 0 ? bytes : small;
    }
    options.budget_bytes = READ;
    options.select = &names[1];
    options.select_count = 1;
    options.fixed_addresses = WB_TRISTATE_ON;
    world->works_beside = 1;
    world->waits_idle = 1; /* pageable memory, on a device that reads it */
    STEP(wb_device_stream_new(o.device, &o.stream, &error));
    STEP(wb_plan_new(o.device, parameters, 2, &options, &o.plan, &error));
    STEP(wb_offloader_new(o.plan, o.stream, NULL, &o.offloader, &error));
    STEP(wb_buffer_alloc(o.device, LARGE, NULL, &o.back, &error));
    unsigned char *back = (unsigned char *)buffer_info(o.back).data;
    STEP(wb_offloader_resize_advance(o.offloader, o.stream, &progress, &error));
    const uint64_t budgets[] = {0, progress.device_bytes};
    for (int turn = 0; turn < 2; turn++) {
        to.budget_bytes = budgets[turn];
        world->resizes = 1;
        world->most_device_bytes = budgets[1];
        STEP(wb_offloader_resize(o.offloader, &to, o.stream, &progress, &error));
        sleep_ms(30); /* the copies end, so that few calls ask for that */
        STEP(wb_offloader_resize_wait(o.offloader, o.stream, 10000, &progress, &error));
        world->resizes = 0;
        world->most_device_bytes = 0;
        CHECK(progress.pending_units == 0 && progress.device_bytes == budgets[turn]);
    }
    CHECK_OK(wb_offloader_get_parameter_info(o.offloader, 0, &info, &error));
    memset(back, 0xEE, LARGE);
    STEP(wb_offloader_acquire_group(o.offloader, 0, o.stream, &error));
    STEP(wb_device_copy(o.device, back, info.device_address, LARGE, o.stream, &error));
    STEP(wb_offloader_release_group(o.offloader, 0, o.stream, &error));
    STEP(wb_device_stream_synchronize(o.device, o.stream, &error));
    CHECK(memcmp(back, bytes, LARGE) == 0);
    release_objects(&o);
    STEP(wb_device_stream_release(o.device, o.stream, &error));
    o.stream = NULL;
out:
    release_objects(&o);
    release_stream(o.device, o.stream);
}

/* Pieces of one parameter change places, and a budget cuts them; each step has its bytes, and a failed
 * call goes on when it is repeated. */
static void moves_pieces(struct world *world)
{
    enum { COUNT_OF_PIECES = 3 };
    static unsigned char bytes[COUNT_OF_PIECES * PIECE];
    const int64_t shape[] = {sizeof bytes};
    const wb_layout layout = layout_of(WB_DTYPE_U8, 1, shape, NULL, 0);
    wb_plan_options options = WB_PLAN_OPTIONS_INIT;
    wb_parameter parameter = WB_PARAMETER_INIT;
    struct offload o = {world->device, NULL, NULL, NULL, NULL};
    wb_offloader_parameter_info info = WB_OFFLOADER_PARAMETER_INFO_INIT;
    wb_offloader_rebalance_progress moved = WB_OFFLOADER_REBALANCE_PROGRESS_INIT;
    wb_offloader_resize_options to = WB_OFFLOADER_RESIZE_OPTIONS_INIT;
    to.budget_kind = WB_BUDGET_DEVICE_BYTES;
    wb_offloader_resize_progress progress = WB_OFFLOADER_RESIZE_PROGRESS_INIT;
    for (int at = 0; at < COUNT_OF_PIECES; at++) memset(bytes + at * PIECE, 1 + at, PIECE);
    parameter.name = parameter.group = "table";
    parameter.layout = &layout;
    parameter.source = bytes;
    options.budget_kind = WB_BUDGET_DEVICE_BYTES;
    options.budget_bytes = 2 * PIECE;
    options.transfer_mode = WB_TRANSFER_MODE_ZERO_COPY;
    options.fixed_addresses = WB_TRISTATE_ON;
    world->works_beside = 1;
    STEP(wb_device_stream_new(o.device, &o.stream, &error));
    STEP(wb_plan_new(o.device, &parameter, 1, &options, &o.plan, &error));
    STEP(wb_offloader_new(o.plan, o.stream, NULL, &o.offloader, &error));
    STEP(wb_buffer_alloc(o.device, COUNT_OF_PIECES * 64, NULL, &o.back, &error));
    unsigned char *back = (unsigned char *)buffer_info(o.back).data;
    STEP(wb_offloader_prefer(o.offloader, 0, PIECE, PIECE, 9, &error)); /* in host memory */
    for (int turn = 0; turn < 3; turn++) {
        world->resizes = 1;
        world->most_device_bytes = 2 * PIECE;
        do {
            STEP(wb_offloader_rebalance(o.offloader, PIECE, o.stream, &moved, &error));
            sleep_ms(2); /* the copies end, so that few calls ask for that */
        } while (moved.pending_bytes > 0);
        to.budget_bytes = (turn == 0 ? 1 : 2) * PIECE;
        STEP(wb_offloader_resize(o.offloader, &to, o.stream, &progress, &error));
        sleep_ms(2);
        STEP(wb_offloader_resize_wait(o.offloader, o.stream, 10000, &progress, &error));
        world->resizes = 0;
        world->most_device_bytes = 0;
        CHECK_SAME(progress.device_bytes, to.budget_bytes);
        CHECK_SAME(device_stats(o.device).device_bytes, progress.device_bytes);
        CHECK_OK(wb_offloader_get_parameter_info(o.offloader, 0, &info, &error));
        CHECK_SAME(info.resident_bytes, to.budget_bytes);
        memset(back, 0xEE, COUNT_OF_PIECES * 64);
        STEP(wb_offloader_acquire_group(o.offloader, 0, o.stream, &error));
        for (int at = 0; at < COUNT_OF_PIECES; at++) {
            STEP(wb_device_copy(o.device, back + at * 64,
                                (const unsigned char *)info.device_address + at * PIECE, 64, o.stream,
                                &error));
        }
        STEP(wb_offloader_release_group(o.offloader, 0, o.stream, &error));
        STEP(wb_device_stream_synchronize(o.device, o.stream, &error));
        for (int at = 0; at < COUNT_OF_PIECES; at++) CHECK(back[at * 64] == 1 + at);
    }
    release_objects(&o);
    STEP(wb_device_stream_release(o.device, o.stream, &error));
    o.stream = NULL;
out:
    release_objects(&o);
    release_stream(o.device, o.stream);
}

static void offloads_zero_copy(struct world *world)
{
    offloads_by(world, WB_TRANSFER_MODE_ZERO_COPY);
}

static void offloads_on_demand(struct world *world)
{
    offloads_by(world, WB_TRANSFER_MODE_ON_DEMAND);
}

static void offloads_by_prefetch(struct world *world)
{
    offloads_by(world, WB_TRANSFER_MODE_PREFETCH);
}

enum { MOST_NUMBERS = 3 << 20 };

/* Weights that are compressed, with a replacement that cannot be. With `fixed`, they are resized and asleep
 * meanwhile. */
static void offloads_compressed_weights(struct world *world, uint64_t count, int fixed)
{
    static unsigned char numbers[3][MOST_NUMBERS], read[MOST_NUMBERS];
    static uint64_t made;
    static const char *const names[] = {"layers.0.w", "layers.1.w"}, *const every[] = {"*"};
    const int64_t shape[] = {(int64_t)count};
    const wb_layout layout = layout_of(WB_DTYPE_F8_E4M3FN, 1, shape, NULL, 0);
    wb_plan_options options = offload_options(WB_TRANSFER_MODE_PREFETCH);
    wb_parameter parameters[2] = {WB_PARAMETER_INIT, WB_PARAMETER_INIT};
    wb_plan_info plan = WB_PLAN_INFO_INIT;
    struct offload o = {world->device, NULL, NULL, NULL, NULL};
    wb_offloader_resize_options to = WB_OFFLOADER_RESIZE_OPTIONS_INIT;
    to.budget_kind = WB_BUDGET_DEVICE_BYTES;
    wb_offloader_resize_progress progress = WB_OFFLOADER_RESIZE_PROGRESS_INIT;
    options.fixed_addresses = fixed ? WB_TRISTATE_ON : WB_TRISTATE_AUTO;
    options.compress = WB_COMPRESS_SELECTED;
    options.compress_select = every;
    options.budget_bytes += 3 * count;
    options.compress_select_count = 1;
    for (; made < count; made++) {
        numbers[0][made] = pattern(made) & 0x9f;
        numbers[1][made] = pattern(made * 7) & 0x8f;
        numbers[2][made] = (unsigned char)(made * made >> 4 ^ made * 0x5d);
    }
    for (int at = 0; at < 2; at++) {
        parameters[at].name = parameters[at].group = names[at];
        parameters[at].layout = &layout;
        parameters[at].source = numbers[at];
    }
    world->keeps_workspace = 1;
    STEP(wb_device_stream_new(o.device, &o.stream, &error));
    STEP(wb_plan_new(o.device, parameters, 2, &options, &o.plan, &error));
    CHECK_OK(wb_plan_get_info(o.plan, &plan, &error));
    CHECK((plan.slot_bytes > 32 << 20) == (count == MOST_NUMBERS));
    world->works_beside = fixed;
    STEP(wb_offloader_new(o.plan, o.stream, NULL, &o.offloader, &error));
    STEP(wb_buffer_alloc(o.device, count, NULL, &o.back, &error));
    unsigned char *back = (unsigned char *)buffer_info(o.back).data;
    const uint64_t least = plan.slot_bytes, whole = least + 4 * PIECE;
    const uint64_t budgets[3][2] = {{whole, whole}, {0, whole}, {least, 0}};
    uint64_t before = least;
    for (int step = 0; step < 3; step++) {
        for (uint64_t at = 0; at < 2; at++) {
            const unsigned char *expected = numbers[at == 1 && step == 1 ? 2 : at];
            wb_offloader_parameter_info info = WB_OFFLOADER_PARAMETER_INFO_INIT;
            STEP(wb_offloader_acquire_group(o.offloader, at, o.stream, &error));
            CHECK_OK(wb_offloader_get_parameter_info(o.offloader, at, &info, &error));
            CHECK(info.encoded_bytes > 0);
            STEP(wb_device_copy(o.device, back, info.device_address, count, o.stream, &error));
            STEP(wb_device_stream_synchronize(o.device, o.stream, &error));
            CHECK(memcmp(back, expected, count) == 0);
            STEP(wb_offloader_release_group(o.offloader, at, o.stream, &error));
            STEP(wb_offloader_read_parameter(o.offloader, at, read, count, &error));
            CHECK(memcmp(read, expected, count) == 0);
        }
        for (int turn = 0; turn < 2 && fixed; turn++) {
            to.budget_bytes = budgets[step][turn];
            world->resizes = 1;
            world->most_device_bytes = before > to.budget_bytes ? before : to.budget_bytes;
            STEP(wb_offloader_resize(o.offloader, &to, o.stream, &progress, &error));
            sleep_ms(2); /* the copies end, so that few calls ask for that */
            STEP(wb_offloader_resize_wait(o.offloader, o.stream, 10000, &progress, &error));
            world->resizes = 0;
            world->most_device_bytes = 0;
            before = to.budget_bytes;
            CHECK(progress.pending_units == 0 && progress.device_bytes <= to.budget_bytes);
            CHECK_SAME(device_stats(o.device).device_bytes, progress.device_bytes);
        }
        STEP(wb_offloader_replace(o.offloader, names[1], numbers[step == 0 ? 2 : 1], &layout,
                                  o.stream, &error));
    }
    release_objects(&o);
    STEP(wb_device_stream_release(o.device, o.stream, &error));
    o.stream = NULL;
out:
    release_objects(&o);
    release_stream(o.device, o.stream);
}

/* Of one tile and a half. */
static void offloads_compressed(struct world *world)
{
    offloads_compressed_weights(world, 12288, 0);
}

/* One of them is so large that it passes through windows. */
static void offloads_through_windows(struct world *world)
{
    offloads_compressed_weights(world, MOST_NUMBERS, 0);
}

static void resizes_compressed(struct world *world)
{
    offloads_compressed_weights(world, 12288, 1);
}

/* Weights that the device keeps compressed in its own memory, with a replacement that does not fit there. */
static void keeps_compressed(struct world *world)
{
    enum { NUMBERS = 16384, COUNT = 4 };
    static unsigned char numbers[COUNT + 1][NUMBERS], read[NUMBERS];
    static const char *const names[COUNT] = {"layers.0.w", "layers.1.w", "layers.2.w", "layers.3.w"};
    static const char *const every[] = {"*"};
    const int64_t shape[] = {NUMBERS};
    const wb_layout layout = layout_of(WB_DTYPE_F8_E4M3FN, 1, shape, NULL, 0);
    const wb_parameter empty = WB_PARAMETER_INIT;
    wb_plan_options options = offload_options(WB_TRANSFER_MODE_PREFETCH);
    wb_parameter parameters[COUNT];
    wb_offloader_stats stats = WB_OFFLOADER_STATS_INIT;
    struct offload o = {world->device, NULL, NULL, NULL, NULL};
    options.budget_kind = WB_BUDGET_DEVICE_BYTES;
    options.budget_bytes = 2 * (NUMBERS + 256) + COUNT * 1024;
    options.link_bytes_per_second = 1e6; /* so slow that keeping is worth it */
    options.compress = WB_COMPRESS_SELECTED;
    options.compress_select = every;
    options.compress_select_count = 1;
    for (int at = 0; at < NUMBERS; at++) {
        numbers[COUNT][at] = (unsigned char)(at * at >> 4 ^ at * 0x5d);
    }
    for (int at = 0; at < COUNT; at++) {
        parameters[at] = empty;
        parameters[at].name = parameters[at].group = names[at];
        parameters[at].layout = &layout;
        parameters[at].source = memset(numbers[at], at + 3, NUMBERS); /* almost nothing is left of it */
    }
    world->keeps_workspace = 1;
    STEP(wb_device_stream_new(o.device, &o.stream, &error));
    STEP(wb_plan_new(o.device, parameters, COUNT, &options, &o.plan, &error));
    STEP(wb_offloader_new(o.plan, o.stream, NULL, &o.offloader, &error));
    STEP(wb_buffer_alloc(o.device, NUMBERS, NULL, &o.back, &error));
    unsigned char *back = (unsigned char *)buffer_info(o.back).data;
    STEP(wb_offloader_get_stats(o.offloader, &stats, &error));
    CHECK(stats.device_decoded_bytes == COUNT * NUMBERS);
    for (int step = 0; step < 3; step++) {
        for (uint64_t at = 0; at < COUNT; at++) {
            const unsigned char *expected = numbers[at == 1 && step == 1 ? COUNT : at];
            wb_offloader_parameter_info info = WB_OFFLOADER_PARAMETER_INFO_INIT;
            STEP(wb_offloader_acquire_group(o.offloader, at, o.stream, &error));
            CHECK_OK(wb_offloader_get_parameter_info(o.offloader, at, &info, &error));
            STEP(wb_device_copy(o.device, back, info.device_address, NUMBERS, o.stream, &error));
            STEP(wb_device_stream_synchronize(o.device, o.stream, &error));
            CHECK(memcmp(back, expected, NUMBERS) == 0);
            STEP(wb_offloader_release_group(o.offloader, at, o.stream, &error));
            STEP(wb_offloader_read_parameter(o.offloader, at, read, NUMBERS, &error));
            CHECK(memcmp(read, expected, NUMBERS) == 0);
        }
        STEP(wb_offloader_replace(o.offloader, names[1], numbers[step == 0 ? COUNT : 1], &layout,
                                  o.stream, &error));
        STEP(wb_offloader_get_stats(o.offloader, &stats, &error));
        CHECK(stats.resident_bytes + stats.slot_bytes + stats.device_encoded_bytes <=
              options.budget_bytes);
    }
    release_objects(&o);
    STEP(wb_device_stream_release(o.device, o.stream, &error));
    o.stream = NULL;
out:
    release_objects(&o);
    release_stream(o.device, o.stream);
}

#endif

/* Offloaders: acquired groups, replacements, views, captures. */
#include "captures.h"
#include "gate.h"
#include "model.h"

/* Acquires a group and checks that its parameters have this version. */
static void check_group(struct offload *o, int group, int version)
{
    unsigned char *back = (unsigned char *)buffer_info(o->back).data;
    CHECK_OK(wb_offloader_acquire_group(o->offloader, (uint64_t)group, o->stream, &error));
    for (int i = group * EACH; i < (group + 1) * EACH; i++) {
        CHECK_OK(wb_device_copy(o->device, back, info_of(o, i).device_address,
                                BYTES, o->stream, &error));
        CHECK_OK(wb_device_stream_synchronize(o->device, o->stream, &error));
        CHECK(holds_parameter(back, i, version));
    }
    CHECK_OK(wb_offloader_release_group(o->offloader, (uint64_t)group, o->stream, &error));
}

static void acquired_groups_hold_their_bytes_in_any_order(wb_device *device)
{
    const wb_transfer_mode modes[] = {
        WB_TRANSFER_MODE_ZERO_COPY, WB_TRANSFER_MODE_ON_DEMAND, WB_TRANSFER_MODE_PREFETCH};
    const int order[] = {0, 1, 2, 3, 0, 1, 2, 3, 3, 1, 1, 0, 2, 0, 1, 2, 3};
    for (int i = 0; i < 3; i++) {
        struct offload o;
        REQUIRE(offload_begin(&o, device, modes[i]));
        for (size_t at = 0; at < sizeof order / sizeof order[0]; at++) {
            check_group(&o, order[at], 0);
        }
        const wb_offloader_stats stats = stats_of(&o);
        CHECK_SAME(stats.offloaded_bytes, COUNT * BYTES);
        CHECK_SAME(stats.resident_bytes, 0);
        CHECK_SAME(stats.acquires, sizeof order / sizeof order[0]);
        CHECK((stats.moved_bytes == 0) == (modes[i] == WB_TRANSFER_MODE_ZERO_COPY));
        CHECK_SAME(device_stats(device).device_bytes, stats.slot_bytes);
        offload_end(&o);
    }
}

static void steps_in_order_have_no_late_copies_and_copy_each_group_once(wb_device *device)
{
    struct offload o;
    REQUIRE(offload_begin(&o, device, WB_TRANSFER_MODE_PREFETCH));
    for (int group = 0; group < LAYERS; group++) check_group(&o, group, 0);
    const wb_offloader_stats before = stats_of(&o);
    for (int group = 0; group < LAYERS; group++) check_group(&o, group, 0);
    const wb_offloader_stats after = stats_of(&o);
    CHECK_SAME(after.late_copies, 0);
    CHECK_SAME(after.copies - before.copies, LAYERS);
    CHECK_SAME(after.generation, before.generation);
    offload_end(&o);
}

static void replaced_parameters_keep_their_placement(wb_device *device)
{
    static unsigned char fresh[BYTES];
    struct offload o;
    REQUIRE(offload_begin(&o, device, WB_TRANSFER_MODE_PREFETCH));
    const wb_offloader_parameter_info before = info_of(&o, 4);
    for (int i = 0; i < COUNT; i++) {
        fill_parameter(fresh, i, 1);
        CHECK_OK(wb_offloader_replace(o.offloader, model.names[i], fresh,
                                      &model.layout, o.stream, &error));
    }
    for (int group = 0; group < LAYERS; group++) check_group(&o, group, 1);
    CHECK(info_of(&o, 4).host_address == before.host_address);
    CHECK_SAME(info_of(&o, 4).transfer_mode, WB_TRANSFER_MODE_PREFETCH);
    CHECK_ERROR(WB_ERR_NOT_FOUND,
                wb_offloader_replace(o.offloader, "layers.9.w0", fresh,
                                     &model.layout, o.stream, &error),
                "layers.9.w0");
    offload_end(&o);
}

static void an_acquired_group_is_not_changed_and_keeps_its_slot(wb_device *device)
{
    struct offload o;
    REQUIRE(offload_begin(&o, device, WB_TRANSFER_MODE_PREFETCH));
    CHECK_OK(wb_offloader_acquire_group(o.offloader, 0, o.stream, &error));
    CHECK_ERROR(WB_ERR_BUSY, wb_offloader_acquire_group(o.offloader, 2, o.stream, &error),
                "layers.2|layers.0|wb_offloader_reset");
    CHECK_ERROR(WB_ERR_BUSY,
                wb_offloader_replace(o.offloader, model.names[0], model.parameters[0].source,
                                     &model.layout, o.stream, &error),
                "layers.0|release|wb_offloader_reset");
    CHECK_ERROR(WB_ERR_BUSY, wb_offloader_compact(o.offloader, o.stream, &error), "layers.0");
    CHECK_OK(wb_offloader_reset(o.offloader, o.stream, &error));
    CHECK_ERROR(WB_ERR_INVALID_ARGUMENT,
                wb_offloader_release_group(o.offloader, 0, o.stream, &error), "not acquired");
    CHECK_ERROR(WB_ERR_OUT_OF_RANGE,
                wb_offloader_acquire_group(o.offloader, LAYERS, o.stream, &error), "group 4|4");
    for (int group = 0; group < LAYERS; group++) check_group(&o, group, 0);
    offload_end(&o);
}

static void a_smaller_replacement_is_refused_or_copied_once(wb_device *device)
{
    static unsigned char fresh[BYTES];
    struct offload o;
    REQUIRE(offload_begin(&o, device, WB_TRANSFER_MODE_PREFETCH));
    const int64_t shape[] = {SIDE - 1, SIDE};
    const wb_layout smaller = layout_of(WB_DTYPE_BF16, 2, shape, NULL, 0);
    fill_parameter(fresh, 0, 1);
    /* A change of size moves other parameters, so that it fails while any group is acquired. */
    CHECK_OK(wb_offloader_acquire_group(o.offloader, 1, o.stream, &error));
    CHECK_ERROR(WB_ERR_BUSY,
                wb_offloader_replace(o.offloader, model.names[0], fresh,
                                     &smaller, o.stream, &error),
                "layers.1|release");
    CHECK_SAME(info_of(&o, 0).span_bytes, BYTES);
    CHECK(holds_parameter((const unsigned char *)info_of(&o, 0).host_address, 0, 0));
    CHECK_OK(wb_offloader_release_group(o.offloader, 1, o.stream, &error));
    for (int group = 0; group < LAYERS; group++) check_group(&o, group, 0);
    const uint64_t copies = stats_of(&o).copies;
    CHECK_OK(wb_offloader_replace(o.offloader, model.names[0], fresh, &smaller,
                                  o.stream, &error));
    CHECK_SAME(info_of(&o, 0).span_bytes, (SIDE - 1) * SIDE * 2);
    /* For the new arrangement; a copy for the old one could outlive it. */
    CHECK_SAME(stats_of(&o).copies - copies, 1);
    offload_end(&o);
}

struct replacement {
    struct offload *o;
    void *stream;
    int done;
};

static void *replace_first(void *user)
{
    struct replacement *replacement = (struct replacement *)user;
    CHECK_OK(wb_offloader_replace(replacement->o->offloader, model.names[0],
                                  model.parameters[1].source, &model.layout, replacement->stream,
                                  &error));
    __atomic_store_n(&replacement->done, 1, __ATOMIC_RELEASE);
    return NULL;
}

static void a_resident_parameter_is_replaced_after_its_last_use(wb_device *device)
{
    const char *resident[] = {"layers.0"};
    wb_plan_options options = offload_options(WB_TRANSFER_MODE_PREFETCH);
    struct offload o;
    struct gate gate = GATE_INIT;
    struct replacement replacement = {&o, NULL, 0};
    pthread_t thread;
    options.exclude = resident;
    options.exclude_count = 1;
    model_init(&model);
    REQUIRE(offload_begin_first(&o, device, COUNT, options));
    REQUIRE_OK(wb_device_stream_new(device, &replacement.stream, &error));
    CHECK_OK(wb_offloader_acquire_group(o.offloader, 0, o.stream, &error));
    CHECK_OK(wb_device_stream_call(device, o.stream, gate_wait, &gate, &error));
    CHECK_OK(wb_offloader_release_group(o.offloader, 0, o.stream, &error));
    gate_await(&gate);
    REQUIRE(pthread_create(&thread, NULL, replace_first, &replacement) == 0);
    sleep_ms(100);
    CHECK(!__atomic_load_n(&replacement.done, __ATOMIC_ACQUIRE));
    gate_open(&gate);
    pthread_join(thread, NULL);
    CHECK_OK(wb_device_stream_release(device, replacement.stream, &error));
    offload_end(&o);
}

static void released_streams_leave_no_events(wb_device *device)
{
    enum { STREAMS = 100 };
    struct offload o;
    REQUIRE(offload_begin(&o, device, WB_TRANSFER_MODE_ZERO_COPY));
    const long long before = double_alive("events");
    for (int i = 0; i < STREAMS; i++) {
        void *stream = NULL;
        REQUIRE_OK(wb_device_stream_new(device, &stream, &error));
        CHECK_OK(wb_offloader_acquire_group(o.offloader, 0, stream, &error));
        CHECK_OK(wb_offloader_release_group(o.offloader, 0, stream, &error));
        CHECK_OK(wb_device_stream_synchronize(device, stream, &error));
        CHECK_OK(wb_device_stream_release(device, stream, &error));
    }
    CHECK(double_alive("events") - before < STREAMS / 10);
    offload_end(&o);
}

static void views_keep_the_memory_and_not_the_offloader(wb_device *device)
{
    struct offload o;
    wb_view *slot = NULL, *host = NULL;
    REQUIRE(offload_begin(&o, device, WB_TRANSFER_MODE_PREFETCH));
    CHECK_OK(wb_offloader_get_view(o.offloader, index_of(&o, model.names[0]), &slot, &error));
    CHECK_OK(wb_offloader_get_host_view(o.offloader, index_of(&o, model.names[5]), &host, &error));
    CHECK(view_info(slot).device_address == info_of(&o, 0).device_address);
    offload_end(&o);
    CHECK(holds_parameter((const unsigned char *)view_info(host).data, 5, 0));
    wb_view_release(host);
    wb_view_release(slot);
    CHECK_SAME(device_stats(device).device_bytes, 0);
}

static void a_step_can_be_captured(wb_device *device)
{
    struct offload o;
    struct captures captures;
    void *graph = NULL;
    REQUIRE(captures_begin(&captures) && offload_begin(&o, device, WB_TRANSFER_MODE_PREFETCH));
    for (int group = 0; group < LAYERS; group++) check_group(&o, group, 0);
    for (int round = 0; round < 2; round++) {
        CHECK(captures.begin(o.stream, 0) == 0);
        check_step(&o);
        CHECK_ERROR(WB_ERR_CAPTURING, wb_offloader_reset(o.offloader, o.stream, &error), "reset");
        CHECK_ERROR(WB_ERR_CAPTURING, wb_offloader_compact(o.offloader, o.stream, &error),
                    "capture");
        /* An unjoined stream or a wait for earlier work would invalidate the capture. */
        CHECK(captures.end(o.stream, &graph) == 0);
        CHECK(graph != NULL && captures.destroy(graph) == 0);
        /* The graph was not launched: captured copies did not run. */
        for (int group = 0; group < LAYERS; group++) check_group(&o, group, 0);
    }
    offload_end(&o);
    captures_end(&captures);
}

CHECK_MAIN(CASE(acquired_groups_hold_their_bytes_in_any_order),
           CASE(steps_in_order_have_no_late_copies_and_copy_each_group_once),
           CASE(replaced_parameters_keep_their_placement),
           CASE(an_acquired_group_is_not_changed_and_keeps_its_slot),
           CASE(a_smaller_replacement_is_refused_or_copied_once),
           CASE(a_resident_parameter_is_replaced_after_its_last_use),
           CASE_ON(DOUBLE_ONLY, released_streams_leave_no_events),
           CASE(views_keep_the_memory_and_not_the_offloader),
           CASE_ON(CUDA_ONLY, a_step_can_be_captured))

/* Changed parameters of an offloader: their memory, other parameters, the state after an error. */
#include "changes.h"

static void an_empty_parameter_does_not_limit_its_neighbours(wb_device *device)
{
    struct offload o;
    const int64_t sizes[] = {256, 4096, 4096};
    model_init(&model);
    REQUIRE(offload_begin_sizes(&o, device, sizes, 3, 3, prefetch_options()));
    check_replacement(&o, "together", 1, 0);
    const uint64_t mapped = stats_of(&o).mapped_bytes;
    /* Into the space of the second, which begins at the same address. */
    check_replacement(&o, "together", 0, 512);
    check_replacement(&o, "together", 0, 4096);
    CHECK_SAME(stats_of(&o).mapped_bytes, mapped);
    check_replacement(&o, "together", 2, BYTES);
    check_replacement(&o, "together", 1, 4096);
    offload_end(&o);
}

static void a_formerly_tied_parameter_keeps_the_space(wb_device *device)
{
    const int64_t sizes[] = {1024, 256, 1024}, bytes[] = {128, 1024, 256};
    for (int i = 0; i < 3; i++) {
        struct offload o;
        model_init(&model);
        /* Inside the first. */
        model.parameters[1].source = model.bytes[0] + 768;
        REQUIRE(offload_begin_sizes(&o, device, sizes, 3, 3, prefetch_options()));
        CHECK_SAME(stats_of(&o).offloaded_bytes, 2048);
        CHECK_OK(wb_offloader_remove(o.offloader, model.names[0], o.stream, &error));
        check_replacement(&o, "together", 1, bytes[i]);
        CHECK(device_holds(&o, "together", 2, model.bytes[2], 1024));
        CHECK_OK(wb_offloader_compact(o.offloader, o.stream, &error));
        CHECK(device_holds(&o, "together", 1, fresh_bytes(1), (size_t)bytes[i]));
        CHECK(device_holds(&o, "together", 2, model.bytes[2], 1024));
        offload_end(&o);
    }
}

/* Memory is kept for it, and steps copy that; what it lacks is told apart. */
static void a_parameter_without_a_source_is_zeros_and_unfilled_until_it_is_replaced(wb_device *device)
{
    static const unsigned char zeros[1024] = {0};
    const int64_t sizes[] = {1024, 2048, 1024};
    struct offload o;
    wb_plan_info plan = WB_PLAN_INFO_INIT;
    model_init(&model);
    model.parameters[0].source = NULL;
    model.parameters[1].source = NULL;
    model.parameters[1].placement = WB_PLACEMENT_RESIDENT;
    REQUIRE(offload_begin_sizes(&o, device, sizes, 3, 1, prefetch_options()));
    CHECK_OK(wb_plan_get_info(o.plan, &plan, &error));
    CHECK_SAME(stats_of(&o).offloaded_bytes, 2048);
    CHECK_SAME(stats_of(&o).unfilled_bytes, 1024);
    CHECK_SAME(stats_of(&o).resident_bytes, 0);
    CHECK(device_holds(&o, "together", 0, zeros, 1024));
    CHECK_OK(replace(&o, 0, 1024));
    CHECK_OK(replace(&o, 1, 2048));
    CHECK_SAME(stats_of(&o).unfilled_bytes, 0);
    CHECK_SAME(stats_of(&o).offloaded_bytes + stats_of(&o).resident_bytes, plan.payload_bytes);
    /* Another size, in another place; and where another parameter was. */
    CHECK_OK(add_bytes(&o, "added", "together", 1024, NULL, WB_PLACEMENT_AUTO));
    CHECK_SAME(stats_of(&o).unfilled_bytes, 1024);
    const unsigned char *added = (const unsigned char *)info_by_name(&o, "added").host_address;
    CHECK(memcmp(added, zeros, 1024) == 0);
    const wb_layout larger = bytes_layout(&sizes[1]);
    CHECK_OK(wb_offloader_replace(o.offloader, "added", fresh_bytes(1), &larger, o.stream, &error));
    CHECK_SAME(stats_of(&o).unfilled_bytes, 0);
    CHECK_OK(wb_offloader_remove(o.offloader, "added", o.stream, &error));
    CHECK_OK(add_bytes(&o, "again", "together", 1024, NULL, WB_PLACEMENT_AUTO));
    added = (const unsigned char *)info_by_name(&o, "again").host_address;
    CHECK(memcmp(added, zeros, 1024) == 0);
    CHECK_SAME(stats_of(&o).unfilled_bytes, 1024);
    CHECK_OK(wb_offloader_remove(o.offloader, "again", o.stream, &error));
    CHECK_SAME(stats_of(&o).unfilled_bytes, 0);
    offload_end(&o);
}

static void a_failed_replacement_can_be_repeated(wb_device *device)
{
    struct offload o;
    const int64_t sizes[] = {1024, 1024};
    model_init(&model);
    REQUIRE(offload_begin_sizes(&o, device, sizes, 2, 1, prefetch_options()));
    CHECK_INJECTED("cuMemHostRegister_v2:1:2", WB_ERR_OUT_OF_MEMORY, replace(&o, 0, 4096), "");
    CHECK_SAME(info_of(&o, 0).transfer_mode, WB_TRANSFER_MODE_PREFETCH);
    CHECK(info_of(&o, 0).device_address == NULL);
    wb_view *view = NULL;
    CHECK_ERROR(WB_ERR_NOT_FOUND,
                wb_offloader_get_host_view(o.offloader, index_of(&o, model.names[0]), &view,
                                           &error),
                "replace it again");
    CHECK(device_holds(&o, model.names[1], 1, model.bytes[1], 1024));
    check_replacement(&o, "together", 0, 4096);
    CHECK_SAME(info_of(&o, 0).transfer_mode, WB_TRANSFER_MODE_PREFETCH);
    CHECK_SAME(stats_of(&o).resident_bytes, 0);
    offload_end(&o);
}

static wb_status add(struct offload *o, int parameter, wb_transfer_mode mode)
{
    wb_parameter added = model.parameters[parameter];
    added.group = "together";
    added.transfer_mode = mode;
    return wb_offloader_add(o->offloader, &added, o->stream, &error);
}

static void a_failed_addition_leaves_no_parameter(wb_device *device)
{
    struct offload o;
    const int64_t sizes[] = {1024, 1024};
    model_init(&model);
    REQUIRE(offload_begin_sizes(&o, device, sizes, 2, 1, prefetch_options()));
    /* The new slot fails; then the former slot, too, when it is restored. */
    CHECK_INJECTED("cuMemAlloc_v2:1:2", WB_ERR_DEVICE_MEMORY, add(&o, 2, WB_TRANSFER_MODE_AUTO),
                   "");
    CHECK(device_holds(&o, "together", 0, model.bytes[0], 1024));
    CHECK_INJECTED("cuMemAlloc_v2:0:2", WB_ERR_DEVICE_MEMORY, add(&o, 2, WB_TRANSFER_MODE_AUTO),
                   "");
    /* Without slots no parameter has a device address, and no group can be acquired. */
    CHECK(info_of(&o, 0).device_address == NULL);
    CHECK_ERROR(WB_ERR_DEVICE_MEMORY, wb_offloader_acquire_group(o.offloader, 0, o.stream, &error),
                "wb_offloader_compact");
    CHECK_OK(add(&o, 2, WB_TRANSFER_MODE_AUTO));
    CHECK(device_holds(&o, "together", 0, model.bytes[0], 1024));
    CHECK(device_holds(&o, "together", 2, model.bytes[2], BYTES));
    offload_end(&o);
}

static void a_repeated_replacement_allocates_its_slots(wb_device *device)
{
    struct offload o;
    const int64_t sizes[] = {1024, 1024};
    model_init(&model);
    REQUIRE(offload_begin_sizes(&o, device, sizes, 2, 1, prefetch_options()));
    CHECK_INJECTED("cuMemAlloc_v2:0:2", WB_ERR_DEVICE_MEMORY, replace(&o, 0, 4096), "");
    check_replacement(&o, "together", 0, 4096);
    offload_end(&o);
}

static void a_view_is_refused_on_a_device_without_views(wb_device *device)
{
    struct offload o;
    const int64_t sizes[] = {1024, 1024};
    wb_device_options options = WB_DEVICE_OPTIONS_INIT;
    (void)device;
    options.views = WB_TRISTATE_OFF;
    wb_device *without_views = open_device(test_device(), &options);
    REQUIRE(without_views != NULL);
    model_init(&model);
    REQUIRE(offload_begin_sizes(&o, without_views, sizes, 2, 1, prefetch_options()));
    CHECK_ERROR(WB_ERR_NOT_MAPPED,
                add(&o, 2, WB_TRANSFER_MODE_ZERO_COPY), "in place|no views|options");
    CHECK_OK(add(&o, 2, WB_TRANSFER_MODE_AUTO));
    CHECK(device_holds(&o, "together", 2, model.bytes[2], BYTES));
    offload_end(&o);
    wb_device_release(without_views);
}

static void a_failed_reset_can_be_repeated(wb_device *device)
{
    struct offload o;
    const int64_t sizes[] = {1024, 1024};
    model_init(&model);
    REQUIRE(offload_begin_sizes(&o, device, sizes, 2, 0, prefetch_options()));
    CHECK_OK(wb_offloader_acquire_group(o.offloader, 0, o.stream, &error));
    CHECK_OK(wb_offloader_acquire_group(o.offloader, 1, o.stream, &error));
    CHECK_INJECTED("cuEventRecord:2:999", WB_ERR_DRIVER,
                   wb_offloader_reset(o.offloader, o.stream, &error), "cuEventRecord");
    CHECK_OK(wb_offloader_release_group(o.offloader, 0, o.stream, &error));
    CHECK_OK(wb_offloader_reset(o.offloader, o.stream, &error));
    CHECK_ERROR(WB_ERR_INVALID_ARGUMENT,
                wb_offloader_release_group(o.offloader, 1, o.stream, &error), "not acquired");
    offload_end(&o);
}

static void an_invalid_result_struct_fails_before_any_change(wb_device *device)
{
    struct offload o;
    const int64_t sizes[] = {1024, 1024};
    wb_offloader_reconcile_result reconciled = WB_OFFLOADER_RECONCILE_RESULT_INIT;
    model_init(&model);
    REQUIRE(offload_begin_sizes(&o, device, sizes, 2, 1, prefetch_options()));
    reconciled.struct_size += 8;
    CHECK_ERROR(WB_ERR_STRUCT_SIZE,
                wb_offloader_reconcile(o.offloader, model.parameters, 1, o.stream, &reconciled,
                                       &error),
                "wb_offloader_reconcile_result");
    CHECK_NULL(wb_offloader_reconcile(o.offloader, model.parameters, 1, o.stream, NULL, &error),
               "");
    CHECK(device_holds(&o, model.names[1], 1, model.bytes[1], 1024)); /* not removed */
    offload_end(&o);
}

/* Two groups contain the parameter, which is resident. */
static void a_tied_parameter_is_not_replaced_while_one_of_its_groups_is_acquired(wb_device *device)
{
    static const char *const stay[] = {"layers.0.w0", "layers.0.w1"};
    const int64_t sizes[] = {2048, 2048, 2048};
    struct offload o;
    wb_plan_options options = prefetch_options();
    uint64_t second = 0;
    options.exclude = stay;
    options.exclude_count = 2;
    model_init(&model);
    model.parameters[1].source = model.parameters[0].source;
    REQUIRE(offload_begin_sizes(&o, device, sizes, 3, 0, options));
    CHECK_SAME(info_of(&o, 0).device_address, info_of(&o, 1).device_address);
    CHECK_OK(wb_offloader_find_group(o.offloader, model.names[1], &second, &error));
    CHECK_OK(wb_offloader_acquire_group(o.offloader, second, o.stream, &error));
    CHECK_ERROR(WB_ERR_BUSY, replace(&o, 0, 2048), model.names[1]);
    CHECK_OK(wb_offloader_release_group(o.offloader, second, o.stream, &error));
    CHECK(device_holds(&o, model.names[1], 1, model.bytes[0], 2048));
    CHECK_OK(replace(&o, 0, 2048));
    CHECK(device_holds(&o, model.names[1], 1, fresh_bytes(0), 2048));
    offload_end(&o);
}

/* Copies to a new buffer, in place and, at the end, to the device fail. */
static void after_a_failed_copy_a_parameter_has_no_backing(wb_device *device)
{
    static const char *const stays[] = {"layers.0.w1"};
    const int64_t sizes[] = {1024, 1024, 1024}, bytes[] = {4096, 1024, 512};
    struct offload o;
    wb_plan_options options = prefetch_options();
    void *source = NULL;
    options.exclude = stays;
    options.exclude_count = 1;
    model_init(&model);
    REQUIRE_OK(wb_device_alloc(device, 4096, &source, &error));
    REQUIRE(offload_begin_sizes(&o, device, sizes, 3, 0, options));
    for (int i = 0; i < 3; i++) {
        const wb_layout layout = bytes_layout(&bytes[i]);
        CHECK_INJECTED("cuMemcpyAsync:1:2", WB_ERR_DEVICE_MEMORY,
                       replace_from(&o, 0, source, &layout), "cuMemcpyAsync");
        CHECK_SAME(info_of(&o, 0).transfer_mode, WB_TRANSFER_MODE_PREFETCH);
        CHECK(info_of(&o, 0).device_address == NULL);
        CHECK(info_of(&o, 0).host_address == NULL);
        CHECK(device_holds(&o, model.names[2], 2, model.bytes[2], 1024));
        check_replacement(&o, model.names[0], 0, 1024);
    }
    CHECK_INJECTED("cuMemcpyAsync:1:2", WB_ERR_DEVICE_MEMORY, replace(&o, 1, 1024),
                   "cuMemcpyAsync");
    CHECK(info_of(&o, 1).device_address == NULL);
    CHECK_OK(replace(&o, 1, 1024));
    CHECK(device_holds(&o, model.names[1], 1, fresh_bytes(1), 1024));
    CHECK_OK(wb_device_free(device, source, &error));
    offload_end(&o);
}

/* What changes gets a slot between those of the others, which stay; compacting packs all again. */
static void others_keep_their_slots(wb_device *device)
{
    const int64_t sizes[] = {4096, 1024, 2048, 1024};
    const void *before[LAYERS];
    struct offload o;
    wb_plan_options options = prefetch_options();
    options.depth = 2;
    model_init(&model);
    REQUIRE(offload_begin_sizes(&o, device, sizes, LAYERS, 0, options));
    for (int i = 0; i < LAYERS; i++) before[i] = info_of(&o, i).device_address;
    for (int64_t bytes = 512; bytes <= 4096; bytes *= 2) {
        check_replacement(&o, model.names[0], 0, bytes);
        for (int i = 0; i < LAYERS; i++) CHECK(info_of(&o, i).device_address == before[i]);
        for (int i = 1; i < LAYERS; i++) {
            CHECK(device_holds(&o, model.names[i], i, model.bytes[i], (size_t)sizes[i]));
        }
    }
    check_replacement(&o, model.names[0], 0, 512);
    CHECK_OK(wb_offloader_compact(o.offloader, o.stream, &error));
    CHECK(info_of(&o, 1).device_address != before[1]);
    for (int i = 1; i < LAYERS; i++) {
        CHECK(device_holds(&o, model.names[i], i, model.bytes[i], (size_t)sizes[i]));
    }
    offload_end(&o);
}

/* How many events are in use at a time depends on the moment, so some turns need more than those before;
 * without the use of old ones every turn would. */
enum { MOST_TURNS = 200 };

static void changes_use_events_again(wb_device *device)
{
    long long created = 0;
    int without = 0; /* turns that created none, one after another: half and whole parameters */
    struct offload o;
    REQUIRE(offload_begin(&o, device, WB_TRANSFER_MODE_PREFETCH));
    for (int turn = 0; turn < MOST_TURNS && without < 2; turn++) {
        for (int i = 0; i < COUNT; i++) {
            check_replacement(&o, model.groups[i], i, turn % 2 == 0 ? BYTES / 2 : BYTES);
        }
        CHECK_OK(wb_offloader_remove(o.offloader, model.names[0], o.stream, &error));
        check_step(&o);
        CHECK_OK(add_bytes(&o, model.names[0], model.groups[0], BYTES, model.bytes[0],
                           WB_PLACEMENT_AUTO));
        check_step(&o);
        CHECK_OK(wb_offloader_compact(o.offloader, o.stream, &error));
        check_step(&o);
        const long long now = double_called("cuEventCreate");
        CHECK(now > 0);
        without = now == created ? without + 1 : 0;
        created = now;
    }
    CHECK_SAME(without, 2);
    offload_end(&o);
}

CHECK_MAIN(CASE(an_empty_parameter_does_not_limit_its_neighbours),
           CASE(a_formerly_tied_parameter_keeps_the_space),
           CASE(a_tied_parameter_is_not_replaced_while_one_of_its_groups_is_acquired),
           CASE(a_parameter_without_a_source_is_zeros_and_unfilled_until_it_is_replaced),
           CASE_ON(DOUBLE_ONLY, a_failed_replacement_can_be_repeated),
           CASE_ON(DOUBLE_ONLY, after_a_failed_copy_a_parameter_has_no_backing),
           CASE_ON(DOUBLE_ONLY, a_failed_addition_leaves_no_parameter),
           CASE_ON(DOUBLE_ONLY, a_repeated_replacement_allocates_its_slots),
           CASE(a_view_is_refused_on_a_device_without_views),
           CASE(an_invalid_result_struct_fails_before_any_change),
           CASE_ON(DOUBLE_ONLY, a_failed_reset_can_be_repeated),
           CASE(others_keep_their_slots), CASE_ON(DOUBLE_ONLY, changes_use_events_again))

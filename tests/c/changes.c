/* Weights of an offloader that change: where their bytes go, what stays of the others, what an error
 * leaves. */
#include "check.h"
#include "weights.h"

static void a_weight_of_no_bytes_stands_in_nobodys_way(wb_device *device)
{
    struct offload o;
    const int64_t sizes[] = {256, 4096, 4096};
    model_init(&model);
    REQUIRE(begin_of(&o, device, sizes, 3, 3, options_of(WB_TRANSFER_MODE_PREFETCH)));
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
        REQUIRE(begin_of(&o, device, sizes, 3, 3, options_of(WB_TRANSFER_MODE_PREFETCH)));
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
    REQUIRE(begin_of(&o, device, sizes, 2, 1, options_of(WB_TRANSFER_MODE_PREFETCH)));
    double_set("WB_DOUBLE_FAIL", "cuMemHostRegister_v2:1:2");
    CHECK_ERROR(WB_ERR_OUT_OF_MEMORY, replace(&o, 0, 4096), "");
    double_set("WB_DOUBLE_FAIL", "");
    CHECK_SAME(where(&o, 0).carrier, WB_TRANSFER_MODE_PREFETCH);
    CHECK_SAME(where(&o, 0).device_address, 0);
    wb_view *view = NULL;
    CHECK_ERROR(WB_ERR_NOT_FOUND, wb_offloader_get_host_view(o.offloader, model.names[0], &view, &error),
                "replace it again");
    CHECK(device_holds(&o, model.names[1], 1, model.bytes[1], 1024));
    replace_by(&o, "together", 0, 4096);
    CHECK_SAME(where(&o, 0).carrier, WB_TRANSFER_MODE_PREFETCH);
    CHECK_SAME(stats_of(&o).resident_bytes, 0);
    end(&o);
}

static wb_status add(struct offload *o, int parameter, wb_transfer_mode carrier)
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
    REQUIRE(begin_of(&o, device, sizes, 2, 1, options_of(WB_TRANSFER_MODE_PREFETCH)));
    /* Its slot, and then the one that was there before it. */
    double_set("WB_DOUBLE_FAIL", "cuMemAlloc_v2:1:2");
    CHECK_ERROR(WB_ERR_DEVICE_MEMORY, add(&o, 2, WB_TRANSFER_MODE_AUTO), "");
    double_set("WB_DOUBLE_FAIL", "");
    CHECK(device_holds(&o, "together", 0, model.bytes[0], 1024));
    double_set("WB_DOUBLE_FAIL", "cuMemAlloc_v2:0:2");
    CHECK_ERROR(WB_ERR_DEVICE_MEMORY, add(&o, 2, WB_TRANSFER_MODE_AUTO), "");
    double_set("WB_DOUBLE_FAIL", "");
    /* Without slots nothing has an address, and nothing is acquired. */
    CHECK_SAME(where(&o, 0).device_address, 0);
    CHECK_ERROR(WB_ERR_DEVICE_MEMORY, wb_offloader_acquire_group(o.offloader, 0, o.stream, &error),
                "wb_offloader_compact");
    CHECK_OK(add(&o, 2, WB_TRANSFER_MODE_AUTO));
    CHECK(device_holds(&o, "together", 0, model.bytes[0], 1024));
    CHECK(device_holds(&o, "together", 2, model.bytes[2], BYTES));
    end(&o);
}

static void what_is_written_again_has_its_slots_again(wb_device *device)
{
    struct offload o;
    const int64_t sizes[] = {1024, 1024};
    model_init(&model);
    REQUIRE(begin_of(&o, device, sizes, 2, 1, options_of(WB_TRANSFER_MODE_PREFETCH)));
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
    options.views = WB_TRISTATE_OFF;
    REQUIRE_OK(wb_device_open(test_device(), &options, &blind, &error));
    model_init(&model);
    REQUIRE(begin_of(&o, blind, sizes, 2, 1, options_of(WB_TRANSFER_MODE_PREFETCH)));
    CHECK_ERROR(WB_ERR_NOT_MAPPED, add(&o, 2, WB_TRANSFER_MODE_ZERO_COPY), "in place|no views|options");
    CHECK_OK(add(&o, 2, WB_TRANSFER_MODE_AUTO));
    CHECK(device_holds(&o, "together", 2, model.bytes[2], BYTES));
    end(&o);
    wb_device_release(blind);
}

static void a_reset_that_fails_is_made_again(wb_device *device)
{
    struct offload o;
    const int64_t sizes[] = {1024, 1024};
    model_init(&model);
    REQUIRE(begin_of(&o, device, sizes, 2, 0, options_of(WB_TRANSFER_MODE_PREFETCH)));
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

static void what_cannot_be_told_is_not_done(wb_device *device)
{
    struct offload o;
    const int64_t sizes[] = {1024, 1024};
    wb_offloader_reconcile_result reconciled = WB_OFFLOADER_RECONCILE_RESULT_INIT;
    model_init(&model);
    REQUIRE(begin_of(&o, device, sizes, 2, 1, options_of(WB_TRANSFER_MODE_PREFETCH)));
    reconciled.struct_size += 8;
    CHECK_ERROR(WB_ERR_STRUCT_SIZE,
                wb_offloader_reconcile(o.offloader, model.parameters, 1, o.stream, &reconciled,
                                       &error),
                "wb_offloader_reconcile_result");
    CHECK_ERROR(WB_ERR_INVALID_ARGUMENT, wb_offloader_reconcile(o.offloader, model.parameters, 1, o.stream, NULL,
                                                    &error), "");
    CHECK(device_holds(&o, model.names[1], 1, model.bytes[1], 1024)); /* not removed */
    end(&o);
}

/* Two groups have the weight, which lies in memory of the offloader on the device. */
static void a_tied_weight_is_not_written_while_one_of_its_groups_is_held(wb_device *device)
{
    static const char *const stay[] = {"layers.0.w0", "layers.0.w1"};
    const int64_t sizes[] = {2048, 2048, 2048};
    struct offload o;
    wb_plan_options options = options_of(WB_TRANSFER_MODE_PREFETCH);
    uint64_t second = 0;
    options.exclude = stay;
    options.exclude_count = 2;
    model_init(&model);
    model.parameters[1].source = model.parameters[0].source;
    REQUIRE(begin_of(&o, device, sizes, 3, 0, options));
    CHECK_SAME(where(&o, 0).device_address, where(&o, 1).device_address);
    CHECK_OK(wb_offloader_find_group(o.offloader, model.names[1], &second, &error));
    CHECK_OK(wb_offloader_acquire_group(o.offloader, second, o.stream, &error));
    CHECK_ERROR(WB_ERR_BUSY, replace(&o, 0, 2048), model.names[1]);
    CHECK_OK(wb_offloader_release_group(o.offloader, second, o.stream, &error));
    CHECK(device_holds(&o, model.names[1], 1, model.bytes[0], 2048));
    CHECK_OK(replace(&o, 0, 2048));
    CHECK(device_holds(&o, model.names[1], 1, fresh_bytes(0), 2048));
    end(&o);
}

/* In other room, where it lies, and on the device. */
static void a_weight_whose_bytes_were_not_brought_has_none(wb_device *device)
{
    static const char *const stays[] = {"layers.0.w1"};
    const int64_t sizes[] = {1024, 1024, 1024}, bytes[] = {4096, 1024, 512};
    struct offload o;
    wb_plan_options options = options_of(WB_TRANSFER_MODE_PREFETCH);
    uint64_t source = 0;
    options.exclude = stays;
    options.exclude_count = 1;
    model_init(&model);
    REQUIRE_OK(wb_device_alloc(device, 4096, &source, &error));
    REQUIRE(begin_of(&o, device, sizes, 3, 0, options));
    for (int i = 0; i < 3; i++) {
        const wb_layout layout = layout_of(WB_DTYPE_U8, 1, &bytes[i], NULL, 0);
        double_set("WB_DOUBLE_FAIL", "cuMemcpyAsync:1:2");
        CHECK_ERROR(WB_ERR_DEVICE_MEMORY,
                    wb_offloader_replace(o.offloader, model.names[0], source, &layout, o.stream,
                                         &error),
                    "cuMemcpyAsync");
        double_set("WB_DOUBLE_FAIL", "");
        CHECK_SAME(where(&o, 0).carrier, WB_TRANSFER_MODE_PREFETCH);
        CHECK_SAME(where(&o, 0).device_address, 0);
        CHECK(where(&o, 0).host_address == NULL);
        CHECK(device_holds(&o, model.names[2], 2, model.bytes[2], 1024));
        replace_by(&o, model.names[0], 0, 1024);
    }
    double_set("WB_DOUBLE_FAIL", "cuMemcpyAsync:1:2");
    CHECK_ERROR(WB_ERR_DEVICE_MEMORY, replace(&o, 1, 1024), "cuMemcpyAsync");
    double_set("WB_DOUBLE_FAIL", "");
    CHECK_SAME(where(&o, 1).device_address, 0);
    CHECK_OK(replace(&o, 1, 1024));
    CHECK(device_holds(&o, model.names[1], 1, fresh_bytes(1), 1024));
    CHECK_OK(wb_device_free(device, source, &error));
    end(&o);
}

CHECK_MAIN(CASE(a_weight_of_no_bytes_stands_in_nobodys_way),
           CASE(what_was_tied_has_the_room_to_itself),
           CASE(a_tied_weight_is_not_written_while_one_of_its_groups_is_held),
           CASE_ON(DOUBLE_ONLY, a_replacement_without_memory_is_made_again_where_it_belongs),
           CASE_ON(DOUBLE_ONLY, a_weight_whose_bytes_were_not_brought_has_none),
           CASE_ON(DOUBLE_ONLY, what_cannot_be_added_is_not_there),
           CASE_ON(DOUBLE_ONLY, what_is_written_again_has_its_slots_again),
           CASE(a_view_is_not_added_where_there_are_none),
           CASE(what_cannot_be_told_is_not_done),
           CASE_ON(DOUBLE_ONLY, a_reset_that_fails_is_made_again))

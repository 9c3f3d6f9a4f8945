/* Plans and offloaders: NULL arguments, memory of the offloader, forked children. */
#include "gate.h"
#include "model.h"

static void plan_functions_refuse_null(wb_device *device)
{
    struct offload o;
    wb_plan *plan = UNTOUCHED(wb_plan);
    wb_plan_info info = WB_PLAN_INFO_INIT;
    wb_plan_parameter_info planned = WB_PLAN_PARAMETER_INFO_INIT;
    wb_plan_group_info group = WB_PLAN_GROUP_INFO_INIT;
    const wb_plan_options options = budget_options(WB_BUDGET_OFFLOAD_BYTES, 1 << 20);
    const char *text = "unchanged";
    double rate = 7;
    uint64_t index = 7;
    REQUIRE(offload_begin(&o, device, WB_TRANSFER_MODE_PREFETCH));
    info.groups = planned.group = group.resident_bytes = 77;
    CHECK_NULL(wb_plan_new(NULL, model.parameters, COUNT, &options, &plan, &error), "wb_device");
    CHECK_NULL(wb_plan_new(device, NULL, COUNT, &options, &plan, &error), "wb_parameter");
    CHECK_NULL(wb_plan_new(device, model.parameters, COUNT, &options, NULL, &error), "plan");
    CHECK_NULL(wb_plan_get_info(NULL, &info, &error), "wb_plan");
    CHECK_NULL(wb_plan_get_info(o.plan, NULL, &error), "wb_plan_info");
    CHECK_NULL(wb_plan_find_parameter(NULL, "x", &index, &error), "wb_plan");
    CHECK_NULL(wb_plan_find_parameter(o.plan, NULL, &index, &error), "name");
    CHECK_NULL(wb_plan_find_parameter(o.plan, "x", NULL, &error), "index");
    CHECK_NULL(wb_plan_get_parameter_info(NULL, 0, &planned, &error), "wb_plan");
    CHECK_NULL(wb_plan_get_parameter_info(o.plan, 0, NULL, &error), "wb_plan_parameter_info");
    CHECK_NULL(wb_plan_get_group_info(NULL, 0, &group, &error), "wb_plan");
    CHECK_NULL(wb_plan_get_group_info(o.plan, 0, NULL, &error), "wb_plan_group_info");
    CHECK_NULL(wb_plan_get_warning(NULL, 0, &text, &error), "wb_plan");
    CHECK_NULL(wb_plan_get_warning(o.plan, 0, NULL, &error), "warning");
    CHECK_NULL(wb_plan_to_json(NULL, &text, &error), "wb_plan");
    CHECK_NULL(wb_plan_to_json(o.plan, NULL, &error), "json");
    CHECK_NULL(wb_device_measure_link(NULL, &rate, &error), "wb_device");
    CHECK_NULL(wb_device_measure_link(device, NULL, &error), "bytes_per_second");
    wb_plan_release(NULL);
    CHECK(plan == UNTOUCHED(wb_plan) && index == 7 && rate == 7 && text[0] == 'u');
    CHECK(info.groups == 77 && planned.group == 77 && group.resident_bytes == 77);
    offload_end(&o);
}

static void offloader_functions_refuse_null(wb_device *device)
{
    struct offload o;
    wb_offloader *offloader = UNTOUCHED(wb_offloader);
    wb_offloader_parameter_info info = WB_OFFLOADER_PARAMETER_INFO_INIT;
    wb_offloader_stats stats = WB_OFFLOADER_STATS_INIT;
    wb_offloader_group_stats group_stats = WB_OFFLOADER_GROUP_STATS_INIT;
    wb_offloader_reconcile_result done = WB_OFFLOADER_RECONCILE_RESULT_INIT;
    wb_view *view = UNTOUCHED(wb_view);
    const char *const name = "layers.0.w0";
    uint64_t group = 7, index = 7;
    REQUIRE(offload_begin(&o, device, WB_TRANSFER_MODE_PREFETCH));
    info.group = stats.copies = done.kept = 77;
    CHECK_NULL(wb_offloader_new(NULL, o.stream, NULL, &offloader, &error), "wb_plan");
    CHECK_NULL(wb_offloader_new(o.plan, o.stream, NULL, NULL, &error), "offloader");
    CHECK_NULL(wb_offloader_find_group(NULL, "layers.0", &group, &error), "wb_offloader");
    CHECK_NULL(wb_offloader_find_group(o.offloader, NULL, &group, &error), "name");
    CHECK_NULL(wb_offloader_find_group(o.offloader, "layers.0", NULL, &error), "group");
    CHECK_NULL(wb_offloader_acquire_group(NULL, 0, o.stream, &error), "wb_offloader");
    CHECK_NULL(wb_offloader_acquire_group_within(NULL, 0, o.stream, 0, &error), "wb_offloader");
    CHECK_NULL(wb_offloader_expect(NULL, &group, 1, &error), "wb_offloader");
    CHECK_NULL(wb_offloader_expect(o.offloader, NULL, 1, &error), "groups is NULL");
    CHECK_NULL(wb_offloader_get_group_stats(NULL, 0, &group_stats, &error), "wb_offloader");
    CHECK_NULL(wb_offloader_get_group_stats(o.offloader, 0, NULL, &error),
               "wb_offloader_group_stats");
    CHECK_NULL(wb_offloader_release_group(NULL, 0, o.stream, &error), "wb_offloader");
    CHECK_NULL(wb_offloader_begin_step(NULL, o.stream, &error), "wb_offloader");
    CHECK_NULL(wb_offloader_join(NULL, o.stream, &error), "wb_offloader");
    CHECK_NULL(wb_offloader_reset(NULL, o.stream, &error), "wb_offloader");
    CHECK_NULL(wb_offloader_reset_all(NULL, o.stream, &error), "wb_offloader");
    CHECK_NULL(wb_offloader_find_parameter(NULL, name, &index, &error), "wb_offloader");
    CHECK_NULL(wb_offloader_find_parameter(o.offloader, NULL, &index, &error), "name");
    CHECK_NULL(wb_offloader_find_parameter(o.offloader, name, NULL, &error), "index");
    CHECK_NULL(wb_offloader_get_parameter_info(NULL, 0, &info, &error), "wb_offloader");
    CHECK_NULL(wb_offloader_get_parameter_info(o.offloader, 0, NULL, &error),
               "wb_offloader_parameter_info");
    CHECK_NULL(wb_offloader_get_parameter_infos(NULL, 0, 1, &info, &error), "wb_offloader");
    CHECK_NULL(wb_offloader_get_parameter_infos(o.offloader, 0, 1, NULL, &error),
               "wb_offloader_parameter_info");
    CHECK_NULL(wb_offloader_get_view(NULL, 0, &view, &error), "wb_offloader");
    CHECK_NULL(wb_offloader_get_view(o.offloader, 0, NULL, &error), "view");
    CHECK_NULL(wb_offloader_get_host_view(NULL, 0, &view, &error), "wb_offloader");
    CHECK_NULL(wb_offloader_get_host_view(o.offloader, 0, NULL, &error), "view");
    CHECK_NULL(wb_offloader_get_zero_copy_view(NULL, 0, &view, &error), "wb_offloader");
    CHECK_NULL(wb_offloader_get_zero_copy_view(o.offloader, 0, NULL, &error), "view");
    CHECK_NULL(wb_offloader_replace(NULL, name, &model, &model.layout, o.stream, &error),
               "wb_offloader");
    CHECK_NULL(wb_offloader_replace(o.offloader, NULL, &model, &model.layout, NULL, &error),
               "name");
    CHECK_NULL(wb_offloader_replace(o.offloader, name, &model, NULL, o.stream, &error), "layout");
    CHECK_NULL(wb_offloader_replace(o.offloader, name, NULL, &model.layout, o.stream, &error),
               "source");
    CHECK_NULL(wb_offloader_add(NULL, &model.parameters[0], o.stream, &error), "wb_offloader");
    CHECK_NULL(wb_offloader_add(o.offloader, NULL, o.stream, &error), "parameter");
    CHECK_NULL(wb_offloader_remove(NULL, name, o.stream, &error), "wb_offloader");
    CHECK_NULL(wb_offloader_remove(o.offloader, NULL, o.stream, &error), "name");
    CHECK_NULL(wb_offloader_reconcile(NULL, model.parameters, COUNT, o.stream, &done, &error),
               "wb_offloader");
    CHECK_NULL(wb_offloader_reconcile(o.offloader, NULL, 1, o.stream, &done, &error),
               "wb_parameter");
    CHECK_NULL(wb_offloader_compact(NULL, o.stream, &error), "wb_offloader");
    CHECK_NULL(wb_offloader_get_generation(NULL, &index, &error), "wb_offloader");
    CHECK_NULL(wb_offloader_get_generation(o.offloader, NULL, &error), "generation");
    CHECK_NULL(wb_offloader_get_stats(NULL, &stats, &error), "wb_offloader");
    CHECK_NULL(wb_offloader_get_stats(o.offloader, NULL, &error), "wb_offloader_stats");
    wb_offloader_release(NULL);
    CHECK(offloader == UNTOUCHED(wb_offloader) && view == UNTOUCHED(wb_view));
    CHECK(group == 7 && index == 7);
    CHECK(info.group == 77 && stats.copies == 77 && done.kept == 77);
    offload_end(&o);
}

/* Its addresses are visible to the caller; only the offloader frees them. */
static void memory_of_an_offloader_cannot_be_freed_by_the_caller(wb_device *device)
{
    struct offload o;
    REQUIRE(offload_begin(&o, device, WB_TRANSFER_MODE_PREFETCH));
    const char *lowest = NULL;
    for (int i = 0; i < COUNT; i++) { /* an allocation begins at the lowest address */
        char *address = (char *)info_of(&o, i).device_address;
        if (address == NULL) continue;
        if (lowest == NULL || address < lowest) lowest = address;
        CHECK_ERROR(WB_ERR_INVALID_ARGUMENT, wb_device_free(device, address, &error),
                    "wb_device_alloc");
    }
    CHECK(lowest != NULL);
    check_step(&o);
    CHECK_OK(wb_device_stream_synchronize(device, o.stream, &error));
    offload_end(&o);
}

static void check_calls_in_child(struct offload *o)
{
    wb_offloader *other = NULL;
    double rate = 7;
#define FORKED(call) CHECK_ERROR(WB_ERR_FORKED, call, "fork")
    FORKED(wb_offloader_new(o->plan, o->stream, NULL, &other, &error));
    FORKED(wb_offloader_acquire_group(o->offloader, 0, o->stream, &error));
    FORKED(wb_offloader_acquire_group_within(o->offloader, 0, o->stream, 0, &error));
    FORKED(wb_offloader_expect(o->offloader, NULL, 0, &error));
    FORKED(wb_offloader_release_group(o->offloader, 1, o->stream, &error));
    FORKED(wb_offloader_join(o->offloader, o->stream, &error));
    FORKED(wb_offloader_reset(o->offloader, o->stream, &error));
    FORKED(wb_offloader_reset_all(o->offloader, o->stream, &error));
    FORKED(wb_offloader_compact(o->offloader, o->stream, &error));
    FORKED(wb_device_measure_link(o->device, &rate, &error));
    FORKED(wb_offloader_replace(o->offloader, model.names[0], model.parameters[0].source,
                                &model.layout, o->stream, &error));
    CHECK(other == NULL && rate == 7);
    wb_offloader_release(o->offloader);
    wb_plan_release(o->plan);
}

static void calls_in_a_forked_child_fail_and_the_parent_continues(wb_device *device)
{
    struct offload o;
    int status = 0;
    REQUIRE(offload_begin(&o, device, WB_TRANSFER_MODE_PREFETCH));
    CHECK_OK(wb_offloader_acquire_group(o.offloader, 1, o.stream, &error));
    fflush(NULL);
    const pid_t child = fork();
    if (child == 0) {
        alarm(20);
        check_calls_in_child(&o);
        exit(check_failures > 0);
    }
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    CHECK_OK(wb_offloader_release_group(o.offloader, 1, o.stream, &error));
    check_step(&o);
    CHECK_OK(wb_device_stream_synchronize(device, o.stream, &error));
    offload_end(&o);
}

CHECK_MAIN(CASE(plan_functions_refuse_null), CASE(offloader_functions_refuse_null),
           CASE(memory_of_an_offloader_cannot_be_freed_by_the_caller),
           CASE(calls_in_a_forked_child_fail_and_the_parent_continues))

/* Plans and offloaders: NULL is refused by name with nothing written; a forked child gets an error. */
#include "check.h"
#include "gate.h"
#include "model.h"

static int somebody;
#define UNTOUCHED(type) ((type *)(void *)&somebody)

static void plans_refuse_null(wb_device *device)
{
    struct offload o;
    wb_plan *plan = UNTOUCHED(wb_plan);
    wb_plan_info info = WB_PLAN_INFO_INIT;
    wb_plan_parameter_info planned = WB_PLAN_PARAMETER_INFO_INIT;
    wb_plan_group_info group = WB_PLAN_GROUP_INFO_INIT;
    wb_plan_options options = WB_PLAN_OPTIONS_INIT;
    const char *text = "as it was";
    double rate = 7;
    uint64_t index = 7;
    REQUIRE(begin(&o, device, WB_TRANSFER_MODE_PREFETCH));
    options.offload_bytes = 1 << 20;
    info.groups = planned.group = group.resident_bytes = 77;
    CHECK_ERROR(WB_ERR_INVALID_ARGUMENT, wb_plan_new(NULL, model.parameters, COUNT, &options, &plan, &error),
                "wb_device");
    CHECK_ERROR(WB_ERR_INVALID_ARGUMENT, wb_plan_new(device, NULL, COUNT, &options, &plan, &error),
                "parameters");
    CHECK_ERROR(WB_ERR_INVALID_ARGUMENT, wb_plan_new(device, model.parameters, COUNT, &options, NULL, &error),
                "plan");
    CHECK_ERROR(WB_ERR_INVALID_ARGUMENT, wb_plan_get_info(NULL, &info, &error), "wb_plan");
    CHECK_ERROR(WB_ERR_INVALID_ARGUMENT, wb_plan_get_info(o.plan, NULL, &error), "wb_plan_info");
    CHECK_ERROR(WB_ERR_INVALID_ARGUMENT, wb_plan_find_parameter(NULL, "x", &index, &error), "wb_plan");
    CHECK_ERROR(WB_ERR_INVALID_ARGUMENT, wb_plan_find_parameter(o.plan, NULL, &index, &error), "name");
    CHECK_ERROR(WB_ERR_INVALID_ARGUMENT, wb_plan_find_parameter(o.plan, "x", NULL, &error), "index");
    CHECK_ERROR(WB_ERR_INVALID_ARGUMENT, wb_plan_get_parameter_info(NULL, 0, &planned, &error), "wb_plan");
    CHECK_ERROR(WB_ERR_INVALID_ARGUMENT, wb_plan_get_parameter_info(o.plan, 0, NULL, &error), "wb_plan_parameter_info");
    CHECK_ERROR(WB_ERR_INVALID_ARGUMENT, wb_plan_get_group_info(NULL, 0, &group, &error), "wb_plan");
    CHECK_ERROR(WB_ERR_INVALID_ARGUMENT, wb_plan_get_group_info(o.plan, 0, NULL, &error), "wb_plan_group_info");
    CHECK_ERROR(WB_ERR_INVALID_ARGUMENT, wb_plan_get_warning(NULL, 0, &text, &error), "wb_plan");
    CHECK_ERROR(WB_ERR_INVALID_ARGUMENT, wb_plan_get_warning(o.plan, 0, NULL, &error), "warning");
    CHECK_ERROR(WB_ERR_INVALID_ARGUMENT, wb_plan_to_json(NULL, &text, &error), "wb_plan");
    CHECK_ERROR(WB_ERR_INVALID_ARGUMENT, wb_plan_to_json(o.plan, NULL, &error), "json");
    CHECK_ERROR(WB_ERR_INVALID_ARGUMENT, wb_device_measure_link(NULL, &rate, &error), "wb_device");
    CHECK_ERROR(WB_ERR_INVALID_ARGUMENT, wb_device_measure_link(device, NULL, &error), "bytes_per_second");
    wb_plan_release(NULL);
    CHECK(plan == UNTOUCHED(wb_plan) && index == 7 && rate == 7 && text[0] == 'a');
    CHECK(info.groups == 77 && planned.group == 77 && group.resident_bytes == 77);
    end(&o);
}

static void offloaders_refuse_null(wb_device *device)
{
    struct offload o;
    wb_offloader *offloader = UNTOUCHED(wb_offloader);
    wb_offloader_parameter_info info = WB_OFFLOADER_PARAMETER_INFO_INIT;
    wb_offloader_stats stats = WB_OFFLOADER_STATS_INIT;
    wb_offloader_reconcile_result done = WB_OFFLOADER_RECONCILE_RESULT_INIT;
    wb_view *view = UNTOUCHED(wb_view);
    const char *const name = "layers.0.w0";
    uint64_t group = 7;
    REQUIRE(begin(&o, device, WB_TRANSFER_MODE_PREFETCH));
    info.group = stats.copies = done.kept = 77;
#define REFUSED(words, call) CHECK_ERROR(WB_ERR_INVALID_ARGUMENT, call, words)
    REFUSED("wb_plan", wb_offloader_new(NULL, o.stream, NULL, &offloader, &error));
    REFUSED("offloader", wb_offloader_new(o.plan, o.stream, NULL, NULL, &error));
    REFUSED("wb_offloader", wb_offloader_find_group(NULL, "layers.0", &group, &error));
    REFUSED("name", wb_offloader_find_group(o.offloader, NULL, &group, &error));
    REFUSED("group", wb_offloader_find_group(o.offloader, "layers.0", NULL, &error));
    REFUSED("wb_offloader", wb_offloader_acquire_group(NULL, 0, o.stream, &error));
    REFUSED("wb_offloader", wb_offloader_release_group(NULL, 0, o.stream, &error));
    REFUSED("wb_offloader", wb_offloader_join(NULL, o.stream, &error));
    REFUSED("wb_offloader", wb_offloader_reset(NULL, o.stream, &error));
    REFUSED("wb_offloader", wb_offloader_get_parameter_info(NULL, name, &info, &error));
    REFUSED("name", wb_offloader_get_parameter_info(o.offloader, NULL, &info, &error));
    REFUSED("wb_offloader_parameter_info", wb_offloader_get_parameter_info(o.offloader, name, NULL, &error));
    REFUSED("wb_offloader", wb_offloader_get_view(NULL, name, &view, &error));
    REFUSED("name", wb_offloader_get_view(o.offloader, NULL, &view, &error));
    REFUSED("view", wb_offloader_get_view(o.offloader, name, NULL, &error));
    REFUSED("wb_offloader", wb_offloader_get_host_view(NULL, name, &view, &error));
    REFUSED("name", wb_offloader_get_host_view(o.offloader, NULL, &view, &error));
    REFUSED("view", wb_offloader_get_host_view(o.offloader, name, NULL, &error));
    REFUSED("wb_offloader",
            wb_offloader_replace(NULL, name, 4096, &model.layout, o.stream, &error));
    REFUSED("name", wb_offloader_replace(o.offloader, NULL, 4096, &model.layout, NULL, &error));
    REFUSED("layout", wb_offloader_replace(o.offloader, name, 4096, NULL, o.stream, &error));
    REFUSED("source",
            wb_offloader_replace(o.offloader, name, 0, &model.layout, o.stream, &error));
    REFUSED("wb_offloader", wb_offloader_add(NULL, &model.parameters[0], o.stream, &error));
    REFUSED("parameter", wb_offloader_add(o.offloader, NULL, o.stream, &error));
    REFUSED("wb_offloader", wb_offloader_remove(NULL, name, o.stream, &error));
    REFUSED("name", wb_offloader_remove(o.offloader, NULL, o.stream, &error));
    REFUSED("wb_offloader",
            wb_offloader_reconcile(NULL, model.parameters, COUNT, o.stream, &done, &error));
    REFUSED("parameters", wb_offloader_reconcile(o.offloader, NULL, 1, o.stream, &done, &error));
    REFUSED("wb_offloader", wb_offloader_compact(NULL, o.stream, &error));
    REFUSED("wb_offloader", wb_offloader_get_stats(NULL, &stats, &error));
    REFUSED("wb_offloader_stats", wb_offloader_get_stats(o.offloader, NULL, &error));
    wb_offloader_release(NULL);
    CHECK(offloader == UNTOUCHED(wb_offloader) && view == UNTOUCHED(wb_view) && group == 7);
    CHECK(info.group == 77 && stats.copies == 77 && done.kept == 77);
    end(&o);
}

/* Callers see addresses of the offloader's memory; it goes back with the offloader only. */
static void memory_of_an_offloader_is_not_the_callers_to_free(wb_device *device)
{
    struct offload o;
    REQUIRE(begin(&o, device, WB_TRANSFER_MODE_PREFETCH));
    uint64_t lowest = UINT64_MAX;
    for (int i = 0; i < COUNT; i++) { /* one of them is where an allocation begins */
        wb_offloader_parameter_info info = WB_OFFLOADER_PARAMETER_INFO_INIT;
        CHECK_OK(wb_offloader_get_parameter_info(o.offloader, model.names[i], &info, &error));
        if (info.device_address == 0) continue;
        if (info.device_address < lowest) lowest = info.device_address;
        CHECK_ERROR(WB_ERR_INVALID_ARGUMENT, wb_device_free(device, info.device_address, &error),
                    "wb_device_alloc");
    }
    CHECK(lowest != UINT64_MAX);
    for (uint64_t group = 0; group < LAYERS; group++) {
        CHECK_OK(wb_offloader_acquire_group(o.offloader, group, o.stream, &error));
        CHECK_OK(wb_offloader_release_group(o.offloader, group, o.stream, &error));
    }
    CHECK_OK(wb_device_stream_synchronize(device, o.stream, &error));
    end(&o);
}

static void asks_for_everything(struct offload *o)
{
    wb_offloader *other = NULL;
    double rate = 7;
    CHECK_ERROR(WB_ERR_FORKED, wb_offloader_new(o->plan, o->stream, NULL, &other, &error), "fork");
    CHECK_ERROR(WB_ERR_FORKED, wb_offloader_acquire_group(o->offloader, 0, o->stream, &error),
                "fork");
    CHECK_ERROR(WB_ERR_FORKED, wb_offloader_release_group(o->offloader, 1, o->stream, &error),
                "fork");
    CHECK_ERROR(WB_ERR_FORKED, wb_offloader_join(o->offloader, o->stream, &error), "fork");
    CHECK_ERROR(WB_ERR_FORKED, wb_offloader_reset(o->offloader, o->stream, &error), "fork");
    CHECK_ERROR(WB_ERR_FORKED, wb_offloader_compact(o->offloader, o->stream, &error), "fork");
    CHECK_ERROR(WB_ERR_FORKED, wb_device_measure_link(o->device, &rate, &error), "fork");
    CHECK_ERROR(WB_ERR_FORKED,
                wb_offloader_replace(o->offloader, model.names[0], model.parameters[0].source,
                                     &model.layout, o->stream, &error),
                "fork");
    CHECK(other == NULL && rate == 7);
    wb_offloader_release(o->offloader);
    wb_plan_release(o->plan);
}

static void a_forked_child_gets_an_error_and_the_parent_goes_on(wb_device *device)
{
    struct offload o;
    int status = 0;
    REQUIRE(begin(&o, device, WB_TRANSFER_MODE_PREFETCH));
    CHECK_OK(wb_offloader_acquire_group(o.offloader, 1, o.stream, &error));
    fflush(NULL);
    const pid_t child = fork();
    if (child == 0) {
        alarm(20);
        asks_for_everything(&o);
        exit(check_failures > 0);
    }
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    CHECK_OK(wb_offloader_release_group(o.offloader, 1, o.stream, &error));
    for (uint64_t group = 0; group < LAYERS; group++) {
        CHECK_OK(wb_offloader_acquire_group(o.offloader, group, o.stream, &error));
        CHECK_OK(wb_offloader_release_group(o.offloader, group, o.stream, &error));
    }
    CHECK_OK(wb_device_stream_synchronize(device, o.stream, &error));
    end(&o);
}

CHECK_MAIN(CASE(plans_refuse_null), CASE(offloaders_refuse_null),
           CASE(memory_of_an_offloader_is_not_the_callers_to_free),
           CASE(a_forked_child_gets_an_error_and_the_parent_goes_on))

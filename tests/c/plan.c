/* Plans: budgets, reasons, totals, and invalid plans. */
#include "model.h"

#include <math.h>

#define REFUSED(status, words)                                                                    \
    CHECK_ERROR(status, wb_plan_new(device, model.parameters, COUNT, &options, &plan, &error),    \
                words)

/* Bytes of a parameter, aligned to 256. */
enum { ROUNDED = (BYTES + 255) / 256 * 256 };

static wb_plan *plan_of(wb_device *device, wb_plan_options options)
{
    wb_plan *plan = NULL;
    model_init(&model);
    CHECK_OK(wb_plan_new(device, model.parameters, COUNT, &options, &plan, &error));
    return plan;
}

static wb_plan_options with_budget(uint64_t bytes)
{
    return budget_options(WB_BUDGET_OFFLOAD_BYTES, bytes);
}

static wb_plan_info totals(const wb_plan *plan)
{
    wb_plan_info info = WB_PLAN_INFO_INIT;
    CHECK_OK(wb_plan_get_info(plan, &info, &error));
    return info;
}

static void the_offload_budget_is_exact_to_the_byte(wb_device *device)
{
    const uint64_t exact = whole_pages(COUNT * ROUNDED);
    for (int less = 0; less < 2; less++) {
        wb_plan *plan = plan_of(device, with_budget(exact - (uint64_t)less));
        REQUIRE(plan != NULL);
        const wb_plan_info info = totals(plan);
        CHECK(info.arena_bytes <= exact - (uint64_t)less);
        CHECK((info.offloaded_bytes == (uint64_t)COUNT * BYTES) == (less == 0));
        CHECK_SAME(info.payload_bytes, COUNT * BYTES);
        wb_plan_release(plan);
    }
}

static void totals_add_up_and_reasons_are_given(wb_device *device)
{
    wb_plan_options options = with_budget(3 * whole_pages(ROUNDED));
    options.link_bytes_per_second = 1e9;
    wb_plan *plan = plan_of(device, options);
    REQUIRE(plan != NULL);
    const wb_plan_info info = totals(plan);
    uint64_t offloaded = 0, resident = 0, by_group = 0, index = 0;
    for (uint64_t i = 0; i < info.parameters; i++) {
        wb_plan_parameter_info planned = WB_PLAN_PARAMETER_INFO_INIT;
        REQUIRE_OK(wb_plan_get_parameter_info(plan, i, &planned, &error));
        CHECK(strcmp(planned.name, model.names[i]) == 0);
        CHECK_SAME(planned.tied_to, i);
        CHECK_OK(wb_plan_find_parameter(plan, planned.name, &index, &error));
        CHECK_SAME(index, i);
        if (planned.placement == WB_PLACEMENT_RESIDENT) {
            CHECK_SAME(planned.transfer_mode, WB_TRANSFER_MODE_AUTO);
            resident += planned.span_bytes;
            CHECK(strstr(planned.reason, "resident: budget left") != NULL);
        } else {
            offloaded += planned.span_bytes;
            CHECK_SAME(planned.placement, WB_PLACEMENT_OFFLOADED);
            CHECK_SAME(planned.transfer_mode, WB_TRANSFER_MODE_PREFETCH);
        }
    }
    for (uint64_t i = 0; i < info.groups; i++) {
        wb_plan_group_info group = WB_PLAN_GROUP_INFO_INIT;
        REQUIRE_OK(wb_plan_get_group_info(plan, i, &group, &error));
        by_group += group.offloaded_bytes;
    }
    CHECK(offloaded > 0 && resident > 0);
    CHECK_SAME(offloaded, info.offloaded_bytes);
    CHECK_SAME(by_group, info.offloaded_bytes);
    CHECK_SAME(offloaded + resident, info.payload_bytes);
    CHECK(info.step_seconds == (double)(info.step_bytes + info.view_bytes) / 1e9);
    const char *json = NULL;
    CHECK_OK(wb_plan_to_json(plan, &json, &error));
    CHECK(json != NULL && strstr(json, "\"layers.3.w1\"") != NULL);
    wb_plan_release(plan);
}

static void a_step_is_predicted_from_link_and_kernels(wb_device *device)
{
    /* A link of a gigabyte per second. The kernels of a layer take longer than its copy, or not. */
    static const double seconds_of_groups[] = {1e-3, 1e-9};
    double seconds[LAYERS];
    for (int i = 0; i < 2; i++) {
        wb_plan_options options = offload_options(WB_TRANSFER_MODE_PREFETCH);
        options.link_bytes_per_second = 1e9;
        options.rows = 1;
        for (int at = 0; at < LAYERS; at++) seconds[at] = seconds_of_groups[i];
        options.group_seconds = seconds;
        options.group_seconds_count = LAYERS;
        wb_plan *plan = plan_of(device, options);
        REQUIRE(plan != NULL);
        const wb_plan_info info = totals(plan);
        const double link = 1e-9 * (double)info.step_bytes, kernels = LAYERS * seconds_of_groups[i];
        CHECK(info.step_bytes > 0 && info.view_bytes == 0);
        CHECK(info.link_seconds == link);
        CHECK(info.kernel_seconds > 0.999 * kernels && info.kernel_seconds < 1.001 * kernels);
        const double longer = i == 0 ? kernels : link;
        CHECK(info.step_seconds > 0.999 * longer && info.step_seconds < 1.001 * longer);
        wb_plan_release(plan);
    }
    wb_plan *plan = plan_of(device, offload_options(WB_TRANSFER_MODE_ON_DEMAND));
    REQUIRE(plan != NULL);
    CHECK(totals(plan).kernel_seconds == 0);
    wb_plan_release(plan);
}

static void what_is_known_of_kernels_is_checked(wb_device *device)
{
    wb_plan *plan = NULL;
    double seconds[LAYERS + 1] = {0};
    wb_plan_options options = with_budget(1 << 20);
    model_init(&model);
    options.group_seconds = seconds;
    options.group_seconds_count = LAYERS + 1;
    char words[60];
    snprintf(words, sizeof words, "%d entries|%d groups", LAYERS + 1, LAYERS);
    REFUSED(WB_ERR_INVALID_ARGUMENT, words);
    options.group_seconds_count = LAYERS;
    options.compute_bytes_per_second = 1e9;
    REFUSED(WB_ERR_INVALID_ARGUMENT, "compute_bytes_per_second|group_seconds|one of them");
    options.compute_bytes_per_second = 0;
    seconds[2] = -1;
    REFUSED(WB_ERR_INVALID_ARGUMENT, "group_seconds[2] is -1");
    options.group_seconds = NULL;
    REFUSED(WB_ERR_INVALID_ARGUMENT, "group_seconds");
    options.group_seconds_count = 0;
    options.compute_bytes_per_second = -2;
    REFUSED(WB_ERR_INVALID_ARGUMENT, "compute_bytes_per_second is -2");
    options.compute_bytes_per_second = 0;
    options.link_bytes_per_second = HUGE_VAL;
    REFUSED(WB_ERR_INVALID_ARGUMENT, "link_bytes_per_second is inf");
    CHECK(plan == NULL);
}

static void device_bytes_limit_resident_parameters_and_slots(wb_device *device)
{
    const wb_plan_options options = budget_options(WB_BUDGET_DEVICE_BYTES, 5 * ROUNDED);
    wb_plan *plan = plan_of(device, options);
    REQUIRE(plan != NULL);
    const wb_plan_info info = totals(plan);
    CHECK(info.resident_bytes + info.slot_bytes <= options.budget_bytes);
    CHECK(info.offloaded_bytes > 0);
    wb_plan_release(plan);
}

/* Of COUNT parameters in two groups by turns, of which 2 and 6 are tied, and 4 is a vector. */
static void parameters_keep_the_given_order(wb_device *device)
{
    static const char *const plain[] = {"layers.0.w0", "layers.0.w1", "layers.1.w0", "layers.1.w1",
                                        "layers.2.w0", "layers.2.w1", "layers.3.w0", "layers.3.w1"};
    static const char *const quantized[] = {
        "layers.0.w0", "layers.0.w0_scale", "layers.0.w1", "layers.0.w1_scale",
        "layers.1.w0", "layers.1.w0_scale", "layers.1.w1", "layers.1.w1_scale",
        "layers.2.w0", /* no scales */
        "layers.2.w1", "layers.2.w1_scale", "layers.3.w0", "layers.3.w0_scale",
        "layers.3.w1", "layers.3.w1_scale"};
    const int64_t numbers[] = {SIDE * SIDE};
    const wb_layout vector = layout_of(WB_DTYPE_BF16, 1, numbers, NULL, 0);
    const wb_quantize_options quantize = WB_QUANTIZE_OPTIONS_INIT;
    static const wb_order orders[] = {WB_ORDER_SPREAD, WB_ORDER_DECLARED, WB_ORDER_LARGEST};
    for (int i = 0; i < 6; i++) {
        const char *const *names = i % 2 ? quantized : plain;
        const size_t count = i % 2 ? sizeof quantized / sizeof *quantized : (size_t)COUNT;
        wb_plan *plan = NULL;
        wb_plan_options options = with_budget(whole_pages(COUNT / 2 * ROUNDED));
        options.order = orders[i / 2];
        options.quantize = i % 2 ? &quantize : NULL;
        model_init(&model);
        for (int w = 0; w < COUNT; w++) model.parameters[w].group = model.groups[w % 2 * EACH];
        model.parameters[4].layout = &vector;
        model.parameters[6].source = model.parameters[2].source;
        if (!CHECK_OK(wb_plan_new(device, model.parameters, COUNT, &options, &plan, &error))) {
            continue;
        }
        CHECK_SAME(totals(plan).parameters, count);
        for (uint64_t w = 0; w < count; w++) {
            wb_plan_parameter_info info = WB_PLAN_PARAMETER_INFO_INIT;
            uint64_t index = UINT64_MAX;
            CHECK_OK(wb_plan_get_parameter_info(plan, w, &info, &error));
            CHECK(strcmp(info.name, names[w]) == 0);
            CHECK_OK(wb_plan_find_parameter(plan, names[w], &index, &error));
            CHECK_SAME(index, w);
            /* Numbers and scales are tied to those of the first, and are in the given groups. */
            const uint64_t first = strcmp(names[w], "layers.3.w0") == 0         ? (i % 2 ? 4 : 2)
                                   : strcmp(names[w], "layers.3.w0_scale") == 0 ? 5
                                                                                : w;
            CHECK_SAME(info.tied_to, first);
            CHECK_SAME(info.group, names[w][strlen("layers.0.w")] == '1');
        }
        wb_plan_release(plan);
    }
}

static void selectors_choose_parameters(wb_device *device)
{
    const char *select[] = {"layers.1", "layers.[23].*"}, *exclude[] = {"w1"};
    wb_plan_options options = with_budget(1 << 20);
    options.select = select;
    options.select_count = 2;
    options.exclude = exclude;
    options.exclude_count = 1;
    wb_plan *plan = plan_of(device, options);
    REQUIRE(plan != NULL);
    CHECK_SAME(totals(plan).offloaded_bytes, 3 * BYTES);
    wb_plan_release(plan);
}

static void overlapping_sources_are_tied(wb_device *device)
{
    wb_plan *plan = NULL;
    wb_plan_parameter_info planned = WB_PLAN_PARAMETER_INFO_INIT;
    wb_plan_options options = with_budget(1 << 20);
    model_init(&model);
    model.parameters[7].source = model.parameters[0].source;
    REQUIRE_OK(wb_plan_new(device, model.parameters, COUNT, &options, &plan, &error));
    CHECK_OK(wb_plan_get_parameter_info(plan, 7, &planned, &error));
    CHECK_SAME(planned.tied_to, 0);
    CHECK_SAME(totals(plan).payload_bytes, (COUNT - 1) * BYTES);
    wb_plan_release(plan);
}

static void invalid_plans_are_refused_and_named(wb_device *device)
{
    wb_plan *plan = NULL;
    const char *nothing[] = {"nothing.here"};
    wb_plan_options options = WB_PLAN_OPTIONS_INIT;
    model_init(&model);
    options = with_budget(100);
    REFUSED(WB_ERR_NOTHING_OFFLOADED, "100 bytes|8192");
    options = with_budget(1 << 20);
    options.select = nothing;
    options.select_count = 1;
    REFUSED(WB_ERR_SELECTOR, "nothing.here");
    options.select = NULL;
    REFUSED(WB_ERR_INVALID_ARGUMENT, "select");
    options.select_count = 0;
    options.order = 9;
    REFUSED(WB_ERR_INVALID_ARGUMENT, "order");
    options.order = 0;
    options.allow = 64;
    REFUSED(WB_ERR_INVALID_ARGUMENT, "0x40");
    options.allow = 0;
    options.reserved[0] = 1;
    REFUSED(WB_ERR_INVALID_ARGUMENT, "wb_plan_options");
    options.reserved[0] = 0;
    options.slot_bytes = 256;
    options.transfer_mode = WB_TRANSFER_MODE_PREFETCH;
    REFUSED(WB_ERR_SLOTS_BUDGET, "256 bytes|slot_bytes");
    options = budget_options(WB_BUDGET_DEVICE_BYTES, 1 << 20);
    REFUSED(WB_ERR_EVERYTHING_FITS, "fit");
    options.budget_bytes = 256;
    options.transfer_mode = WB_TRANSFER_MODE_PREFETCH;
    REFUSED(WB_ERR_BUDGET, "256 bytes");
    options = with_budget(1 << 20);
    model.parameters[3].name = model.names[2];
    REFUSED(WB_ERR_INVALID_ARGUMENT, "layers.1.w0");
    model.parameters[3].name = NULL;
    REFUSED(WB_ERR_INVALID_ARGUMENT, "name");
    model_init(&model);
    model.parameters[5].struct_size -= 8;
    REFUSED(WB_ERR_INVALID_ARGUMENT, "parameter 5");
    CHECK_NULL(wb_plan_new(device, NULL, 1, &options, &plan, &error), "wb_parameter");
    CHECK(plan == NULL);
}

static void a_plan_needs_a_budget_of_a_known_kind(wb_device *device)
{
    const int32_t unknown[] = {-1, 3, INT32_MIN, INT32_MAX};
    wb_plan *plan = NULL;
    wb_plan_options options = budget_options(0, 1 << 20);
    model_init(&model);
    REFUSED(WB_ERR_INVALID_ARGUMENT,
            "budget_kind is 0|WB_BUDGET_OFFLOAD_BYTES|WB_BUDGET_DEVICE_BYTES");
    CHECK_ERROR(WB_ERR_INVALID_ARGUMENT,
                wb_plan_new(device, model.parameters, COUNT, NULL, &plan, &error),
                "budget_kind is 0");
    for (int i = 0; i < 4; i++) {
        char words[60];
        snprintf(words, sizeof words, "budget_kind is %d;|[1, 2]", unknown[i]);
        options.budget_kind = unknown[i];
        REFUSED(WB_ERR_INVALID_ARGUMENT, words);
    }
    /* With a kind, 0 is a budget of no bytes. */
    options = budget_options(WB_BUDGET_OFFLOAD_BYTES, 0);
    REFUSED(WB_ERR_NOTHING_OFFLOADED, "0 bytes");
    options = budget_options(WB_BUDGET_DEVICE_BYTES, 0);
    options.transfer_mode = WB_TRANSFER_MODE_PREFETCH; /* slots need device memory */
    REFUSED(WB_ERR_BUDGET, "0 bytes");
    CHECK(plan == NULL);
}

static void a_resident_parameter_stays_and_has_no_transfer_mode(wb_device *device)
{
    static const wb_transfer_mode modes[] = {
        WB_TRANSFER_MODE_ZERO_COPY, WB_TRANSFER_MODE_ON_DEMAND, WB_TRANSFER_MODE_PREFETCH};
    wb_plan *plan = NULL;
    wb_plan_parameter_info info = WB_PLAN_PARAMETER_INFO_INIT;
    const wb_plan_options options = offload_options(WB_TRANSFER_MODE_PREFETCH);
    wb_parameter *parameter = &model.parameters[3];
    model_init(&model);
    parameter->placement = WB_PLACEMENT_RESIDENT;
    for (int i = 0; i < 3; i++) {
        parameter->transfer_mode = modes[i];
        REFUSED(WB_ERR_INVALID_ARGUMENT,
                "layers.1.w1|WB_PLACEMENT_RESIDENT|not transferred|WB_TRANSFER_MODE_AUTO");
    }
    parameter->transfer_mode = WB_TRANSFER_MODE_AUTO;
    REQUIRE_OK(wb_plan_new(device, model.parameters, COUNT, &options, &plan, &error));
    CHECK_OK(wb_plan_get_parameter_info(plan, 3, &info, &error));
    CHECK_SAME(info.placement, WB_PLACEMENT_RESIDENT);
    CHECK_SAME(info.transfer_mode, WB_TRANSFER_MODE_AUTO);
    CHECK(strstr(info.reason, "resident") != NULL);
    CHECK_SAME(totals(plan).offloaded_bytes, (COUNT - 1) * BYTES);
    wb_plan_release(plan);
}

static void offloaded_and_unknown_placements_are_refused_and_named(wb_device *device)
{
    const int32_t unknown[] = {-1, 3, INT32_MIN, INT32_MAX};
    wb_plan *plan = NULL;
    wb_plan_options options = budget_options(WB_BUDGET_OFFLOAD_BYTES, 1 << 20);
    wb_parameter *parameter = &model.parameters[3];
    model_init(&model);
    parameter->placement = WB_PLACEMENT_OFFLOADED;
    REFUSED(WB_ERR_INVALID_ARGUMENT, "layers.1.w1|WB_PLACEMENT_OFFLOADED|budget|WB_PLACEMENT_AUTO");
    for (int i = 0; i < 4; i++) {
        char words[60];
        snprintf(words, sizeof words, "placement|layers.1.w1|%d", unknown[i]);
        parameter->placement = unknown[i];
        REFUSED(WB_ERR_INVALID_ARGUMENT, words);
    }
    parameter->placement = WB_PLACEMENT_AUTO;
    parameter->transfer_mode = 4;
    REFUSED(WB_ERR_INVALID_ARGUMENT, "transfer_mode is 4");
    parameter->transfer_mode = WB_TRANSFER_MODE_AUTO;
    parameter->access_pattern = 3;
    REFUSED(WB_ERR_INVALID_ARGUMENT, "access_pattern is 3");
    parameter->access_pattern = WB_ACCESS_PATTERN_DENSE;
    parameter->reserved[0] = 1;
    REFUSED(WB_ERR_INVALID_ARGUMENT, "wb_parameter|reserved");
    CHECK(plan == NULL);
}

static void an_allowed_error_becomes_a_warning(wb_device *device)
{
    wb_plan_options options = with_budget(100);
    const char *warning = NULL;
    options.allow = WB_ALLOW_NOTHING_OFFLOADED;
    wb_plan *plan = plan_of(device, options);
    REQUIRE(plan != NULL);
    CHECK_SAME(totals(plan).warnings, 1);
    CHECK_OK(wb_plan_get_warning(plan, 0, &warning, &error));
    CHECK(warning != NULL && strstr(warning, "100 bytes") != NULL);
    CHECK_ERROR(WB_ERR_OUT_OF_RANGE, wb_plan_get_warning(plan, 1, &warning, &error), "warning 1");
    wb_plan_release(plan);
}

CHECK_MAIN(CASE(the_offload_budget_is_exact_to_the_byte), CASE(totals_add_up_and_reasons_are_given),
           CASE(a_step_is_predicted_from_link_and_kernels),
           CASE(what_is_known_of_kernels_is_checked),
           CASE(device_bytes_limit_resident_parameters_and_slots),
           CASE(parameters_keep_the_given_order), CASE(selectors_choose_parameters),
           CASE(overlapping_sources_are_tied), CASE(invalid_plans_are_refused_and_named),
           CASE(a_plan_needs_a_budget_of_a_known_kind),
           CASE(a_resident_parameter_stays_and_has_no_transfer_mode),
           CASE(offloaded_and_unknown_placements_are_refused_and_named),
           CASE(an_allowed_error_becomes_a_warning))

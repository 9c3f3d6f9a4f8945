/* Expert caches of an offloader's parameters: one budget, and what slots hold after changes. */
#include "model.h"

/* Of each layer the first parameter is SIDE experts, the other is dense. */
enum { EXPERT_BYTES = BYTES / SIDE, DENSE_BYTES = LAYERS * ((BYTES + 255) / 256 * 256) };

static wb_status cache_of(wb_offloader *offloader, const wb_expert_cache_options *options,
                          wb_expert_cache **cache)
{
    wb_expert_tensor tensors[LAYERS];
    for (int layer = 0; layer < LAYERS; layer++) {
        const wb_expert_tensor empty = WB_EXPERT_TENSOR_INIT;
        tensors[layer] = empty;
        tensors[layer].layer = (uint64_t)layer;
        tensors[layer].name = "w13";
        tensors[layer].parameter = model.names[layer * EACH];
    }
    return wb_expert_cache_new_for_offloader(offloader, tensors, LAYERS, options, cache, &error);
}

/* Plans and commits the model with `bytes` of device memory for caches beside the dense parameters. */
static int begin(struct offload *o, wb_device *device, uint64_t bytes)
{
    model_init(&model);
    for (int layer = 0; layer < LAYERS; layer++) {
        model.parameters[layer * EACH].access_pattern = WB_ACCESS_PATTERN_EXPERTS;
    }
    return offload_begin_first(o, device, COUNT,
                               budget_options(WB_BUDGET_DEVICE_BYTES, DENSE_BYTES + bytes));
}

/* Whether the slot that a route of an expert gives has the bytes of a version of its layer. */
static int slot_has(const struct offload *o, const wb_expert_cache *cache, int layer, int32_t expert,
                    int version)
{
    unsigned char found[EXPERT_BYTES];
    wb_expert_slots_info info = WB_EXPERT_SLOTS_INFO_INIT;
    void *ids = NULL;
    int32_t slot = -1;
    int same = 0;
    if (!CHECK_OK(wb_device_alloc(o->device, 4, &ids, &error))) return 0;
    CHECK_OK(wb_device_copy(o->device, ids, &expert, 4, o->stream, &error));
    CHECK_OK(wb_expert_cache_route(cache, (uint64_t)layer, ids, 1, WB_DTYPE_I32, ids, NULL, o->stream,
                                   &error));
    CHECK_OK(wb_device_stream_synchronize(o->device, o->stream, &error));
    CHECK_OK(wb_expert_cache_get_slots_info(cache, 0, &info, &error));
    CHECK_SAME(info.expert_bytes, EXPERT_BYTES);
    if (read_device(o->device, &slot, ids, 4) && CHECK(slot >= 0) &&
        read_device(o->device, found,
                    (unsigned char *)info.device_address + (uint64_t)slot * EXPERT_BYTES,
                    EXPERT_BYTES)) {
        same = 1;
        for (int at = 0; at < EXPERT_BYTES; at++) {
            same &= found[at] == byte_of(layer * EACH, expert * EXPERT_BYTES + at, version);
        }
    }
    CHECK_OK(wb_device_free(o->device, ids, &error));
    return same;
}

static void caches_take_what_the_plan_has_left_and_no_more(wb_device *device)
{
    const uint64_t bytes = 12000;
    wb_plan_info plan = WB_PLAN_INFO_INIT;
    wb_expert_cache_info info = WB_EXPERT_CACHE_INFO_INIT;
    wb_expert_cache_options options = WB_EXPERT_CACHE_OPTIONS_INIT;
    wb_expert_cache *cache = NULL, *other = NULL;
    struct offload o;
    if (!begin(&o, device, bytes)) return;
    CHECK_OK(wb_plan_get_info(o.plan, &plan, &error));
    CHECK_SAME(plan.expert_bytes, bytes);
    CHECK_SAME(plan.resident_bytes, DENSE_BYTES);
    options.slots = 200;
    CHECK_ERROR(WB_ERR_BUDGET, cache_of(o.offloader, &options, &cache), "are left");
    CHECK(cache == NULL);
    CHECK_OK(cache_of(o.offloader, NULL, &cache));
    CHECK_OK(wb_expert_cache_get_info(cache, &info, &error));
    CHECK(info.slots > 40 && info.slot_bytes + info.state_bytes <= bytes);
    CHECK(info.slot_bytes + info.state_bytes + EXPERT_BYTES + 512 > bytes);
    CHECK_SAME(stats_of(&o).expert_bytes, info.slot_bytes + info.state_bytes);
    options.slots = 1;
    CHECK_ERROR(WB_ERR_BUDGET, cache_of(o.offloader, &options, &other), "are left");
    wb_expert_cache_release(cache);
    CHECK_SAME(stats_of(&o).expert_bytes, 0);
    CHECK_OK(cache_of(o.offloader, &options, &other));
    wb_expert_cache_release(other);
    offload_end(&o);
}

static void slots_hold_the_weights_that_the_offloader_has_now(wb_device *device)
{
    wb_expert_cache *cache = NULL;
    struct offload o;
    if (!begin(&o, device, 12000) || !CHECK_OK(cache_of(o.offloader, NULL, &cache))) return;
    CHECK(slot_has(&o, cache, 2, 7, 0));
    fill_parameter(model.bytes[2 * EACH], 2 * EACH, 1);
    CHECK_OK(wb_offloader_replace(o.offloader, model.names[2 * EACH], model.bytes[2 * EACH],
                                  &model.layout, o.stream, &error));
    CHECK(slot_has(&o, cache, 2, 7, 1));
    CHECK(slot_has(&o, cache, 1, 7, 0));
    /* A cache lives without its offloader. */
    wb_offloader_release(o.offloader);
    o.offloader = NULL;
    CHECK(slot_has(&o, cache, 2, 8, 1));
    CHECK(slot_has(&o, cache, 0, 49, 0));
    wb_expert_cache_release(cache);
    offload_end(&o);
}

static void experts_that_are_gone_are_refused_until_they_are_back(wb_device *device)
{
    static const int64_t half[2] = {SIDE / 2, SIDE};
    const char *name = model.names[EACH];
    wb_layout layout = layout_of(WB_DTYPE_BF16, 2, half, NULL, 0);
    wb_expert_cache *cache = NULL;
    void *ids = NULL;
    struct offload o;
    if (!begin(&o, device, 12000) || !CHECK_OK(cache_of(o.offloader, NULL, &cache)) ||
        !CHECK_OK(wb_device_alloc(device, 4, &ids, &error))) {
        return;
    }
    CHECK_OK(wb_offloader_replace(o.offloader, name, model.bytes[EACH], &layout, o.stream, &error));
    CHECK_ERROR(WB_ERR_NOT_FOUND,
                wb_expert_cache_route(cache, 0, ids, 1, WB_DTYPE_I32, ids, NULL, o.stream, &error),
                "make another cache");
    CHECK_ERROR(WB_ERR_NOT_FOUND,
                wb_expert_cache_prefetch(cache, 0, ids, 1, WB_DTYPE_I32, o.stream, &error),
                "make another cache");
    CHECK_OK(wb_offloader_replace(o.offloader, name, model.bytes[EACH], &model.layout, o.stream,
                                  &error));
    CHECK(slot_has(&o, cache, 1, 33, 0));
    CHECK(slot_has(&o, cache, 3, 1, 0));
    CHECK_OK(wb_device_free(device, ids, &error));
    wb_expert_cache_release(cache);
    offload_end(&o);
}

static void descriptions_that_fit_no_parameter_are_refused(wb_device *device)
{
    wb_expert_cache_options options = WB_EXPERT_CACHE_OPTIONS_INIT;
    wb_expert_tensor tensor = WB_EXPERT_TENSOR_INIT;
    wb_expert_cache *cache = NULL;
    struct offload o;
    if (!begin(&o, device, 12000)) return;
    options.slots = 2;
    tensor.name = "w13";
    tensor.parameter = "layers.0.w7";
    CHECK_ERROR(WB_ERR_NOT_FOUND,
                wb_expert_cache_new_for_offloader(o.offloader, &tensor, 1, &options, &cache, &error),
                "layers.0.w7");
    tensor.parameter = model.names[1];
    CHECK_ERROR(WB_ERR_INVALID_ARGUMENT,
                wb_expert_cache_new_for_offloader(o.offloader, &tensor, 1, &options, &cache, &error),
                "is resident");
    tensor.parameter = NULL;
    CHECK_ERROR(WB_ERR_INVALID_ARGUMENT,
                wb_expert_cache_new_for_offloader(o.offloader, &tensor, 1, &options, &cache, &error),
                "tensor.parameter");
    tensor.parameter = model.names[0];
    tensor.layout = &model.layout;
    CHECK_ERROR(WB_ERR_INVALID_ARGUMENT,
                wb_expert_cache_new_for_offloader(o.offloader, &tensor, 1, &options, &cache, &error),
                "leave both NULL");
    CHECK_ERROR(WB_ERR_INVALID_ARGUMENT,
                wb_expert_cache_new(device, &tensor, 1, &options, &cache, &error),
                "wb_expert_cache_new_for_offloader");
    CHECK(cache == NULL);
    offload_end(&o);
}

CHECK_MAIN(CASE(caches_take_what_the_plan_has_left_and_no_more),
           CASE(slots_hold_the_weights_that_the_offloader_has_now),
           CASE(experts_that_are_gone_are_refused_until_they_are_back),
           CASE(descriptions_that_fit_no_parameter_are_refused))

/* A valid call of every exported function, so that a promise of all functions is tested on each.
 * tests/abi/symbols.txt lists the functions. */
#ifndef EVERY_FUNCTION_H
#define EVERY_FUNCTION_H

#include "scene.h"

/* What a call needs besides its handle. DEVICE: it fails in a forked child, and after a reset of the
 * context. PARENT: it fails in a forked child only. NOTHING: it works in both. */
enum every_needs { DEVICE, PARENT, NOTHING };

struct every {
    const char *name;
    enum every_needs needs;
    wb_status (*call)(void);
    void (*undo)(void); /* of a call that succeeded */
};

/* Outputs that no test reads. */
static struct {
    int32_t count;
    uint64_t index;
    double bandwidth;
    const char *text;
    wb_device_info device;
    wb_device_stats usage;
    wb_buffer_info buffer;
    wb_buffer_stats buffer_usage;
    wb_view_info view;
    wb_safetensors_tensor_info tensor;
    wb_parameter parameter;
    wb_plan_info plan;
    wb_plan_parameter_info planned;
    wb_plan_group_info group;
    wb_offloader_resize_progress resized;
    wb_offloader_rebalance_progress rebalanced;
    wb_arbiter_progress arbitrated;
    wb_arbiter_member_info member;
    wb_offloader_parameter_info offloaded;
    wb_offloader_stats stats;
    wb_offloader_group_stats group_stats;
    wb_offloader_reconcile_result reconciled;
    wb_quantizer_scales_info scales;
    wb_quantizer_result quantized;
    wb_codec_info compressed;
    wb_expert_cache_size cache_size;
    wb_expert_cache_info cache;
    wb_expert_slots_info slots;
    wb_expert_cache_stats cache_stats;
} info;

/* CALL: returns a status. GIVES: returns a value, which shows whether the call succeeded. TAKES: as CALL,
 * and the call invalidates `field`. HANDLE: retain and release. */
#define EVERY(CALL, GIVES, TAKES, HANDLE)                                                          \
    GIVES(wb_version, NOTHING, == WB_VERSION, )                                                    \
    GIVES(wb_status_name, NOTHING, != NULL, WB_OK)                                                 \
    GIVES(wb_log_set_callback, NOTHING, == WB_OK, NULL, NULL)                                      \
    CALL(wb_python_capsule_setup, NOTHING, capsule_is_valid, capsule_pointer)                      \
    CALL(wb_quantizer_get_scales_info, NOTHING, &scene.numbers, &scene.quantize_options,           \
         &info.scales)                                                                             \
    CALL(wb_device_get_info, DEVICE, own.device, &info.device)                                     \
    CALL(wb_device_measure_link, DEVICE, own.device, &info.bandwidth)                              \
    CALL(wb_device_get_stats, NOTHING, own.device, &info.usage)                                    \
    CALL(wb_device_alloc, DEVICE, own.device, SCENE_BYTES, &made.memory)                           \
    CALL(wb_device_copy, DEVICE, own.device, own.memory, scene.pages, SCENE_BYTES, own.stream)     \
    CALL(wb_device_stream_new, DEVICE, own.device, &made.stream)                                   \
    CALL(wb_device_stream_call, DEVICE, own.device, own.stream, scene_called, &scene.called)       \
    CALL(wb_device_stream_synchronize, DEVICE, own.device, own.stream)                             \
    CALL(wb_device_drain, PARENT, own.device, 10000)                                               \
    CALL(wb_buffer_alloc, DEVICE, own.device, SCENE_BYTES, NULL, &made.buffer)                     \
    CALL(wb_buffer_register, DEVICE, own.device, scene.pages, SCENE_BYTES, NULL, NULL, NULL,       \
         &made.buffer)                                                                             \
    CALL(wb_buffer_map_file, DEVICE, own.device, scene_path, 0, 0, NULL, &made.buffer)             \
    CALL(wb_buffer_get_info, NOTHING, own.buffer, &info.buffer)                                    \
    CALL(wb_buffer_get_stats, NOTHING, own.buffer, &info.buffer_usage)                             \
    CALL(wb_view_new, NOTHING, own.buffer, &scene.bytes, WB_ACCESSOR_DEVICE, &made.view)           \
    CALL(wb_view_copy_from, DEVICE, own.device, scene.pages, &scene.bytes, WB_ACCESSOR_HOST, NULL, \
         &made.view)                                                                               \
    CALL(wb_view_get_info, NOTHING, own.view, &info.view)                                          \
    CALL(wb_view_get_buffer, NOTHING, own.view, &made.buffer)                                      \
    CALL(wb_view_to_dlpack, NOTHING, own.view, &made.tensor)                                       \
    CALL(wb_view_to_dlpack_for_reading, NOTHING, own.view, &made.tensor)                           \
    CALL(wb_view_to_dlpack_versioned, NOTHING, own.view, &made.versioned)                          \
    CALL(wb_view_from_dlpack, DEVICE, own.device, &scene.imported, WB_ACCESSOR_HOST, NULL,         \
         &made.view)                                                                               \
    CALL(wb_view_from_dlpack_versioned, DEVICE, own.device, &scene.imported_versioned,             \
         WB_ACCESSOR_HOST, NULL, &made.view)                                                       \
    GIVES(wb_safetensors_get_tensor_count, NOTHING, == 1, own.file)                                \
    GIVES(wb_safetensors_get_header, NOTHING, != NULL, own.file)                                   \
    CALL(wb_safetensors_open, DEVICE, own.device, scene_path, NULL, &made.file)                    \
    CALL(wb_safetensors_get_tensor_info, NOTHING, own.file, 0, &info.tensor)                       \
    CALL(wb_safetensors_get_names, NOTHING, own.file, 0, 1, &info.text)                            \
    CALL(wb_safetensors_find_tensor, NOTHING, own.file, "a", &info.index)                          \
    CALL(wb_safetensors_get_parameters, NOTHING, own.file, WB_GROUPING_LAYER, 0, 1,                 \
         &info.parameter)                                                                          \
    CALL(wb_safetensors_get_view, NOTHING, own.file, 0, WB_ACCESSOR_HOST, 1, &made.view)           \
    CALL(wb_safetensors_load_view, NOTHING, own.file, 0, WB_ACCESSOR_HOST, 1, NULL, &made.view,    \
         &info.count)                                                                              \
    CALL(wb_safetensors_get_buffer, NOTHING, own.file, &made.buffer)                               \
    CALL(wb_plan_new, NOTHING, own.device, scene.parameters, 2, &scene.plan_options, &made.plan)   \
    CALL(wb_plan_get_info, NOTHING, own.plan, &info.plan)                                          \
    CALL(wb_plan_find_parameter, NOTHING, own.plan, "first", &info.index)                          \
    CALL(wb_plan_get_parameter_info, NOTHING, own.plan, 0, &info.planned)                          \
    CALL(wb_plan_get_group_info, NOTHING, own.plan, 0, &info.group)                                \
    CALL(wb_plan_get_warning, NOTHING, own.plan, 0, &info.text)                                    \
    CALL(wb_plan_to_json, NOTHING, own.plan, &info.text)                                           \
    CALL(wb_offloader_new, DEVICE, own.plan, own.stream, NULL, &made.offloader)                    \
    CALL(wb_offloader_find_group, PARENT, own.offloader, "first", &info.index)                     \
    CALL(wb_offloader_begin_step, DEVICE, own.offloader, own.stream)                               \
    CALL(wb_offloader_resize, DEVICE, own.fixed, &scene.resize_options, own.stream,                \
         &info.resized)                                                                            \
    CALL(wb_offloader_resize_advance, DEVICE, own.fixed, own.stream, &info.resized)               \
    CALL(wb_offloader_resize_wait, DEVICE, own.fixed, own.stream, 10000, &info.resized)            \
    CALL(wb_offloader_prefer, PARENT, own.fixed, 2, 0, 4096, 2.0)                                  \
    CALL(wb_offloader_rebalance, DEVICE, own.fixed, 1 << 23, own.stream, &info.rebalanced)         \
    CALL(wb_arbiter_new, PARENT, own.device, 1 << 30, &made.arbiter)                               \
    CALL(wb_arbiter_use, DEVICE, own.arbiter, own.shared, &info.arbitrated)                        \
    CALL(wb_arbiter_resize, DEVICE, own.arbiter, 1 << 29, &info.arbitrated)                        \
    CALL(wb_arbiter_advance, DEVICE, own.arbiter, &info.arbitrated)                                \
    CALL(wb_arbiter_wait, DEVICE, own.arbiter, 10000, &info.arbitrated)                            \
    CALL(wb_arbiter_get_member_info, PARENT, own.arbiter, own.shared, &info.member)                \
    CALL(wb_offloader_join, DEVICE, own.offloader, own.stream)                                     \
    CALL(wb_offloader_reset, DEVICE, own.offloader, own.stream)                                    \
    CALL(wb_offloader_reset_all, DEVICE, own.offloader, own.stream)                                \
    CALL(wb_offloader_find_parameter, PARENT, own.offloader, "first", &info.index)                 \
    CALL(wb_offloader_get_parameter_info, PARENT, own.offloader, 0, &info.offloaded)               \
    CALL(wb_offloader_get_parameter_infos, PARENT, own.offloader, 0, 1, &info.offloaded)           \
    CALL(wb_offloader_get_view, PARENT, own.offloader, 0, &made.view)                              \
    CALL(wb_offloader_get_host_view, PARENT, own.offloader, 0, &made.view)                         \
    CALL(wb_offloader_read_parameter, PARENT, own.offloader, 0, scene.read, SCENE_BYTES)           \
    CALL(wb_offloader_get_zero_copy_view, PARENT, own.offloader, 0, &made.view)                    \
    CALL(wb_offloader_replace, DEVICE, own.offloader, "first", scene.weights[2], &scene.bytes,     \
         own.stream)                                                                               \
    CALL(wb_offloader_add, DEVICE, own.offloader, &scene.third, own.stream)                        \
    CALL(wb_offloader_remove, DEVICE, own.offloader, "second", own.stream)                         \
    CALL(wb_offloader_reconcile, DEVICE, own.offloader, scene.parameters, 2, own.stream,           \
         &info.reconciled)                                                                         \
    CALL(wb_offloader_compact, DEVICE, own.offloader, own.stream)                                  \
    CALL(wb_offloader_get_stats, PARENT, own.offloader, &info.stats)                               \
    CALL(wb_offloader_get_group_stats, PARENT, own.offloader, 0, &info.group_stats)                \
    CALL(wb_offloader_expect, PARENT, own.offloader, NULL, 0)                                      \
    CALL(wb_offloader_get_generation, PARENT, own.offloader, &info.index)                          \
    CALL(wb_quantizer_new, DEVICE, own.device, 0, &made.quantizer)                                 \
    CALL(wb_quantizer_quantize, DEVICE, own.quantizer, scene.wide, &scene.numbers, scene.codes,    \
         scene.scale, &scene.quantize_options, &info.quantized)                                    \
    CALL(wb_quantizer_dequantize, DEVICE, own.quantizer, scene.codes, scene.scale, scene.wide,     \
         &scene.numbers, &scene.quantize_options, &info.quantized)                                 \
    CALL(wb_codec_get_max_bytes, NOTHING, WB_DTYPE_BF16, 1024, &info.index)                        \
    CALL(wb_codec_get_info, NOTHING, scene.compressed, SCENE_BYTES, &info.compressed)              \
    CALL(wb_codec_measure, NOTHING, WB_DTYPE_BF16, scene.weights[0], 1024, 0, &info.compressed)    \
    CALL(wb_codec_encode, NOTHING, WB_DTYPE_BF16, scene.weights[0], 1024, scene.compressed,        \
         SCENE_BYTES, 1, NULL)                                                                     \
    CALL(wb_codec_decode, NOTHING, scene.compressed, SCENE_BYTES, 0, scene.weights[0], 1024, 1, 1, \
         NULL)                                                                                     \
    CALL(wb_codec_queue_encode, DEVICE, own.device, WB_DTYPE_BF16, own.memory, 1024,               \
         (char *)own.memory + 2048, 2048, own.stream)                                              \
    CALL(wb_codec_queue_decode, DEVICE, own.device, WB_DTYPE_BF16, (char *)own.memory + 2048, 2048, \
         1024, 0, (char *)own.memory + 1024, 1024, own.stream)                                     \
    CALL(wb_codec_queue_verify, DEVICE, own.device, (char *)own.memory + 2048, 2048, 1024, 0,      \
         own.memory, 1024, (char *)own.memory + 1024, own.stream)                                  \
    CALL(wb_expert_cache_new, DEVICE, own.device, &scene.expert_tensor, 1, &scene.cache_options,   \
         &made.cache)                                                                              \
    CALL(wb_expert_cache_new_for_offloader, DEVICE, own.offloader, &scene.expert_parameter, 1,     \
         &scene.cache_options, &made.cache)                                                        \
    CALL(wb_expert_cache_measure, NOTHING, own.device, &scene.expert_tensor, 1,                    \
         &scene.cache_options, &info.cache_size)                                                   \
    CALL(wb_expert_cache_route, DEVICE, own.cache, 0, own.memory, 2, WB_DTYPE_I32, own.memory,     \
         NULL, own.stream)                                                                         \
    CALL(wb_expert_cache_prefetch, DEVICE, own.cache, 0, own.memory, 2, WB_DTYPE_I32, own.stream)  \
    CALL(wb_expert_cache_get_passes, NOTHING, own.cache, 0, 4, &info.index)                        \
    CALL(wb_expert_cache_reset, DEVICE, own.cache, own.stream)                                     \
    CALL(wb_expert_cache_resize, DEVICE, own.cache, 2, own.stream)                                 \
    CALL(wb_expert_cache_get_info, NOTHING, own.cache, &info.cache)                                \
    CALL(wb_expert_cache_get_slots_info, NOTHING, own.cache, 0, &info.slots)                       \
    CALL(wb_expert_cache_get_view, NOTHING, own.cache, 0, &made.view)                              \
    CALL(wb_expert_cache_get_stats, DEVICE, own.cache, &info.cache_stats)                          \
    CALL(wb_expert_cache_get_layer_stats, DEVICE, own.cache, 0, &info.cache_stats)                 \
    TAKES(wb_device_stream_release, PARENT, stream, own.device, own.stream)                        \
    TAKES(wb_device_free, PARENT, memory, own.device, own.memory)                                  \
    TAKES(wb_view_release_after, DEVICE, view, own.view, NULL)                                     \
    TAKES(wb_buffer_release_after, DEVICE, buffer, own.buffer, NULL)                               \
    HANDLE(wb_expert_cache, cache)                                                                 \
    HANDLE(wb_quantizer, quantizer)                                                                \
    HANDLE(wb_arbiter, arbiter)                                                                    \
    HANDLE(wb_offloader, offloader)                                                                \
    HANDLE(wb_plan, plan)                                                                          \
    HANDLE(wb_safetensors, file)                                                                   \
    HANDLE(wb_view, view)                                                                          \
    HANDLE(wb_buffer, buffer)                                                                      \
    HANDLE(wb_device, device)

#define CALL(function, needs, ...)                                                                 \
    static inline wb_status call_##function(void)                                                  \
    {                                                                                              \
        return function(__VA_ARGS__, &error);                                                      \
    }
#define GIVES(function, needs, what, ...)                                                          \
    static inline wb_status call_##function(void)                                                  \
    {                                                                                              \
        return function(__VA_ARGS__) what ? WB_OK : WB_ERR_INTERNAL;                               \
    }
#define TAKES(function, needs, field, ...)                                                         \
    CALL(function, needs, __VA_ARGS__)                                                             \
    static inline void undo_##function(void)                                                       \
    {                                                                                              \
        memset(&own.field, 0, sizeof own.field);                                                   \
    }
#define HANDLE(noun, field)                                                                        \
    static inline wb_status call_##noun##_retain(void)                                             \
    {                                                                                              \
        noun##_retain(own.field);                                                                  \
        return WB_OK;                                                                              \
    }                                                                                              \
    static inline void undo_##noun##_retain(void)                                                  \
    {                                                                                              \
        noun##_release(own.field);                                                                 \
    }                                                                                              \
    static inline wb_status call_##noun##_release(void)                                            \
    {                                                                                              \
        noun##_release(own.field);                                                                 \
        return WB_OK;                                                                              \
    }                                                                                              \
    static inline void undo_##noun##_release(void)                                                 \
    {                                                                                              \
        own.field = NULL;                                                                          \
    }
EVERY(CALL, GIVES, TAKES, HANDLE)
#undef CALL
#undef GIVES
#undef TAKES
#undef HANDLE

/* Calls without an error, or with conditions. */
static inline wb_status call_wb_device_get_cuda_count(void)
{
    const wb_status status = wb_device_get_cuda_count(&info.count, &error);
    return status == WB_ERR_NO_DRIVER && !on_cuda() ? WB_OK : status;
}

static inline wb_status call_wb_device_open(void)
{
    return wb_device_open(test_device(), NULL, &made.device, &error);
}

static inline wb_status call_wb_offloader_acquire_group(void)
{
    return wb_offloader_acquire_group(own.offloader, 0, own.stream, &error);
}

static inline wb_status call_wb_offloader_acquire_group_within(void)
{
    return wb_offloader_acquire_group_within(own.offloader, 0, own.stream, 10, &error);
}

static inline void undo_wb_offloader_acquire_group(void)
{
    CHECK_OK(wb_offloader_release_group(own.offloader, 0, own.stream, &error));
}

static inline wb_status call_wb_offloader_release_group(void)
{
    const wb_status status = wb_offloader_acquire_group(own.offloader, 0, own.stream, &error);
    return status == WB_OK ? wb_offloader_release_group(own.offloader, 0, own.stream, &error) : status;
}

static inline wb_status call_wb_arbiter_add(void)
{
    return wb_arbiter_add(own.arbiter, own.fixed, NULL, &error);
}

static inline void undo_wb_arbiter_add(void)
{
    CHECK_OK(wb_arbiter_remove(own.arbiter, own.fixed, &error));
}

static inline wb_status call_wb_arbiter_remove(void)
{
    const wb_status status = call_wb_arbiter_add();
    return status == WB_OK ? wb_arbiter_remove(own.arbiter, own.fixed, &error) : status;
}

static inline wb_status call_wb_python_capsule_destroy(void)
{
    wb_python_capsule_destroy(own.tensor);
    return WB_OK;
}

static inline void undo_wb_python_capsule_destroy(void)
{
    own.tensor = NULL;
}

static void *python_list, *python_owner[2] = {NULL, &python_list};

static inline wb_status call_wb_python_owner_release(void)
{
    python_list = NULL;
    wb_python_owner_release(python_owner);
    CHECK(python_list == (void *)python_owner);
    return WB_OK;
}

static inline wb_status call_wb_python_owners_take(void)
{
    python_list = NULL;
    wb_python_owner_release(python_owner);
    CHECK(wb_python_owners_take(&python_list) == (void *)python_owner);
    CHECK(python_owner[0] == NULL && python_list == NULL);
    return WB_OK;
}

/* A call that invalidates an object comes after the calls that use it. */
static const struct every every[] = {
    {"wb_device_get_cuda_count", NOTHING, call_wb_device_get_cuda_count, NULL},
    {"wb_device_open", NOTHING, call_wb_device_open, NULL},
    {"wb_offloader_release_group", DEVICE, call_wb_offloader_release_group, NULL},
    {"wb_offloader_acquire_group", DEVICE, call_wb_offloader_acquire_group,
     undo_wb_offloader_acquire_group},
    {"wb_offloader_acquire_group_within", DEVICE, call_wb_offloader_acquire_group_within,
     undo_wb_offloader_acquire_group},
    {"wb_arbiter_add", DEVICE, call_wb_arbiter_add, undo_wb_arbiter_add},
    {"wb_arbiter_remove", DEVICE, call_wb_arbiter_remove, NULL},
#define CALL(function, needs, ...) {#function, needs, call_##function, NULL},
#define GIVES(function, needs, what, ...) {#function, needs, call_##function, NULL},
#define TAKES(function, needs, field, ...) {#function, needs, call_##function, undo_##function},
#define HANDLE(noun, field)                                                                        \
    {#noun "_retain", NOTHING, call_##noun##_retain, undo_##noun##_retain},                        \
    {#noun "_release", NOTHING, call_##noun##_release, undo_##noun##_release},
    EVERY(CALL, GIVES, TAKES, HANDLE)
#undef CALL
#undef GIVES
#undef TAKES
#undef HANDLE
    {"wb_python_capsule_destroy", NOTHING, call_wb_python_capsule_destroy,
     undo_wb_python_capsule_destroy},
    {"wb_python_owner_release", NOTHING, call_wb_python_owner_release, NULL},
    {"wb_python_owners_take", NOTHING, call_wb_python_owners_take, NULL},
};
enum { EVERY_COUNT = sizeof every / sizeof every[0] };

/* Calls the function, and undoes the call if it succeeded. Returns its status. */
static inline wb_status every_call(const struct every *each)
{
    check_clear();
    const wb_status status = each->call();
    if (status == WB_OK && each->undo != NULL) each->undo();
    return status;
}

static inline void every_begin(void)
{
#define SIZED(field) info.field.struct_size = sizeof info.field
    SIZED(device);
    SIZED(usage);
    SIZED(buffer);
    SIZED(buffer_usage);
    SIZED(view);
    SIZED(tensor);
    SIZED(plan);
    SIZED(parameter);
    SIZED(planned);
    SIZED(group);
    SIZED(resized);
    SIZED(rebalanced);
    SIZED(arbitrated);
    SIZED(member);
    SIZED(offloaded);
    SIZED(stats);
    SIZED(group_stats);
    SIZED(reconciled);
    SIZED(scales);
    SIZED(quantized);
    SIZED(compressed);
    SIZED(cache_size);
    SIZED(cache);
    SIZED(slots);
    SIZED(cache_stats);
#undef SIZED
}

#endif

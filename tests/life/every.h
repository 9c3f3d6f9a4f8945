/* Every function of the interface, each with arguments that it takes: what is true of all of them is
 * said once, and tried on each. tests/abi/symbols.txt says which functions there are. */
#ifndef EVERY_H
#define EVERY_H

#include <stddef.h>

#include "dlpack_structs.h"
#include "memory.h"

enum { SCENE_BYTES = 4096, SCENE_ROWS = 4, SCENE_COLS = 32 };

/* One of everything, what the calls make, and memory for them to work on. */
struct scene {
    wb_device *device, *watched; /* the same, so that one reference can be let go */
    wb_buffer *buffer;
    wb_view *view;
    wb_safetensors *file;
    wb_plan *plan;
    wb_offloader *offloader;
    wb_quantizer *quantizer;
    void *stream;
    uint64_t memory;
    DLManagedTensor *tensor;
    struct {
        wb_device *device;
        wb_buffer *buffer;
        wb_view *view;
        wb_safetensors *file;
        wb_plan *plan;
        wb_offloader *offloader;
        wb_quantizer *quantizer;
        void *stream;
        uint64_t memory;
        DLManagedTensor *tensor;
        DLManagedTensorVersioned *versioned;
    } made;
    int64_t bytes_shape[1], numbers_shape[2];
    wb_layout bytes, numbers;
    wb_parameter parameters[2], third;
    const char *excluded[1];
    wb_plan_options plan_options;
    wb_quantize_options quantize_options;
    unsigned char *pages; /* whole pages, to be registered */
    unsigned char weights[3][SCENE_BYTES];
    float wide[SCENE_ROWS][SCENE_COLS];
    unsigned char codes[SCENE_ROWS][SCENE_COLS];
    float scale[1];
    DLManagedTensor theirs;
    DLManagedTensorVersioned theirs_versioned;
    int deleted, called;
};

static struct scene scene;
static char scene_path[300];

static inline uint64_t number(const void *memory)
{
    return (uint64_t)(uintptr_t)memory;
}

static inline void scene_deleted(struct DLManagedTensor *tensor)
{
    (void)tensor;
    scene.deleted++;
}

static inline void scene_deleted_versioned(struct DLManagedTensorVersioned *tensor)
{
    (void)tensor;
    scene.deleted++;
}

static inline void scene_called(void *user)
{
    __atomic_fetch_add((int *)user, 1, __ATOMIC_RELAXED);
}

/* What wb_python_capsule_setup is given: a capsule is the tensor itself. */
static inline int capsule_is_valid(void *capsule, const char *name)
{
    return capsule != NULL && strcmp(name, "dltensor") == 0;
}

static inline void *capsule_pointer(void *capsule, const char *name)
{
    (void)name;
    return capsule;
}

static inline int write_tensors_file(void)
{
    static const char json[] = "{\"a\":{\"dtype\":\"U8\",\"shape\":[8],\"data_offsets\":[0,8]}}";
    unsigned char file[8 + sizeof json - 1 + 8] = {sizeof json - 1};
    memcpy(file + 8, json, sizeof json - 1);
    file_name(scene_path, sizeof scene_path, "every");
    return write_file(scene_path, file, sizeof file);
}

static inline void scene_tensors(struct scene *s)
{
    const DLTensor tensor = {s->pages, {kDLCPU, 0}, 1, {kDLUInt, 8, 1}, s->bytes_shape, NULL, 0};
    s->theirs.dl_tensor = s->theirs_versioned.dl_tensor = tensor;
    s->theirs.deleter = scene_deleted;
    s->theirs_versioned.version.major = 1;
    s->theirs_versioned.deleter = scene_deleted_versioned;
}

static inline void scene_parameters(struct scene *s)
{
    static const char *const names[3] = {"first", "second", "third"};
    wb_parameter *each[3] = {&s->parameters[0], &s->parameters[1], &s->third};
    const wb_parameter empty = WB_PARAMETER_INIT;
    for (int i = 0; i < 3; i++) {
        *each[i] = empty;
        each[i]->name = names[i];
        each[i]->group = names[i == 2 ? 1 : i];
        each[i]->layout = &s->bytes;
        each[i]->source = number(s->weights[i]);
    }
}

/* 1 when everything is there. The reference to the device becomes the scene's. */
static inline int scene_begin_on(struct scene *s, wb_device *device)
{
    const wb_plan_options plan_options = WB_PLAN_OPTIONS_INIT;
    const wb_quantize_options quantize_options = WB_QUANTIZE_OPTIONS_INIT;
    unsigned char *whole = s->pages != NULL ? s->pages : (unsigned char *)pages(SCENE_BYTES);
    memset(s, 0, sizeof *s);
    s->pages = whole;
    s->bytes_shape[0] = SCENE_BYTES;
    s->numbers_shape[0] = SCENE_ROWS;
    s->numbers_shape[1] = SCENE_COLS;
    s->bytes = layout_of(WB_DTYPE_U8, 1, s->bytes_shape, NULL, 0);
    s->numbers = layout_of(WB_DTYPE_F32, 2, s->numbers_shape, NULL, 0);
    s->plan_options = plan_options;
    s->plan_options.offload_bytes = 16 << 20;
    s->plan_options.carrier = WB_TRANSFER_MODE_PREFETCH;
    s->excluded[0] = "matches.nothing"; /* which is a warning */
    s->plan_options.exclude = s->excluded;
    s->plan_options.exclude_count = 1;
    s->plan_options.allow = WB_ALLOW_UNMATCHED_SELECTOR;
    s->quantize_options = quantize_options;
    scene_tensors(s);
    scene_parameters(s);
    if (!CHECK(whole != NULL) || !CHECK(write_tensors_file()) || !CHECK(device != NULL)) return 0;
    s->device = s->watched = device;
    wb_device_retain(s->watched);
    return CHECK_OK(wb_device_stream_new(s->device, &s->stream, &error)) &&
           CHECK_OK(wb_device_alloc(s->device, SCENE_BYTES, &s->memory, &error)) &&
           CHECK_OK(wb_buffer_alloc(s->device, SCENE_BYTES, NULL, &s->buffer, &error)) &&
           CHECK_OK(wb_view_new(s->buffer, &s->bytes, WB_ACCESSOR_DEVICE, &s->view, &error)) &&
           CHECK_OK(wb_view_to_dlpack(s->view, &s->tensor, &error)) &&
           CHECK_OK(wb_safetensors_open(s->device, scene_path, NULL, &s->file, &error)) &&
           CHECK_OK(wb_plan_new(s->device, s->parameters, 2, &s->plan_options, &s->plan,
                                &error)) &&
           CHECK_OK(wb_offloader_new(s->plan, s->stream, NULL, &s->offloader, &error)) &&
           CHECK_OK(wb_quantizer_new(s->device, 0, &s->quantizer, &error)) &&
           CHECK_OK(wb_python_capsule_setup(capsule_is_valid, capsule_pointer, &error));
}

static inline int scene_begin(struct scene *s)
{
    wb_device *device = NULL;
    CHECK_OK(wb_device_open(test_device(), NULL, &device, &error));
    return scene_begin_on(s, device);
}

/* Whether a failed call has left all outputs alone. */
static inline int scene_made_nothing(const struct scene *s)
{
    static unsigned char nothing[sizeof s->made];
    return memcmp(&s->made, nothing, sizeof nothing) == 0;
}

/* Gives back what calls have made; streams and memory only where `on_device`. */
static inline void scene_release_made(struct scene *s, int on_device)
{
    if (s->made.tensor != NULL) s->made.tensor->deleter(s->made.tensor);
    if (s->made.versioned != NULL) s->made.versioned->deleter(s->made.versioned);
    if (on_device && s->made.stream != NULL) {
        CHECK_OK(wb_device_stream_release(s->watched, s->made.stream, &error));
    }
    if (on_device && s->made.memory != 0) {
        CHECK_OK(wb_device_free(s->watched, s->made.memory, &error));
    }
    wb_view_release(s->made.view);
    wb_buffer_release(s->made.buffer);
    wb_quantizer_release(s->made.quantizer);
    wb_offloader_release(s->made.offloader);
    wb_plan_release(s->made.plan);
    wb_safetensors_release(s->made.file);
    wb_device_release(s->made.device);
    memset(&s->made, 0, sizeof s->made);
}

/* Gives everything back but the device. */
static inline void scene_release(struct scene *s, int on_device)
{
    scene_release_made(s, on_device);
    wb_quantizer_release(s->quantizer);
    wb_offloader_release(s->offloader);
    wb_plan_release(s->plan);
    wb_safetensors_release(s->file);
    if (s->tensor != NULL) s->tensor->deleter(s->tensor);
    wb_view_release(s->view);
    wb_buffer_release(s->buffer);
    if (!on_device) return;
    if (s->stream != NULL) CHECK_OK(wb_device_stream_release(s->watched, s->stream, &error));
    if (s->memory != 0) CHECK_OK(wb_device_free(s->watched, s->memory, &error));
}

static inline void scene_end(struct scene *s)
{
    const wb_device_stats nothing = WB_DEVICE_STATS_INIT;
    scene_release(s, 1);
    CHECK_OK(wb_device_drain(s->watched, 10000, &error));
    CHECK_USAGE(s->watched, nothing);
    wb_device_release(s->device);
    wb_device_release(s->watched);
    unlink(scene_path);
}

/* What a call needs besides its handle. DEVICE: an error in a forked child, and once the context is
 * gone. PARENT: the process that made the handle, but no context. NOTHING: it works in both. */
enum every_needs { DEVICE, PARENT, NOTHING };

struct every {
    const char *name;
    enum every_needs needs;
    wb_status (*call)(struct scene *s);
    void (*undo)(struct scene *s); /* of a call that has worked */
};

/* Where calls put what nobody looks at. */
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
    wb_plan_info plan;
    wb_plan_parameter_info planned;
    wb_plan_group_info group;
    wb_offloader_parameter_info offloaded;
    wb_offloader_stats stats;
    wb_offloader_reconcile_result reconciled;
    wb_quantizer_scales_info scales;
    wb_quantizer_result quantized;
} info;

/* CALL: gives a status. GIVES: something else, in which a test sees whether it worked. TAKES: as CALL,
 * and the scene's `field` is gone when it worked. HANDLE: retain and release. */
#define EVERY(CALL, GIVES, TAKES, HANDLE)                                                          \
    GIVES(wb_version, NOTHING, == WB_VERSION, )                                                    \
    GIVES(wb_status_name, NOTHING, != NULL, WB_OK)                                                 \
    GIVES(wb_log_set_callback, NOTHING, == WB_OK, NULL, NULL)                                               \
    CALL(wb_python_capsule_setup, NOTHING, capsule_is_valid, capsule_pointer)                      \
    CALL(wb_quantizer_get_scales_info, NOTHING, &s->numbers, &s->quantize_options, &info.scales)             \
    CALL(wb_device_get_info, DEVICE, s->device, &info.device)                                      \
    CALL(wb_device_measure_link, DEVICE, s->device, &info.bandwidth)                               \
    CALL(wb_device_get_stats, NOTHING, s->device, &info.usage)                                       \
    CALL(wb_device_alloc, DEVICE, s->device, SCENE_BYTES, &s->made.memory)                         \
    CALL(wb_device_copy, DEVICE, s->device, s->memory, number(s->pages), SCENE_BYTES,              \
         s->stream)                                                                                \
    CALL(wb_device_stream_new, DEVICE, s->device, &s->made.stream)                                 \
    CALL(wb_device_stream_call, DEVICE, s->device, s->stream, scene_called, &s->called)            \
    CALL(wb_device_stream_synchronize, DEVICE, s->device, s->stream)                               \
    CALL(wb_device_drain, PARENT, s->device, 10000)                                                \
    CALL(wb_buffer_alloc, DEVICE, s->device, SCENE_BYTES, NULL, &s->made.buffer)                   \
    CALL(wb_buffer_register, DEVICE, s->device, s->pages, SCENE_BYTES, NULL, NULL, NULL,           \
         &s->made.buffer)                                                                          \
    CALL(wb_buffer_map_file, DEVICE, s->device, scene_path, 0, 0, NULL, &s->made.buffer)                \
    CALL(wb_buffer_get_info, NOTHING, s->buffer, &info.buffer)                                     \
    CALL(wb_buffer_get_stats, NOTHING, s->buffer, &info.buffer_usage)                                \
    CALL(wb_view_new, NOTHING, s->buffer, &s->bytes, WB_ACCESSOR_DEVICE, &s->made.view)              \
    CALL(wb_view_copy_from, DEVICE, s->device, s->pages, &s->bytes, WB_ACCESSOR_HOST, NULL,          \
         &s->made.view)                                                                            \
    CALL(wb_view_get_info, NOTHING, s->view, &info.view)                                           \
    CALL(wb_view_get_buffer, NOTHING, s->view, &s->made.buffer)                                        \
    CALL(wb_view_to_dlpack, NOTHING, s->view, &s->made.tensor)                                     \
    CALL(wb_view_to_dlpack_versioned, NOTHING, s->view, &s->made.versioned)                        \
    CALL(wb_view_from_dlpack, DEVICE, s->device, &s->theirs, WB_ACCESSOR_HOST, NULL,                 \
         &s->made.view)                                                                            \
    CALL(wb_view_from_dlpack_versioned, DEVICE, s->device, &s->theirs_versioned,                   \
         WB_ACCESSOR_HOST, NULL, &s->made.view)                                                      \
    GIVES(wb_safetensors_get_tensor_count, NOTHING, == 1, s->file)                                            \
    GIVES(wb_safetensors_get_header, NOTHING, != NULL, s->file)                                        \
    CALL(wb_safetensors_open, DEVICE, s->device, scene_path, NULL, &s->made.file)                  \
    CALL(wb_safetensors_get_tensor_info, NOTHING, s->file, 0, &info.tensor)                               \
    CALL(wb_safetensors_find_tensor, NOTHING, s->file, "a", &info.index)                                  \
    CALL(wb_safetensors_get_view, NOTHING, s->file, 0, WB_ACCESSOR_HOST, 1, &s->made.view)               \
    CALL(wb_safetensors_load_view, NOTHING, s->file, 0, WB_ACCESSOR_HOST, 1, NULL, &s->made.view,         \
         &info.count)                                                                              \
    CALL(wb_safetensors_get_buffer, NOTHING, s->file, &s->made.buffer)                                 \
    CALL(wb_plan_new, NOTHING, s->device, s->parameters, 2, &s->plan_options, &s->made.plan)       \
    CALL(wb_plan_get_info, NOTHING, s->plan, &info.plan)                                           \
    CALL(wb_plan_find_parameter, NOTHING, s->plan, "first", &info.index)                                     \
    CALL(wb_plan_get_parameter_info, NOTHING, s->plan, 0, &info.planned)                                    \
    CALL(wb_plan_get_group_info, NOTHING, s->plan, 0, &info.group)                                          \
    CALL(wb_plan_get_warning, NOTHING, s->plan, 0, &info.text)                                         \
    CALL(wb_plan_to_json, NOTHING, s->plan, &info.text)                                               \
    CALL(wb_offloader_new, DEVICE, s->plan, s->stream, NULL, &s->made.offloader)                   \
    CALL(wb_offloader_find_group, PARENT, s->offloader, "first", &info.index)                           \
    CALL(wb_offloader_join, DEVICE, s->offloader, s->stream)                                       \
    CALL(wb_offloader_reset, DEVICE, s->offloader, s->stream)                                      \
    CALL(wb_offloader_get_parameter_info, PARENT, s->offloader, "first", &info.offloaded)                   \
    CALL(wb_offloader_get_view, PARENT, s->offloader, "first", &s->made.view)                          \
    CALL(wb_offloader_get_host_view, PARENT, s->offloader, "first", &s->made.view)                     \
    CALL(wb_offloader_replace, DEVICE, s->offloader, "first", number(s->weights[2]),               \
         &s->bytes, s->stream)                                                                     \
    CALL(wb_offloader_add, DEVICE, s->offloader, &s->third, s->stream)                             \
    CALL(wb_offloader_remove, DEVICE, s->offloader, "second", s->stream)                           \
    CALL(wb_offloader_reconcile, DEVICE, s->offloader, s->parameters, 2, s->stream,                \
         &info.reconciled)                                                                         \
    CALL(wb_offloader_compact, DEVICE, s->offloader, s->stream)                                    \
    CALL(wb_offloader_get_stats, PARENT, s->offloader, &info.stats)                                  \
    CALL(wb_quantizer_new, DEVICE, s->device, 0, &s->made.quantizer)                               \
    CALL(wb_quantizer_quantize, DEVICE, s->quantizer, number(s->wide), &s->numbers,                \
         number(s->codes), number(s->scale), &s->quantize_options, &info.quantized)                \
    CALL(wb_quantizer_dequantize, DEVICE, s->quantizer, number(s->codes), number(s->scale),        \
         number(s->wide), &s->numbers, &s->quantize_options, &info.quantized)                      \
    TAKES(wb_device_stream_release, PARENT, stream, s->device, s->stream)                          \
    TAKES(wb_device_free, PARENT, memory, s->device, s->memory)                                    \
    TAKES(wb_view_release_after, DEVICE, view, s->view, NULL)                                      \
    TAKES(wb_buffer_release_after, DEVICE, buffer, s->buffer, NULL)                                \
    HANDLE(wb_quantizer, quantizer)                                                                \
    HANDLE(wb_offloader, offloader)                                                                \
    HANDLE(wb_plan, plan)                                                                          \
    HANDLE(wb_safetensors, file)                                                                   \
    HANDLE(wb_view, view)                                                                          \
    HANDLE(wb_buffer, buffer)                                                                      \
    HANDLE(wb_device, device)

#define CALL(function, needs, ...)                                                                 \
    static inline wb_status call_##function(struct scene *s)                                       \
    {                                                                                              \
        (void)s;                                                                                   \
        return function(__VA_ARGS__, &error);                                                      \
    }
#define GIVES(function, needs, what, ...)                                                          \
    static inline wb_status call_##function(struct scene *s)                                       \
    {                                                                                              \
        (void)s;                                                                                   \
        return function(__VA_ARGS__) what ? WB_OK : WB_ERR_INTERNAL;                               \
    }
#define TAKES(function, needs, field, ...)                                                         \
    CALL(function, needs, __VA_ARGS__)                                                             \
    static inline void undo_##function(struct scene *s)                                            \
    {                                                                                              \
        memset(&s->field, 0, sizeof s->field);                                                     \
    }
#define HANDLE(noun, field)                                                                        \
    static inline wb_status call_##noun##_retain(struct scene *s)                                  \
    {                                                                                              \
        noun##_retain(s->field);                                                                   \
        return WB_OK;                                                                              \
    }                                                                                              \
    static inline void undo_##noun##_retain(struct scene *s)                                       \
    {                                                                                              \
        noun##_release(s->field);                                                                  \
    }                                                                                              \
    static inline wb_status call_##noun##_release(struct scene *s)                                 \
    {                                                                                              \
        noun##_release(s->field);                                                                  \
        return WB_OK;                                                                              \
    }                                                                                              \
    static inline void undo_##noun##_release(struct scene *s)                                      \
    {                                                                                              \
        s->field = NULL;                                                                           \
    }
EVERY(CALL, GIVES, TAKES, HANDLE)
#undef CALL
#undef GIVES
#undef TAKES
#undef HANDLE

/* These have no error, or work on what the scene does not hold. */
static inline wb_status call_wb_cuda_device_count(struct scene *s)
{
    (void)s;
    const wb_status status = wb_device_get_cuda_count(&info.count, &error);
    return status == WB_ERR_NO_DRIVER && !on_cuda() ? WB_OK : status;
}

static inline wb_status call_wb_device_open(struct scene *s)
{
    return wb_device_open(test_device(), NULL, &s->made.device, &error);
}

static inline wb_status call_wb_offloader_acquire_group(struct scene *s)
{
    return wb_offloader_acquire_group(s->offloader, 0, s->stream, &error);
}

static inline void undo_wb_offloader_acquire_group(struct scene *s)
{
    CHECK_OK(wb_offloader_release_group(s->offloader, 0, s->stream, &error));
}

static inline wb_status call_wb_offloader_release_group(struct scene *s)
{
    const wb_status status = wb_offloader_acquire_group(s->offloader, 0, s->stream, &error);
    return status == WB_OK ? wb_offloader_release_group(s->offloader, 0, s->stream, &error) : status;
}

static inline wb_status call_wb_python_capsule_destroy(struct scene *s)
{
    wb_python_capsule_destroy(s->tensor);
    return WB_OK;
}

static inline void undo_wb_python_capsule_destroy(struct scene *s)
{
    s->tensor = NULL;
}

/* What a call takes comes after all that only uses it. */
static const struct every every[] = {
    {"wb_device_get_cuda_count", NOTHING, call_wb_cuda_device_count, NULL},
    {"wb_device_open", NOTHING, call_wb_device_open, NULL},
    {"wb_offloader_release_group", DEVICE, call_wb_offloader_release_group, NULL},
    {"wb_offloader_acquire_group", DEVICE, call_wb_offloader_acquire_group,
     undo_wb_offloader_acquire_group},
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
};
enum { EVERY_COUNT = sizeof every / sizeof every[0] };

/* The status of a call of `each`; undone if it worked. */
static inline wb_status every_call(const struct every *each, struct scene *s)
{
    check_clear();
    const wb_status status = each->call(s);
    if (status == WB_OK && each->undo != NULL) each->undo(s);
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
    SIZED(planned);
    SIZED(group);
    SIZED(offloaded);
    SIZED(stats);
    SIZED(reconciled);
    SIZED(scales);
    SIZED(quantized);
#undef SIZED
}

#endif

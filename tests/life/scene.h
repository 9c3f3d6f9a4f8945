/* One object of every kind, and the arguments of calls of them. */
#ifndef SCENE_H
#define SCENE_H

#include <stddef.h>

#include "dlpack_structs.h"
#include "memory.h"
#include "weighbridge/python.h"

enum { SCENE_BYTES = 4096, SCENE_ROWS = 4, SCENE_COLS = 32 };

/* One object of every kind. */
struct objects {
    wb_device *device;
    wb_buffer *buffer;
    wb_view *view;
    wb_safetensors *file;
    wb_plan *plan;
    wb_offloader *offloader;
    wb_plan *fixed_plan;
    wb_offloader *fixed;  /* with fixed addresses */
    wb_offloader *shared; /* of the arbiter */
    wb_arbiter *arbiter;
    wb_quantizer *quantizer;
    wb_expert_cache *cache;
    void *stream;
    void *memory;
    DLManagedTensor *tensor;
    DLManagedTensorVersioned *versioned;
};

static struct objects own;  /* the calls use these */
static struct objects made; /* the calls make these */

/* Arguments of the calls. */
struct scene {
    wb_device *watched; /* another reference to `own.device`, which a call may release */
    int64_t bytes_shape[1], numbers_shape[2], pieces_shape[1];
    wb_layout bytes, numbers, pieces;
    wb_parameter parameters[2], fixed_parameters[3], third;
    const char *excluded[1];
    wb_plan_options plan_options, fixed_options;
    wb_offloader_resize_options resize_options;
    wb_quantize_options quantize_options;
    int64_t experts_shape[2];
    wb_layout experts;
    wb_expert_tensor expert_tensor, expert_parameter;
    wb_expert_cache_options cache_options;
    unsigned char *pages; /* whole pages, for wb_buffer_register */
    unsigned char weights[3][SCENE_BYTES];
    float wide[SCENE_ROWS][SCENE_COLS];
    unsigned char codes[SCENE_ROWS][SCENE_COLS];
    float scale[1];
    unsigned char read[SCENE_BYTES];
    unsigned char compressed[SCENE_BYTES]; /* of the first kilobyte of `weights` */
    DLManagedTensor imported;
    DLManagedTensorVersioned imported_versioned;
    int deleted, called;
};

static struct scene scene;
static char scene_path[300];

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

/* For wb_python_capsule_setup: a capsule is the tensor itself. */
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

static inline void scene_tensors(void)
{
    const DLTensor tensor = {scene.pages, {kDLCPU, 0}, 1, {kDLUInt, 8, 1}, scene.bytes_shape, NULL, 0};
    scene.imported.dl_tensor = scene.imported_versioned.dl_tensor = tensor;
    scene.imported.deleter = scene_deleted;
    scene.imported_versioned.version.major = 1;
    scene.imported_versioned.deleter = scene_deleted_versioned;
}

static inline void scene_parameters(void)
{
    static const char *const names[3] = {"first", "second", "third"};
    wb_parameter *each[3] = {&scene.parameters[0], &scene.parameters[1], &scene.third};
    const wb_parameter empty = WB_PARAMETER_INIT;
    for (int i = 0; i < 3; i++) {
        *each[i] = empty;
        each[i]->name = names[i];
        each[i]->group = names[i == 2 ? 1 : i];
        each[i]->layout = &scene.bytes;
        each[i]->source = scene.weights[i];
    }
    memcpy(scene.fixed_parameters, scene.parameters, sizeof scene.parameters);
    scene.fixed_parameters[2] = empty; /* in pieces, filled by no one */
    scene.fixed_parameters[2].name = scene.fixed_parameters[2].group = "pieces";
    scene.fixed_parameters[2].layout = &scene.pieces;
    scene.fixed_parameters[2].transfer_mode = WB_TRANSFER_MODE_ZERO_COPY;
    scene.parameters[1].transfer_mode = WB_TRANSFER_MODE_ZERO_COPY; /* for a cache of its rows */
}

/* A cache of four experts of a fourth of the buffer, whose ids are at `own.memory`. */
static inline int scene_cache(void)
{
    const wb_expert_tensor tensor = WB_EXPERT_TENSOR_INIT;
    const wb_expert_cache_options options = WB_EXPERT_CACHE_OPTIONS_INIT;
    scene.experts_shape[0] = 4;
    scene.experts_shape[1] = SCENE_BYTES / 4;
    scene.experts = layout_of(WB_DTYPE_U8, 2, scene.experts_shape, NULL, 0);
    scene.expert_tensor = tensor;
    scene.expert_tensor.name = "w13";
    scene.expert_tensor.layout = &scene.experts;
    scene.expert_tensor.buffer = own.buffer;
    scene.expert_parameter = tensor;
    scene.expert_parameter.name = "w13";
    scene.expert_parameter.parameter = "second";
    scene.cache_options = options;
    scene.cache_options.slots = 2;
    return CHECK_OK(wb_device_copy(own.device, own.memory, scene.pages, SCENE_BYTES, NULL, &error)) &&
           CHECK_OK(wb_device_stream_synchronize(own.device, NULL, &error)) &&
           CHECK_OK(wb_expert_cache_new(own.device, &scene.expert_tensor, 1, &scene.cache_options,
                                        &own.cache, &error));
}

/* Returns 1 if every object was made. Takes ownership of the device's reference. */
static inline int scene_begin_on(wb_device *device)
{
    const wb_plan_options plan_options = WB_PLAN_OPTIONS_INIT;
    const wb_quantize_options quantize_options = WB_QUANTIZE_OPTIONS_INIT;
    const wb_offloader_resize_options resize_options = WB_OFFLOADER_RESIZE_OPTIONS_INIT;
    unsigned char *whole = scene.pages != NULL ? scene.pages : (unsigned char *)pages(SCENE_BYTES);
    memset(&own, 0, sizeof own);
    memset(&made, 0, sizeof made);
    memset(&scene, 0, sizeof scene);
    scene.pages = whole;
    scene.bytes_shape[0] = SCENE_BYTES;
    scene.numbers_shape[0] = SCENE_ROWS;
    scene.numbers_shape[1] = SCENE_COLS;
    scene.bytes = layout_of(WB_DTYPE_U8, 1, scene.bytes_shape, NULL, 0);
    scene.numbers = layout_of(WB_DTYPE_F32, 2, scene.numbers_shape, NULL, 0);
    scene.pieces_shape[0] = 4 << 20;
    scene.pieces = layout_of(WB_DTYPE_U8, 1, scene.pieces_shape, NULL, 0);
    scene.plan_options = plan_options;
    scene.plan_options.budget_kind = WB_BUDGET_OFFLOAD_BYTES;
    scene.plan_options.budget_bytes = 16 << 20;
    scene.plan_options.transfer_mode = WB_TRANSFER_MODE_PREFETCH;
    scene.excluded[0] = "matches.nothing"; /* gives the plan a warning */
    scene.plan_options.exclude = scene.excluded;
    scene.plan_options.exclude_count = 1;
    scene.plan_options.allow = WB_ALLOW_UNMATCHED_SELECTOR;
    scene.fixed_options = scene.plan_options;
    scene.fixed_options.fixed_addresses = WB_TRISTATE_ON;
    scene.resize_options = resize_options;
    scene.resize_options.budget_kind = WB_BUDGET_DEVICE_BYTES;
    scene.resize_options.budget_bytes = 1 << 30;
    scene.quantize_options = quantize_options;
    scene_tensors();
    scene_parameters();
    if (!CHECK(whole != NULL) || !CHECK(write_tensors_file()) || !CHECK(device != NULL)) return 0;
    own.device = scene.watched = device;
    wb_device_retain(scene.watched);
    return CHECK_OK(wb_device_stream_new(own.device, &own.stream, &error)) &&
           CHECK_OK(wb_device_alloc(own.device, SCENE_BYTES, &own.memory, &error)) &&
           CHECK_OK(wb_codec_encode(WB_DTYPE_BF16, scene.weights[0], 1024, scene.compressed,
                                    SCENE_BYTES, 1, NULL, &error)) &&
           CHECK_OK(wb_buffer_alloc(own.device, SCENE_BYTES, NULL, &own.buffer, &error)) &&
           CHECK_OK(wb_view_new(own.buffer, &scene.bytes, WB_ACCESSOR_DEVICE, &own.view, &error)) &&
           CHECK_OK(wb_view_to_dlpack(own.view, &own.tensor, &error)) &&
           CHECK_OK(wb_safetensors_open(own.device, scene_path, NULL, &own.file, &error)) &&
           CHECK_OK(wb_plan_new(own.device, scene.parameters, 2, &scene.plan_options, &own.plan,
                                &error)) &&
           CHECK_OK(wb_offloader_new(own.plan, own.stream, NULL, &own.offloader, &error)) &&
           CHECK_OK(wb_plan_new(own.device, scene.fixed_parameters, 3, &scene.fixed_options,
                                &own.fixed_plan, &error)) &&
           CHECK_OK(wb_offloader_new(own.fixed_plan, own.stream, NULL, &own.fixed, &error)) &&
           CHECK_OK(wb_offloader_new(own.fixed_plan, own.stream, NULL, &own.shared, &error)) &&
           CHECK_OK(wb_arbiter_new(own.device, 1 << 30, &own.arbiter, &error)) &&
           CHECK_OK(wb_arbiter_add(own.arbiter, own.shared, NULL, &error)) &&
           CHECK_OK(wb_quantizer_new(own.device, 0, &own.quantizer, &error)) && scene_cache() &&
           CHECK_OK(wb_python_capsule_setup(capsule_is_valid, capsule_pointer, &error));
}

static inline int scene_begin(void)
{
    wb_device *device = NULL;
    CHECK_OK(wb_device_open(test_device(), NULL, &device, &error));
    return scene_begin_on(device);
}

/* Returns 1 if no call wrote an output. */
static inline int scene_made_nothing(void)
{
    static unsigned char nothing[sizeof made];
    return memcmp(&made, nothing, sizeof nothing) == 0;
}

/* Releases all objects; the stream and the device memory only if `on_device`. */
static inline void release_objects(struct objects *o, wb_device *device, int on_device)
{
    if (o->tensor != NULL) o->tensor->deleter(o->tensor);
    if (o->versioned != NULL) o->versioned->deleter(o->versioned);
    wb_expert_cache_release(o->cache);
    wb_quantizer_release(o->quantizer);
    wb_offloader_release(o->offloader);
    wb_plan_release(o->plan);
    wb_offloader_release(o->fixed);
    wb_offloader_release(o->shared);
    wb_arbiter_release(o->arbiter);
    wb_plan_release(o->fixed_plan);
    wb_safetensors_release(o->file);
    wb_view_release(o->view);
    wb_buffer_release(o->buffer);
    if (on_device && o->stream != NULL) {
        CHECK_OK(wb_device_stream_release(device, o->stream, &error));
    }
    if (on_device && o->memory != NULL) CHECK_OK(wb_device_free(device, o->memory, &error));
    wb_device_release(o->device);
    memset(o, 0, sizeof *o);
}

static inline void scene_release_made(int on_device)
{
    release_objects(&made, scene.watched, on_device);
}

/* Releases everything but `watched`. */
static inline void scene_release(int on_device)
{
    scene_release_made(on_device);
    release_objects(&own, scene.watched, on_device);
}

static inline void scene_end(void)
{
    const wb_device_stats nothing = WB_DEVICE_STATS_INIT;
    scene_release(1);
    CHECK_OK(wb_device_drain(scene.watched, 10000, &error));
    CHECK_STATS(scene.watched, nothing);
    wb_device_release(scene.watched);
    unlink(scene_path);
}

#endif

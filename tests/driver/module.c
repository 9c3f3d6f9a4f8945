/* Modules and kernels. The PTX is not executed: a launch of a kernel of the library runs the host
 * version of that kernel (kernels/host.c, kernels/codec.c, kernels/experts.c) in stream
 * order. */
#include <fenv.h>
#include <stdlib.h>
#include <string.h>

#include "driver.h"

/* The suffix of the host kernels compiled here. */
#define WB_KERNEL _double
#include "host.c"

/* The codec, of a file of its own: kernels/codec.c with the same suffix. */
#include "codec.h"

void wb_codec_begin_double(uint32_t type, const uint8_t *source, uint64_t bytes, uint8_t *target);
uint64_t wb_codec_encode_double(const uint8_t *source, uint64_t bytes, uint64_t first,
                                uint64_t count, uint8_t *target, uint8_t *bodies, uint64_t offset);
uint64_t wb_codec_decode_double(uint32_t type, const uint8_t *encoded, uint64_t encoded_bytes,
                                uint64_t bytes, uint64_t first, uint64_t count, uint8_t *target,
                                const wb_codec_window *window);
uint64_t wb_codec_verify_double(const uint8_t *encoded, uint64_t encoded_bytes, uint64_t bytes,
                                uint64_t first, uint64_t count, const uint8_t *decoded);

#define WB_HOST_ADDRESS(address) ((address) & ~DEVICE_ALIAS_BIT)
#include "experts.c"

/* The kernels by their parameters. */
enum kernel_kind {
    ABSMAX,
    SCALES,
    INVERSES,
    QUANTIZE,
    CODEC_COUNT,
    CODEC_BEGIN,
    CODEC_MEASURE,
    CODEC_PLACE,
    CODEC_WRITE,
    CODEC_DECODE,
    CODEC_VERIFY,
    EXPERTS,
    EXPERTS_RESIZE
};

typedef void (*any_function)(void);

struct CUfunc_st {
    const char *name;
    enum kernel_kind kind;
    any_function run;
    enum wb_coded type; /* of a decoder */
};

#define ENTRY(kind, name) {"wb_" #name, kind, (any_function)wb_##name##_double, 0}
#define ENTRIES_FOR_SOURCE(source)                                                                \
    ENTRY(ABSMAX, absmax_##source),                                                               \
        ENTRY(QUANTIZE, quantize_##source##_e4m3), ENTRY(QUANTIZE, quantize_##source##_e5m2),     \
        ENTRY(QUANTIZE, dequantize_##source##_e4m3), ENTRY(QUANTIZE, dequantize_##source##_e5m2)

static struct CUfunc_st functions[] = {
    ENTRIES_FOR_SOURCE(f32),       ENTRIES_FOR_SOURCE(f16),        ENTRIES_FOR_SOURCE(bf16),
    ENTRY(SCALES, scales_f32),     ENTRY(SCALES, scales_e8m0),
    ENTRY(INVERSES, inverses_f32), ENTRY(INVERSES, inverses_e8m0),
    {"wb_codec_count", CODEC_COUNT, NULL, 0},
    {"wb_codec_begin", CODEC_BEGIN, NULL, 0},
    {"wb_codec_measure", CODEC_MEASURE, NULL, 0},
    {"wb_codec_place", CODEC_PLACE, NULL, 0},
    {"wb_codec_write", CODEC_WRITE, NULL, 0},
    {"wb_codec_decode_bf16", CODEC_DECODE, NULL, WB_CODED_BF16},
    {"wb_codec_decode_f16", CODEC_DECODE, NULL, WB_CODED_F16},
    {"wb_codec_decode_f32", CODEC_DECODE, NULL, WB_CODED_F32},
    {"wb_codec_decode_e4m3", CODEC_DECODE, NULL, WB_CODED_E4M3},
    {"wb_codec_decode_e5m2", CODEC_DECODE, NULL, WB_CODED_E5M2},
    {"wb_codec_carry_bf16", CODEC_DECODE, NULL, WB_CODED_BF16},
    {"wb_codec_carry_f16", CODEC_DECODE, NULL, WB_CODED_F16},
    {"wb_codec_carry_f32", CODEC_DECODE, NULL, WB_CODED_F32},
    {"wb_codec_carry_e4m3", CODEC_DECODE, NULL, WB_CODED_E4M3},
    {"wb_codec_carry_e5m2", CODEC_DECODE, NULL, WB_CODED_E5M2},
    {"wb_codec_verify", CODEC_VERIFY, NULL, 0},
    ENTRY(EXPERTS, experts_route),
    ENTRY(EXPERTS_RESIZE, experts_resize),
};

struct CUmod_st {
    int loaded;
};

struct launch {
    CUfunction function;
    CUdeviceptr pointers[4];
    wb_blocks blocks;
    uint64_t count;
    float format_max;
    int dequantize;
    /* Of the codec. */
    uint32_t type, tiles;
    uint64_t encoded_bytes, bytes, first;
    wb_codec_window window;
    wb_experts experts;
    wb_experts_call call;
    uint32_t keep, slots;
};

static void *host_pointer(CUdeviceptr address)
{
    return (void *)(uintptr_t)(address & ~DEVICE_ALIAS_BIT);
}

/* The compressed bytes that a link leads to, if there is one; `bytes` becomes their number. */
static const uint8_t *follow(const uint8_t *encoded, uint64_t *bytes)
{
    wb_codec_link link;
    if (*bytes < sizeof link) return encoded;
    memcpy(&link, encoded, sizeof link);
    if (link.magic != WB_CODEC_LINK_MAGIC) return encoded;
    *bytes = link.bytes;
    return host_pointer(link.address);
}

/* The last kernel of an encoding does the work of all. */
static void run_codec(const struct launch *l, uint8_t *a, uint8_t *b, const uint8_t *c)
{
    const int carries = strncmp(l->function->name, "wb_codec_carry", 14) == 0;
    uint64_t encoded_bytes = l->encoded_bytes;
    const uint8_t *from = a;
    wb_codec_window window = l->window;
    window.memory = (uint64_t)(uintptr_t)host_pointer(window.memory);
    window.header = (uint64_t)(uintptr_t)host_pointer(window.header);
    window.entries = (uint64_t)(uintptr_t)host_pointer(window.entries);
    const uint64_t tiles = wb_tiles(l->bytes), bodies = WB_HEADER + WB_ENTRY * tiles;
    uint64_t whole = bodies;
    switch (l->function->kind) {
    case CODEC_BEGIN:
        /* Without a whole tile nothing is counted. */
        if (l->bytes < WB_TILE) wb_codec_begin_double(l->type, NULL, l->bytes, a);
        break;
    case CODEC_PLACE: memcpy(a + 16, &whole, sizeof whole); break;
    case CODEC_WRITE:
        wb_codec_begin_double(l->type, a, l->bytes, b);
        whole += wb_codec_encode_double(a, l->bytes, 0, tiles, b, b + bodies, bodies);
        memcpy(b + 16, &whole, sizeof whole);
        break;
    case CODEC_DECODE:
        if (carries && l->window.header == 0) from = follow(a, &encoded_bytes);
        wb_codec_decode_double(l->type, from, encoded_bytes, l->bytes, l->first, l->tiles, b,
                               &window);
        break;
    case CODEC_VERIFY:
        __atomic_fetch_add((uint64_t *)(uintptr_t)c,
                           wb_codec_verify_double(a, l->encoded_bytes, l->bytes, l->first,
                                                  l->tiles, b),
                           __ATOMIC_RELAXED);
        break;
    default: break;
    }
}

/* One launch at a time: unlike the CUDA kernels, the host kernels use no atomic operations. */
static pthread_mutex_t running = PTHREAD_MUTEX_INITIALIZER;

static void run(void *argument)
{
    struct launch *l = argument;
    pthread_mutex_lock(&running);
    void *a = host_pointer(l->pointers[0]), *b = host_pointer(l->pointers[1]);
    void *c = host_pointer(l->pointers[2]);
    uint64_t nonfinite = 0;
    /* A GPU does not have the modes of the thread that made the stream. */
    fenv_t modes;
    fegetenv(&modes);
    fesetenv(FE_DFL_ENV);
    switch (l->function->kind) {
    case ABSMAX:
        ((void (*)(const void *, const wb_blocks *, uint32_t *, uint64_t *))l->function->run)(
            a, &l->blocks, b, &nonfinite);
        __atomic_fetch_add((uint64_t *)c, nonfinite, __ATOMIC_RELAXED);
        break;
    case SCALES:
        ((void (*)(const uint32_t *, uint64_t, float, void *, float *))l->function->run)(
            a, l->count, l->format_max, b, c);
        break;
    case INVERSES:
        ((void (*)(const void *, uint64_t, int, float *))l->function->run)(a, l->count,
                                                                           l->dequantize, b);
        break;
    case QUANTIZE:
        ((void (*)(const void *, const wb_blocks *, const float *, void *))l->function->run)(
            a, &l->blocks, b, c);
        break;
    case EXPERTS:
        ((void (*)(const wb_experts *, const wb_experts_call *))l->function->run)(&l->experts,
                                                                                &l->call);
        break;
    case EXPERTS_RESIZE:
        ((void (*)(const wb_experts *, uint32_t, uint32_t))l->function->run)(&l->experts, l->keep,
                                                                           l->slots);
        break;
    default: run_codec(l, a, b, c); break;
    }
    fesetenv(&modes);
    pthread_mutex_unlock(&running);
    free(l);
}

CUresult cuModuleLoadData(CUmodule *module, const void *image)
{
    ENTER(cuModuleLoadData, NEEDS_CONTEXT);
    if (module == NULL || image == NULL) return leave(CUDA_ERROR_INVALID_VALUE);
    if (strstr(image, ".entry wb_quantize_bf16_e4m3(") == NULL &&
        strstr(image, ".entry wb_codec_decode_bf16(") == NULL &&
        strstr(image, ".entry wb_experts_route(") == NULL) {
        return leave(CUDA_ERROR_INVALID_VALUE);
    }
    *module = allocate(sizeof **module);
    (*module)->loaded = 1;
    return leave(CUDA_SUCCESS);
}

CUresult cuModuleUnload(CUmodule module)
{
    ENTER(cuModuleUnload, NEEDS_CONTEXT);
    if (module == NULL || !module->loaded) return leave(CUDA_ERROR_INVALID_VALUE);
    module->loaded = 0;
    free(module);
    return leave(CUDA_SUCCESS);
}

CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name)
{
    ENTER(cuModuleGetFunction, NEEDS_CONTEXT);
    if (function == NULL || module == NULL || name == NULL) return leave(CUDA_ERROR_INVALID_VALUE);
    for (size_t i = 0; i < sizeof functions / sizeof *functions; i++) {
        if (strcmp(functions[i].name, name) == 0) {
            *function = &functions[i];
            return leave(CUDA_SUCCESS);
        }
    }
    return leave(CUDA_ERROR_NOT_FOUND);
}

/* Whether a kernel may access the address. On a real device an invalid one destroys the context. */
static int device_can_access(CUdeviceptr address)
{
    struct range *range = range_containing((uintptr_t)(address & ~DEVICE_ALIAS_BIT));
    return range != NULL && (range->kind == RANGE_DEVICE || range_is_mapped(range));
}

static void read_codec_parameters(struct launch *l, void **parameters)
{
    switch (l->function->kind) {
    case CODEC_BEGIN:
        memcpy(&l->type, parameters[0], sizeof l->type);
        memcpy(&l->bytes, parameters[1], sizeof l->bytes);
        break;
    case CODEC_PLACE: memcpy(&l->bytes, parameters[0], sizeof l->bytes); break;
    case CODEC_DECODE:
    case CODEC_VERIFY:
        l->type = (uint32_t)l->function->type;
        memcpy(&l->encoded_bytes, parameters[1], sizeof l->encoded_bytes);
        memcpy(&l->bytes, parameters[2], sizeof l->bytes);
        memcpy(&l->first, parameters[3], sizeof l->first);
        memcpy(&l->tiles, parameters[4], sizeof l->tiles);
        if (strncmp(l->function->name, "wb_codec_carry", 14) == 0) {
            memcpy(&l->window, parameters[6], sizeof l->window);
        }
        break;
    default:
        memcpy(&l->type, parameters[0], sizeof l->type);
        memcpy(&l->bytes, parameters[2], sizeof l->bytes);
        break;
    }
}

/* Reads the parameters of a kernel of an expert cache. Returns whether it may access its state, the
 * sources of its experts and the numbers of its call. */
static int read_experts_parameters(struct launch *l, void **parameters)
{
    const wb_experts *e = &l->experts;
    memcpy(&l->experts, parameters[0], sizeof l->experts);
    if (l->function->kind == EXPERTS) {
        memcpy(&l->call, parameters[1], sizeof l->call);
    } else {
        memcpy(&l->keep, parameters[1], sizeof l->keep);
        memcpy(&l->slots, parameters[2], sizeof l->slots);
    }
    if (!device_can_access(e->head) || !device_can_access(e->sources)) return 0;
    /* The first one is queued after the copy of the state, which has not run yet. */
    if (l->function->kind == EXPERTS_RESIZE) return 1;
    const wb_experts_source *sources = host_pointer(e->sources);
    for (uint32_t i = 0; i < e->layer_count * e->tensor_count; i++) {
        if (!device_can_access(sources[i].address)) return 0;
    }
    return (l->call.ids == 0 || device_can_access(l->call.ids)) &&
           (l->call.slots == 0 || device_can_access(l->call.slots));
}

CUresult cuLaunchKernel(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                        unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared,
                        CUstream handle, void **parameters, void **extra)
{
    ENTER(cuLaunchKernel, NEEDS_CONTEXT);
    const unsigned long long threads = (unsigned long long)block_x * block_y * block_z;
    struct stream *stream;
    CUresult result = stream_find(handle, &stream);
    if (result != CUDA_SUCCESS) return leave(result);
    if (function == NULL || parameters == NULL || extra != NULL || shared > 0 || threads == 0 ||
        threads > 1024 || grid_x == 0 || grid_y == 0 || grid_y > 65535 || grid_z != 1) {
        return leave(CUDA_ERROR_INVALID_VALUE);
    }
    struct launch *l = allocate(sizeof *l);
    /* Positions of the pointers among the parameters, by kind of kernel; -1: none. */
    static const int pointer_indices[][3] = {{0, 2, 3},  {0, 3, 4},   {0, 3, -1},  {0, 2, 3},
                                             {1, 3, -1}, {3, -1, -1}, {1, 3, -1},  {1, -1, -1},
                                             {1, 3, -1}, {0, 5, -1},  {0, 5, 6}};
    struct task task = {
        .kind = TASK_CALL, .function = run, .argument = l, .bytes = sizeof *l, .once = 1};
    l->function = function;
    if (function->kind == EXPERTS || function->kind == EXPERTS_RESIZE) {
        if (read_experts_parameters(l, parameters)) return leave(stream_submit(stream, task, 0));
        free(l);
        return leave(CUDA_ERROR_ILLEGAL_ADDRESS);
    }
    for (int i = 0; i < 3; i++) {
        const int index = pointer_indices[function->kind][i];
        if (index < 0) continue;
        memcpy(&l->pointers[i], parameters[index], sizeof l->pointers[i]);
        if (!device_can_access(l->pointers[i])) {
            free(l);
            return leave(CUDA_ERROR_ILLEGAL_ADDRESS);
        }
    }
    if (function->kind == ABSMAX || function->kind == QUANTIZE) {
        memcpy(&l->blocks, parameters[1], sizeof l->blocks);
    } else if (function->kind >= CODEC_COUNT) {
        read_codec_parameters(l, parameters);
    } else {
        memcpy(&l->count, parameters[1], sizeof l->count);
    }
    if (function->kind == SCALES) memcpy(&l->format_max, parameters[2], sizeof l->format_max);
    if (function->kind == INVERSES) memcpy(&l->dequantize, parameters[2], sizeof(int));
    return leave(stream_submit(stream, task, 0));
}

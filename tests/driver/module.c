/* Modules and kernels. The PTX is not executed: a launch of a kernel of the library runs the host
 * version of that kernel (kernels/host.c) in stream order. */
#include <fenv.h>
#include <stdlib.h>
#include <string.h>

#include "driver.h"

/* The suffix of the host kernels compiled here. */
#define WB_KERNEL _double
#include "host.c"

/* The kernels by their parameters. */
enum kernel_kind { ABSMAX, SCALES, INVERSES, QUANTIZE };

typedef void (*any_function)(void);

struct CUfunc_st {
    const char *name;
    enum kernel_kind kind;
    any_function run;
};

#define ENTRY(kind, name) {"wb_" #name, kind, (any_function)wb_##name##_double}
#define ENTRIES_FOR_SOURCE(source)                                                                \
    ENTRY(ABSMAX, absmax_##source),                                                               \
        ENTRY(QUANTIZE, quantize_##source##_e4m3), ENTRY(QUANTIZE, quantize_##source##_e5m2),     \
        ENTRY(QUANTIZE, dequantize_##source##_e4m3), ENTRY(QUANTIZE, dequantize_##source##_e5m2)

static struct CUfunc_st functions[] = {
    ENTRIES_FOR_SOURCE(f32),       ENTRIES_FOR_SOURCE(f16),        ENTRIES_FOR_SOURCE(bf16),
    ENTRY(SCALES, scales_f32),     ENTRY(SCALES, scales_e8m0),
    ENTRY(INVERSES, inverses_f32), ENTRY(INVERSES, inverses_e8m0),
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
};

static void *host_pointer(CUdeviceptr address)
{
    return (void *)(uintptr_t)(address & ~DEVICE_ALIAS_BIT);
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
    }
    fesetenv(&modes);
    pthread_mutex_unlock(&running);
    free(l);
}

CUresult cuModuleLoadData(CUmodule *module, const void *image)
{
    ENTER(cuModuleLoadData, NEEDS_CONTEXT);
    if (module == NULL || image == NULL) return leave(CUDA_ERROR_INVALID_VALUE);
    if (strstr(image, ".entry wb_quantize_bf16_e4m3(") == NULL) {
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
    static const int pointer_indices[][3] = {{0, 2, 3}, {0, 3, 4}, {0, 3, -1}, {0, 2, 3}};
    l->function = function;
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
    } else {
        memcpy(&l->count, parameters[1], sizeof l->count);
    }
    if (function->kind == SCALES) memcpy(&l->format_max, parameters[2], sizeof l->format_max);
    if (function->kind == INVERSES) memcpy(&l->dequantize, parameters[2], sizeof(int));
    struct task task = {.kind = TASK_CALL, .function = run, .argument = l, .once = 1};
    return leave(stream_submit(stream, task, 0));
}

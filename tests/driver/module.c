/* Modules and kernels: a kernel of the library runs its counterpart for the host, in its turn. */
#include <stdlib.h>
#include <string.h>

#include "driver.h"

#define WB_KERNEL _double
#include "host.c"

/* What a kernel takes, in the order of its parameters. */
enum takes { ABSMAX, SCALES, INVERSES, QUANTIZE };

typedef void (*any)(void);

struct CUfunc_st {
    const char *name;
    enum takes takes;
    any run;
};

#define FOR_WIDE(K) K(f32) K(f16) K(bf16)
#define LIST_ABSMAX(wide) {"wb_absmax_" #wide, ABSMAX, (any)wb_absmax_##wide##_double},
#define LIST_BOTH(wide)                                                                           \
    {"wb_quantize_" #wide "_e4m3", QUANTIZE, (any)wb_quantize_##wide##_e4m3_double},              \
        {"wb_quantize_" #wide "_e5m2", QUANTIZE, (any)wb_quantize_##wide##_e5m2_double},          \
        {"wb_dequantize_" #wide "_e4m3", QUANTIZE, (any)wb_dequantize_##wide##_e4m3_double},      \
        {"wb_dequantize_" #wide "_e5m2", QUANTIZE, (any)wb_dequantize_##wide##_e5m2_double},

static struct CUfunc_st functions[] = {
    FOR_WIDE(LIST_ABSMAX) FOR_WIDE(LIST_BOTH)
    {"wb_scales_f32", SCALES, (any)wb_scales_f32_double},
    {"wb_scales_e8m0", SCALES, (any)wb_scales_e8m0_double},
    {"wb_inverses_f32", INVERSES, (any)wb_inverses_f32_double},
    {"wb_inverses_e8m0", INVERSES, (any)wb_inverses_e8m0_double},
};

/* A module is the image that it was made of. */
struct CUmod_st {
    int loaded;
};

struct launch {
    CUfunction function;
    CUdeviceptr pointers[4];
    wb_blocks blocks;
    uint64_t count;
    float most;
    int as_they_are;
};

static void *at(CUdeviceptr address)
{
    return (void *)(uintptr_t)(address & ~DEVICE_ADDRESS_MARK);
}

/* One at a time: a device's kernels raise what they share by atomic operations, these do not. */
static pthread_mutex_t running = PTHREAD_MUTEX_INITIALIZER;

static void run(void *argument)
{
    struct launch *l = argument;
    pthread_mutex_lock(&running);
    void *a = at(l->pointers[0]), *b = at(l->pointers[1]), *c = at(l->pointers[2]);
    uint64_t odd = 0;
    switch (l->function->takes) {
    case ABSMAX:
        ((void (*)(const void *, const wb_blocks *, uint32_t *, uint64_t *))l->function->run)(
            a, &l->blocks, b, &odd);
        __atomic_fetch_add((uint64_t *)c, odd, __ATOMIC_RELAXED);
        break;
    case SCALES:
        ((void (*)(const uint32_t *, uint64_t, float, void *, float *))l->function->run)(
            a, l->count, l->most, b, c);
        break;
    case INVERSES:
        ((void (*)(const void *, uint64_t, int, float *))l->function->run)(a, l->count,
                                                                           l->as_they_are, b);
        break;
    case QUANTIZE:
        ((void (*)(const void *, const wb_blocks *, const float *, void *))l->function->run)(
            a, &l->blocks, b, c);
        break;
    }
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

/* Whether a kernel may use the address: on a device a wrong one would end the context. */
static int is_visible(CUdeviceptr address)
{
    struct range *range = range_holding((uintptr_t)(address & ~DEVICE_ADDRESS_MARK));
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
    /* Where the pointers are among the parameters, by what the kernel takes. */
    static const int places[][3] = {{0, 2, 3}, {0, 3, 4}, {0, 3, -1}, {0, 2, 3}};
    l->function = function;
    for (int i = 0; i < 3; i++) {
        const int place = places[function->takes][i];
        if (place < 0) continue;
        memcpy(&l->pointers[i], parameters[place], sizeof l->pointers[i]);
        if (!is_visible(l->pointers[i])) {
            free(l);
            return leave(CUDA_ERROR_ILLEGAL_ADDRESS);
        }
    }
    if (function->takes == ABSMAX || function->takes == QUANTIZE) {
        memcpy(&l->blocks, parameters[1], sizeof l->blocks);
    } else {
        memcpy(&l->count, parameters[1], sizeof l->count);
    }
    if (function->takes == SCALES) memcpy(&l->most, parameters[2], sizeof l->most);
    if (function->takes == INVERSES) memcpy(&l->as_they_are, parameters[2], sizeof(int));
    struct task task = {.kind = TASK_CALL, .function = run, .argument = l};
    return leave(stream_submit(stream, task, 0));
}

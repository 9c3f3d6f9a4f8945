/*
 * The kernels for CUDA devices: the largest sizes of blocks, their scales, and numbers from and to
 * 8 bits. Sixteen elements in a row are a thread's work where they lie side by side at multiples of
 * 16 bytes, and one element otherwise.
 */
#include "blocks.h"

#define VECTOR 16
#define WARP 32
#define EVERYBODY 0xffffffffu

struct f32 {
    typedef float stored;
    static __device__ __forceinline__ float read(float number) { return number; }
    static __device__ __forceinline__ float write(float number) { return number; }
};

struct f16 {
    typedef uint16_t stored;
    static __device__ __forceinline__ float read(uint16_t bits)
    {
        float number;
        asm("cvt.f32.f16 %0, %1;" : "=f"(number) : "h"(bits));
        return number;
    }
    static __device__ __forceinline__ uint16_t write(float number) { return wb_to_f16(number); }
};

struct bf16 {
    typedef uint16_t stored;
    static __device__ __forceinline__ float read(uint16_t bits) { return wb_from_bf16(bits); }
    static __device__ __forceinline__ uint16_t write(float number) { return wb_to_bf16(number); }
};

struct e4m3 {
    static __device__ __forceinline__ uint16_t write2(float low, float high)
    {
#if __CUDA_ARCH__ >= 890
        uint16_t both;
        asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(both) : "f"(high), "f"(low));
        return both;
#else
        return (uint16_t)(wb_to_e4m3(low) | wb_to_e4m3(high) << 8);
#endif
    }
    static __device__ __forceinline__ float read(uint8_t code) { return wb_from_e4m3(code); }
};

struct e5m2 {
    static __device__ __forceinline__ uint16_t write2(float low, float high)
    {
#if __CUDA_ARCH__ >= 890
        uint16_t both;
        asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(both) : "f"(high), "f"(low));
        return both;
#else
        return (uint16_t)(wb_to_e5m2(low) | wb_to_e5m2(high) << 8);
#endif
    }
    static __device__ __forceinline__ float read(uint8_t code) { return wb_from_e5m2(code); }
};

/* Sixteen elements as they are stored. */
template <typename T> union vector {
    uint4 words[VECTOR * sizeof(T) / sizeof(uint4)];
    T elements[VECTOR];
};

template <typename T> static __device__ __forceinline__ vector<T> load(const T *from)
{
    vector<T> read;
#pragma unroll
    for (int i = 0; i < (int)(sizeof read / sizeof(uint4)); i++) {
        read.words[i] = ((const uint4 *)from)[i];
    }
    return read;
}

template <typename T> static __device__ __forceinline__ void store(T *to, const vector<T> &written)
{
#pragma unroll
    for (int i = 0; i < (int)(sizeof written / sizeof(uint4)); i++) {
        ((uint4 *)to)[i] = written.words[i];
    }
}

static __device__ __forceinline__ uint32_t scale_of(const wb_blocks &b, uint64_t row, uint64_t col)
{
    return (uint32_t)(b.first_row + row) / (uint32_t)b.block_rows * (uint32_t)b.scale_cols +
           (uint32_t)col / (uint32_t)b.block_cols;
}

/* Takes a number in; what is not finite is counted instead. */
static __device__ __forceinline__ void take(float number, uint32_t &most, uint32_t &odd)
{
    const uint32_t size = wb_bits(number) & 0x7fffffffu;
    const bool finite = size < WB_INFINITY_BITS;
    most = max(most, finite ? size : 0u);
    odd += !finite;
}

/* Raises sizes[scale] to the most of all lanes of that scale. */
static __device__ __forceinline__ void raise(uint32_t *sizes, uint32_t scale, uint32_t most,
                                             bool active)
{
    const uint32_t first = __shfl_sync(EVERYBODY, scale, 0);
    if (__all_sync(EVERYBODY, active && scale == first)) {
#pragma unroll
        for (int offset = WARP / 2; offset > 0; offset /= 2) {
            most = max(most, __shfl_xor_sync(EVERYBODY, most, offset));
        }
        active = (threadIdx.x + threadIdx.y * blockDim.x) % WARP == 0;
    } else {
        /* Neighbours of one scale come together as far as they go; what is left is raised apart. */
#pragma unroll
        for (int offset = 1; offset < WARP; offset *= 2) {
            const uint32_t other = __shfl_xor_sync(EVERYBODY, most, offset);
            const uint32_t others_scale = __shfl_xor_sync(EVERYBODY, scale, offset);
            const bool others_active = __shfl_xor_sync(EVERYBODY, (int)active, offset);
            if (others_active && others_scale == scale) {
                most = max(most, other);
                active = active && !(threadIdx.x & offset);
            }
        }
    }
    if (active && most > 0) atomicMax(sizes + scale, most);
}

/*
 * Where each row has blocks of its own: a thread loads its part of several rows before it looks at
 * the first, so that it waits once for all of them.
 */
template <typename W>
static __device__ void absmax_by_row(const typename W::stored *source, const wb_blocks &b,
                                     uint32_t *sizes, uint64_t *odd)
{
    const int ahead = 4;
    const uint64_t col = ((uint64_t)blockIdx.x * blockDim.x + threadIdx.x) * VECTOR;
    const uint64_t step = (uint64_t)gridDim.y * blockDim.y;
    for (uint64_t at = (uint64_t)blockIdx.y * blockDim.y; at < b.rows; at += ahead * step) {
        vector<typename W::stored> read[ahead];
#pragma unroll
        for (int i = 0; i < ahead; i++) {
            const uint64_t row = at + i * step + threadIdx.y;
            if (row < b.rows && col < b.cols) {
                read[i] = load(source + (int64_t)row * b.row_stride + col);
            }
        }
#pragma unroll
        for (int i = 0; i < ahead; i++) {
            const uint64_t row = at + i * step + threadIdx.y;
            const bool active = row < b.rows && col < b.cols;
            uint32_t most = 0, others = 0;
            if (active) {
#pragma unroll
                for (int j = 0; j < VECTOR; j++) take(W::read(read[i].elements[j]), most, others);
            }
            raise(sizes, active ? scale_of(b, row, col) : 0, most, active);
            if (others > 0) atomicAdd((unsigned long long *)odd, (unsigned long long)others);
        }
    }
}

/*
 * `strip` rows of a block are a thread's way; strips never reach into another row of blocks. Grid: x
 * over the columns, y over the strips of all rows of blocks.
 */
template <typename W>
static __device__ void absmax(const typename W::stored *source, const wb_blocks &b,
                              uint32_t *sizes, uint64_t *odd, uint32_t strip, bool vectors)
{
    const uint32_t each = vectors ? VECTOR : 1;
    const uint64_t col = ((uint64_t)blockIdx.x * blockDim.x + threadIdx.x) * each;
    const uint32_t block_rows = (uint32_t)b.block_rows;
    const uint32_t strips = (block_rows + strip - 1) / strip; /* of a row of blocks */
    const uint64_t all = (b.first_row + b.rows + block_rows - 1) / block_rows * strips;
    for (uint64_t at = (uint64_t)blockIdx.y * blockDim.y; at < all;
         at += (uint64_t)gridDim.y * blockDim.y) {
        const uint64_t mine = at + threadIdx.y;
        const uint64_t block = mine / strips * block_rows;
        const uint64_t begin = block + mine % strips * strip;
        const uint64_t end = min(min(begin + strip, block + block_rows), b.first_row + b.rows);
        const uint64_t from = max(begin, b.first_row);
        const bool active = mine < all && col < b.cols && from < end;
        uint32_t most = 0, others = 0;
        if (active && vectors) {
            const typename W::stored *line =
                source + (int64_t)(from - b.first_row) * b.row_stride + col;
#pragma unroll 2
            for (uint64_t row = from; row < end; row++, line += b.row_stride) {
                const vector<typename W::stored> read = load(line);
#pragma unroll
                for (int i = 0; i < VECTOR; i++) take(W::read(read.elements[i]), most, others);
            }
        } else if (active) {
            const typename W::stored *line = source +
                                             (int64_t)(from - b.first_row) * b.row_stride +
                                             (int64_t)col * b.col_stride;
            for (uint64_t row = from; row < end; row++, line += b.row_stride) {
                take(W::read(*line), most, others);
            }
        }
        raise(sizes, active ? scale_of(b, from - b.first_row, col) : 0, most, active);
        if (others > 0) atomicAdd((unsigned long long *)odd, (unsigned long long)others);
    }
}

template <typename W, typename F>
static __device__ void quantize(const typename W::stored *source, const wb_blocks &b,
                                const float *inverses, uint8_t *target, bool vectors)
{
    const uint32_t each = vectors ? VECTOR : 1;
    const uint64_t col = ((uint64_t)blockIdx.x * blockDim.x + threadIdx.x) * each;
    if (col >= b.cols) return;
    for (uint64_t row = (uint64_t)blockIdx.y * blockDim.y + threadIdx.y; row < b.rows;
         row += (uint64_t)gridDim.y * blockDim.y) {
        const typename W::stored *line = source + (int64_t)row * b.row_stride;
        const float inverse = inverses[scale_of(b, row, col)];
        uint8_t *to = target + row * b.cols + col;
        if (vectors) {
            const vector<typename W::stored> read = load(line + col);
            vector<uint8_t> written;
#pragma unroll
            for (int i = 0; i < VECTOR; i += 2) {
                const uint16_t both = F::write2(__fmul_rn(W::read(read.elements[i]), inverse),
                                                __fmul_rn(W::read(read.elements[i + 1]), inverse));
                written.elements[i] = (uint8_t)both;
                written.elements[i + 1] = (uint8_t)(both >> 8);
            }
            store(to, written);
        } else {
            const float number = W::read(line[(int64_t)col * b.col_stride]);
            *to = (uint8_t)F::write2(__fmul_rn(number, inverse), 0.0f);
        }
    }
}

template <typename W, typename F>
static __device__ void dequantize(const uint8_t *source, const wb_blocks &b, const float *scales,
                                  typename W::stored *target, bool vectors)
{
    const uint32_t each = vectors ? VECTOR : 1;
    const uint64_t col = ((uint64_t)blockIdx.x * blockDim.x + threadIdx.x) * each;
    if (col >= b.cols) return;
    for (uint64_t row = (uint64_t)blockIdx.y * blockDim.y + threadIdx.y; row < b.rows;
         row += (uint64_t)gridDim.y * blockDim.y) {
        const float scale = scales[scale_of(b, row, col)];
        const uint8_t *from = source + row * b.cols + col;
        typename W::stored *line = target + (int64_t)row * b.row_stride;
        if (vectors) {
            const vector<uint8_t> read = load(from);
            vector<typename W::stored> written;
#pragma unroll
            for (int i = 0; i < VECTOR; i++) {
                written.elements[i] = W::write(__fmul_rn(F::read(read.elements[i]), scale));
            }
            store(line + col, written);
        } else {
            line[(int64_t)col * b.col_stride] = W::write(__fmul_rn(F::read(*from), scale));
        }
    }
}

#define FOR_WIDE(W)                                                                               \
    extern "C" __global__ void wb_absmax_##W(const W::stored *source, wb_blocks b,                \
                                             uint32_t *sizes, uint64_t *odd, uint32_t strip,      \
                                             uint32_t vectors)                                    \
    {                                                                                             \
        if (vectors && b.block_rows == 1) {                                                       \
            absmax_by_row<W>(source, b, sizes, odd);                                              \
        } else {                                                                                  \
            absmax<W>(source, b, sizes, odd, strip, vectors);                                     \
        }                                                                                         \
    }                                                                                             \
    FOR_BOTH(W, e4m3)                                                                             \
    FOR_BOTH(W, e5m2)

#define FOR_BOTH(W, F)                                                                            \
    extern "C" __global__ void wb_quantize_##W##_##F(const W::stored *source, wb_blocks b,        \
                                                     const float *inverses, uint8_t *target,      \
                                                     uint32_t vectors)                            \
    {                                                                                             \
        quantize<W, F>(source, b, inverses, target, vectors);                                     \
    }                                                                                             \
    extern "C" __global__ void wb_dequantize_##W##_##F(const uint8_t *source, wb_blocks b,        \
                                                       const float *scales, W::stored *target,    \
                                                       uint32_t vectors)                          \
    {                                                                                             \
        dequantize<W, F>(source, b, scales, target, vectors);                                     \
    }

FOR_WIDE(f32)
FOR_WIDE(f16)
FOR_WIDE(bf16)

#define FOR_EACH(i, count)                                                                        \
    for (uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x; i < (count);               \
         i += (uint64_t)gridDim.x * blockDim.x)

extern "C" __global__ void wb_scales_f32(const uint32_t *sizes, uint64_t count, float most,
                                         float *scales, float *inverses)
{
    FOR_EACH(i, count) {
        scales[i] = wb_scale(sizes[i], most);
        inverses[i] = __fdiv_rn(1.0f, scales[i]);
    }
}

extern "C" __global__ void wb_scales_e8m0(const uint32_t *sizes, uint64_t count, float most,
                                          uint8_t *scales, float *inverses)
{
    FOR_EACH(i, count) {
        scales[i] = wb_scale_e8m0(sizes[i], most);
        inverses[i] = __fdiv_rn(1.0f, wb_from_e8m0(scales[i]));
    }
}

extern "C" __global__ void wb_inverses_f32(const float *scales, uint64_t count, int as_they_are,
                                           float *inverses)
{
    FOR_EACH(i, count) inverses[i] = as_they_are ? scales[i] : __fdiv_rn(1.0f, scales[i]);
}

extern "C" __global__ void wb_inverses_e8m0(const uint8_t *scales, uint64_t count, int as_they_are,
                                            float *inverses)
{
    FOR_EACH(i, count) {
        const float scale = wb_from_e8m0(scales[i]);
        inverses[i] = as_they_are ? scale : __fdiv_rn(1.0f, scale);
    }
}

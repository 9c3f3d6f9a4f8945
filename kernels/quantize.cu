/*
 * The kernels for CUDA devices: absolute maxima of blocks, their scales, and conversions to and
 * from FP8. With `vectors`, a thread handles 16 elements of a row, which must be contiguous and
 * aligned to 16 bytes; otherwise one element.
 */
#include "blocks.h"

#define VECTOR 16
#define WARP 32
#define ALL_LANES 0xffffffffu

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

#if __CUDA_ARCH__ >= 890
#define WRITE_TWO(format, both, low, high)                                                        \
    asm("cvt.rn.satfinite." #format "x2.f32 %0, %1, %2;" : "=h"(both) : "f"(high), "f"(low))
#else
#define WRITE_TWO(format, both, low, high)                                                        \
    both = (uint16_t)(wb_to_##format(low) | wb_to_##format(high) << 8)
#endif

#define FORMAT(format)                                                                            \
    struct format {                                                                               \
        static __device__ __forceinline__ uint16_t write2(float low, float high)                  \
        {                                                                                         \
            uint16_t both;                                                                        \
            WRITE_TWO(format, both, low, high);                                                   \
            return both;                                                                          \
        }                                                                                         \
        static __device__ __forceinline__ float read(uint8_t code)                                \
        {                                                                                         \
            return wb_from_##format(code);                                                        \
        }                                                                                         \
    };

FORMAT(e4m3)
FORMAT(e5m2)

/* VECTOR elements as stored. */
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

/* Includes a finite number in the largest magnitude; counts any other. */
static __device__ __forceinline__ void observe(float number, uint32_t &largest, uint32_t &excluded)
{
    const uint32_t magnitude = wb_bits(number) & 0x7fffffffu;
    const bool finite = magnitude < WB_INFINITY_BITS;
    largest = max(largest, finite ? magnitude : 0u);
    excluded += !finite;
}

/* Raises absmax[scale] to the largest magnitude of the active lanes with that scale. All lanes of
 * the warp must call it. */
static __device__ __forceinline__ void raise(uint32_t *absmax, uint32_t scale, uint32_t largest,
                                             bool active)
{
    const uint32_t first = __shfl_sync(ALL_LANES, scale, 0);
    if (__all_sync(ALL_LANES, active && scale == first)) {
#pragma unroll
        for (int offset = WARP / 2; offset > 0; offset /= 2) {
            largest = max(largest, __shfl_xor_sync(ALL_LANES, largest, offset));
        }
        active = (threadIdx.x + threadIdx.y * blockDim.x) % WARP == 0;
    } else {
        /* Pairs of lanes with the same scale combine; what remains uses separate atomics. */
#pragma unroll
        for (int offset = 1; offset < WARP; offset *= 2) {
            const uint32_t other = __shfl_xor_sync(ALL_LANES, largest, offset);
            const uint32_t other_scale = __shfl_xor_sync(ALL_LANES, scale, offset);
            const bool other_active = __shfl_xor_sync(ALL_LANES, (int)active, offset);
            if (other_active && other_scale == scale) {
                largest = max(largest, other);
                active = active && !(threadIdx.x & offset);
            }
        }
    }
    if (active && largest > 0) atomicMax(absmax + scale, largest);
}

static __device__ __forceinline__ void add(uint64_t *nonfinite, uint32_t excluded)
{
    if (excluded > 0) atomicAdd((unsigned long long *)nonfinite, (unsigned long long)excluded);
}

/*
 * For blocks of one row. A thread loads its elements of several rows before it uses the first, so
 * that the loads overlap.
 */
template <typename S>
static __device__ void absmax_of_rows(const typename S::stored *source, const wb_blocks &b,
                                      uint32_t *absmax, uint64_t *nonfinite)
{
    const int ahead = 4;
    const uint64_t col = ((uint64_t)blockIdx.x * blockDim.x + threadIdx.x) * VECTOR;
    const uint64_t step = (uint64_t)gridDim.y * blockDim.y;
    for (uint64_t at = (uint64_t)blockIdx.y * blockDim.y; at < b.rows; at += ahead * step) {
        vector<typename S::stored> read[ahead];
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
            uint32_t largest = 0, excluded = 0;
            if (active) {
#pragma unroll
                for (int j = 0; j < VECTOR; j++) {
                    observe(S::read(read[i].elements[j]), largest, excluded);
                }
            }
            raise(absmax, active ? scale_of(b, row, col) : 0, largest, active);
            add(nonfinite, excluded);
        }
    }
}

/*
 * Each thread handles `strip` consecutive rows of one row of blocks. Grid: x covers the columns, y
 * the strips of all rows of blocks.
 */
template <typename S>
static __device__ void absmax_of_strips(const typename S::stored *source, const wb_blocks &b,
                                        uint32_t *absmax, uint64_t *nonfinite, uint32_t strip,
                                        bool vectors)
{
    const uint32_t each = vectors ? VECTOR : 1;
    const uint64_t col = ((uint64_t)blockIdx.x * blockDim.x + threadIdx.x) * each;
    const uint32_t block_rows = (uint32_t)b.block_rows;
    const uint32_t strips = (block_rows + strip - 1) / strip; /* of a row of blocks */
    const uint64_t strip_count = (b.first_row + b.rows + block_rows - 1) / block_rows * strips;
    for (uint64_t at = (uint64_t)blockIdx.y * blockDim.y; at < strip_count;
         at += (uint64_t)gridDim.y * blockDim.y) {
        const uint64_t index = at + threadIdx.y;
        const uint64_t block = index / strips * block_rows;
        const uint64_t begin = block + index % strips * strip;
        const uint64_t end = min(min(begin + strip, block + block_rows), b.first_row + b.rows);
        const uint64_t from = max(begin, b.first_row);
        const bool active = index < strip_count && col < b.cols && from < end;
        uint32_t largest = 0, excluded = 0;
        if (active && vectors) {
            const typename S::stored *line =
                source + (int64_t)(from - b.first_row) * b.row_stride + col;
#pragma unroll 2
            for (uint64_t row = from; row < end; row++, line += b.row_stride) {
                const vector<typename S::stored> read = load(line);
#pragma unroll
                for (int i = 0; i < VECTOR; i++) {
                    observe(S::read(read.elements[i]), largest, excluded);
                }
            }
        } else if (active) {
            const typename S::stored *line = source +
                                             (int64_t)(from - b.first_row) * b.row_stride +
                                             (int64_t)col * b.col_stride;
            for (uint64_t row = from; row < end; row++, line += b.row_stride) {
                observe(S::read(*line), largest, excluded);
            }
        }
        raise(absmax, active ? scale_of(b, from - b.first_row, col) : 0, largest, active);
        add(nonfinite, excluded);
    }
}

template <typename S, typename F>
static __device__ void quantize(const typename S::stored *source, const wb_blocks &b,
                                const float *inverses, uint8_t *target, bool vectors)
{
    const uint32_t each = vectors ? VECTOR : 1;
    const uint64_t col = ((uint64_t)blockIdx.x * blockDim.x + threadIdx.x) * each;
    if (col >= b.cols) return;
    for (uint64_t row = (uint64_t)blockIdx.y * blockDim.y + threadIdx.y; row < b.rows;
         row += (uint64_t)gridDim.y * blockDim.y) {
        const typename S::stored *line = source + (int64_t)row * b.row_stride;
        const float inverse = inverses[scale_of(b, row, col)];
        uint8_t *to = target + row * b.cols + col;
        if (vectors) {
            const vector<typename S::stored> read = load(line + col);
            vector<uint8_t> written;
#pragma unroll
            for (int i = 0; i < VECTOR; i += 2) {
                const uint16_t both = F::write2(__fmul_rn(S::read(read.elements[i]), inverse),
                                                __fmul_rn(S::read(read.elements[i + 1]), inverse));
                written.elements[i] = (uint8_t)both;
                written.elements[i + 1] = (uint8_t)(both >> 8);
            }
            store(to, written);
        } else {
            const float number = S::read(line[(int64_t)col * b.col_stride]);
            *to = (uint8_t)F::write2(__fmul_rn(number, inverse), 0.0f);
        }
    }
}

template <typename S, typename F>
static __device__ void dequantize(const uint8_t *source, const wb_blocks &b, const float *scales,
                                  typename S::stored *target, bool vectors)
{
    const uint32_t each = vectors ? VECTOR : 1;
    const uint64_t col = ((uint64_t)blockIdx.x * blockDim.x + threadIdx.x) * each;
    if (col >= b.cols) return;
    for (uint64_t row = (uint64_t)blockIdx.y * blockDim.y + threadIdx.y; row < b.rows;
         row += (uint64_t)gridDim.y * blockDim.y) {
        const float scale = scales[scale_of(b, row, col)];
        const uint8_t *from = source + row * b.cols + col;
        typename S::stored *line = target + (int64_t)row * b.row_stride;
        if (vectors) {
            const vector<uint8_t> read = load(from);
            vector<typename S::stored> written;
#pragma unroll
            for (int i = 0; i < VECTOR; i++) {
                written.elements[i] = S::write(__fmul_rn(F::read(read.elements[i]), scale));
            }
            store(line + col, written);
        } else {
            line[(int64_t)col * b.col_stride] = S::write(__fmul_rn(F::read(*from), scale));
        }
    }
}

#define FOR_SOURCE(S)                                                                             \
    extern "C" __global__ void wb_absmax_##S(const S::stored *source, wb_blocks b,                \
                                             uint32_t *absmax, uint64_t *nonfinite,               \
                                             uint32_t strip, uint32_t vectors)                    \
    {                                                                                             \
        if (vectors && b.block_rows == 1) {                                                       \
            absmax_of_rows<S>(source, b, absmax, nonfinite);                                      \
        } else {                                                                                  \
            absmax_of_strips<S>(source, b, absmax, nonfinite, strip, vectors);                    \
        }                                                                                         \
    }                                                                                             \
    FOR_FORMAT(S, e4m3)                                                                           \
    FOR_FORMAT(S, e5m2)

#define FOR_FORMAT(S, F)                                                                          \
    extern "C" __global__ void wb_quantize_##S##_##F(const S::stored *source, wb_blocks b,        \
                                                     const float *inverses, uint8_t *target,      \
                                                     uint32_t vectors)                            \
    {                                                                                             \
        quantize<S, F>(source, b, inverses, target, vectors);                                     \
    }                                                                                             \
    extern "C" __global__ void wb_dequantize_##S##_##F(const uint8_t *source, wb_blocks b,        \
                                                       const float *scales, S::stored *target,    \
                                                       uint32_t vectors)                          \
    {                                                                                             \
        dequantize<S, F>(source, b, scales, target, vectors);                                     \
    }

FOR_SOURCE(f32)
FOR_SOURCE(f16)
FOR_SOURCE(bf16)

#define FOR_EACH(i, count)                                                                        \
    for (uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x; i < (count);               \
         i += (uint64_t)gridDim.x * blockDim.x)

/* As in host.c. */
#define SCALES(type, stored)                                                                      \
    extern "C" __global__ void wb_scales_##type(const uint32_t *absmax, uint64_t count,           \
                                                float format_max, stored *scales,                 \
                                                float *inverses)                                  \
    {                                                                                             \
        FOR_EACH(i, count) {                                                                      \
            scales[i] = wb_scale_##type(absmax[i], format_max);                                   \
            inverses[i] = __fdiv_rn(1.0f, wb_from_##type(scales[i]));                             \
        }                                                                                         \
    }

SCALES(f32, float)
SCALES(e8m0, uint8_t)

/* As in host.c. */
#define INVERSES(type, stored)                                                                    \
    extern "C" __global__ void wb_inverses_##type(const stored *scales, uint64_t count,           \
                                                  int dequantize, float *factors)                 \
    {                                                                                             \
        FOR_EACH(i, count) {                                                                      \
            const float scale = wb_from_##type(scales[i]);                                        \
            factors[i] = dequantize ? scale : __fdiv_rn(1.0f, scale);                             \
        }                                                                                         \
    }

INVERSES(f32, float)
INVERSES(e8m0, uint8_t)

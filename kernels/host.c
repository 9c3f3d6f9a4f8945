/*
 * The kernels for the host, for one thread: plain loops that a compiler turns into vector
 * instructions. Compiled once for every processor, and once for those with AVX2
 * (WB_KERNEL names the copies).
 */
#include "blocks.h"

#define WB_JOIN2(name, suffix) name##suffix
#define WB_JOIN(name, suffix) WB_JOIN2(name, suffix)
#define KERNEL(name) WB_JOIN(wb_##name, WB_KERNEL)

/* Numbers of host memory may lie at any address, as those of a mapped file do. */
typedef float anywhere_f32 __attribute__((aligned(1)));
typedef uint16_t anywhere_u16 __attribute__((aligned(1)));

static inline uint64_t least(uint64_t one, uint64_t other)
{
    return one < other ? one : other;
}

static inline float from_f32(float number)
{
    return number;
}

static inline float to_f32(float number)
{
    return number;
}

/* Loops over the blocks' parts in one row: from `col` up to `end`, all of scale `scale`. */
#define FOR_PARTS(b, row, col, end, scale)                                                        \
    for (uint64_t col = 0, scale = ((b)->first_row + (row)) / (b)->block_rows * (b)->scale_cols,  \
                  end = least((b)->block_cols, (b)->cols);                                        \
         col < (b)->cols; col = end, end = least(end + (b)->block_cols, (b)->cols), scale++)

/* The largest size among `count` finite numbers, and how many were none. */
#define LARGEST(name, type, from)                                                                 \
    static uint32_t largest_##name(const type *source, int64_t stride, uint64_t count,            \
                                   uint64_t *odd)                                                 \
    {                                                                                             \
        uint32_t most = 0, others = 0;                                                            \
        if (stride == 1) {                                                                        \
            /* Signed, and without a branch: what vector instructions compare and choose from. */    \
            int32_t most_so_far = 0, others_so_far = 0;                                           \
            for (uint64_t i = 0; i < count; i++) {                                                \
                const int32_t size = (int32_t)(wb_bits(from(source[i])) & 0x7fffffffu);           \
                const int32_t is_finite = size < (int32_t)WB_INFINITY_BITS;                       \
                const int32_t counted = size & -is_finite;                                        \
                most_so_far = counted > most_so_far ? counted : most_so_far;                      \
                others_so_far += 1 - is_finite;                                                   \
            }                                                                                     \
            most = (uint32_t)most_so_far;                                                         \
            others = (uint32_t)others_so_far;                                                     \
        } else {                                                                                  \
            for (uint64_t i = 0; i < count; i++) {                                                \
                const uint32_t size = wb_bits(from(source[(int64_t)i * stride])) & 0x7fffffffu;   \
                if (size >= WB_INFINITY_BITS) others++;                                           \
                else if (size > most) most = size;                                                \
            }                                                                                     \
        }                                                                                         \
        *odd += others;                                                                           \
        return most;                                                                              \
    }                                                                                             \
                                                                                                  \
    /* The same where every column has a scale of its own. */                                     \
    static uint32_t raise_##name(const type *restrict source, uint64_t count,                     \
                                 uint32_t *restrict sizes)                                        \
    {                                                                                             \
        int32_t others = 0;                                                                       \
        for (uint64_t i = 0; i < count; i++) {                                                    \
            const int32_t size = (int32_t)(wb_bits(from(source[i])) & 0x7fffffffu);               \
            const int32_t is_finite = size < (int32_t)WB_INFINITY_BITS;                           \
            const int32_t counted = size & -is_finite, before = (int32_t)sizes[i];                \
            sizes[i] = (uint32_t)(counted > before ? counted : before);                           \
            others += 1 - is_finite;                                                              \
        }                                                                                         \
        return (uint32_t)others;                                                                  \
    }                                                                                             \
                                                                                                  \
    void KERNEL(absmax_##name)(const type *source, const wb_blocks *b, uint32_t *sizes,           \
                               uint64_t *odd)                                                     \
    {                                                                                             \
        for (uint64_t row = 0; row < b->rows; row++) {                                            \
            const type *line = source + (int64_t)row * b->row_stride;                             \
            if (b->block_cols == 1 && b->col_stride == 1) {                                       \
                uint32_t *mine = sizes + (b->first_row + row) / b->block_rows * b->scale_cols;    \
                *odd += raise_##name(line, b->cols, mine);                                        \
                continue;                                                                         \
            }                                                                                     \
            FOR_PARTS(b, row, col, end, scale) {                                                  \
                const type *part = line + (int64_t)col * b->col_stride;                           \
                const uint32_t most = largest_##name(part, b->col_stride, end - col, odd);        \
                if (most > sizes[scale]) sizes[scale] = most;                                     \
            }                                                                                     \
        }                                                                                         \
    }

LARGEST(f32, anywhere_f32, from_f32)
LARGEST(f16, anywhere_u16, wb_from_f16)
LARGEST(bf16, anywhere_u16, wb_from_bf16)

#define QUANTIZE(name, type, from, format)                                                        \
    void KERNEL(quantize_##name##_##format)(const type *source, const wb_blocks *b,               \
                                            const float *inverses, uint8_t *target)               \
    {                                                                                             \
        for (uint64_t row = 0; row < b->rows; row++) {                                            \
            const type *line = source + (int64_t)row * b->row_stride;                             \
            uint8_t *to = target + row * b->cols;                                                 \
            if (b->block_cols == 1 && b->col_stride == 1) {                                       \
                const float *inverse =                                                            \
                    inverses + (b->first_row + row) / b->block_rows * b->scale_cols;              \
                for (uint64_t i = 0; i < b->cols; i++) {                                          \
                    to[i] = wb_to_##format(from(line[i]) * inverse[i]);                           \
                }                                                                                 \
                continue;                                                                         \
            }                                                                                     \
            FOR_PARTS(b, row, col, end, scale) {                                                  \
                const float inverse = inverses[scale];                                            \
                if (b->col_stride == 1) {                                                         \
                    for (uint64_t i = col; i < end; i++) {                                        \
                        to[i] = wb_to_##format(from(line[i]) * inverse);                          \
                    }                                                                             \
                } else {                                                                          \
                    for (uint64_t i = col; i < end; i++) {                                        \
                        to[i] = wb_to_##format(from(line[(int64_t)i * b->col_stride]) * inverse); \
                    }                                                                             \
                }                                                                                 \
            }                                                                                     \
        }                                                                                         \
    }

QUANTIZE(f32, anywhere_f32, from_f32, e4m3)
QUANTIZE(f16, anywhere_u16, wb_from_f16, e4m3)
QUANTIZE(bf16, anywhere_u16, wb_from_bf16, e4m3)
QUANTIZE(f32, anywhere_f32, from_f32, e5m2)
QUANTIZE(f16, anywhere_u16, wb_from_f16, e5m2)
QUANTIZE(bf16, anywhere_u16, wb_from_bf16, e5m2)

#define DEQUANTIZE(name, type, to_type, format)                                                   \
    void KERNEL(dequantize_##name##_##format)(const uint8_t *source, const wb_blocks *b,          \
                                              const float *scales, type *target)                  \
    {                                                                                             \
        for (uint64_t row = 0; row < b->rows; row++) {                                            \
            const uint8_t *from = source + row * b->cols;                                         \
            type *line = target + (int64_t)row * b->row_stride;                                   \
            FOR_PARTS(b, row, col, end, scale) {                                                  \
                const float multiplier = scales[scale];                                           \
                for (uint64_t i = col; i < end; i++) {                                            \
                    const float number = wb_from_##format(from[i]) * multiplier;                  \
                    line[(int64_t)i * b->col_stride] = to_type(number);                           \
                }                                                                                 \
            }                                                                                     \
        }                                                                                         \
    }

DEQUANTIZE(f32, anywhere_f32, to_f32, e4m3)
DEQUANTIZE(f16, anywhere_u16, wb_to_f16, e4m3)
DEQUANTIZE(bf16, anywhere_u16, wb_to_bf16, e4m3)
DEQUANTIZE(f32, anywhere_f32, to_f32, e5m2)
DEQUANTIZE(f16, anywhere_u16, wb_to_f16, e5m2)
DEQUANTIZE(bf16, anywhere_u16, wb_to_bf16, e5m2)

/* From the largest sizes to multipliers as they are stored, and their inverses. */
void KERNEL(scales_f32)(const uint32_t *sizes, uint64_t count, float most, anywhere_f32 *scales,
                        float *inverses)
{
    for (uint64_t i = 0; i < count; i++) {
        scales[i] = wb_scale(sizes[i], most);
        inverses[i] = 1.0f / scales[i];
    }
}

void KERNEL(scales_e8m0)(const uint32_t *sizes, uint64_t count, float most, uint8_t *scales,
                         float *inverses)
{
    for (uint64_t i = 0; i < count; i++) {
        scales[i] = wb_scale_e8m0(sizes[i], most);
        inverses[i] = 1.0f / wb_from_e8m0(scales[i]);
    }
}

/* Multipliers that were given, in single precision, or their inverses. */
void KERNEL(inverses_f32)(const anywhere_f32 *scales, uint64_t count, int as_they_are,
                          float *inverses)
{
    for (uint64_t i = 0; i < count; i++) {
        inverses[i] = as_they_are ? scales[i] : 1.0f / scales[i];
    }
}

void KERNEL(inverses_e8m0)(const uint8_t *scales, uint64_t count, int as_they_are,
                           float *inverses)
{
    for (uint64_t i = 0; i < count; i++) {
        const float scale = wb_from_e8m0(scales[i]);
        inverses[i] = as_they_are ? scale : 1.0f / scale;
    }
}

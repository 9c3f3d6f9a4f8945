/*
 * The kernels for the host, each for one thread: plain loops that compilers vectorize. Compiled
 * once for each supported instruction set; WB_KERNEL is the suffix of the copy.
 */
#include "blocks.h"

#define WB_JOIN2(name, suffix) name##suffix
#define WB_JOIN(name, suffix) WB_JOIN2(name, suffix)
#define KERNEL(name) WB_JOIN(wb_##name, WB_KERNEL)

/* Elements as stored. Host memory may be unaligned, such as that of a mapped file. */
typedef float stored_f32 __attribute__((aligned(1)));
typedef uint16_t stored_f16 __attribute__((aligned(1)));
typedef uint16_t stored_bf16 __attribute__((aligned(1)));
typedef uint8_t stored_e8m0;

static inline uint64_t smaller(uint64_t one, uint64_t other)
{
    return one < other ? one : other;
}

/* The index of the first scale of a row. */
static inline uint64_t scale_row(const wb_blocks *b, uint64_t row)
{
    return (b->first_row + row) / b->block_rows * b->scale_cols;
}

/* Whether each column has its own scale and rows are contiguous. */
static inline int scale_per_column(const wb_blocks *b)
{
    return b->block_cols == 1 && b->col_stride == 1;
}

/* Loops over the parts of a row that share a scale: columns `col` to `end`, scale index `scale`. */
#define FOR_PARTS(b, row, col, end, scale)                                                        \
    for (uint64_t col = 0, scale = scale_row(b, row), end = smaller((b)->block_cols, (b)->cols);  \
         col < (b)->cols; col = end, end = smaller(end + (b)->block_cols, (b)->cols), scale++)

/* Raises each of `absmax` to the bits of the largest finite magnitude in its block, and adds the
 * number of elements that are not finite to `nonfinite`. */
#define ABSMAX(type)                                                                              \
    static uint32_t largest_##type(const stored_##type *source, int64_t stride, uint64_t count,   \
                                   uint64_t *nonfinite)                                           \
    {                                                                                             \
        uint32_t largest = 0, excluded = 0;                                                       \
        if (stride == 1) {                                                                        \
            /* Signed and free of branches, as vector instructions compare and select. */         \
            int32_t signed_largest = 0, signed_excluded = 0;                                      \
            for (uint64_t i = 0; i < count; i++) {                                                \
                const int32_t magnitude =                                                         \
                    (int32_t)(wb_bits(wb_from_##type(source[i])) & 0x7fffffffu);                  \
                const int32_t is_finite = magnitude < (int32_t)WB_INFINITY_BITS;                  \
                const int32_t counted = magnitude & -is_finite;                                   \
                signed_largest = counted > signed_largest ? counted : signed_largest;             \
                signed_excluded += 1 - is_finite;                                                 \
            }                                                                                     \
            largest = (uint32_t)signed_largest;                                                   \
            excluded = (uint32_t)signed_excluded;                                                 \
        } else {                                                                                  \
            for (uint64_t i = 0; i < count; i++) {                                                \
                const float number = wb_from_##type(source[(int64_t)i * stride]);                 \
                const uint32_t magnitude = wb_bits(number) & 0x7fffffffu;                         \
                if (magnitude >= WB_INFINITY_BITS) excluded++;                                    \
                else if (magnitude > largest) largest = magnitude;                                \
            }                                                                                     \
        }                                                                                         \
        *nonfinite += excluded;                                                                   \
        return largest;                                                                           \
    }                                                                                             \
                                                                                                  \
    /* For contiguous columns that each have their own scale. */                                  \
    static uint32_t raise_columns_##type(const stored_##type *restrict source, uint64_t count,    \
                                         uint32_t *restrict absmax)                               \
    {                                                                                             \
        int32_t excluded = 0;                                                                     \
        for (uint64_t i = 0; i < count; i++) {                                                    \
            const int32_t magnitude =                                                             \
                (int32_t)(wb_bits(wb_from_##type(source[i])) & 0x7fffffffu);                      \
            const int32_t is_finite = magnitude < (int32_t)WB_INFINITY_BITS;                      \
            const int32_t counted = magnitude & -is_finite, before = (int32_t)absmax[i];          \
            absmax[i] = (uint32_t)(counted > before ? counted : before);                          \
            excluded += 1 - is_finite;                                                            \
        }                                                                                         \
        return (uint32_t)excluded;                                                                \
    }                                                                                             \
                                                                                                  \
    void KERNEL(absmax_##type)(const stored_##type *source, const wb_blocks *b, uint32_t *absmax, \
                               uint64_t *nonfinite)                                               \
    {                                                                                             \
        for (uint64_t row = 0; row < b->rows; row++) {                                            \
            const stored_##type *line = source + (int64_t)row * b->row_stride;                    \
            if (scale_per_column(b)) {                                                            \
                *nonfinite +=                                                                     \
                    raise_columns_##type(line, b->cols, absmax + scale_row(b, row));              \
                continue;                                                                         \
            }                                                                                     \
            FOR_PARTS(b, row, col, end, scale) {                                                  \
                const stored_##type *part = line + (int64_t)col * b->col_stride;                  \
                const uint32_t largest =                                                          \
                    largest_##type(part, b->col_stride, end - col, nonfinite);                    \
                if (largest > absmax[scale]) absmax[scale] = largest;                             \
            }                                                                                     \
        }                                                                                         \
    }

ABSMAX(f32)
ABSMAX(f16)
ABSMAX(bf16)

#define QUANTIZE(type, format)                                                                    \
    void KERNEL(quantize_##type##_##format)(const stored_##type *source, const wb_blocks *b,      \
                                            const float *inverses, uint8_t *target)               \
    {                                                                                             \
        for (uint64_t row = 0; row < b->rows; row++) {                                            \
            const stored_##type *line = source + (int64_t)row * b->row_stride;                    \
            uint8_t *to = target + row * b->cols;                                                 \
            if (scale_per_column(b)) {                                                            \
                const float *inverse = inverses + scale_row(b, row);                              \
                for (uint64_t i = 0; i < b->cols; i++) {                                          \
                    to[i] = wb_to_##format(wb_from_##type(line[i]) * inverse[i]);                 \
                }                                                                                 \
                continue;                                                                         \
            }                                                                                     \
            FOR_PARTS(b, row, col, end, scale) {                                                  \
                const float inverse = inverses[scale];                                            \
                if (b->col_stride == 1) {                                                         \
                    for (uint64_t i = col; i < end; i++) {                                        \
                        to[i] = wb_to_##format(wb_from_##type(line[i]) * inverse);                \
                    }                                                                             \
                } else {                                                                          \
                    for (uint64_t i = col; i < end; i++) {                                        \
                        const stored_##type *element = line + (int64_t)i * b->col_stride;         \
                        to[i] = wb_to_##format(wb_from_##type(*element) * inverse);               \
                    }                                                                             \
                }                                                                                 \
            }                                                                                     \
        }                                                                                         \
    }

#define DEQUANTIZE(type, format)                                                                  \
    void KERNEL(dequantize_##type##_##format)(const uint8_t *source, const wb_blocks *b,          \
                                              const float *scales, stored_##type *target)         \
    {                                                                                             \
        for (uint64_t row = 0; row < b->rows; row++) {                                            \
            const uint8_t *from = source + row * b->cols;                                         \
            stored_##type *line = target + (int64_t)row * b->row_stride;                          \
            FOR_PARTS(b, row, col, end, scale) {                                                  \
                const float factor = scales[scale];                                               \
                for (uint64_t i = col; i < end; i++) {                                            \
                    const float number = wb_from_##format(from[i]) * factor;                      \
                    line[(int64_t)i * b->col_stride] = wb_to_##type(number);                      \
                }                                                                                 \
            }                                                                                     \
        }                                                                                         \
    }

#define CONVERSIONS(type)                                                                         \
    QUANTIZE(type, e4m3) QUANTIZE(type, e5m2) DEQUANTIZE(type, e4m3) DEQUANTIZE(type, e5m2)

CONVERSIONS(f32)
CONVERSIONS(f16)
CONVERSIONS(bf16)

/* Computes scales and their inverses from the result of ABSMAX. */
#define SCALES(type)                                                                              \
    void KERNEL(scales_##type)(const uint32_t *absmax, uint64_t count, float format_max,          \
                               stored_##type *scales, float *inverses)                            \
    {                                                                                             \
        for (uint64_t i = 0; i < count; i++) {                                                    \
            scales[i] = wb_scale_##type(absmax[i], format_max);                                   \
            inverses[i] = 1.0f / wb_from_##type(scales[i]);                                       \
        }                                                                                         \
    }

SCALES(f32)
SCALES(e8m0)

/* Converts given scales to factors: their inverses, or for dequantization the scales themselves. */
#define INVERSES(type)                                                                            \
    void KERNEL(inverses_##type)(const stored_##type *scales, uint64_t count, int dequantize,     \
                                 float *factors)                                                  \
    {                                                                                             \
        for (uint64_t i = 0; i < count; i++) {                                                    \
            const float scale = wb_from_##type(scales[i]);                                        \
            factors[i] = dequantize ? scale : 1.0f / scale;                                       \
        }                                                                                         \
    }

INVERSES(f32)
INVERSES(e8m0)

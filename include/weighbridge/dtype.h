/* Element types.
 * Generated from the Rust sources; change those and run `make header`. */
#ifndef WEIGHBRIDGE_DTYPE_H
#define WEIGHBRIDGE_DTYPE_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/** An element type: one of `WB_DTYPE_*`. */
typedef int32_t wb_dtype;
/** Boolean, 1 byte. */
#define WB_DTYPE_BOOL 1
/** Signed integer, 1 byte. */
#define WB_DTYPE_I8 2
/** Signed integer, 2 bytes. */
#define WB_DTYPE_I16 3
/** Signed integer, 4 bytes. */
#define WB_DTYPE_I32 4
/** Signed integer, 8 bytes. */
#define WB_DTYPE_I64 5
/** Unsigned integer, 1 byte. */
#define WB_DTYPE_U8 6
/** Unsigned integer, 2 bytes. */
#define WB_DTYPE_U16 7
/** Unsigned integer, 4 bytes. */
#define WB_DTYPE_U32 8
/** Unsigned integer, 8 bytes. */
#define WB_DTYPE_U64 9
/** IEEE half precision, 2 bytes. */
#define WB_DTYPE_F16 10
/** bfloat16, 2 bytes. */
#define WB_DTYPE_BF16 11
/** IEEE single precision, 4 bytes. */
#define WB_DTYPE_F32 12
/** IEEE double precision, 8 bytes. */
#define WB_DTYPE_F64 13
/** Two single-precision numbers, real and imaginary, 8 bytes. */
#define WB_DTYPE_C64 14
/** 8-bit float, 4 exponent and 3 mantissa bits, finite with NaN, 1 byte. */
#define WB_DTYPE_F8_E4M3FN 15
/** 8-bit float, 5 exponent and 2 mantissa bits, 1 byte. */
#define WB_DTYPE_F8_E5M2 16
/** 8-bit power of two without sign (a scale), 1 byte. */
#define WB_DTYPE_F8_E8M0 17
/** Two 4-bit floats (2 exponent bits, 1 mantissa bit) packed in 1 byte; shapes count bytes. */
#define WB_DTYPE_F4_E2M1X2 18
/**
 * A type that the library does not know, of a parameter: blocks of bytes, which are copied bit for
 * bit. Its name and the size of its blocks are in `wb_layout`. It has no views, no DLPack tensors
 * and no quantization.
 */
#define WB_DTYPE_OPAQUE 255

#ifdef __cplusplus
}
#endif

#endif

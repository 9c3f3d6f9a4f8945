/*
 * Conversions between single precision and FP8, half precision, bfloat16 and scales, with the same
 * bits in C and in CUDA: they use integer arithmetic and operations that IEEE 754 rounds exactly.
 * Conversions to FP8 round to nearest even and saturate; NaN becomes 0x7f.
 */
#ifndef WEIGHBRIDGE_FP8_H
#define WEIGHBRIDGE_FP8_H

#ifdef __CUDACC_RTC__
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef unsigned int uint32_t;
typedef unsigned long long uint64_t;
typedef long long int64_t;
#else
#include <stdint.h>
#include <string.h>
#endif

#ifdef __CUDACC__
#define WB_INLINE static __device__ __forceinline__
#else
#define WB_INLINE static inline
#endif

/* The bits of infinity. Magnitudes of finite numbers are below, those of NaN above. */
#define WB_INFINITY_BITS 0x7f800000u

WB_INLINE uint32_t wb_bits(float number)
{
#ifdef __CUDACC__
    return __float_as_uint(number);
#else
    uint32_t bits;
    memcpy(&bits, &number, sizeof bits);
    return bits;
#endif
}

WB_INLINE float wb_number(uint32_t bits)
{
#ifdef __CUDACC__
    return __uint_as_float(bits);
#else
    float number;
    memcpy(&number, &bits, sizeof number);
    return number;
#endif
}

/*
 * Converts to a format with `mantissa` mantissa bits. `normal` and `largest` are the bits of its
 * smallest normal and its largest number in single precision. `step` is 2^23 times its smallest
 * subnormal number: adding it to a subnormal number rounds that number to the format's last bit.
 */
WB_INLINE uint8_t wb_to_fp8(float number, int mantissa, uint32_t normal, uint32_t largest,
                            float step)
{
    const uint32_t bits = wb_bits(number), magnitude = bits & 0x7fffffffu;
    const uint32_t clamped = magnitude < largest ? magnitude : largest;
    const int shift = 23 - mantissa;
    const uint32_t half = (1u << (shift - 1)) - 1u;
    const uint32_t rounded = (clamped + half + ((clamped >> shift) & 1u)) >> shift;
    /* Rebiases the exponent: the smallest normal number has the code 1 << mantissa. */
    const uint32_t as_normal = rounded - (normal >> shift) + (1u << mantissa);
    const uint32_t as_subnormal = wb_bits(wb_number(clamped) + step) - wb_bits(step);
    const uint32_t code = clamped < normal ? as_subnormal : as_normal;
    return (uint8_t)(magnitude > WB_INFINITY_BITS ? 0x7fu : code | ((bits >> 24) & 0x80u));
}

/* 4 exponent and 3 mantissa bits, no infinity; largest number 448. */
WB_INLINE uint8_t wb_to_e4m3(float number)
{
    return wb_to_fp8(number, 3, 0x3c800000u, 0x43e00000u, 16384.0f);
}

/* 5 exponent and 2 mantissa bits; largest number 57344. */
WB_INLINE uint8_t wb_to_e5m2(float number)
{
    return wb_to_fp8(number, 2, 0x38800000u, 0x47600000u, 128.0f);
}

WB_INLINE float wb_from_e4m3(uint8_t code)
{
    const uint32_t sign = (uint32_t)(code & 0x80u) << 24, magnitude = code & 0x7fu;
    const uint32_t normal = (magnitude << 20) + (120u << 23);
    const float small = (float)magnitude * 0.001953125f; /* 2^-9 */
    const uint32_t bits = magnitude == 0x7fu ? 0x7fc00000u
                          : magnitude < 8u   ? wb_bits(small)
                                             : normal;
    return wb_number(bits | sign);
}

WB_INLINE float wb_from_e5m2(uint8_t code)
{
    const uint32_t sign = (uint32_t)(code & 0x80u) << 24, magnitude = code & 0x7fu;
    const uint32_t normal = (magnitude << 21) + (112u << 23);
    const float small = (float)magnitude * 0.0000152587890625f; /* 2^-16 */
    const uint32_t special = magnitude == 0x7cu ? WB_INFINITY_BITS : 0x7fc00000u;
    const uint32_t bits = magnitude >= 0x7cu ? special
                          : magnitude < 4u   ? wb_bits(small)
                                             : normal;
    return wb_number(bits | sign);
}

WB_INLINE float wb_from_f32(float number)
{
    return number;
}

WB_INLINE float wb_to_f32(float number)
{
    return number;
}

WB_INLINE float wb_from_bf16(uint16_t bits)
{
    return wb_number((uint32_t)bits << 16);
}

WB_INLINE uint16_t wb_to_bf16(float number)
{
    const uint32_t bits = wb_bits(number);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return (uint16_t)((bits & 0x7fffffffu) > WB_INFINITY_BITS ? (bits >> 16) | 0x40u : rounded);
}

WB_INLINE float wb_from_f16(uint16_t half)
{
    const uint32_t sign = (uint32_t)(half & 0x8000u) << 16, magnitude = half & 0x7fffu;
    const uint32_t normal = (magnitude << 13) + (112u << 23);
    const float small = (float)magnitude * 5.9604644775390625e-8f; /* 2^-24 */
    const uint32_t special = WB_INFINITY_BITS | (magnitude << 13);
    const uint32_t bits = magnitude >= 0x7c00u  ? special
                          : magnitude < 0x400u ? wb_bits(small)
                                               : normal;
    return wb_number(bits | sign);
}

WB_INLINE uint16_t wb_to_f16(float number)
{
    const uint32_t bits = wb_bits(number), magnitude = bits & 0x7fffffffu;
    const uint32_t sign = (bits >> 16) & 0x8000u;
    const uint32_t rounded = ((magnitude + 0xfffu + ((magnitude >> 13) & 1u)) >> 13) - (112u << 10);
    const uint32_t as_subnormal = wb_bits(wb_number(magnitude) + 0.5f) - wb_bits(0.5f);
    const uint32_t finite = magnitude < 0x38800000u ? as_subnormal : rounded;
    const uint32_t large = magnitude > WB_INFINITY_BITS ? 0x7e00u : 0x7c00u;
    /* Numbers from 65520 on, halfway between the largest number and 65536, become infinity. */
    return (uint16_t)((magnitude >= 0x477ff000u ? large : finite) | sign);
}

/* The scale of a block: its largest finite magnitude, whose bits are `largest`, divided by
 * `format_max`. At least 2^-126, so that its inverse is finite; 1 for a block of zeros. */
WB_INLINE float wb_scale_f32(uint32_t largest, float format_max)
{
    const float smallest = 1.17549435e-38f; /* 2^-126 */
    const float scale = wb_number(largest) / format_max;
    return largest == 0u ? 1.0f : scale > smallest ? scale : smallest;
}

/* That scale rounded up to a power of two, as its biased exponent. */
WB_INLINE uint8_t wb_scale_e8m0(uint32_t largest, float format_max)
{
    const uint32_t bits = wb_bits(wb_scale_f32(largest, format_max));
    const uint32_t exponent = (bits >> 23) + ((bits & 0x7fffffu) != 0u);
    return (uint8_t)(exponent < 254u ? exponent : 254u);
}

WB_INLINE float wb_from_e8m0(uint8_t code)
{
    return wb_number(code == 0xffu ? 0x7fc00000u : code == 0u ? 0x00400000u : (uint32_t)code << 23);
}

#endif

/*
 * 8-bit floats from and to single precision, the same bits in C and in CUDA: integer arithmetic, and
 * one addition whose rounding IEEE 754 fixes. Round to nearest even; what is too large becomes the
 * largest number, NaN becomes 0x7f.
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

/* What bits are beyond every finite number: infinity, and behind it NaN. */
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
 * A format with `mantissa` bits of mantissa, whose smallest normal number has the bits `normal` and
 * whose largest has `largest`. `step` is 2^23 times the smallest subnormal number: added to a number
 * it leaves no room behind that number's last bit, so the sum is rounded there.
 */
WB_INLINE uint8_t wb_to_fp8(float number, int mantissa, uint32_t normal, uint32_t largest,
                            float step)
{
    const uint32_t bits = wb_bits(number), size = bits & 0x7fffffffu;
    const uint32_t clamped = size < largest ? size : largest;
    const int shift = 23 - mantissa;
    const uint32_t half = (1u << (shift - 1)) - 1u;
    const uint32_t rounded = (clamped + half + ((clamped >> shift) & 1u)) >> shift;
    /* The exponent's bias falls away: the smallest normal number has the code 1 << mantissa. */
    const uint32_t as_normal = rounded - (normal >> shift) + (1u << mantissa);
    const uint32_t as_subnormal = wb_bits(wb_number(clamped) + step) - wb_bits(step);
    const uint32_t code = clamped < normal ? as_subnormal : as_normal;
    return (uint8_t)(size > WB_INFINITY_BITS ? 0x7fu : code | ((bits >> 24) & 0x80u));
}

/* Four exponent and three mantissa bits, no infinity: up to 448. */
WB_INLINE uint8_t wb_to_e4m3(float number)
{
    return wb_to_fp8(number, 3, 0x3c800000u, 0x43e00000u, 16384.0f);
}

/* Five exponent and two mantissa bits: up to 57344. */
WB_INLINE uint8_t wb_to_e5m2(float number)
{
    return wb_to_fp8(number, 2, 0x38800000u, 0x47600000u, 128.0f);
}

WB_INLINE float wb_from_e4m3(uint8_t code)
{
    const uint32_t sign = (uint32_t)(code & 0x80u) << 24, size = code & 0x7fu;
    const uint32_t normal = (size << 20) + (120u << 23);
    const float small = (float)size * 0.001953125f; /* 2^-9 */
    const uint32_t bits = size == 0x7fu ? 0x7fc00000u : size < 8u ? wb_bits(small) : normal;
    return wb_number(bits | sign);
}

WB_INLINE float wb_from_e5m2(uint8_t code)
{
    const uint32_t sign = (uint32_t)(code & 0x80u) << 24, size = code & 0x7fu;
    const uint32_t normal = (size << 21) + (112u << 23);
    const float small = (float)size * 0.0000152587890625f; /* 2^-16 */
    const uint32_t special = size == 0x7cu ? WB_INFINITY_BITS : 0x7fc00000u;
    const uint32_t bits = size >= 0x7cu ? special : size < 4u ? wb_bits(small) : normal;
    return wb_number(bits | sign);
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
    const uint32_t sign = (uint32_t)(half & 0x8000u) << 16, size = half & 0x7fffu;
    const uint32_t normal = (size << 13) + (112u << 23);
    const float small = (float)size * 5.9604644775390625e-8f; /* 2^-24 */
    const uint32_t special = WB_INFINITY_BITS | (size << 13);
    const uint32_t bits = size >= 0x7c00u ? special : size < 0x400u ? wb_bits(small) : normal;
    return wb_number(bits | sign);
}

WB_INLINE uint16_t wb_to_f16(float number)
{
    const uint32_t bits = wb_bits(number), size = bits & 0x7fffffffu, sign = (bits >> 16) & 0x8000u;
    const uint32_t rounded = ((size + 0xfffu + ((size >> 13) & 1u)) >> 13) - (112u << 10);
    const uint32_t as_subnormal = wb_bits(wb_number(size) + 0.5f) - wb_bits(0.5f);
    const uint32_t finite = size < 0x38800000u ? as_subnormal : rounded;
    const uint32_t large = size > WB_INFINITY_BITS ? 0x7e00u : 0x7c00u;
    /* From the middle between the largest number and what would follow it. */
    return (uint16_t)((size >= 0x477ff000u ? large : finite) | sign);
}

/* The multiplier of a block whose largest finite size has these bits: largest / most, never so small
 * that its inverse is infinite, and 1 for a block of zeros. */
WB_INLINE float wb_scale(uint32_t largest, float most)
{
    const float smallest = 1.17549435e-38f; /* 2^-126 */
    const float scale = wb_number(largest) / most;
    return largest == 0u ? 1.0f : scale > smallest ? scale : smallest;
}

/* The next power of two from there on, as its exponent and 127. */
WB_INLINE uint8_t wb_scale_e8m0(uint32_t largest, float most)
{
    const uint32_t bits = wb_bits(wb_scale(largest, most));
    const uint32_t exponent = (bits >> 23) + ((bits & 0x7fffffu) != 0u);
    return (uint8_t)(exponent < 254u ? exponent : 254u);
}

WB_INLINE float wb_from_e8m0(uint8_t code)
{
    return wb_number(code == 0xffu ? 0x7fc00000u : code == 0u ? 0x00400000u : (uint32_t)code << 23);
}

#endif

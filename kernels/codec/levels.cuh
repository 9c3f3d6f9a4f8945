/* Looks up exponents, whose codes are on levels; docs/codec.md has them. */
#ifndef WEIGHBRIDGE_CODEC_LEVELS_CUH
#define WEIGHBRIDGE_CODEC_LEVELS_CUH

#include "codec/warp.cuh"

/* Bytes of two words, by the four lowest nibbles of `selector`, each of which is less than 8. */
static __device__ __forceinline__ uint32_t select_bytes(uint32_t low, uint32_t high,
                                                        uint32_t selector)
{
#ifdef __CUDACC_RTC__
    /* __byte_perm would clear the highest bit of each nibble first. */
    uint32_t bytes;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(bytes) : "r"(low), "r"(high), "r"(selector));
    return bytes;
#else
    return __byte_perm(low, high, selector);
#endif
}

/* Selects four bytes in their order, each nibble of `others` that is 1 those of the other word. */
static __device__ __forceinline__ uint32_t selector_of(uint32_t others)
{
#ifdef __CUDACC_RTC__
    /* The compiler would take a sum of bits apart, for units that are busy where adders are not. */
    uint32_t selector;
    asm("mad.lo.u32 %0, %1, 4, 0x32103210;" : "=r"(selector) : "r"(others));
    return selector;
#else
    return 0x32103210u + 4 * others;
#endif
}

/* The bits at even places, next to each other. */
static __device__ __forceinline__ uint32_t even_bits(uint32_t bits)
{
    bits = (bits | bits >> 1) & 0x33333333u;
    bits = (bits | bits >> 2) & 0x0f0f0f0fu;
    return __byte_perm(bits | bits >> 4, 0, 0x4420);
}

/* The `count` lowest bits of a word, and all from 32 on. */
static __device__ __forceinline__ uint32_t lowest_bits(uint32_t count)
{
    return __funnelshift_lc(0xffffffffu, 0, count);
}

/*
 * Bytes of 32 slots, of which each eight are two words: of slots 0, 2, 4 and 6, and of the others.
 * A nibble has two codes of two bits, and selects a byte by one of them when the other is cleared.
 * So codes are looked up where they are, and bytes are put in order.
 */
struct lane_bytes {
    uint32_t even[4], odd[4];
};

/* Where an exponent is in the byte in which it is put together with other bits. */
template <uint32_t TYPE> static __device__ __forceinline__ uint32_t placed(uint32_t exponents)
{
    if (TYPE == WB_CODED_E4M3) return (exponents & 0x0f0f0f0fu) << 3;
    if (TYPE == WB_CODED_F16 || TYPE == WB_CODED_E5M2) return (exponents & 0x1f1f1f1fu) << 2;
    return exponents;
}

/* The exponents by rank, as the header has them. */
struct exponent_ranks {
    uint32_t words[3];
};

static __device__ __forceinline__ exponent_ranks read_ranks(const uint8_t *encoded)
{
    const uint32_t *header = (const uint32_t *)(encoded + WB_RANKS_AT);
    exponent_ranks ranks = {{header[0], header[1], header[2]}};
    return ranks;
}

/* The lower bits of those codes that say that the exponent is on the next level. */
static __device__ __forceinline__ uint32_t escapes(uint32_t codes)
{
    return codes & codes >> 1 & 0x55555555u;
}

/* Words of a lane's shared memory: where the exponents of its slots on the second level begin, up
 * to 32 bytes, and those on the third. A word is read past each. */
enum { SECOND_AT = 0, THIRD_AT = 9, STAGED = 18 };

/* Shared memory of a lane: words that are 32 words apart, so that lanes use different banks,
 * whichever words they read. */
class lane_memory {
#ifdef __CUDACC_RTC__
    typedef uint32_t pointer;
#else
    typedef uint8_t *pointer;
#endif

public:
    __device__ __forceinline__ lane_memory(uint32_t *staged)
    {
#ifdef __CUDACC_RTC__
        asm("{ .reg .u64 a; cvta.to.shared.u64 a, %1; cvt.u32.u64 %0, a; }"
            : "=r"(start)
            : "l"(staged + lane_index()));
        /* Or else the compiler computes the address again wherever it is used. */
        start = __shfl_sync(ALL_LANES, start, lane_index());
#else
        start = (uint8_t *)(staged + lane_index());
#endif
    }
    __device__ __forceinline__ uint32_t read(uint32_t word) const
    {
        uint32_t value;
#ifdef __CUDACC_RTC__
        asm volatile("ld.shared.u32 %0, [%1];" : "=r"(value) : "r"(start + place(word)));
#else
        value = *(uint32_t *)(start + place(word));
#endif
        return value;
    }
    __device__ __forceinline__ void write(uint32_t word, uint32_t value) const
    {
#ifdef __CUDACC_RTC__
        asm volatile("st.shared.u32 [%0], %1;" :: "r"(start + place(word)), "r"(value));
#else
        *(uint32_t *)(start + place(word)) = value;
#endif
    }
    __device__ __forceinline__ void write_byte(uint32_t byte, uint32_t value) const
    {
        const pointer at = start + place(byte / 4) + byte % 4;
#ifdef __CUDACC_RTC__
        asm volatile("st.shared.u8 [%0], %1;" :: "r"(at), "r"(value));
#else
        *at = (uint8_t)value;
#endif
    }

private:
    static __device__ __forceinline__ uint32_t place(uint32_t word) { return 4 * WB_LANES * word; }
    pointer start;
};

/* Looks up 16 codes. */
static __device__ __forceinline__ void look_up(uint32_t codes, uint32_t table, uint32_t *even,
                                               uint32_t *odd)
{
    const uint32_t even_codes = codes & 0x33333333u, odd_codes = codes >> 2 & 0x33333333u;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        even[half] = select_bytes(table, 0, even_codes >> 16 * half);
        odd[half] = select_bytes(table, 0, odd_codes >> 16 * half);
    }
}

/* Looks up 16 codes. Takes the exponents that are on the next level from the lane's words, from bit
 * `next` on after the beginning of word `first`. */
static __device__ __forceinline__ void look_up(uint32_t codes, uint32_t table,
                                               const lane_memory &mine, uint32_t first,
                                               uint32_t &next, uint32_t *even, uint32_t *odd)
{
    const uint32_t even_codes = codes & 0x33333333u, odd_codes = codes >> 2 & 0x33333333u;
    const uint32_t escaped = escapes(codes);
    const uint32_t even_escaped = escaped & 0x11111111u, odd_escaped = escaped >> 2 & 0x11111111u;
    const uint32_t pairs = even_escaped + odd_escaped;
    /* Each nibble selects a byte of what is looked up, or of the next level. */
    const uint32_t even_choice = selector_of(even_escaped), odd_choice = selector_of(odd_escaped);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const uint32_t shift = 16 * half, word = first + next / 32;
        /* Eight exponents of the next level, more than enough. */
        const uint32_t middle = mine.read(word + 1);
        const uint32_t low = __funnelshift_r(mine.read(word), middle, next);
        const uint32_t high = __funnelshift_r(middle, mine.read(word + 2), next);
        /* The k-th nibble counts those of them that the first k pairs of slots take. */
        const uint32_t taken = (pairs >> shift) * 0x11110u;
        const uint32_t even_next = select_bytes(low, high, taken);
        const uint32_t odd_next = select_bytes(low, high, taken + (even_escaped >> shift));
        even[half] = select_bytes(select_bytes(table, 0, even_codes >> shift), even_next,
                                  even_choice >> shift);
        odd[half] = select_bytes(select_bytes(table, 0, odd_codes >> shift), odd_next,
                                 odd_choice >> shift);
        next += taken >> 13 & 0x78u;
    }
}

/* Writes the exponents of 16 codes in their order to the lane's words. */
static __device__ __forceinline__ void write_in_order(const lane_memory &mine, uint32_t first,
                                            const uint32_t *even, const uint32_t *odd)
{
#pragma unroll
    for (int half = 0; half < 2; half++) {
        mine.write(first + 2 * half, __byte_perm(even[half], odd[half], 0x5140));
        mine.write(first + 2 * half + 1, __byte_perm(even[half], odd[half], 0x7362));
    }
}

/* The levels of a coded levels. */
struct tile_levels {
    const uint8_t *body;
    wb_sections sections;
    uint32_t tables[WB_LEVELS]; /* exponents of each; the fourth byte is not used */
    uint32_t used[WB_LEVELS];   /* by earlier rounds: codes of the others, and raw exponents */

    /* 32 bits of the body from a bit on; past its last word they are undefined. */
    __device__ __forceinline__ uint32_t bits_at(uint32_t bit) const
    {
        const uint32_t *words = (const uint32_t *)body;
        const uint32_t at = bit / 32, last = sections.end / 4 - 1;
        return __funnelshift_r(words[smaller(at, last)], words[smaller(at + 1, last)], bit);
    }

    /* Takes `count` codes of a level for the lane. Returns the bit of the first. */
    __device__ __forceinline__ uint32_t take(uint32_t level, uint32_t count)
    {
        uint32_t total;
        const uint32_t before = used[level - 1] + sum_before(count, total);
        used[level - 1] += total;
        return 8 * sections.codes[level] + 2 * before;
    }
};

template <uint32_t TYPE>
static __device__ __forceinline__ tile_levels find_levels(const exponent_ranks &header,
                                                          const uint8_t *body,
                                                          const wb_sections &sections)
{
    const uint32_t first = placed<TYPE>(header.words[0]), second = placed<TYPE>(header.words[1]);
    const uint32_t third = placed<TYPE>(header.words[2]);
    tile_levels levels = {body,
                          sections,
                          {first & 0xffffffu, __funnelshift_r(first, second, 24) & 0xffffffu,
                           __funnelshift_r(second, third, 16) & 0xffffffu, third >> 8},
                          {0, 0, 0, 0}};
    return levels;
}

/* Looks up the third level, for `count` slots of the lane, with what is below it. */
template <uint32_t TYPE>
static __device__ __forceinline__ void look_up_third(tile_levels &levels, const lane_memory &mine,
                                                     uint32_t count)
{
    uint32_t even[2], odd[2], bit = levels.take(2, count), codes = levels.bits_at(bit);
    look_up(codes, levels.tables[2], even, odd);
    write_in_order(mine, THIRD_AT, even, odd);
    uint32_t marked = even_bits(escapes(codes));
    if (__any_sync(ALL_LANES, count > 16)) {
        codes = levels.bits_at(bit + 32);
        look_up(codes, levels.tables[2], even, odd);
        write_in_order(mine, THIRD_AT + 4, even, odd);
        marked |= even_bits(escapes(codes)) << 16;
    }
    marked &= lowest_bits(count);
    /* Few are on the fourth level or below it: a lane takes one after another of its own. */
    if (!__any_sync(ALL_LANES, marked != 0)) return;
    count = __popc(marked);
    bit = levels.take(3, count);
    uint64_t four = levels.bits_at(bit);
    if (__any_sync(ALL_LANES, count > 16)) four |= (uint64_t)levels.bits_at(bit + 32) << 32;
    uint32_t raw = 0;
    while (marked != 0) {
        const uint32_t slot = marked & (0 - marked), code = (uint32_t)four & 3;
        mine.write_byte(4 * THIRD_AT + __popc(slot - 1), __byte_perm(levels.tables[3], 0, code));
        if (code == 3) raw |= slot;
        marked ^= slot;
        four >>= 2;
    }
    if (!__any_sync(ALL_LANES, raw != 0)) return;
    uint32_t total, at = levels.sections.raw + levels.used[3];
    at += sum_before(__popc(raw), total);
    levels.used[3] += total;
    while (raw != 0) {
        const uint32_t slot = raw & (0 - raw);
        const uint8_t exponent = levels.body[smaller(at, levels.sections.end - 1)];
        mine.write_byte(4 * THIRD_AT + __popc(slot - 1), placed<TYPE>(exponent));
        at++;
        raw ^= slot;
    }
}

/* Looks up 32 slots. Each level takes exponents of the next one, so the last is looked up first. */
template <uint32_t TYPE>
static __device__ __forceinline__ void look_up_round(tile_levels &levels, const lane_memory &mine,
                                                     uint2 codes, lane_bytes &exponents)
{
    const uint32_t count = __popc(escapes(codes.x) | escapes(codes.y) << 1);
    const uint32_t bit = levels.take(1, count);
    uint32_t two = levels.bits_at(bit), more = 0;
    uint32_t on_third = __popc(escapes(two) & lowest_bits(2 * count));
    /* Of the warp, so that what is rare is not in the way of the rest. */
    const bool many = __any_sync(ALL_LANES, count > 16);
    if (many) {
        more = levels.bits_at(bit + 32);
        if (count > 16) on_third += __popc(escapes(more) & lowest_bits(2 * count - 32));
    }
    if (__any_sync(ALL_LANES, on_third != 0)) look_up_third<TYPE>(levels, mine, on_third);
    uint32_t even[2], odd[2], next = 0;
    look_up(two, levels.tables[1], mine, THIRD_AT, next, even, odd);
    write_in_order(mine, SECOND_AT, even, odd);
    if (many) {
        look_up(more, levels.tables[1], mine, THIRD_AT, next, even, odd);
        write_in_order(mine, SECOND_AT + 4, even, odd);
    }
    next = 0;
    uint32_t *evens = exponents.even, *odds = exponents.odd;
    look_up(codes.x, levels.tables[0], mine, SECOND_AT, next, evens, odds);
    look_up(codes.y, levels.tables[0], mine, SECOND_AT, next, evens + 2, odds + 2);
}

#endif

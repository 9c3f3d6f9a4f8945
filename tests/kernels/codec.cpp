// The CUDA source that decodes weights, run on the host with every array access checked: each tile takes the
// bytes that kernels/codec.c encoded, and of damaged tiles nothing is read or written elsewhere.
#include "block.hpp"

#include <stdio.h>
#include <string.h>

#undef __shared__
#define __shared__ static
#include "codec/decode.cuh"

extern "C" {
void wb_codec_begin_host(uint32_t type, const uint8_t *source, uint64_t bytes, uint8_t *target);
uint64_t wb_codec_encode_host(const uint8_t *source, uint64_t bytes, uint64_t first, uint64_t count,
                              uint8_t *target, uint8_t *bodies, uint64_t offset);
}

namespace {

std::mt19937 random_numbers(1);

uint32_t below(uint32_t end)
{
    return (uint32_t)(random_numbers() % end);
}

const uint64_t TILES = 8, BYTES = TILES * WB_TILE, SPACE = WB_HEADER + TILES * WB_ENTRY + 2 * BYTES;

// Values whose exponents are, more or less often, far from the most frequent one, and whose other bits are
// those of `equal` where it has any.
std::vector<uint8_t> values_of(uint32_t type, uint32_t spread, uint32_t equal)
{
    std::vector<uint8_t> values(BYTES);
    const uint32_t bytes = wb_coded_bytes(type), exponent_bits = wb_exponent_bits(type);
    const uint32_t mantissa_bits = 8 * bytes - 1 - exponent_bits;
    for (uint64_t at = 0; at < BYTES; at += bytes) {
        uint32_t exponent = (1u << exponent_bits) / 2;
        while (below(16) < spread && exponent > 0) exponent--;
        const uint32_t others = (below(2) << (8 * bytes - 1) | below(1u << mantissa_bits)) & ~equal;
        const uint32_t exponents = ((1u << exponent_bits) - 1) << mantissa_bits;
        const uint32_t value = others | exponent << mantissa_bits | (0x65a5a5a9u & equal & ~exponents);
        memcpy(&values[at], &value, bytes);
    }
    return values;
}

template <uint32_t TYPE>
bool run_decode(const std::vector<uint8_t> &encoded, uint64_t used, std::vector<uint8_t> &decoded)
{
    bool ended = true;
    for (blockIdx.x = 0; blockIdx.x * WARPS < TILES; blockIdx.x++) {
        ended &= block::run(WARPS * WB_LANES, random_numbers, [&] {
            decode<TYPE>(encoded.data(), used, BYTES, 0, TILES, decoded.data());
        });
    }
    return ended;
}

uint64_t address_of(const uint8_t *bytes)
{
    return (uint64_t)(uintptr_t)bytes;
}

uint64_t offset_of(const std::vector<uint8_t> &encoded, uint64_t tile)
{
    wb_tile_entry entry;
    memcpy(&entry, &encoded[WB_HEADER + tile * WB_ENTRY], sizeof entry);
    return (uint64_t)entry.offset * WB_UNIT;
}

// Decodes tiles `first` to `end` out of a window that has their bodies up to byte `stop`. The bytes that were copied
// there are 0xee in host memory, and in front of them is a link, which a kernel that has the header does not follow.
template <uint32_t TYPE>
bool run_carry(const std::vector<uint8_t> &encoded, uint64_t first, uint64_t end, uint64_t stop,
               std::vector<uint8_t> &decoded)
{
    // The first window has the header and the directory, others copies of them.
    const uint64_t begin = first == 0 ? 0 : offset_of(encoded, first);
    const std::vector<uint8_t> bodies(&encoded[begin], encoded.data() + stop);
    const std::vector<uint8_t> header(&encoded[0], &encoded[WB_HEADER]);
    const std::vector<uint8_t> entries(&encoded[WB_HEADER + first * WB_ENTRY], &encoded[WB_HEADER + end * WB_ENTRY]);
    std::vector<uint8_t> host = encoded;
    std::fill(&host[0], &host[WB_HEADER + TILES * WB_ENTRY], 0xee);
    std::fill(&host[begin], host.data() + stop, 0xee);
    const wb_codec_link link = {WB_CODEC_LINK_MAGIC, 0, address_of(header.data()), header.size()};
    memcpy(host.data(), &link, sizeof link);
    const bool whole = first == 0;
    const wb_codec_window window = {address_of(bodies.data()), begin, stop - begin,
                                    address_of(whole ? bodies.data() : header.data()),
                                    address_of(whole ? bodies.data() + WB_HEADER : entries.data())};
    gridDim.x = 1;
    blockIdx.x = 0;
    return block::run(WARPS * WB_LANES, random_numbers, [&] {
        carry<TYPE>(host.data(), host.size(), BYTES, first, end - first, &decoded[first * WB_TILE], window);
    });
}

template <uint32_t TYPE>
int check(const char *name)
{
    int failed = 0;
    uint64_t coded = 0;
    uint32_t constant = 0;
    // Planes are constant by themselves and together.
    const uint32_t equals[] = {0, 0xff, 0xff00, 0xff0000, 0xffff, 0x8080, 0x80, 0x7f, ~0u};
    for (uint32_t turn = 0; turn < 17 + 2 * std::size(equals); turn++) {
        const uint32_t spread = turn < 17 ? turn : turn % 2 * 5, equal = turn < 17 ? 0 : equals[(turn - 17) / 2];
        const std::vector<uint8_t> source = values_of(TYPE, spread, equal);
        std::vector<uint8_t> encoded(SPACE), decoded(BYTES + WB_TILE, 0xa5), bodies(SPACE);
        wb_codec_begin_host(TYPE, source.data(), BYTES, encoded.data());
        const uint64_t offset = WB_HEADER + TILES * WB_ENTRY;
        const uint64_t body = wb_codec_encode_host(source.data(), BYTES, 0, TILES, encoded.data(),
                                                   bodies.data(), offset);
        memcpy(&encoded[offset], bodies.data(), body);
        encoded.resize(offset + body);
        for (uint64_t tile = 0; tile < TILES; tile++) {
            wb_tile_entry entry;
            memcpy(&entry, &encoded[WB_HEADER + tile * WB_ENTRY], sizeof entry);
            const wb_tile found = wb_read_entry(entry);
            if (found.kind != WB_TILE_CODED) continue;
            coded++;
            constant |= found.constant;
        }
        const bool ended = run_decode<TYPE>(encoded, encoded.size(), decoded);
        if (!ended || memcmp(decoded.data(), source.data(), BYTES) != 0 || decoded[BYTES] != 0xa5) {
            printf("%s: other bytes at a spread of %u, with %x equal\n", name, spread, equal);
            failed++;
        }
        // All in one window, in two, in one that a weight of fewer bytes had, whose last body is in host memory, and
        // in two of which the second has no bodies.
        const uint64_t all = encoded.size(), last = offset_of(encoded, TILES - 1), part = 1 + below(TILES - 1);
        const uint64_t none = offset_of(encoded, part);
        for (const auto &[middle, stop] : {std::pair(TILES, all), {part, all}, {TILES, last}, {part, none}}) {
            std::fill(decoded.begin(), decoded.end(), 0xa5);
            const uint64_t first_stop = middle == TILES ? stop : offset_of(encoded, middle);
            bool carried = run_carry<TYPE>(encoded, 0, middle, first_stop, decoded);
            if (middle != TILES) carried &= run_carry<TYPE>(encoded, middle, TILES, stop, decoded);
            if (!carried || memcmp(decoded.data(), source.data(), BYTES) != 0 || decoded[BYTES] != 0xa5) {
                printf("%s: other bytes through a window up to %llu of %llu\n", name,
                       (unsigned long long)stop, (unsigned long long)all);
                failed++;
            }
        }
        for (uint32_t damage = 0; damage < 8; damage++) {
            std::vector<uint8_t> damaged = encoded;
            const uint64_t whole = damage % 2 == 0 ? damaged.size() : offset;
            for (uint32_t count = 0; count < 20; count++) damaged[below((uint32_t)whole)] = (uint8_t)below(256);
            std::fill(decoded.begin() + BYTES, decoded.end(), 0xa5);
            if (!run_decode<TYPE>(damaged, damaged.size(), decoded) || decoded[BYTES] != 0xa5) {
                printf("%s: a damaged tile is not decoded in its place\n", name);
                failed++;
            }
        }
    }
    if (coded == 0) {
        printf("%s: no tile is coded\n", name);
        failed++;
    }
    uint32_t planes = 1u << WB_EXPONENT_PLANE;
    for (uint32_t plane = 0; plane < WB_EXPONENT_PLANE; plane++) {
        planes |= (wb_plane_bits(TYPE, plane) != 0) << plane;
    }
    if (constant != planes) {
        printf("%s: planes %x of %x are constant in a tile\n", name, constant, planes);
        failed++;
    }
    printf("%s: %llu coded tiles\n", name, (unsigned long long)coded);
    return failed;
}

} // namespace

int main()
{
    const int failed = check<WB_CODED_BF16>("bf16") + check<WB_CODED_F16>("f16") +
                       check<WB_CODED_F32>("f32") + check<WB_CODED_E4M3>("e4m3") +
                       check<WB_CODED_E5M2>("e5m2");
    printf(failed == 0 ? "ok\n" : "%d failed\n", failed);
    return failed != 0;
}

// The CUDA source of the expert cache, run on the host with every array access checked: each call takes the
// slots, counters and bytes of kernels/experts.c, which the host device runs.
#include "block.hpp"

#include <stdio.h>
#include <string.h>

#include "experts.h"
// A few: one decides, one gathers, one comes later.
#undef WB_EXPERTS_BLOCKS
#define WB_EXPERTS_BLOCKS 3u
#include "experts.cu"

shared_state shared;

extern "C" {
void wb_experts_route_host(const wb_experts *e, const wb_experts_call *c);
void wb_experts_resize_host(const wb_experts *e, uint32_t keep, uint32_t slots);
}

namespace {

std::mt19937 random_numbers(1);

uint32_t below(uint32_t end)
{
    return (uint32_t)(random_numbers() % end);
}

const uint32_t TENSORS = 4;

struct shape {
    uint32_t layers, experts, capacity, lanes;
    bool wide;
    uint64_t bytes[TENSORS]; // of an expert of each tensor
};

// A cache, as src/cache/pool.rs makes it, in host memory.
struct cache {
    wb_experts_head head = {};
    std::vector<wb_experts_tensor> tensors;
    std::vector<wb_experts_source> sources;
    std::vector<int32_t> slot_of, expert_in;
    std::vector<uint64_t> used, held, lanes;
    std::vector<wb_experts_counters> counters;
    std::vector<wb_experts_miss> misses;
    std::vector<std::vector<uint8_t>> slots;
    wb_experts state = {};

    cache(const shape &s, const std::vector<std::vector<uint8_t>> &weights)
        : slot_of(s.layers * s.experts, -1), expert_in(s.capacity, -1), used(s.capacity),
          held(s.capacity * s.lanes), lanes(s.lanes, UINT64_MAX), counters(s.layers),
          misses(s.experts)
    {
        head.slots = s.capacity;
        uint64_t chunks = 0, bytes = 0;
        for (uint32_t at = 0; at < TENSORS; at++) {
            slots.emplace_back(s.capacity * s.bytes[at]);
            tensors.push_back({(uint64_t)slots[at].data(), s.bytes[at], chunks});
            chunks += (s.bytes[at] + WB_EXPERTS_CHUNK - 1) / WB_EXPERTS_CHUNK;
            bytes += s.bytes[at];
        }
        for (uint32_t layer = 0; layer < s.layers; layer++) {
            for (uint32_t at = 0; at < TENSORS; at++) {
                const uint64_t first = layer * s.experts * s.bytes[at];
                sources.push_back({(uint64_t)weights[at].data() + first, (int64_t)s.bytes[at]});
            }
        }
        state = {(uint64_t)&head, (uint64_t)tensors.data(), (uint64_t)sources.data(),
                 (uint64_t)slot_of.data(), (uint64_t)expert_in.data(), (uint64_t)used.data(),
                 (uint64_t)held.data(), (uint64_t)lanes.data(), (uint64_t)counters.data(),
                 (uint64_t)misses.data(), bytes, chunks, s.lanes, TENSORS, s.capacity, s.layers,
                 s.layers * s.experts, 0};
    }

    bool is(const cache &other) const
    {
        return head.clock == other.head.clock && head.slots == other.head.slots &&
               slot_of == other.slot_of && expert_in == other.expert_in && used == other.used &&
               held == other.held && lanes == other.lanes && slots == other.slots &&
               memcmp(counters.data(), other.counters.data(), counters.size() * sizeof counters[0]) == 0;
    }
};

// A launch: one block after another, each with other threads' values in its shared memory.
template <typename F>
bool launch(uint32_t blocks, F kernel)
{
    bool ended = true;
    for (uint32_t at = 0; at < blocks; at++) {
        memset((void *)&shared, 0xa5, sizeof shared);
        ended = block::run(THREADS, random_numbers, kernel) && ended;
    }
    return ended;
}

template <typename T>
bool call(const shape &s, cache &cuda, cache &host, uint32_t turn)
{
    const bool hint = turn % 5 == 4;
    const uint32_t layer = below(s.layers), lane = below(s.lanes);
    const uint32_t most = std::min(s.capacity / s.lanes, s.experts);
    const uint32_t first = turn % 7 == 6 ? s.experts / 2 : 0;
    // Few different ones, of which most are in slots; now and then more ids than a block has threads.
    const bool many = turn % 4 == 3;
    const uint32_t different = many ? most : std::min(most, 8u);
    const uint32_t count = many ? 2 * THREADS : 1 + below(64);
    const uint32_t start = many ? below(s.experts) : 0;
    std::vector<T> ids(count), found(count), wanted(count);
    for (T &id : ids) id = (T)((start + below(different)) % s.experts);
    ids[below(count)] = -1;
    if (count > 1) ids[1] = (T)s.experts;
    found = wanted = ids;
    wb_experts_call c = {(uint64_t)found.data(), hint ? 0 : (uint64_t)found.data(), count,
                         sizeof(T) == 8, layer, lane, hint, first, s.experts, layer * s.experts, s.experts};
    // In place or not.
    if (!hint && turn % 2 == 0) c.ids = (uint64_t)ids.data();
    if (!launch(WB_EXPERTS_BLOCKS, [&] { wb_experts_route(cuda.state, c); })) {
        fprintf(stderr, "call %u does not end\n", turn);
        return false;
    }
    c.ids = (uint64_t)wanted.data();
    c.slots = hint ? 0 : c.ids;
    wb_experts_route_host(&host.state, &c);
    if (found == wanted && cuda.is(host)) return true;
    fprintf(stderr, "call %u of %u layers, %u experts, %u slots differs\n", turn, s.layers, s.experts,
            s.capacity);
    return false;
}

bool calls(const shape &s, uint32_t turns)
{
    std::vector<std::vector<uint8_t>> weights;
    for (uint32_t at = 0; at < TENSORS; at++) {
        weights.emplace_back(s.layers * s.experts * s.bytes[at]);
        for (uint8_t &byte : weights[at]) byte = (uint8_t)random_numbers();
    }
    cache cuda(s, weights), host(s, weights);
    for (uint32_t turn = 0; turn < turns; turn++) {
        if (turn % 16 == 15) {
            const uint32_t slots = s.capacity - below(s.capacity / 4);
            const uint32_t keep = std::min(slots, cuda.head.slots);
            if (!launch(1, [&] { wb_experts_resize(cuda.state, keep, slots); })) return false;
            wb_experts_resize_host(&host.state, keep, slots);
        }
        if (!(s.wide ? call<int64_t>(s, cuda, host, turn) : call<int32_t>(s, cuda, host, turn))) {
            return false;
        }
    }
    uint64_t evictions = 0, hits = 0;
    for (const wb_experts_counters &counters : host.counters) {
        evictions += counters.evictions;
        hits += counters.hits;
    }
    const bool fills = s.capacity <= KEPT * THREADS;
    if (hits > 0 && (evictions > 0 || !fills)) return true;
    fprintf(stderr, "no evictions or no hits with %u slots\n", s.capacity);
    return false;
}

} // namespace

int main(void)
{
    // Slots within one round of the block, in two, and beyond what a thread keeps; experts of more than a
    // chunk, and of every alignment that `copy` has.
    const bool right =
        calls({4, 40, 50, 2, false, {WB_EXPERTS_CHUNK + 48, 24, 12, 3}}, 40) &&
        calls({2, 600, 700, 1, true, {32, 8, 4, 1}}, 24) &&
        calls({3, 4000, KEPT * THREADS + 100, 3, false, {16, 2, 6, 1}}, 12);
    if (right) puts("passed");
    return right ? 0 : 1;
}

/*
 * The expert cache for CUDA devices, in blocks of THREADS threads: wb_experts_route in any grid,
 * wb_experts_resize in one block. experts.c has the same steps for the host.
 */
#include "experts.h"

#define THREADS 512
#define WARP 32
#define WARPS (THREADS / WARP)
#define ALL_LANES 0xffffffffu
#define WORDS (WB_MOST_EXPERTS / WARP)
#define NOT_ELIGIBLE 0xffffffffffffffffull

/* Bits of `decided` below the number of launches: how many experts the last one gathers. */
#define DECIDED_SHIFT 16

#define AT(type, address) ((type *)(address))

static __device__ __forceinline__ int64_t id_at(const wb_experts_call &c, uint64_t index)
{
    return c.wide ? AT(const int64_t, c.ids)[index] : AT(const int32_t, c.ids)[index];
}

static __device__ __forceinline__ void write_slot(const wb_experts_call &c, uint64_t index,
                                                  int32_t slot)
{
    if (c.wide) AT(int64_t, c.slots)[index] = slot;
    else AT(int32_t, c.slots)[index] = slot;
}

/* The stamp by which a slot is chosen; NOT_ELIGIBLE if this call needs it, a lane holds it, or
 * there is no such slot. */
static __device__ __forceinline__ uint64_t key_of(const wb_experts &e, const wb_experts_call &c,
                                                  uint64_t clock, uint32_t slots, uint32_t slot)
{
    if (slot >= slots) return NOT_ELIGIBLE;
    const uint64_t used = AT(const uint64_t, e.used)[slot];
    if (used == clock) return NOT_ELIGIBLE;
#pragma unroll 1
    for (uint32_t lane = 0; lane < e.lane_count; lane++) {
        if (!c.hint && lane == c.lane) continue;
        const uint64_t held = AT(const uint64_t, e.held)[(uint64_t)lane * e.capacity + slot];
        if (held == AT(const uint64_t, e.lanes)[lane]) return NOT_ELIGIBLE;
    }
    return used;
}

static __device__ __forceinline__ void use(const wb_experts &e, const wb_experts_call &c,
                                           uint64_t clock, uint32_t slot)
{
    AT(uint64_t, e.used)[slot] = clock;
    if (!c.hint) AT(uint64_t, e.held)[(uint64_t)c.lane * e.capacity + slot] = clock;
}

/* The sum of all lanes of a warp, in each. */
static __device__ __forceinline__ uint32_t warp_sum(uint32_t value)
{
#if __CUDA_ARCH__ >= 800
    return __reduce_add_sync(ALL_LANES, value);
#else
#pragma unroll
    for (int offset = WARP / 2; offset > 0; offset /= 2) {
        value += __shfl_xor_sync(ALL_LANES, value, offset);
    }
    return value;
#endif
}

/* Sums over the block. A sum is read after the barrier of its own call, and its cell is cleared
 * before that of the next but one, so one barrier a call is enough. */
struct block_sums {
    uint32_t cells[3];
};

static __device__ __forceinline__ uint32_t block_sum(block_sums &sums, uint32_t &turn,
                                                     uint32_t value)
{
    const uint32_t mine = turn, next = turn == 2 ? 0 : turn + 1;
    const uint32_t warp = warp_sum(value);
    if (threadIdx.x % WARP == 0 && warp > 0) atomicAdd(&sums.cells[mine], warp);
    if (threadIdx.x == 0) sums.cells[next] = 0;
    __syncthreads();
    turn = next;
    return sums.cells[mine];
}

/* Visits the keys of all slots, slot `j * THREADS + threadIdx.x` being the j-th of a thread. The
 * first KEPT are read from `kept`. */
#define KEPT (8192 / THREADS)

template <typename F>
static __device__ __forceinline__ void each_key(const uint64_t (&kept)[KEPT], const wb_experts &e,
                                                const wb_experts_call &c, uint64_t clock,
                                                uint32_t slots, F visit)
{
#pragma unroll
    for (int j = 0; j < KEPT; j++) visit(kept[j]);
#pragma unroll 1
    for (uint32_t slot = KEPT * THREADS + threadIdx.x; slot < slots; slot += THREADS) {
        visit(key_of(e, c, clock, slots, slot));
    }
}

/* What the threads of a block share. */
struct shared_state {
    uint32_t needed[WORDS], absent[WORDS];
    int32_t slot_of[WB_MOST_EXPERTS]; /* -1: absent */
    uint16_t missing[WB_MOST_EXPERTS];
    block_sums sums;
    uint32_t evicted, ignored;
    uint32_t chosen[2][WARPS];
    uint64_t least[WARPS];
    uint64_t ticket, decided, clock, chunk;
    uint32_t slots;
};

/* The least value of the block. One call in a kernel. */
static __device__ __forceinline__ uint64_t block_min(uint64_t value, shared_state &shared)
{
#pragma unroll
    for (int offset = WARP / 2; offset > 0; offset /= 2) {
        value = min(value, __shfl_xor_sync(ALL_LANES, value, offset));
    }
    if (threadIdx.x % WARP == 0) shared.least[threadIdx.x / WARP] = value;
    __syncthreads();
    value = threadIdx.x % WARP < WARPS ? shared.least[threadIdx.x % WARP] : NOT_ELIGIBLE;
#pragma unroll
    for (int offset = WARP / 2; offset > 0; offset /= 2) {
        value = min(value, __shfl_xor_sync(ALL_LANES, value, offset));
    }
    return value;
}

/* Gives each of `count` absent experts a slot, as long as there are any: those with the smallest
 * keys, the lowest slot first. Returns how many got one. */
static __device__ uint32_t admit_absent(const wb_experts &e, const wb_experts_call &c,
                                        uint64_t clock, uint32_t slots, uint32_t count,
                                        shared_state &shared)
{
    const uint32_t lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    uint64_t low = NOT_ELIGIBLE, kept[KEPT];
#pragma unroll
    for (int j = 0; j < KEPT; j++) {
        kept[j] = key_of(e, c, clock, slots, j * THREADS + threadIdx.x);
    }
    each_key(kept, e, c, clock, slots, [&](uint64_t key) { low = min(low, key); });
    low = block_min(low, shared);
    /* The stamp is the least with at least `admitted` keys up to it. It is near the smallest key, so
     * it is looked for in steps that double, and then in the last of them. One place counts, to keep
     * the code small. */
    enum { ELIGIBLE, DOUBLE, BISECT, TIES } phase = ELIGIBLE;
    uint64_t high = clock - 1, limit = NOT_ELIGIBLE - 1, step = 1;
    uint32_t turn = 0, admitted = 0, ties = 0;
    for (;;) {
        uint32_t found = 0;
        each_key(kept, e, c, clock, slots, [&](uint64_t key) { found += key <= limit; });
        found = block_sum(shared.sums, turn, found);
        if (phase == ELIGIBLE) {
            admitted = min(count, found);
            if (admitted == 0) return 0;
            phase = DOUBLE;
            limit = low;
            continue;
        }
        if (phase == TIES) {
            ties = admitted - found;
            break;
        }
        if (found >= admitted) {
            high = limit;
            phase = BISECT;
        } else {
            low = limit + 1;
        }
        if (phase == DOUBLE && high - low > step) {
            limit = low + step - 1;
            step *= 2;
        } else if (low < high) {
            phase = BISECT;
            limit = low + (high - low) / 2;
        } else if (low == 0) {
            ties = admitted;
            break;
        } else {
            phase = TIES;
            limit = low - 1;
        }
    }
    /* Slots in ascending order: those below the stamp, and the first `ties` with it. */
    const uint32_t lanes_below = (1u << lane) - 1;
    uint32_t below_before = 0, equal_before = 0, parity = 0;
    uint64_t key = kept[0];
#pragma unroll 1
    for (uint32_t first = 0; below_before + min(equal_before, ties) < admitted; first += THREADS) {
        const uint32_t slot = first + threadIdx.x;
        const uint64_t following = key_of(e, c, clock, slots, slot + THREADS);
        const uint32_t below = __ballot_sync(ALL_LANES, key < low);
        const uint32_t equal = __ballot_sync(ALL_LANES, key == low);
        /* Both counts in one word. */
        if (lane == 0) shared.chosen[parity][warp] = __popc(below) | __popc(equal) << 16;
        __syncthreads();
        const uint32_t counts = lane < WARPS ? shared.chosen[parity][lane] : 0;
        const uint32_t all = warp_sum(counts), earlier = warp_sum(lane < warp ? counts : 0);
        const uint32_t mine_below = below_before + (earlier & 0xffff) + __popc(below & lanes_below);
        const uint32_t mine_equal = equal_before + (earlier >> 16) + __popc(equal & lanes_below);
        if (key < low || (key == low && mine_equal < ties)) {
            const uint32_t next = mine_below + min(mine_equal, ties);
            const uint32_t expert = shared.missing[next];
            const int32_t whole = (int32_t)(c.base + expert);
            const int32_t evicted = AT(int32_t, e.expert_in)[slot];
            if (evicted >= 0) {
                AT(int32_t, e.slot_of)[evicted] = -1;
                atomicAdd(&shared.evicted, 1u);
            }
            AT(int32_t, e.expert_in)[slot] = whole;
            AT(int32_t, e.slot_of)[whole] = (int32_t)slot;
            shared.slot_of[expert] = (int32_t)slot;
            use(e, c, clock, slot);
            wb_experts_miss &miss = AT(wb_experts_miss, e.misses)[next];
            miss.expert = expert;
            miss.slot = slot;
        }
        below_before += all & 0xffff;
        equal_before += all >> 16;
        parity ^= 1;
        key = following;
    }
    return admitted;
}

/* What a call has found out. */
struct outcome {
    uint32_t absent;   /* experts that no slot had */
    uint32_t admitted; /* those that got one, which are to be gathered */
};

static __device__ __forceinline__ bool in_pass(const wb_experts_call &c, int64_t id)
{
    return id >= c.first && id < c.end;
}

/* Gives the absent experts of a call slots. */
static __device__ outcome admit(const wb_experts &e, const wb_experts_call &c, uint64_t clock,
                                uint32_t slots, shared_state &shared)
{
    const uint32_t lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const uint32_t words = (c.experts + WARP - 1) / WARP;
    outcome found = {0, 0};
    for (uint32_t word = warp; word < words; word += WARPS) {
        const bool needed = shared.needed[word] >> lane & 1;
        const uint32_t absent =
            __ballot_sync(ALL_LANES, needed && shared.slot_of[word * WARP + lane] < 0);
        if (lane == 0) shared.absent[word] = absent;
    }
    __syncthreads();
    for (uint32_t word = 0; word < words; word++) found.absent += __popc(shared.absent[word]);
    for (uint32_t word = warp, rank = 0, counted = 0; word < words; word += WARPS) {
        while (counted < word) rank += __popc(shared.absent[counted++]);
        const uint32_t absent = shared.absent[word];
        if (absent >> lane & 1) {
            shared.missing[rank + __popc(absent & ((1u << lane) - 1))] =
                (uint16_t)(word * WARP + lane);
        }
    }
    __syncthreads();
    found.admitted = admit_absent(e, c, clock, slots, found.absent, shared);
    __syncthreads();
    return found;
}

/* Looks for the expert of an id in slots. Returns whether it is absent. The block that `decides`
 * stamps it otherwise, and rewrites the id. */
static __device__ __forceinline__ bool look_up(const wb_experts &e, const wb_experts_call &c,
                                               uint64_t clock, uint64_t index, int64_t id,
                                               bool decides, bool writes, shared_state &shared)
{
    int32_t slot = -1;
    const bool counts = in_pass(c, id);
    if (counts) slot = shared.slot_of[id];
    if (!decides) return counts && slot < 0;
    if (writes) write_slot(c, index, slot);
    if (counts) {
        const uint32_t bit = 1u << id % WARP;
        uint32_t *word = &shared.needed[id / WARP];
        if (!(*(volatile uint32_t *)word & bit)) atomicOr(word, bit);
        if (slot >= 0) use(e, c, clock, (uint32_t)slot);
    } else if (id < 0 || id >= c.experts) {
        atomicAdd(&shared.ignored, 1u);
    }
    return counts && slot < 0;
}

/* Writes slots that look_up has not written, or did not know. */
static __device__ void write_slots(const wb_experts_call &c, int64_t first_id,
                                   const shared_state &shared)
{
    for (uint64_t index = threadIdx.x; index < c.count; index += THREADS) {
        const int64_t id = index == threadIdx.x ? first_id : id_at(c, index);
        write_slot(c, index, in_pass(c, id) ? shared.slot_of[id] : -1);
    }
}

static __device__ __forceinline__ void add(uint64_t &counter, uint64_t count)
{
    /* Without a result, which would be waited for. */
    if (count > 0) atomicAdd((unsigned long long *)&counter, (unsigned long long)count);
}

/* Adds a call to the counters, by one warp, and ends it for the next one. */
static __device__ void count(const wb_experts &e, const wb_experts_call &c, uint64_t clock,
                             const outcome &found, const shared_state &shared)
{
    uint32_t needed = 0;
    for (uint32_t word = threadIdx.x; word < (c.experts + WARP - 1) / WARP; word += WARP) {
        needed += __popc(shared.needed[word]);
    }
    needed = warp_sum(needed);
    if (threadIdx.x != 0) return;
    wb_experts_counters &counters = AT(wb_experts_counters, e.counters)[c.layer];
    AT(wb_experts_head, e.head)->clock = clock;
    if (found.absent > 0) {
        add(counters.bytes, found.admitted * e.expert_bytes);
        add(counters.evictions, shared.evicted);
        add(counters.refused, found.absent - found.admitted);
    }
    add(counters.ignored, shared.ignored);
    if (c.hint) {
        add(counters.prefetched, found.admitted);
    } else {
        AT(uint64_t, e.lanes)[c.lane] = clock;
        add(counters.hits, needed - found.absent);
        add(counters.misses, found.absent);
        add(counters.calls, 1);
    }
}

/* Copies `bytes` bytes, a multiple of T's, by all threads of the block. Several loads are in flight
 * before the first store. */
template <typename T>
static __device__ __forceinline__ void copy(uint64_t to, uint64_t from, uint32_t bytes)
{
    const int ahead = 4;
    const uint32_t count = bytes / sizeof(T);
    for (uint32_t first = threadIdx.x; first < count; first += ahead * blockDim.x) {
        T read[ahead];
#pragma unroll
        for (int i = 0; i < ahead; i++) {
            const uint32_t index = first + i * blockDim.x;
            if (index < count) read[i] = AT(const T, from)[index];
        }
#pragma unroll
        for (int i = 0; i < ahead; i++) {
            const uint32_t index = first + i * blockDim.x;
            if (index < count) AT(T, to)[index] = read[i];
        }
    }
}

/* Copies the experts that the call admitted into their slots, together with the other blocks that
 * do. */
static __device__ void gather(const wb_experts &e, const wb_experts_call &c, uint32_t admitted,
                              shared_state &shared)
{
    const wb_experts_tensor *tensors = AT(const wb_experts_tensor, e.tensors);
    const wb_experts_source *sources =
        AT(const wb_experts_source, e.sources) + (uint64_t)c.layer * e.tensor_count;
    unsigned long long *taken = (unsigned long long *)&AT(wb_experts_head, e.head)->chunks;
    const uint64_t chunks = admitted * e.expert_chunks;
    for (;;) {
        if (threadIdx.x == 0) shared.chunk = atomicAdd(taken, 1ull);
        __syncthreads();
        const uint64_t at = shared.chunk;
        if (at >= chunks) return;
        const wb_experts_miss miss = AT(const wb_experts_miss, e.misses)[at / e.expert_chunks];
        const uint64_t chunk = at % e.expert_chunks;
        uint32_t which = 0;
        while (which + 1 < e.tensor_count && tensors[which + 1].first_chunk <= chunk) which++;
        const wb_experts_tensor tensor = tensors[which];
        const uint64_t offset = (chunk - tensor.first_chunk) * WB_EXPERTS_CHUNK;
        const uint32_t bytes = (uint32_t)min(tensor.bytes - offset, (uint64_t)WB_EXPERTS_CHUNK);
        const uint64_t to = tensor.slots + miss.slot * tensor.bytes + offset;
        const uint64_t from =
            sources[which].address + (uint64_t)(sources[which].stride * (int64_t)miss.expert) + offset;
        /* The widest loads that addresses and bytes are multiples of. */
        const uint64_t all = to | from | bytes;
        if (all % 16 == 0) copy<uint4>(to, from, bytes);
        else if (all % 8 == 0) copy<uint2>(to, from, bytes);
        else if (all % 4 == 0) copy<uint32_t>(to, from, bytes);
        else copy<uint8_t>(to, from, bytes);
        __syncthreads();
    }
}

/* The number at the thread's place in a list, or -1. Without a branch, after which loads would be
 * waited for. */
template <typename T>
static __device__ __forceinline__ T read(uint64_t list, bool reads)
{
    T value = -1;
    const uint64_t from = list + threadIdx.x * sizeof(T);
#ifndef __CUDA_ARCH__
    if (reads) value = *AT(const T, from);
#else
    if constexpr (sizeof(T) == 8) {
        asm volatile("{ .reg .pred p; setp.ne.u32 p, %2, 0; @p ld.global.b64 %0, [%1]; }"
                     : "+l"(value)
                     : "l"(from), "r"((uint32_t)reads));
    } else {
        asm volatile("{ .reg .pred p; setp.ne.u32 p, %2, 0; @p ld.global.b32 %0, [%1]; }"
                     : "+r"(value)
                     : "l"(from), "r"((uint32_t)reads));
    }
#endif
    return value;
}

/*
 * A call. The block that takes its ticket first decides; it waits for no other, so the rest may begin
 * at any time. Launches run one after another, so a launch has tickets from a multiple of its blocks
 * on.
 *
 * Most calls find all experts. Then what takes time are reads of device memory that wait for one
 * another. So all blocks read everything that a decision needs beside their ticket, and those that
 * see all experts in slots end. They may see the table, or ids that are rewritten in place, while the
 * first block changes them: then they wait for nothing, or end too early, and no block relies on
 * another to gather.
 */
extern "C" __global__ void __launch_bounds__(THREADS)
    wb_experts_route(const wb_experts e, const wb_experts_call c)
{
    __shared__ shared_state shared;
    wb_experts_head *head = AT(wb_experts_head, e.head);
    volatile uint64_t *decided = (volatile uint64_t *)&head->decided;
    const int32_t *slot_of = AT(const int32_t, e.slot_of) + c.base;
    if (threadIdx.x < WORDS) shared.needed[threadIdx.x] = 0;
    if (threadIdx.x == 0) shared.evicted = shared.ignored = shared.sums.cells[0] = 0;
    /* Nothing is used until all is asked for. */
    wb_experts_head before;
    uint64_t ticket;
    if (threadIdx.x == 0) {
        ticket = atomicAdd((unsigned long long *)&head->tickets, 1ull);
        before.decided = *decided;
        before.clock = head->clock;
        before.slots = head->slots;
    }
    const bool has_id = threadIdx.x < c.count;
    const int64_t wide_id = read<int64_t>(c.ids, has_id && c.wide);
    const int32_t narrow_id = read<int32_t>(c.ids, has_id && !c.wide);
    const int32_t in_slot = read<int32_t>((uint64_t)slot_of, threadIdx.x < c.experts);
    if (threadIdx.x < c.experts) shared.slot_of[threadIdx.x] = in_slot;
    for (uint32_t expert = THREADS + threadIdx.x; expert < c.experts; expert += THREADS) {
        shared.slot_of[expert] = slot_of[expert];
    }
    if (threadIdx.x == 0) {
        shared.ticket = ticket;
        shared.decided = before.decided;
        shared.clock = before.clock + 1;
        shared.slots = before.slots;
    }
    __syncthreads();
    const uint64_t launch = shared.ticket / WB_EXPERTS_BLOCKS, clock = shared.clock;
    const bool decides = shared.ticket % WB_EXPERTS_BLOCKS == 0;
    /* Slots may take the place of ids: with one id for each thread, which keeps it, they are written
     * at once. */
    const bool at_once = c.slots != 0 && c.count <= THREADS;
    const int64_t first_id = c.wide ? wide_id : narrow_id;
    bool misses = false;
    if (has_id) misses = look_up(e, c, clock, threadIdx.x, first_id, decides, at_once, shared);
#pragma unroll 1
    for (uint64_t index = THREADS + threadIdx.x; index < c.count; index += THREADS) {
        misses |= look_up(e, c, clock, index, id_at(c, index), decides, false, shared);
    }
    const bool any = __syncthreads_or(misses);
    uint32_t admitted;
    if (decides) {
        outcome found = {0, 0};
        if (any) found = admit(e, c, clock, shared.slots, shared);
        if (c.slots != 0 && (any || !at_once)) write_slots(c, first_id, shared);
        admitted = found.admitted;
        if (admitted > 0) {
            if (threadIdx.x == 0) head->chunks = 0;
            __threadfence();
            __syncthreads();
        }
        if (threadIdx.x == 0) *decided = (launch + 1) << DECIDED_SHIFT | admitted;
        if (threadIdx.x < WARP) count(e, c, clock, found, shared);
    } else {
        if (!any && shared.decided >> DECIDED_SHIFT <= launch) return;
        __syncthreads();
        if (threadIdx.x == 0) {
            uint64_t now = shared.decided;
            while (now >> DECIDED_SHIFT <= launch) now = *decided;
            __threadfence();
            shared.decided = now;
        }
        __syncthreads();
        admitted = (uint32_t)shared.decided & ((1u << DECIDED_SHIFT) - 1);
    }
    if (admitted > 0) gather(e, c, admitted, shared);
}

/* Empties the slots from `keep` on, and sets how many slots are in use. */
extern "C" __global__ void __launch_bounds__(THREADS)
    wb_experts_resize(const wb_experts e, uint32_t keep, uint32_t slots)
{
    int32_t *expert_in = AT(int32_t, e.expert_in);
    for (uint32_t slot = keep + threadIdx.x; slot < e.capacity; slot += THREADS) {
        if (expert_in[slot] >= 0) AT(int32_t, e.slot_of)[expert_in[slot]] = -1;
        expert_in[slot] = -1;
        AT(uint64_t, e.used)[slot] = 0;
        for (uint32_t lane = 0; lane < e.lane_count; lane++) {
            AT(uint64_t, e.held)[(uint64_t)lane * e.capacity + slot] = 0;
        }
    }
    if (threadIdx.x == 0) AT(wb_experts_head, e.head)->slots = slots;
}

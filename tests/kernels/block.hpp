// CUDA for one block of threads on the host: each thread is a context of its own, which runs until it comes
// to a barrier. Threads go on in a random order, and code that lacks a barrier gives other results.
#ifndef WEIGHBRIDGE_TEST_BLOCK_HPP
#define WEIGHBRIDGE_TEST_BLOCK_HPP

#include <setjmp.h>
#include <stdint.h>
#include <stdlib.h>
#include <ucontext.h>

#include <algorithm>
#include <functional>
#include <random>
#include <vector>

#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(threads)
#define __shared__ extern // the test defines it

struct uint2 {
    uint32_t x, y;
};
struct uint4 {
    uint32_t x, y, z, w;
};

inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }

namespace block {

constexpr uint32_t WARP = 32;
constexpr size_t STACK = 64 << 10;

struct dim3 {
    uint32_t x;
};

// Where threads wait for one another: those of a warp, or all.
struct barrier {
    uint32_t arrived = 0, turn = 0;
    uint32_t values[2][WARP];
    uint32_t any[2] = {0, 0};
};

struct thread {
    ucontext_t start;
    jmp_buf at;
    bool begun, ended;
    const barrier *waits_for;
    uint32_t turn;
};

inline std::vector<thread> threads;
inline std::vector<char> stacks;
inline std::vector<barrier> warps;
inline barrier all;
inline jmp_buf scheduler;
inline std::function<void()> body;

} // namespace block

inline block::dim3 threadIdx, blockDim, blockIdx, gridDim = {1};

namespace block {

inline void begin()
{
    body();
    threads[threadIdx.x].ended = true;
    _longjmp(scheduler, 1);
}

// Waits until `count` threads are here. Returns the turn, whose values stay until the next but one.
inline uint32_t wait(barrier &b, uint32_t count)
{
    const uint32_t turn = b.turn, mine = threadIdx.x;
    if (++b.arrived == count) {
        b.arrived = 0;
        b.turn++;
        b.any[b.turn % 2] = 0;
    }
    threads[mine].waits_for = &b;
    threads[mine].turn = turn;
    if (_setjmp(threads[mine].at) == 0) _longjmp(scheduler, 1);
    return turn % 2;
}

// Runs a block of `count` threads to its end. Returns whether it ended: threads that wait for one that has
// ended never do.
template <typename F>
bool run(uint32_t count, std::mt19937 &random, F function)
{
    static volatile bool moved;
    static std::vector<uint32_t> order;
    static volatile size_t next;
    body = function;
    threads.assign(count, thread{});
    stacks.resize(count * STACK);
    warps.assign(count / WARP, barrier{});
    all = barrier{};
    blockDim.x = count;
    for (uint32_t at = 0; at < count; at++) {
        ucontext_t &start = threads[at].start;
        getcontext(&start);
        start.uc_stack.ss_sp = &stacks[at * STACK];
        start.uc_stack.ss_size = STACK;
        makecontext(&start, begin, 0);
    }
    order.resize(count);
    for (uint32_t at = 0; at < count; at++) order[at] = at;
    std::shuffle(order.begin(), order.end(), random);
    do {
        moved = false;
        for (next = 0; next < count; next = next + 1) {
            const uint32_t mine = order[next];
            thread &t = threads[mine];
            if (t.ended || (t.begun && t.waits_for->turn == t.turn)) continue;
            moved = true;
            threadIdx.x = mine;
            if (_setjmp(scheduler) != 0) continue;
            if (t.begun) _longjmp(t.at, 1);
            t.begun = true;
            setcontext(&t.start);
        }
    } while (moved);
    return std::all_of(threads.begin(), threads.end(), [](const thread &t) { return t.ended; });
}

inline const uint32_t *share(uint32_t value)
{
    barrier &b = warps[threadIdx.x / WARP];
    b.values[b.turn % 2][threadIdx.x % WARP] = value;
    return b.values[wait(b, WARP)];
}

} // namespace block

inline void __syncthreads()
{
    block::wait(block::all, block::threads.size());
}

inline int __syncthreads_or(int value)
{
    block::all.any[block::all.turn % 2] |= value != 0;
    const uint32_t turn = block::wait(block::all, block::threads.size());
    return block::all.any[turn] != 0;
}

inline void __threadfence() {}

inline uint32_t __ballot_sync(uint32_t, bool value)
{
    const uint32_t *values = block::share(value);
    uint32_t bits = 0;
    for (uint32_t lane = 0; lane < block::WARP; lane++) bits |= values[lane] << lane;
    return bits;
}

inline uint32_t __shfl_xor_sync(uint32_t, uint32_t value, int mask)
{
    return block::share(value)[threadIdx.x % block::WARP ^ (uint32_t)mask];
}

inline uint64_t __shfl_xor_sync(uint32_t all, uint64_t value, int mask)
{
    const uint64_t low = __shfl_xor_sync(all, (uint32_t)value, mask);
    return low | (uint64_t)__shfl_xor_sync(all, (uint32_t)(value >> 32), mask) << 32;
}

inline int __any_sync(uint32_t all, bool value)
{
    return __ballot_sync(all, value) != 0;
}

inline uint32_t __shfl_sync(uint32_t, uint32_t value, int lane)
{
    return block::share(value)[lane];
}

inline uint32_t __shfl_up_sync(uint32_t, uint32_t value, int offset)
{
    const uint32_t lane = threadIdx.x % block::WARP;
    return block::share(value)[lane < (uint32_t)offset ? lane : lane - (uint32_t)offset];
}

inline void __syncwarp()
{
    block::share(0);
}

inline uint32_t __clz(uint32_t value)
{
    return value == 0 ? 32 : (uint32_t)__builtin_clz(value);
}

inline uint32_t __funnelshift_r(uint32_t low, uint32_t high, uint32_t shift)
{
    return (uint32_t)(((uint64_t)high << 32 | low) >> shift % 32);
}

inline uint32_t __funnelshift_l(uint32_t low, uint32_t high, uint32_t shift)
{
    return (uint32_t)(((uint64_t)high << 32 | low) << shift % 32 >> 32);
}

inline uint32_t __funnelshift_lc(uint32_t low, uint32_t high, uint32_t shift)
{
    return (uint32_t)(((uint64_t)high << 32 | low) << (shift < 32 ? shift : 32) >> 32);
}

// As the instruction: the highest bit of a nibble asks for the sign of the byte in all bits.
inline uint32_t __byte_perm(uint32_t low, uint32_t high, uint32_t selector)
{
    const uint64_t bytes = (uint64_t)high << 32 | low;
    uint32_t result = 0;
    for (int at = 0; at < 4; at++) {
        const uint32_t nibble = selector >> 4 * at & 15;
        uint32_t byte = (uint32_t)(bytes >> 8 * (nibble & 7)) & 0xff;
        if (nibble & 8) byte = byte & 0x80 ? 0xff : 0;
        result |= byte << 8 * at;
    }
    return result;
}

inline uint32_t __popc(uint32_t value)
{
    return (uint32_t)__builtin_popcount(value);
}

template <typename T, typename U>
T atomicAdd(T *at, U value)
{
    const T before = *at;
    *at += (T)value;
    return before;
}

template <typename T>
T atomicOr(T *at, T value)
{
    const T before = *at;
    *at |= value;
    return before;
}

inline uint32_t min(uint32_t a, uint32_t b) { return a < b ? a : b; }
inline uint64_t min(uint64_t a, uint64_t b) { return a < b ? a : b; }

#endif

"""Rates of the link: of the copy engine, and of a kernel that reads host memory in place."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import cupy
import numpy as np
import torch

RUNS = 7
# Clocks of the device: a millisecond or less.
DELAY = 1_000_000

# Reads every 16 bytes of the source once. Each thread adds one number to `out`, so that the
# compiler keeps the loads.
READ_KERNEL = r"""
extern "C" __global__ void read_all(const uint4* source, unsigned long long count, unsigned* out) {
    unsigned mixed = 0;
    unsigned long long step = (unsigned long long)gridDim.x * blockDim.x;
    unsigned long long at = blockIdx.x * (unsigned long long)blockDim.x + threadIdx.x;
    for (; at + 3 * step < count; at += 4 * step) {
        uint4 a = source[at], b = source[at + step];
        uint4 c = source[at + 2 * step], d = source[at + 3 * step];
        mixed += (a.x ^ a.y ^ a.z ^ a.w) + (b.x ^ b.y ^ b.z ^ b.w);
        mixed += (c.x ^ c.y ^ c.z ^ c.w) + (d.x ^ d.y ^ d.z ^ d.w);
    }
    for (; at < count; at += step) {
        uint4 a = source[at];
        mixed += a.x ^ a.y ^ a.z ^ a.w;
    }
    atomicAdd(out, mixed);
}
"""


@cache
def _read_all() -> Any:
    return cupy.RawModule(code=READ_KERNEL, options=("-std=c++17",)).get_function("read_all")


def kernel_read(address: int, nbytes: int) -> Callable[[], None]:
    """Returns a launch of a kernel of 264 blocks of 512 threads that reads memory in place."""
    stream = cupy.cuda.ExternalStream(torch.cuda.current_stream().cuda_stream)
    arguments = (np.uint64(address), np.uint64(nbytes // 16), cupy.zeros(1, dtype=cupy.uint32))
    return lambda: _read_all()((264,), (512,), arguments, stream=stream)


def bandwidth(run: Callable[[], None], nbytes: int) -> list[float]:
    """Returns GB/s of ``run`` by events on the current stream, each the mean of three runs.

    The device waits until all three are queued, so that it never waits for the host.
    """
    rates = []
    for measure in range(RUNS + 1):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(DELAY)
        begin.record()
        for _ in range(3):
            run()
        end.record()
        end.synchronize()
        if measure > 0:
            rates.append(3 * nbytes / begin.elapsed_time(end) / 1e6)
    return rates

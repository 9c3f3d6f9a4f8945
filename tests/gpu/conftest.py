"""Fixtures of the GPU tests: the device, and kernels that read and write through views."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import cupy
import numpy as np
import pytest
import torch

from weighbridge import Device

SOURCE = r"""
// Waits for clock cycles, then sums the words: memory that is freed meanwhile changes the sum.
extern "C" __global__ void slow_sum(
    long long cycles, const unsigned* words, unsigned long long count, unsigned long long* sum) {
    for (long long begin = clock64(); clock64() - begin < cycles;) {}
    unsigned long long mine = 0;
    for (unsigned long long at = threadIdx.x; at < count; at += blockDim.x) mine += words[at];
    atomicAdd(sum, mine);
}
extern "C" __global__ void add_one(int* words, int count) {
    int at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at < count) words[at] += 1;
}
"""


class Kernels:
    """The compiled kernels, on raw addresses."""

    # At most 2 GHz: half a second or more.
    HALF_A_SECOND = 1_000_000_000

    def __init__(self) -> None:
        module = cupy.RawModule(code=SOURCE)
        self._slow_sum = module.get_function("slow_sum")
        self._add_one = module.get_function("add_one")

    def slow_sum(
        self, stream: torch.cuda.Stream, address: int, words: int, cycles: int = HALF_A_SECOND
    ) -> cupy.ndarray:
        """Queues the sum of ``words`` words at ``address``; the returned array receives it."""
        out = cupy.zeros(1, dtype=cupy.uint64)
        cupy.cuda.Device().synchronize()
        arguments = (np.int64(cycles), np.uint64(address), np.uint64(words), out)
        self._slow_sum((1,), (256,), arguments, stream=cupy.cuda.ExternalStream(stream.cuda_stream))
        return out

    def add_one(self, stream: torch.cuda.Stream, address: int, words: int) -> None:
        """Queues an increment of ``words`` int32 at ``address``."""
        arguments = (np.uint64(address), np.int32(words))
        blocks = (words + 255) // 256
        external = cupy.cuda.ExternalStream(stream.cuda_stream)
        self._add_one((blocks,), (256,), arguments, stream=external)


@pytest.fixture(scope="session")
def kernels() -> Kernels:
    torch.cuda.init()
    torch.empty(1, device="cuda")
    return Kernels()


@pytest.fixture
def device() -> Iterator[Device]:
    """A new device, whose counters must be 0 after the test."""
    with Device("cuda:0") as opened:
        yield opened
        gc.collect()  # the traceback of a caught error holds the variables of its frames
        opened.drain(30)
        stats = opened.stats
        assert (stats.buffers, stats.views, stats.pinned_bytes, stats.device_bytes) == (0, 0, 0, 0)


@pytest.fixture
def stream() -> torch.cuda.Stream:
    return torch.cuda.Stream()

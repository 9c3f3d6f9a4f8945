"""A kernel with one deliberate defect, which shows that a tool of compute-sanitizer is active.

``defects.py memcheck|racecheck|initcheck``: the tool must report it and fail the program.
"""

from __future__ import annotations

import sys

import cupy

SOURCE = r"""
extern "C" __global__ void memcheck(int* memory) { memory[(1 << 20) + threadIdx.x] = 1; }
extern "C" __global__ void racecheck(int* memory) {
    __shared__ int shared[64];
    shared[threadIdx.x] = threadIdx.x;
    memory[threadIdx.x] = shared[63 - threadIdx.x];
}
extern "C" __global__ void initcheck(int* memory) { memory[threadIdx.x] += 1; }
"""

if __name__ == "__main__":
    tool = sys.argv[1]
    # From the driver itself: CuPy's pool would allocate more than 256 bytes.
    address = cupy.cuda.runtime.malloc(256)
    cupy.RawModule(code=SOURCE).get_function(tool)((1,), (64,), (cupy.uint64(address),))
    cupy.cuda.runtime.deviceSynchronize()

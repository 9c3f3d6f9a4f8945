"""Pins memory with a peer. Each peer has a process of its own: its settings are per process.

python benches/peers.py PEER BYTES RUNS prints one line of JSON: the seconds of each run, and the
decrease of MemFree in the first one.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

TORCH_REGISTER = "pinned_use_cuda_host_register:True,pinned_num_register_threads:16"


def free_bytes() -> int:
    """Returns MemFree of /proc/meminfo."""
    with open("/proc/meminfo") as lines:
        for line in lines:
            if line.startswith("MemFree:"):
                return int(line.split()[1]) << 10
    raise RuntimeError("/proc/meminfo names no MemFree")


def timed(make: Callable[[], Any], release: Callable[[Any], None], runs: int) -> dict[str, Any]:
    """Returns the seconds of each run of ``make``, and the decrease of MemFree in the first."""
    seconds, taken = [], 0
    for run in range(runs):
        before = free_bytes()
        start = time.perf_counter()
        made = make()
        seconds.append(time.perf_counter() - start)
        if run == 0:
            taken = before - free_bytes()
        release(made)
        del made
    return {"seconds": seconds, "taken": taken}


def cuda_host_alloc(nbytes: int, runs: int) -> dict[str, Any]:
    """cudaHostAlloc and cudaFreeHost."""
    import torch

    torch.cuda.init()
    library = ctypes.CDLL("libcudart.so.13")  # installed with torch

    def make() -> ctypes.c_void_p:
        pointer = ctypes.c_void_p()
        code = library.cudaHostAlloc(ctypes.byref(pointer), ctypes.c_size_t(nbytes), 0)
        if code != 0:
            raise RuntimeError(f"cudaHostAlloc failed with {code}")
        return pointer

    return timed(make, lambda pointer: library.cudaFreeHost(pointer), runs)


def torch_empty(nbytes: int, runs: int) -> dict[str, Any]:
    """torch.empty(pin_memory=True) with the allocator settings of this process."""
    import torch

    torch.cuda.init()
    torch.empty(1, device="cuda")

    def make() -> Any:
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)

    result: dict[str, Any] = {"seconds": [], "taken": 0}
    for run in range(runs):
        once = timed(make, lambda _: None, 1)
        gc.collect()
        torch.cuda.synchronize()
        torch._C._host_emptyCache()  # else the next run takes memory from its cache
        result["seconds"] += once["seconds"]
        result["taken"] = once["taken"] if run == 0 else result["taken"]
    return result


def torch_pin_memory(nbytes: int, runs: int) -> dict[str, Any]:
    """tensor.pin_memory(): pins a copy."""
    import torch

    torch.cuda.init()
    source = torch.ones(nbytes, dtype=torch.uint8)
    result: dict[str, Any] = {"seconds": [], "taken": 0}
    for run in range(runs):
        once = timed(source.pin_memory, lambda _: None, 1)
        gc.collect()
        torch._C._host_emptyCache()
        result["seconds"] += once["seconds"]
        result["taken"] = once["taken"] if run == 0 else result["taken"]
    return result


PEERS: dict[str, Callable[[int, int], dict[str, Any]]] = {
    "cudaHostAlloc": cuda_host_alloc,
    "torch.empty": torch_empty,
    "torch.empty.register": torch_empty,
    "torch.pin_memory": torch_pin_memory,
}

DESCRIPTIONS = {
    "cudaHostAlloc": "cudaHostAlloc",
    "torch.empty": "torch.empty(pin_memory=True), default settings",
    "torch.empty.register": f"torch.empty(pin_memory=True), {TORCH_REGISTER}",
    "torch.pin_memory": "tensor.pin_memory(), which copies",
}


def environment(peer: str) -> dict[str, str]:
    """Returns the environment for the process of a peer."""
    settings = {"torch.empty.register": {"PYTORCH_CUDA_ALLOC_CONF": TORCH_REGISTER}}
    return {**os.environ, **settings.get(peer, {})}


if __name__ == "__main__":
    print(json.dumps(PEERS[sys.argv[1]](int(sys.argv[2]), int(sys.argv[3]))))

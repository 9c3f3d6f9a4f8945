"""Benchmark of the foundation: pinning, mapping, copying and views, each beside a peer.

    make gpu-bench SUBJECT=foundation

weighbridge and its peers run on the same machine in the same run. Host memory is used once before:
the first use of memory is slow in a virtual machine. GB is 10^9 bytes.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import link
import native
import peers
import weighbridge
from link import bandwidth as rates_of
from report import RESULTS, ROOT, Report
from weighbridge import Buffer, Device

GIB = 1 << 30
FOUR = 4 * GIB
FOUR_AND_A_HALF = 9 * GIB // 2
RUNS = 7
THREADS = 16


def warm(device: Device) -> None:
    """Uses as much of the machine's memory as any measurement here."""
    for _ in range(2):
        Buffer.alloc(device, 40 * GIB, pin=False, threads=THREADS).close()


def pinning(report: Report, device: Device) -> None:
    """Measures pinned allocations, of cudaHostAlloc and PyTorch too.

    PyTorch allocates the next power of two. Its bars are therefore at 4.5 GiB; its best case,
    4 GiB, is measured too.
    """

    def weighbridge_rate(nbytes: int, size: str) -> float:
        rates, counted, fallen = [], 0, 0
        for run in range(RUNS + 1):
            free = peers.free_bytes()
            start = time.perf_counter()
            buffer = Buffer.alloc(device, nbytes, threads=THREADS)
            seconds = time.perf_counter() - start
            if run > 0:  # the first one loads code
                rates.append(nbytes / seconds / 1e9)
                fallen = max(fallen, free - peers.free_bytes())
                info, stats = buffer.info, buffer.stats
                held = (info.mapped_bytes, info.pinned_bytes, stats.resident_bytes)
                counted = max(counted, *held)
            buffer.close()
        what = f"wb_buffer_alloc, {size}, {THREADS} threads"
        rate = report.figure(f"pin.weighbridge.{size}", rates, "GB/s", what)
        what = f"largest of mapped, pinned and resident (mincore) bytes over requested, {size}"
        taken[size] = report.figure(f"taken.weighbridge.{size}", [counted / nbytes], "x", what)
        what = f"decrease of MemFree over requested bytes, {size}, with page tables and driver"
        report.figure(f"memfree.weighbridge.{size}", [fallen / nbytes], "x", what)
        return rate

    def peer(name: str, nbytes: int, size: str, runs: int) -> float:
        command = [sys.executable, str(ROOT / "benches/peers.py"), name, str(nbytes), str(runs)]
        done = subprocess.run(
            command,
            env=peers.environment(name),
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{name}: {done.stderr[-2000:]}")
        answer = json.loads(done.stdout)
        rates = [nbytes / seconds / 1e9 for seconds in answer["seconds"]]
        what = f"{peers.DESCRIPTIONS[name]}, {size}"
        rate = report.figure(f"pin.{name}.{size}", rates, "GB/s", what)
        what = f"decrease of MemFree over requested bytes, {size}"
        report.figure(f"memfree.{name}.{size}", [answer["taken"] / nbytes], "x", what)
        return rate

    taken: dict[str, float] = {}
    pinned, at_worst = weighbridge_rate(FOUR, "4GiB"), weighbridge_rate(FOUR_AND_A_HALF, "4.5GiB")
    host_alloc = peer("cudaHostAlloc", FOUR, "4GiB", 3)
    over: dict[str, float] = {}
    for name, runs in (("torch.empty", 3), ("torch.pin_memory", 3), ("torch.empty.register", 5)):
        over[name] = at_worst / peer(name, FOUR_AND_A_HALF, "4.5GiB", runs)
        ratio = pinned / peer(name, FOUR, "4GiB", runs)
        what = "weighbridge over the peer at a power of two, the peer's best case"
        report.figure(f"pin.over.{name}.4GiB", [ratio], "x", what)

    report.bar("pinned allocation, 4 GiB (GB/s)", pinned, ">=", 20)
    report.bar("pin over cudaHostAlloc, 4 GiB", pinned / host_alloc, ">=", 8)
    report.bar("pin over torch's default pin_memory, 4.5 GiB", over["torch.empty"], ">=", 15)
    report.bar(
        "pin over torch with register and 16 threads, 4.5 GiB",
        over["torch.empty.register"],
        ">=",
        3.5,
    )
    report.bar("bytes used over bytes requested, 4.5 GiB", taken["4.5GiB"], "<=", 1.001)


def registering(report: Report) -> None:
    """Measures registration by the driver alone, of pages that are present and absent."""
    runtime = link.cupy.cuda.runtime
    for name, touched in (("present", True), ("absent", False)):
        rates = []
        for _ in range(3):
            memory = mmap.mmap(-1, FOUR, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            memory.madvise(mmap.MADV_HUGEPAGE)
            pages = np.frombuffer(memory, np.uint8)
            if touched:
                pages[:: mmap.PAGESIZE] = 0
            start = time.perf_counter()
            runtime.hostRegister(pages.ctypes.data, FOUR, 0)
            rates.append(FOUR / (time.perf_counter() - start) / 1e9)
            runtime.hostUnregister(pages.ctypes.data)
            del pages
            memory.close()
        what = f"cudaHostRegister of 4 GiB of anonymous memory, its pages {name}"
        report.figure(f"register.{name}", rates, "GB/s", what)


def write_safetensors(path: Path, nbytes: int) -> None:
    """Writes a file of one tensor whose data begins at 4096 bytes; it is in the page cache then."""
    tensor = {"dtype": "U8", "shape": [nbytes], "data_offsets": [0, nbytes]}
    header = json.dumps({"weights": tensor}).encode().ljust(4096 - 8)
    piece = np.random.default_rng(7).integers(0, 256, 64 << 20, dtype=np.uint8).tobytes()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for _ in range(nbytes // len(piece)):
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())


def mapping(report: Report, device: Device, path: Path) -> None:
    """Measures mapping and registering the file, and the anonymous memory that this uses."""
    rates, anonymous = [], 0
    for _ in range(RUNS):
        start = time.perf_counter()
        buffer = Buffer.map_file(device, path, threads=THREADS)
        rates.append(path.stat().st_size / (time.perf_counter() - start) / 1e9)
        if buffer.info.origin != "file-mapped":
            raise RuntimeError(f"the file was not mapped: {buffer.info.fallback_reason}")
        anonymous = max(anonymous, buffer.stats.anonymous_bytes)
        buffer.close()
    rate = report.figure("map.file", rates, "GB/s", "wb_buffer_map_file, 4 GiB file in page cache")
    what = "private anonymous bytes of the mapping (smaps), largest of all runs"
    grown = report.figure("map.file.anonymous", [float(anonymous)], "bytes", what)
    report.bar("map and register a 4 GiB file (GB/s)", rate, ">=", 15)
    report.bar("anonymous bytes after mapping", grown, "<=", 0)


def moving(report: Report, device: Device, path: Path) -> None:
    """Measures copies and zero-copy reads of memory of cudaHostAlloc and of weighbridge."""
    import ctypes

    runtime = ctypes.CDLL("libcudart.so.13")
    peak_memory = ctypes.c_void_p()
    if runtime.cudaHostAlloc(ctypes.byref(peak_memory), ctypes.c_size_t(FOUR), 0) != 0:
        raise RuntimeError("cudaHostAlloc failed")
    ctypes.memset(peak_memory, 1, FOUR)
    buffer = Buffer.alloc(device, FOUR, threads=THREADS)
    file = Buffer.map_file(device, path, threads=THREADS)

    target = torch.empty(FOUR, dtype=torch.uint8, device="cuda")
    stream = torch.cuda.current_stream().cuda_stream

    def driver_copy(source: int) -> Callable[[], None]:
        copy = runtime.cudaMemcpyAsync
        to, size, way = ctypes.c_void_p(target.data_ptr()), ctypes.c_size_t(FOUR), 1
        return lambda: copy(to, ctypes.c_void_p(source), size, way, ctypes.c_void_p(stream))

    def our_copy(source: int) -> Callable[[], None]:
        return lambda: device.copy(target.data_ptr(), source, FOUR, stream)

    def kernel_read(address: int) -> Callable[[], None]:
        return link.kernel_read(address, FOUR)

    file_start = file.info.device_address + 4096
    host = peak_memory.value or 0
    peak = report.figure(
        "copy.peak",
        rates_of(driver_copy(host), FOUR),
        "GB/s",
        "cudaMemcpyAsync, cudaHostAlloc",
    )
    from_buffer = report.figure(
        "copy.buffer",
        rates_of(our_copy(buffer.address), FOUR),
        "GB/s",
        "wb_device_copy, buffer",
    )
    from_file = report.figure(
        "copy.file",
        rates_of(our_copy(file_start), FOUR),
        "GB/s",
        "wb_device_copy, mapped file",
    )
    what = "a kernel's 16-byte loads, 264 blocks of 512"
    view_peak = report.figure("view.peak", rates_of(kernel_read(host), FOUR), "GB/s", what)
    view_buffer = report.figure(
        "view.buffer", rates_of(kernel_read(buffer.info.device_address), FOUR), "GB/s", what
    )
    view_file = report.figure("view.file", rates_of(kernel_read(file_start), FOUR), "GB/s", what)
    report.bar("copy from a buffer over the copy engine's peak", from_buffer / peak, ">=", 0.98)
    report.bar("view over the same kernel on cudaHostAlloc", view_buffer / view_peak, ">=", 0.98)
    report.bar("copy from a mapped file over a pinned buffer", from_file / from_buffer, ">=", 0.97)
    report.bar("view of a mapped file over a pinned buffer", view_file / view_buffer, ">=", 0.97)
    buffer.close()
    file.close()
    runtime.cudaFreeHost(peak_memory)


def host_costs(report: Report, folder: Path) -> None:
    """Measures the host time of a view in C, and of importing the Python package."""
    done = native.run(folder, "view_cost", "cuda:0", str(RUNS))
    costs = [float(line) / 1e3 for line in done.split()]
    what = "wb_view_new and wb_view_release, mean of 200,000"
    view = report.figure("view.cost", costs, "us", what)
    timer = "import time, numpy; t = time.perf_counter(); import weighbridge; "
    timer += "print(time.perf_counter() - t)"
    imports = [
        float(subprocess.run([sys.executable, "-c", timer], capture_output=True, text=True).stdout)
        * 1e3
        for _ in range(RUNS + 1)
    ][1:]
    imported = report.figure("import", imports, "ms", "import weighbridge, NumPy imported before")
    report.bar("making and releasing a view in C (us)", view, "<=", 1)
    report.bar("import of the Python package (ms)", imported, "<=", 60)


def main() -> int:
    """Runs the benchmark and writes the result file; returns 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    report = Report(
        subject="foundation",
        library_version=weighbridge.__version__,
        peers={"torch": torch.__version__, "cupy": link.cupy.__version__, "numpy": np.__version__},
    )
    torch.cuda.init()
    torch.empty(1, device="cuda")
    with Device("cuda:0") as device, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        warm(device)
        pinning(report, device)
        registering(report)
        path = folder / "weights.safetensors"
        write_safetensors(path, FOUR)
        mapping(report, device, path)
        moving(report, device, path)
        host_costs(report, folder)
    report.write(arguments.out)
    return 0 if all(bar["holds"] for bar in report.bars) else 1


if __name__ == "__main__":
    sys.exit(main())

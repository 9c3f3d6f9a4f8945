"""Benchmark of a new offloader's fill, from a model file in the page cache.

    make gpu-bench SUBJECT=fill

The file has 64 layers of bf16 matrices, 8.6 GB. Each run maps it again, as a source that is
not pinned. Its parameters go to the device, to a pinned arena, or to FP8 on the device or in an
arena. Rates count the bytes of the file, are of the whole call unless said otherwise, and stand
beside those of the same run: of the link, a pinned copy of as many bytes, and of memory, the same
bytes copied on the host by as many threads. GB is 10^9 bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import struct
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

import weighbridge
from report import RESULTS, Report, cpu_cores
from weighbridge import Buffer, Device, Offloader, Plan, QuantizeOptions, Safetensors

LAYERS = 64
SHAPES = {"attention": (4096, 4096), "up": (8192, 4096), "norm": (4096,), "down": (4096, 4096)}
RUNS = 5
PIECE = 32 << 20
BLOCKS = QuantizeOptions(block_rows=128, block_cols=128)


def threads() -> int:
    """The number of threads that the library uses by default."""
    return min(cpu_cores(), 16)


def write_model(path: Path, layers: int) -> int:
    """Writes the file, whose pages are in the page cache then; returns the bytes of its tensors."""
    header: dict[str, Any] = {}
    end = 0
    for layer in range(layers):
        for name, shape in SHAPES.items():
            start, end = end, end + 2 * int(np.prod(shape))
            entry = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
            header[f"layers.{layer}.{name}"] = entry
    text = json.dumps(header).encode()
    # Numbers of one magnitude: the high byte of each is that of 0.5 to 2.
    piece = np.random.default_rng(7).integers(0, 256, (PIECE // 2, 2), dtype=np.uint8)
    piece[:, 1] = 0x3F
    content = piece.tobytes()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for start in range(0, end, PIECE):
            file.write(content[: end - start])
        file.flush()
        os.fsync(file.fileno())
    return end


def link_rates(device: Device, nbytes: int) -> list[float]:
    """Returns GB/s of copies of pinned memory to the device."""
    rates = []
    with Buffer.alloc(device, nbytes, pin=True) as buffer, device.stream() as stream:
        memory = device.alloc(nbytes)
        for _ in range(RUNS + 1):
            start = time.perf_counter()
            device.copy(memory, buffer.address, nbytes, stream=stream)
            stream.synchronize()
            rates.append(nbytes / (time.perf_counter() - start) / 1e9)
        device.free(memory)
    return rates[1:]


def memory_rates(device: Device, path: Path, nbytes: int) -> list[float]:
    """Returns GB/s of copies of the file's pages into memory that is present, by all threads."""

    def copied(to: np.ndarray, source: np.ndarray) -> float:
        def piece(at: int) -> None:
            np.copyto(to[at : at + PIECE], source[at : min(at + PIECE, nbytes)])

        start = time.perf_counter()
        list(pool.map(piece, range(0, nbytes, PIECE)))
        return nbytes / (time.perf_counter() - start) / 1e9

    with Buffer.alloc(device, nbytes, pin=True) as buffer, ThreadPoolExecutor(threads()) as pool:
        to = np.frombuffer(buffer.memoryview(), dtype=np.uint8)
        runs = range(RUNS + 1)
        rates = [copied(to, np.memmap(path, dtype=np.uint8, mode="r")) for _ in runs]
        del to
    return rates[1:]


def fill(device: Device, path: Path, **options: Any) -> tuple[float, float]:
    """Makes an offloader; returns the seconds that it took, and those of reading alone."""
    last: dict[str, float] = {}

    def progress(phase: str, done: int, total: int) -> None:
        last[phase] = time.perf_counter()

    with Safetensors(device, path, file_mode="source") as file:
        plan = Plan(device, file.parameters(), **options)
        start = time.perf_counter()
        offloader = Offloader(plan, progress=progress)
        seconds = time.perf_counter() - start
        offloader.close()
        plan.close()
    # An arena is pinned, if at all, before it is filled.
    before = last.get("pin", last.get("fault", start))
    return seconds, last.get("read", start + seconds) - before


def measure(report: Report, device: Device, path: Path, nbytes: int) -> None:
    """Measures the link, memory, and each kind of fill."""
    what = "pinned host memory to the device, one copy"
    link = report.figure("link", link_rates(device, nbytes), "GB/s", what)
    what = f"the file's pages to pinned memory, {threads()} threads"
    memory = report.figure("memory", memory_rates(device, path, nbytes), "GB/s", what)
    # One norm is offloaded, since a plan offloads something.
    resident = {"offload_bytes": 1 << 20, "select": "layers.0.norm"}
    arena = {"offload_bytes": 2 * nbytes, "transfer_mode": "on-demand"}

    def rates(**options: Any) -> tuple[list[float], list[float]]:
        runs = [fill(device, path, **options) for _ in range(RUNS + 1)][1:]
        return tuple([nbytes / run[part] / 1e9 for run in runs] for part in (0, 1))

    whole, _ = rates(**resident)
    to_device = report.figure("fill.device", whole, "GB/s", "file to device memory")
    whole, read = rates(**arena)
    report.figure("fill.arena", whole, "GB/s", "file to a pinned arena, with its allocation")
    to_arena = report.figure(
        "fill.arena.read", read, "GB/s", "file to a pinned arena, reading alone"
    )
    whole, _ = rates(quantize=BLOCKS, **resident)
    quantized = report.figure("fill.fp8.device", whole, "GB/s", "file to FP8 in device memory")
    whole, _ = rates(quantize=BLOCKS, **arena)
    report.figure("fill.fp8.arena", whole, "GB/s", "file to FP8 in a pinned arena")
    report.bar("fill of the device over the link", to_device / link, ">=", 0.9)
    report.bar("reading into an arena over copying memory", to_arena / memory, ">=", 0.9)
    report.bar("fill of the device in FP8 over the link", quantized / link, ">=", 0.7)


def main() -> int:
    """Runs the benchmark and writes the result file; returns 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--layers", type=int, default=LAYERS, help="fewer only show that it works")
    arguments = parser.parse_args()
    report = Report(
        subject="fill",
        library_version=weighbridge.__version__,
        peers={"numpy": np.__version__},
    )
    with Device(arguments.device) as device, tempfile.TemporaryDirectory() as name:
        path = Path(name) / "model.safetensors"
        nbytes = write_model(path, arguments.layers)
        measure(report, device, path, nbytes)
    if arguments.layers == LAYERS:
        report.write(arguments.out)
    return 0 if all(bar["holds"] for bar in report.bars) else 1


if __name__ == "__main__":
    sys.exit(main())

"""Benchmark of a new offloader's fill, from a model file in the page cache.

    make gpu-bench SUBJECT=fill
    python benches/fill.py --against OTHER/libweighbridge.so    # compares two libraries, in turn

The file has 64 layers of bf16 matrices, 8.6 GB. Each run maps it again, as a source that is
not pinned. Its parameters go to the device, to a pinned arena, or to FP8 on the device or in an
arena. Rates count the bytes of the file, are of the whole call unless said otherwise, and stand
beside those of the same run: of the link, a pinned copy of as many bytes, and of memory, the same
bytes copied on the host by as many threads. GB is 10^9 bytes.

A fill's time is that of its bytes on the link, the gaps between its copies (see the rates in pieces
on one stream and on two), the time before the first piece (device memory and staging memory, each
of which is timed alone, too), and the time after the last one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import weighbridge
from report import RESULTS, Report, cpu_cores
from weighbridge import Buffer, Device, Offloader, Plan, QuantizeOptions, Safetensors

LAYERS = 64
SHAPES = {"attention": (4096, 4096), "up": (8192, 4096), "norm": (4096,), "down": (4096, 4096)}
RUNS = 5
TURNS = 3
PIECE = 32 << 20
# As the library has them.
STAGED_PIECE = 8 << 20
STAGING = 4 * STAGED_PIECE
BLOCKS = QuantizeOptions(block_rows=128, block_cols=128)


def threads() -> int:
    """The number of threads that the library uses by default."""
    return min(cpu_cores(), 16)


def tensor_bytes(layers: int) -> int:
    """Returns the bytes of all tensors of the file."""
    return layers * sum(2 * int(np.prod(shape)) for shape in SHAPES.values())


def write_model(path: Path, layers: int) -> None:
    """Writes the file, whose pages are in the page cache then."""
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


def piece_rates(device: Device, nbytes: int, streams: int) -> list[float]:
    """Returns GB/s of copies out of staging memory, piece by piece, on streams in turn."""
    rates = []
    with Buffer.alloc(device, STAGING, pin=True) as buffer, ExitStack() as stack:
        queues = [stack.enter_context(device.stream()) for _ in range(streams)]
        memory = device.alloc(nbytes)
        for _ in range(RUNS + 1):
            start = time.perf_counter()
            for at in range(nbytes // STAGED_PIECE):
                offset = at * STAGED_PIECE
                source = buffer.address + offset % STAGING
                stream = queues[at % streams]
                device.copy(memory + offset, source, STAGED_PIECE, stream=stream)
            for queue in queues:
                queue.synchronize()
            copied = nbytes // STAGED_PIECE * STAGED_PIECE
            rates.append(copied / (time.perf_counter() - start) / 1e9)
        device.free(memory)
    return rates[1:]


def milliseconds(begin: Callable[[], Any], end: Callable[[Any], None]) -> list[float]:
    """Returns the time of an allocation and its release."""
    times = []
    for _ in range(RUNS + 1):
        start = time.perf_counter()
        end(begin())
        times.append(1e3 * (time.perf_counter() - start))
    return times[1:]


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


@dataclass
class Fill:
    """Seconds of a fill."""

    whole: float
    # Reading into the arena alone.
    read: float
    # Until the first piece was queued, and from the last one on.
    before: float
    after: float


def fill(device: Device, path: Path, threads_asked: int, **options: Any) -> Fill:
    """Makes an offloader, and says where the time went."""
    last: dict[str, float] = {}
    pieces: list[float] = []

    def progress(phase: str, done: int, total: int) -> None:
        last[phase] = time.perf_counter()
        if phase in ("read", "quantize") and total > STAGED_PIECE:
            pieces.append(last[phase])

    with Safetensors(device, path, file_mode="source") as file:
        plan = Plan(device, file.parameters(), **options)
        start = time.perf_counter()
        offloader = Offloader(plan, threads=threads_asked, progress=progress)
        end = time.perf_counter()
        offloader.close()
        plan.close()
    # An arena is pinned, if at all, before it is filled.
    read = last.get("read", end) - last.get("pin", last.get("fault", start))
    pieces = pieces or [start, end]
    return Fill(end - start, read, pieces[0] - start, end - pieces[-1])


def measure(report: Report, device: Device, path: Path, nbytes: int, threads_asked: int) -> None:
    """Measures the link, memory, and each kind of fill."""
    what = "pinned host memory to the device, one copy"
    link = report.figure("link", link_rates(device, nbytes), "GB/s", what)
    for streams in (1, 2):
        what = f"the same in pieces of 8 MiB, on {streams} stream" + "s" * (streams - 1)
        rates = piece_rates(device, nbytes, streams)
        report.figure(f"link.pieces.{streams}", rates, "GB/s", what)
    times = milliseconds(lambda: device.alloc(nbytes), device.free)
    report.figure("device.memory", times, "ms", "as much device memory, allocated and freed")
    times = milliseconds(lambda: Buffer.alloc(device, STAGING, pin=True), Buffer.close)
    report.figure("staging", times, "ms", "pinned memory of 32 MiB, allocated and freed")
    what = f"the file's pages to pinned memory, {threads()} threads"
    memory = report.figure("memory", memory_rates(device, path, nbytes), "GB/s", what)
    # One norm is offloaded, since a plan offloads something.
    resident = {"offload_bytes": 1 << 20, "select": "layers.0.norm"}
    arena = {"offload_bytes": 2 * nbytes, "transfer_mode": "on-demand"}

    def fills(**options: Any) -> list[Fill]:
        return [fill(device, path, threads_asked, **options) for _ in range(RUNS + 1)][1:]

    def rate(name: str, seconds: list[float], what: str) -> float:
        return report.figure(name, [nbytes / took / 1e9 for took in seconds], "GB/s", what)

    def to_device(name: str, what: str, **options: Any) -> float:
        runs = fills(**resident, **options)
        before, after = ([1e3 * getattr(run, part) for run in runs] for part in ("before", "after"))
        report.figure(f"{name}.before", before, "ms", "until its first piece is queued")
        report.figure(f"{name}.after", after, "ms", "from its last piece on")
        return rate(name, [run.whole for run in runs], what)

    filled = to_device("fill.device", "file to device memory")
    runs = fills(**arena)
    rate("fill.arena", [run.whole for run in runs], "file to a pinned arena, with its allocation")
    reads = [run.read for run in runs]
    read = rate("fill.arena.read", reads, "file to a pinned arena, reading alone")
    quantized = to_device("fill.fp8.device", "file to FP8 in device memory", quantize=BLOCKS)
    runs = fills(quantize=BLOCKS, **arena)
    rate("fill.fp8.arena", [run.whole for run in runs], "file to FP8 in a pinned arena")
    report.bar("fill of the device over the link", filled / link, ">=", 0.9)
    report.bar("reading into an arena over copying memory", read / memory, ">=", 0.9)
    report.bar("fill of the device in FP8 over the link", quantized / link, ">=", 0.7)


def compare(path: Path, against: Path, arguments: list[str]) -> None:
    """Runs two libraries in turn, each in processes of its own, and prints the medians of both."""
    libraries = {"this": os.environ.get("WEIGHBRIDGE_LIBRARY", ""), "other": str(against)}
    medians: dict[str, dict[str, list[float]]] = {}
    for turn in range(TURNS):
        for which, library in libraries.items():
            out = path.with_name(f"{which}.{turn}")
            command = [sys.executable, __file__, "--file", str(path), "--out", str(out), *arguments]
            environment = {**os.environ, "WEIGHBRIDGE_LIBRARY": library}
            if not library:
                del environment["WEIGHBRIDGE_LIBRARY"]
            subprocess.run(command, env=environment, check=False, stdout=subprocess.DEVNULL)
            (result,) = out.iterdir()
            for figure in json.loads(result.read_text())["figures"]:
                values = medians.setdefault(f"{figure['name']} ({figure['unit']})", {})
                values.setdefault(which, []).append(figure["value"])
    print(f"{'':32} {'this':>10} {'other':>10}   of {TURNS} turns")
    for name, values in medians.items():
        this, other = (statistics.median(values[which]) for which in libraries)
        print(f"{name:32} {this:10.4g} {other:10.4g}")


def main() -> int:
    """Runs the benchmark and writes the result file; returns 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--layers", type=int, default=LAYERS, help="fewer only show that it works")
    parser.add_argument("--threads", type=int, default=0, help="of a fill; 0: the library's choice")
    parser.add_argument("--file", type=Path, help="an existing file of this benchmark")
    parser.add_argument("--against", type=Path, help="another library, for a comparison")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        path = arguments.file
        if path is None:
            path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "model.safetensors"
            write_model(path, arguments.layers)
        if arguments.against is not None:
            options = ["--device", arguments.device, "--layers", str(arguments.layers)]
            options += ["--threads", str(arguments.threads)]
            compare(path, arguments.against.resolve(), options)
            return 0
        report = Report(
            subject="fill",
            library_version=weighbridge.__version__,
            peers={"numpy": np.__version__},
        )
        with Device(arguments.device) as device:
            measure(report, device, path, tensor_bytes(arguments.layers), arguments.threads)
    if arguments.layers == LAYERS or arguments.file is not None:
        report.write(arguments.out)
    return 0 if all(bar["holds"] for bar in report.bars) else 1


if __name__ == "__main__":
    sys.exit(main())

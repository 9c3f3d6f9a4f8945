"""Benchmark of quantization: bf16 to FP8, from host memory, on the device and on one core.

    make gpu-bench SUBJECT=fp8

Tensors have Llama-3-8B's largest shape, 14,336 x 4,096, in bf16. Rates over the link count bf16
bytes; rates on the device count what its kernels read and write. GB is 10^9 bytes, GiB 2^30.
"""

from __future__ import annotations

import argparse
import copy
import gc
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import torch
from safetensors.torch import save_file

import link
import llama
import weighbridge
import weighbridge.torch as wt
from report import RESULTS, Report
from weighbridge import Buffer, Device, QuantizeOptions, Quantizer, Safetensors

ROWS, COLS = 14336, 4096
EACH = ROWS * COLS * 2
COUNT = 137  # 16 GB
RUNS = 5
STAGING = 128 << 20
OPTIONS = {
    "row": QuantizeOptions(block_rows=1),
    "block": QuantizeOptions(block_rows=128, block_cols=128),
    "tensor": QuantizeOptions(),
}


def seconds(run: Callable[[], object], runs: int = RUNS) -> list[float]:
    """Returns the seconds of each run except the first."""
    taken = []
    for _ in range(runs + 1):
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return taken[1:]


class Bench:
    """One run of the benchmark."""

    def __init__(self, report: Report, device: Device) -> None:
        self.report, self.device = report, device
        self.quantizer = Quantizer(device, STAGING)
        self.codes = torch.empty(COUNT, ROWS, COLS, dtype=torch.uint8, device="cuda")
        largest = max(
            Quantizer.scales_info("bfloat16", (ROWS, COLS), options).nbytes
            for options in OPTIONS.values()
        )
        self.scales = torch.empty(COUNT, largest, dtype=torch.uint8, device="cuda")

    def quantize(
        self, address: int, at: int, options: QuantizeOptions
    ) -> weighbridge.QuantizerResult:
        """Quantizes one tensor into slice ``at`` of the device's codes and scales."""
        codes, scales = self.codes[at].data_ptr(), self.scales[at].data_ptr()
        shape = (ROWS, COLS)
        return self.quantizer.quantize(address, "bfloat16", shape, codes, scales, options)

    def link(self) -> None:
        """Measures the copy engine, and quantizing 16 GB of pinned tensors to the device."""
        size = COUNT * EACH
        buffer = Buffer.alloc(self.device, size, threads=16)
        array = np.frombuffer(buffer.memoryview(), np.uint16)
        array[:] = np.resize(torch.randn(1 << 20).to(torch.bfloat16).view(torch.uint16), array.size)
        target = torch.empty(4 << 30, dtype=torch.uint8, device="cuda")
        stream = torch.cuda.current_stream().cuda_stream

        def copy_all(to: int = target.data_ptr()) -> None:
            self.device.copy(to, buffer.address, 4 << 30, stream)

        what = "one copy of 4 GiB from pinned memory"
        self.peak = self.report.figure("copy.peak", link.bandwidth(copy_all, 4 << 30), "GB/s", what)
        del target
        torch.cuda.empty_cache()
        for name, options in OPTIONS.items():
            most, low = 0, torch.cuda.mem_get_info()[0]
            before = low

            def run(options: QuantizeOptions = options) -> None:
                nonlocal most, low
                for at in range(COUNT):
                    done = self.quantize(buffer.address + at * EACH, at, options)
                    most = max(most, done.staging_bytes)
                low = min(low, torch.cuda.mem_get_info()[0])

            rates = [size / taken / 1e9 for taken in seconds(run)]
            what = f"16 GB of bf16 in pinned memory to FP8 on the device, by {name}"
            rate = self.report.figure(f"pinned.{name}", rates, "GB/s", what)
            label = f"pinned bf16 to device, by {name}, over the copy engine's peak"
            self.report.bar(label, rate / self.peak, ">=", 0.93)
            what = "staging memory used"
            taken = self.report.figure(f"staging.{name}", [most / 2**20], "MiB", what)
            self.report.bar(f"staging, by {name} (MiB)", taken, "<=", STAGING / 2**20)
            what = "decrease of the device's free memory meanwhile"
            self.report.figure(f"fall.{name}", [(before - low) / 2**20], "MiB", what)
        array = None
        buffer.close()

    def file(self, folder: Path) -> None:
        """Measures quantizing tensors of a mapped file in the page cache."""
        count = 36
        data = torch.randn(ROWS, COLS).to(torch.bfloat16)
        path = folder / "model.safetensors"
        save_file({f"w{at}": data.clone() for at in range(count)}, path)
        with Safetensors(self.device, path) as file:
            views = [file.view(f"w{at}", alignment=0) for at in range(count)]
            addresses = [view.address for view in views]

            def run() -> None:
                for at, address in enumerate(addresses):
                    self.quantize(address, at, OPTIONS["block"])

            rates = [count * EACH / taken / 1e9 for taken in seconds(run)]
            for view in views:
                view.close()
        what = "bf16 of a mapped file in the page cache to FP8 on the device, by block"
        rate = self.report.figure("file.block", rates, "GB/s", what)
        self.report.bar(
            "mapped file to device over the copy engine's peak", rate / self.peak, ">=", 0.9
        )

    def kernels(self) -> None:
        """Measures quantizing tensors that are on the device."""
        rows, cols = 1 << 18, 16384
        source = torch.empty(rows, cols, dtype=torch.bfloat16, device="cuda").normal_()
        copy = torch.empty_like(source)
        size = source.nbytes
        rates = link.bandwidth(lambda: copy.copy_(source), 2 * size)
        peak = self.report.figure(
            "device.copy", rates, "GB/s", "device to device, both ways counted"
        )
        codes = copy.view(torch.uint8)
        for name, options in OPTIONS.items():
            wide = Quantizer.scales_info("bfloat16", (rows, cols), options)
            scales = torch.empty(wide.nbytes, dtype=torch.uint8, device="cuda")
            quantizer = Quantizer(self.device, 1 << 30)

            def run(options: QuantizeOptions = options, scales=scales, quantizer=quantizer) -> None:
                quantizer.quantize(
                    source.data_ptr(),
                    "bfloat16",
                    (rows, cols),
                    codes.data_ptr(),
                    scales.data_ptr(),
                    options,
                )

            # One pass finds the largest magnitudes, a second one writes the codes.
            rates = [2.5 * size / taken / 1e9 for taken in seconds(run)]
            what = f"8.6 GB of bf16 on the device, by {name}: two reads, one byte written for each"
            rate = self.report.figure(f"kernels.{name}", rates, "GB/s", what)
            self.report.bar(f"kernels by {name} over device to device", rate / peak, ">=", 0.75)
            quantizer.close()

    def host(self) -> None:
        """Measures the host's kernels on one core, and ml_dtypes on the same core."""
        allowed = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(allowed)})
        try:
            with Device("host") as host, Quantizer(host) as quantizer:
                x = torch.randn(ROWS // 4, COLS).to(torch.bfloat16)
                array = x.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
                codes, options = np.empty(array.shape, np.uint8), OPTIONS["row"]
                scales = np.empty(array.shape[0], np.float32)

                def with_weighbridge() -> None:
                    quantizer.quantize(
                        array.ctypes.data,
                        "bfloat16",
                        array.shape,
                        codes.ctypes.data,
                        scales.ctypes.data,
                        options,
                    )

                def peer() -> np.ndarray:
                    wide = array.astype(np.float32)
                    inverse = np.float32(1) / (np.abs(wide).max(1, keepdims=True) / np.float32(448))
                    return (wide * inverse).astype(ml_dtypes.float8_e4m3fn)

                rates = [array.nbytes / taken / 1e9 for taken in seconds(with_weighbridge)]
                if not np.array_equal(codes, peer().view(np.uint8)):
                    raise RuntimeError("the host's codes are not those of ml_dtypes")
                what = "bf16 to FP8 by row on one core of the host"
                rate = self.report.figure("host.core", rates, "GB/s", what)
                peers = [array.nbytes / taken / 1e9 for taken in seconds(peer, 3)]
                what = "the same by NumPy and ml_dtypes, on the same core"
                peer_rate = self.report.figure("host.ml_dtypes", peers, "GB/s", what)
        finally:
            os.sched_setaffinity(0, allowed)
        self.report.bar("host kernels on one core (GB/s)", rate, ">=", 2)
        self.report.bar("host kernels over ml_dtypes, one core", rate / peer_rate, ">=", 4)

    def peaks(self) -> None:
        """Measures device memory: quantizing after loading in bf16, and quantizing in a stream."""
        self.codes = self.scales = torch.empty(0)
        model = llama.build().cpu()
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        loaded = copy.deepcopy(model).cuda()
        for module in loaded.modules():
            if isinstance(module, torch.nn.Linear):
                weight = module.weight.float()
                scale = weight.abs().amax(1, keepdim=True) / 448
                codes = (weight / scale).to(torch.float8_e4m3fn)
                module.weight = torch.nn.Parameter(codes, requires_grad=False)
        what = (
            "Llama-shaped, 16 layers in bf16, loaded and then quantized by PyTorch: peak allocated"
        )
        peak = torch.cuda.max_memory_allocated() / 2**30
        full = self.report.figure("peak.full", [peak], "GiB", what)
        del loaded, module, weight, scale, codes
        gc.collect()
        torch.cuda.empty_cache()
        before, samples, over = torch.cuda.mem_get_info()[0], [], threading.Event()

        def sample() -> None:
            while not over.wait(0.001):
                samples.append(torch.cuda.mem_get_info()[0])

        sampler = threading.Thread(target=sample)
        sampler.start()
        # One layer is offloaded, the others stay on the device; all of them are FP8.
        handle = wt.offload(
            model,
            offload_bytes=1 << 40,
            select="layers.0",
            device="cuda:0",
            transfer_mode="on-demand",
            quantize=QuantizeOptions(block_rows=1),
        )
        over.set()
        sampler.join()
        what = "the same from host memory by offload(quantize=...): decrease of free device memory"
        peak = (before - min(samples)) / 2**30
        stream = self.report.figure("peak.stream", [peak], "GiB", what)
        held = handle.stats
        what = "what remains afterwards: resident bytes and slots"
        kept = (held.resident_bytes + held.slot_bytes) / 2**30
        self.report.figure("peak.stream.kept", [kept], "GiB", what)
        self.report.bar("peak of the stream over what remains (GiB)", stream - kept, "<=", 0.15)
        self.report.bar("peak of the stream over loading first", stream / full, "<=", 0.7)
        handle.remove()


def main() -> int:
    """Runs the benchmark; returns 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    report = Report("fp8", weighbridge.__version__)
    report.peers = {"torch": torch.__version__, "ml_dtypes": ml_dtypes.__version__}
    with Device("cuda:0") as device, tempfile.TemporaryDirectory() as folder:
        Buffer.alloc(device, 20 << 30, pin=False, threads=16).close()
        bench = Bench(report, device)
        for part in (
            bench.link,
            lambda: bench.file(Path(folder)),
            bench.peaks,
            bench.kernels,
            bench.host,
        ):
            part()
            report.write(arguments.out)
        bench.quantizer.close()
    return 0 if all(bar["holds"] for bar in report.bars) else 1


if __name__ == "__main__":
    sys.exit(main())

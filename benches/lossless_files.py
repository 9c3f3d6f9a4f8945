"""Commits of a model from its file, which is raw, and compressed at the commit, or compressed.

Commits that compress do so by the device, and by the host's cores, beside one that does not.

Of a compressed file the bytes are copied, or the pinned file itself is the host's memory: seconds
from the closed file, whose pages the kernel has, to the offloader, and bytes of host memory.
``python benches/lossless_files.py`` commits a small model on the host: it verifies the values.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import weighbridge
from report import Report
from weighbridge import Device, Offloader, Plan, Safetensors
from weighbridge.compress_file import compress_file

RUNS = 5
LAYERS = 16
ROWS = 4096


class Files:
    """A model of one matrix of bf16 in each layer, and its two files."""

    def __init__(self, report: Report, device: Device, folder: Path, columns: int) -> None:
        self.report, self.device, self.columns = report, device, columns
        self.raw, self.packed = folder / "raw.safetensors", folder / "packed.safetensors"
        self.layers = [self._values(layer) for layer in range(LAYERS)]
        self.nbytes = sum(values.nbytes for values in self.layers)
        self._write()
        compress_file(self.raw, self.packed)

    def _values(self, layer: int) -> np.ndarray:
        """Returns the bits of normally distributed values, rounded towards zero."""
        random = np.random.default_rng(layer)
        values = random.normal(0, 0.02, (ROWS, self.columns)).astype(np.float32)
        return (values.view(np.uint32) >> 16).astype(np.uint16)

    def _write(self) -> None:
        header, at = {}, 0
        for layer, values in enumerate(self.layers):
            header[f"layers.{layer}.w"] = {
                "dtype": "BF16",
                "shape": list(values.shape),
                "data_offsets": [at, at + values.nbytes],
            }
            at += values.nbytes
        text = json.dumps(header).encode()
        text += b" " * (-(8 + len(text)) % 64)
        with self.raw.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for values in self.layers:
                file.write(values)

    def run(self) -> None:
        """Measures the commits, and sets the bars."""
        found = {}
        for name, path, store, compress, what in (
            ("raw", self.raw, "copy", False, "a raw file, its bytes copied"),
            ("encoded", self.raw, "copy", "auto", "a raw file, compressed at the commit"),
            ("copied", self.packed, "copy", "auto", "a compressed file, its bytes copied"),
            ("mapped", self.packed, "source", "auto", "a compressed file, pinned, the host's"),
        ):
            taken, held = [], []
            for _ in range(RUNS + 1):
                seconds, nbytes = self._commit(path, store, compress)
                taken.append(seconds)
                held.append(nbytes / self.nbytes)
            text = f"{self.nbytes >> 20} MiB of bf16 from {what}: opened, planned and committed"
            seconds = self.report.figure(f"files.{name}.seconds", taken[1:], "s", text)
            text = f"bytes of host memory, for each byte of the model, from {what}"
            found[name] = (seconds, self.report.figure(f"files.{name}.host", held[1:], "", text))
        for name, other in (("copied", "raw"), ("mapped", "copied")):
            part = found[name][0] / found[other][0]
            what = f"commit from a compressed file, {name}, over one from a file, {other}"
            self.report.bar(what, part, "<=", 0.9)
            self.report.bar(f"host bytes of a compressed file, {name}", found[name][1], "<=", 0.68)

    def encoders(self, peak: float | None) -> None:
        """Measures commits that compress, by what does it, over the link's rate if known."""
        for name, asked, options, what in (
            ("raw", None, {}, "committed, not compressed"),
            ("device", True, {"compress": "auto"}, "compressed by the device at the commit"),
            ("host", False, {"compress": "auto"}, "compressed by the host's cores at the commit"),
        ):
            rates = []
            for _ in range(RUNS + 1):
                with Safetensors(self.device, self.raw, file_mode="source") as file:
                    plan = Plan(
                        self.device,
                        file.parameters(),
                        offload_bytes=2 * self.nbytes + (1 << 20),
                        transfer_mode="prefetch",
                        encode_on_device=asked,
                        **options,
                    )
                    start = time.perf_counter()
                    with plan, Offloader(plan) as offloader:
                        rates.append(self.nbytes / (time.perf_counter() - start) / 1e9)
                        stats = offloader.stats
                        by = {"device": stats.encoded_by_device_bytes}
                        by["host"] = stats.encoded_by_host_bytes
                        if by.get(name, 0) != stats.decoded_bytes:
                            raise RuntimeError(f"{by} compressed of {stats.decoded_bytes}")
            text = f"{self.nbytes >> 20} MiB of bf16 from a raw file, {what}, raw bytes"
            rate = self.report.figure(f"commit.{name}", rates[1:], "GB/s", text)
            if peak is not None:
                what = f"commit.{name} over the copy engine's peak"
                self.report.figure(f"commit.{name}.link", [rate / peak], "", what)

    def _commit(self, path: Path, store: str, compress: bool | str) -> tuple[float, int]:
        """Returns the seconds of a commit, and the bytes of host memory that it holds."""
        mode = "map" if store == "source" else "source"
        start = time.perf_counter()
        with Safetensors(self.device, path, file_mode=mode) as file:
            plan = Plan(
                self.device,
                file.parameters(),
                offload_bytes=2 * self.nbytes + (1 << 20),
                transfer_mode="prefetch",
                compress=compress,
                host_store=store,
            )
            with plan, Offloader(plan) as offloader:
                taken = time.perf_counter() - start
                stats = offloader.stats
                if stats.decoded_bytes != (self.nbytes if compress else 0):
                    raise RuntimeError("not all weights are carried as they should be")
                last = f"layers.{LAYERS - 1}.w"
                if bytes(offloader.read(last)) != self.layers[-1].tobytes():
                    raise RuntimeError(f"{last} has other values")
                return taken, stats.asked_bytes


def measure(report: Report, device: Device, columns: int, peak: float | None = None) -> None:
    """Measures commits of a model of this many columns, with its files in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        files = Files(report, device, Path(folder), columns)
        files.run()
        files.encoders(peak)


def main() -> int:
    """Commits a small model on the host."""
    report = Report("lossless", weighbridge.__version__)
    with Device("host") as device:
        measure(report, device, 128)
    return 0 if all(bar["holds"] for bar in report.bars) else 1


if __name__ == "__main__":
    sys.exit(main())

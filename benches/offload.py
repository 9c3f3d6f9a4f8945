"""Benchmark of the offloader: a Llama-shaped model with every second layer in host memory.

    make gpu-bench SUBJECT=offload

Sixteen layers of Llama-3-8B's shape in bf16, every second layer's parameters offloaded: 3.49 GB.
The link bound is the time that the copy engine needs for those bytes, at the rate measured in the
same run. Steps of the resident model and of accelerate are measured in the same run too. GB is 10^9
bytes, GiB 2^30.
"""

from __future__ import annotations

import argparse
import copy
import gc
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import torch
import transformers
from by_hand import ByHand, Identity

import link
import llama
import native
import weighbridge
import weighbridge.torch as wt
from plot import times_plot
from report import RESULTS, ROOT, Report
from weighbridge import Buffer, Device

sys.path.append(str(ROOT / "tests" / "python"))
from graphs import graph_of

RUNS = 7
LAYERS = llama.LAYERS
THREADS = 16
SECOND = [f"layers.{layer}" for layer in range(0, LAYERS, 2)]


def inputs(tokens: int) -> torch.Tensor:
    """Returns the embeddings of one sequence of ``tokens`` tokens."""
    torch.manual_seed(1)
    return torch.randn(1, tokens, llama.SHAPE["hidden_size"], device="cuda", dtype=torch.bfloat16)


def stepper(model: torch.nn.Module, tokens: int) -> Callable[[], torch.Tensor]:
    """Returns a function that runs one step on a sequence of ``tokens`` tokens."""
    embeddings = inputs(tokens)

    def step() -> torch.Tensor:
        with torch.no_grad():
            return model(inputs_embeds=embeddings, use_cache=False).last_hidden_state

    return step


def seconds_of(step: Callable[[], Any], runs: int, warm: int = 3) -> list[float]:
    """Returns the seconds of each step. The host waits for each, like an engine that samples."""
    for _ in range(warm):
        step()
    torch.cuda.synchronize()
    taken = []
    for _ in range(runs):
        start = time.perf_counter()
        step()
        torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return taken


def free_bytes() -> int:
    """Returns MemAvailable: free memory and what the kernel can reclaim at once."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    raise RuntimeError("/proc/meminfo has no MemAvailable")


class Bench:
    """One run of the benchmark."""

    def __init__(self, report: Report, runs: int) -> None:
        self.report, self.runs = report, runs
        self.model = llama.build()
        self.steps = {"decode": 1, "prefill2048": 2048, "prefill8192": 8192}
        self.expected = {name: stepper(self.model, n)().clone() for name, n in self.steps.items()}
        self.resident: dict[str, float] = {}
        self.points: dict[str, list[tuple[float, float]]] = {}

    def time(self, name: str, step: Callable[[], Any], what: str, runs: int = 0) -> float:
        """Adds a figure: the milliseconds of a step."""
        taken = [1e3 * seconds for seconds in seconds_of(step, runs or self.runs)]
        return self.report.figure(name, taken, "ms", what)

    def link(self, device: Device) -> None:
        """Measures the copy engine, and a kernel that reads pinned memory in place."""
        size = 4 << 30
        buffer = Buffer.alloc(device, size, threads=THREADS)
        target = torch.empty(size, dtype=torch.uint8, device="cuda")
        stream = torch.cuda.current_stream().cuda_stream

        def copy_all() -> None:
            device.copy(target.data_ptr(), buffer.address, size, stream)

        what = "one copy of 4 GiB from pinned memory"
        self.peak = self.report.figure("copy.peak", link.bandwidth(copy_all, size), "GB/s", what)
        read = link.kernel_read(buffer.device_address or 0, size)
        what = "a kernel's 16-byte loads of pinned memory, 264 blocks of 512"
        rates = link.bandwidth(read, size)
        self.zero_copy_peak = self.report.figure("zero-copy.peak", rates, "GB/s", what)
        read = link.kernel_read(target.data_ptr(), size)
        what = "the same kernel's loads of device memory"
        self.device_peak = self.report.figure(
            "device.peak", link.bandwidth(read, size), "GB/s", what
        )
        buffer.close()

    def measure_resident(self) -> None:
        """Measures the model with all parameters on the device."""
        for name, tokens in self.steps.items():
            step = stepper(self.model, tokens)
            self.resident[name] = self.time(f"resident.{name}", step, "all resident")
        graph, _ = graph_of(stepper(self.model, 1), warm=2)
        self.resident["decode.graph"] = self.time(
            "resident.decode.graph", graph.replay, "all resident, in a CUDA graph"
        )

    def offload(self, mode: str, layers: list[str] = SECOND, overlap: bool = True) -> Any:
        """Offloads the parameters of layers in a transfer mode; returns the handle."""
        return wt.offload(
            self.model,
            offload_bytes=1 << 40,
            select=layers,
            transfer_mode=mode,
            overlap_steps=overlap,
        )

    def check(self, name: str, step: Callable[[], torch.Tensor]) -> None:
        """Fails unless a step has the output of the resident model, bit for bit."""
        if not torch.equal(step(), self.expected[name]):
            raise RuntimeError(f"{name}: the output is not the resident model's")

    def set_up(self) -> None:
        """Measures offloading a model that is on the device, and its host memory."""
        rates, grown = [], 0.0
        for run in range(4):
            gc.collect()
            before, start = free_bytes(), time.perf_counter()
            handle = self.offload("prefetch")
            seconds = time.perf_counter() - start
            stats = handle.stats
            if run > 0:
                rates.append(stats.offloaded_bytes / seconds / 1e9)
                fallen = (before - free_bytes()) / stats.offloaded_bytes
                held = max(stats.mapped_bytes, stats.pinned_bytes) / stats.offloaded_bytes
                self.report.figure(f"memavailable.{run}", [fallen], "x", "decrease over offloaded")
                grown = max(grown, held)
            handle.remove()
        what = "offload() of a model on the device, 3.49 GB"
        rate = self.report.figure("setup", rates, "GB/s", what)
        what = "the larger of mapped and pinned bytes over offloaded bytes"
        taken = self.report.figure("setup.host", [grown], "x", what)
        self.report.bar("set-up from a model on the device (GB/s)", rate, ">=", 10)
        self.report.bar("host memory over offloaded bytes", taken, "<=", 1.002)

    def transfer_modes(self) -> None:
        """Measures steps in each transfer mode, and in a CUDA graph."""
        for mode in ("prefetch", "auto", "zero-copy", "on-demand"):
            handle = self.offload(mode)
            stats = handle.stats
            self.bytes = stats.offloaded_bytes
            bound = 1e3 * self.bytes / self.peak / 1e9
            if mode == "prefetch":
                what = "offloaded bytes over copy.peak"
                self.report.figure("bound", [bound], "ms", what)
                layer = self.bytes / len(SECOND)
                self.report.bar("slots over a layer", stats.slot_bytes / layer, "<=", 2.001)
            for name, tokens in self.steps.items():
                if mode == "zero-copy" and name != "decode":
                    continue  # a GEMM of many rows reads the same bytes over the link repeatedly
                step = stepper(self.model, tokens)
                self.check(name, step)
                self.check(name, step)
                taken = self.time(f"{mode}.{name}", step, f"transfer mode {mode}")
                floor = max(bound, self.resident[name])
                self.report.figure(f"{mode}.{name}.over", [taken / floor], "x", "over the bound")
                goal = {"decode": 1.03, "prefill2048": 1.08, "prefill8192": 1.03}[name]
                if mode in ("prefetch", "auto"):
                    label = f"{name}, {mode}, over max(link bound, resident)"
                    self.report.bar(label, taken / floor, "<=", goal)
            if mode in ("prefetch", "zero-copy"):
                self.graph(mode, bound, stepper(self.model, 1))
            handle.remove()

    def separate_steps(self) -> None:
        """Measures steps that begin no copy for the next one.

        At a step's end the link is idle while the last offloaded layer, and those after it,
        compute; or, where compute is the bound, at its beginning while the first layer is copied.
        """
        handle = self.offload("prefetch", overlap=False)
        link = 1e3 * self.bytes / self.peak / 1e9
        after = LAYERS - max(int(name.rpartition(".")[2]) for name in SECOND)
        for name, tokens in self.steps.items():
            step = stepper(self.model, tokens)
            self.check(name, step)
            taken = self.time(f"separate.{name}", step, "transfer mode prefetch, separate steps")
            resident = self.resident[name]
            bound = max(link + resident * after / LAYERS, resident + link / len(SECOND))
            what = "the longer of link and compute, and what cannot overlap in a step"
            self.report.figure(f"separate.{name}.bound", [bound], "ms", what)
            self.report.bar(f"{name}, separate steps, over their bound", taken / bound, "<=", 1.06)
        handle.remove()

    def graph(self, mode: str, bound: float, step: Callable[[], torch.Tensor]) -> None:
        """Measures the decode step in a CUDA graph, after replays in turn with eager steps."""
        graph, result = graph_of(step, warm=2)
        for turn in range(20):
            if turn % 3 == 1:
                self.check("decode", step)
            else:
                result.zero_()
                graph.replay()
                if not torch.equal(result, self.expected["decode"]):
                    raise RuntimeError(f"{mode}: a replay's output is not the resident model's")
        taken = self.time(f"{mode}.decode.graph", graph.replay, f"{mode}, in a CUDA graph")
        if mode == "prefetch":
            floor = max(bound, self.resident["decode.graph"])
            label = "decode in a CUDA graph, over max(link bound, resident)"
            self.report.bar(label, taken / floor, "<=", 1.02)
        else:
            self.zero_copy_bar(taken)
        del graph, result

    def zero_copy_bar(self, taken: float) -> None:
        """Compares a zero-copy step with the least time that it can take.

        That is the time to read the offloaded bytes over the link, and the time of a resident step
        without its reads of the same bytes from device memory: nothing else runs while the kernels
        of a layer wait for the link.
        """
        rate = self.bytes / taken / 1e6
        self.report.figure("zero-copy.decode.rate", [rate], "GB/s", "offloaded bytes over the step")
        over_link = self.bytes / self.zero_copy_peak / 1e6
        rest = self.resident["decode.graph"] - self.bytes / self.device_peak / 1e6
        what = "offloaded bytes over zero-copy.peak, and the rest of a resident step"
        bound = self.report.figure("zero-copy.decode.bound", [over_link + rest], "ms", what)
        label = "decode, zero-copy: time at zero-copy.peak over time taken"
        self.report.bar(label, bound / taken, ">=", 0.98)

    def sweep(self) -> None:
        """Measures decode and prefill for several numbers of offloaded layers."""
        for count in (0, 2, 4, 8, 12, 16):
            layers = [f"layers.{int(at * LAYERS / max(count, 1))}" for at in range(count)]
            handle = self.offload("prefetch", layers) if count else None
            offloaded = handle.stats.offloaded_bytes / 1e9 if handle else 0.0
            for name in ("decode", "prefill8192"):
                step = stepper(self.model, self.steps[name])
                taken = 1e3 * statistics.median(seconds_of(step, 3, 2))
                self.points.setdefault(name, []).append((offloaded, taken))
            if handle:
                handle.remove()

    def peer(self) -> None:
        """Measures accelerate's cpu_offload of the same layers."""
        model = copy.copy(self.model)
        for name in SECOND:
            accelerate.cpu_offload(model.get_submodule(name), execution_device="cuda:0")
        for name, tokens in self.steps.items():
            self.time(
                f"accelerate.{name}", stepper(model, tokens), "accelerate.cpu_offload", runs=3
            )

    def host_cost(self, folder: Path) -> None:
        """Measures the host time of a step in C and through hooks, beside the driver's calls
        alone and hooks by hand.

        Of the runs the fastest counts: other programs only ever slow one down.
        """
        lines = native.run(folder, "offload_cost", "cuda:0", "5").split()
        numbers = [float(number) for number in lines]
        what = "acquire and release of a group of one parameter, in C"
        self.report.figure("step.cost", numbers[0::4], "us", what)
        what = "the same of a group of 1,000 parameters"
        self.report.figure("step.cost.many", numbers[1::4], "us", what)
        what = "the driver's calls for it alone: two waits, two records and a copy"
        self.report.figure("step.cost.calls", numbers[2::4], "us", what)
        self.report.figure("plan.million", numbers[3::4], "s", "wb_plan_new, in C")
        few, many, calls, plan = (min(numbers[at::4]) for at in range(4))
        self.report.bar(
            "acquire and release in C over the driver's calls alone", few / calls, "<=", 2
        )
        self.report.bar("cost with 1,000 parameters over one", many / few, "<=", 1.1)
        self.report.bar("plan of a million parameters (s)", plan, "<=", 2)

        def least(model: torch.nn.Module) -> float:
            taken = []
            for _ in range(60):
                start = time.perf_counter()
                model(x)
                taken.append(time.perf_counter() - start)
                torch.cuda.synchronize()
            return 1e6 * min(taken[10:])

        model = torch.nn.Sequential(*[Identity() for _ in range(8)]).requires_grad_(False)
        x = torch.zeros(1, device="cuda")
        runs: dict[str, list[float]] = {"hooks": [], "by-hand": []}
        with torch.no_grad():
            for _ in range(5):
                without = least(model)
                handle = wt.offload(model, offload_bytes=1 << 20, transfer_mode="prefetch")
                runs["hooks"].append((least(model) - without) / 8)
                handle.remove()
                by_hand = ByHand(model)
                runs["by-hand"].append((least(model) - without) / 8)
                by_hand.remove()
        what = "acquire and release through the hooks of a module, less the module's own time"
        self.report.figure("step.cost.hooks", runs["hooks"], "us", what)
        what = "the same by hooks of eight lines of PyTorch, which check nothing"
        self.report.figure("step.cost.by-hand", runs["by-hand"], "us", what)
        ratio = min(runs["hooks"]) / min(runs["by-hand"])
        self.report.bar("acquire and release through hooks over the same by hand", ratio, "<=", 1.5)


def main() -> int:
    """Runs the benchmark; returns 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    report = Report("offload", weighbridge.__version__)
    report.peers = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "accelerate": accelerate.__version__,
    }
    with Device("cuda:0") as device, tempfile.TemporaryDirectory() as folder:
        for _ in range(2):
            Buffer.alloc(device, 16 << 30, pin=False, threads=THREADS).close()
        bench = Bench(report, RUNS)
        bench.link(device)
        bench.measure_resident()
        parts = bench.set_up, bench.transfer_modes, bench.separate_steps, bench.sweep, bench.peer
        for part in parts:
            part()
            report.write(arguments.out)
        bench.host_cost(Path(folder))
    report.write(arguments.out)
    times_plot(report.path(arguments.out).with_suffix(".svg"), bench.points, bench.peak)
    return 0 if all(bar["holds"] for bar in report.bars) else 1


if __name__ == "__main__":
    sys.exit(main())

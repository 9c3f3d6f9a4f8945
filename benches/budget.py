"""Benchmark of device_bytes: 25, 50 and 75 % of a Llama-shaped model stay on the device.

    make gpu-bench SUBJECT=budget

The matrices of sixteen layers of Llama-3-8B in bf16, 6.98 GB, through weighbridge.Plan and
weighbridge.Offloader. Two plans are measured under each budget: one that is given nothing but
the budget, and one that knows the rows of the step and the time of its kernels. Their bound is the
longer of two times measured in the same run: that of the link for the bytes that the plan moves,
and that of a step with all matrices on the device. The peer is what fitted the same memory before
there were budgets of device memory: of all budgets of host memory whose plans fit, the one with the
fastest predicted step. GB is 10^9 bytes.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

import weighbridge
from report import RESULTS, Report
from weighbridge import Buffer, Device, Offloader, Parameter, Plan
from weighbridge.errors import WeighbridgeError

PARTS = (0.25, 0.5, 0.75)
ROWS = {"decode": 1, "prefill2048": 2048, "prefill8192": 8192}
TINY_ROWS = {"decode": 1, "prefill2048": 16, "prefill8192": 32}
WARM, RUNS = 3, 7
# Budgets of host memory among which the peer is searched.
PEERS = 96


def shapes(hidden: int) -> dict[str, tuple[int, int]]:
    """Returns the shapes of a layer's matrices, in the proportions of Llama-3-8B."""
    inner, heads = hidden * 7 // 2, hidden // 4
    return {
        "q": (hidden, hidden),
        "k": (heads, hidden),
        "v": (heads, hidden),
        "o": (hidden, hidden),
        "gate": (inner, hidden),
        "up": (inner, hidden),
        "down": (hidden, inner),
    }


def layer_step(x: torch.Tensor, w: dict[str, torch.Tensor]) -> torch.Tensor:
    """Runs the matrix products of a layer, without attention."""
    hidden = F.rms_norm(x, x.shape[-1:])
    x = x + F.linear(F.linear(hidden, w["q"]), w["o"])
    both = F.linear(hidden, w["k"]) + F.linear(hidden, w["v"])
    x = x + F.pad(both, (0, x.shape[-1] - both.shape[-1]))
    hidden = F.rms_norm(x, x.shape[-1:])
    return x + F.linear(F.silu(F.linear(hidden, w["gate"])) * F.linear(hidden, w["up"]), w["down"])


class Model:
    """The matrices of all layers on the device, and steps over them."""

    def __init__(self, layers: int, hidden: int, rows: dict[str, int], where: str) -> None:
        torch.manual_seed(0)
        kind = {"dtype": torch.bfloat16, "device": where}
        self.layers = [
            {
                name: torch.randn(shape, **kind) / shape[1] ** 0.5
                for name, shape in shapes(hidden).items()
            }
            for _ in range(layers)
        ]
        self.inputs = {name: torch.randn(count, hidden, **kind) for name, count in rows.items()}
        self.rows = rows
        self.bytes = sum(w.nbytes for layer in self.layers for w in layer.values())
        self.expected = {name: self.resident(name).clone() for name in rows}

    def resident(self, name: str) -> torch.Tensor:
        """Runs a step with all matrices on the device."""
        x = self.inputs[name]
        for weights in self.layers:
            x = layer_step(x, weights)
        return x

    def parameters(self) -> list[Parameter]:
        """Describes the matrices."""
        return [
            Parameter(
                f"layers.{at}.{name}",
                f"layers.{at}",
                "bfloat16",
                tuple(weight.shape),
                source=weight.data_ptr(),
            )
            for at, layer in enumerate(self.layers)
            for name, weight in layer.items()
        ]


class Machine:
    """The device, its stream, and its rates in bytes per second."""

    def __init__(self, device: Device, report: Report) -> None:
        self.device, self.cuda = device, torch.cuda.is_available()
        if not self.cuda:
            # Copies run on a thread of the stream: a step waits for them before it computes.
            self.stream = device.stream()
            self.copy_rate = self.read_rate = device.measure_link()
            return
        import link

        self.stream = torch.cuda.current_stream().cuda_stream
        size = 2 << 30
        target = torch.empty(size, dtype=torch.uint8, device="cuda")
        with Buffer.alloc(device, size) as buffer:

            def copy_all() -> None:
                device.copy(target.data_ptr(), buffer.address, size, self.stream)

            rates = link.bandwidth(copy_all, size)
            what = "one copy of 2 GiB from pinned memory"
            self.copy_rate = 1e9 * report.figure("copy.peak", rates, "GB/s", what)
            read = link.kernel_read(buffer.device_address or 0, size)
            what = "a kernel's 16-byte loads of pinned memory, 264 blocks of 512"
            rates = link.bandwidth(read, size)
            self.read_rate = 1e9 * report.figure("zero-copy.peak", rates, "GB/s", what)

    def wait(self) -> None:
        """Waits for the work queued on the stream."""
        if self.cuda:
            torch.cuda.synchronize()
        else:
            self.stream.synchronize()

    def seconds_of(self, step: Callable[[], Any], runs: int = RUNS) -> list[float]:
        """Returns the seconds of each step. The host waits for each, as engines do."""
        taken = []
        for run in range(WARM + runs):
            start = time.perf_counter()
            step()
            self.wait()
            if run >= WARM:
                taken.append(time.perf_counter() - start)
        return taken


class Bench:
    """One run of the benchmark."""

    def __init__(self, report: Report, machine: Machine, model: Model) -> None:
        self.report, self.machine, self.model = report, machine, model
        self.resident: dict[str, float] = {}
        for name in model.rows:
            taken = machine.seconds_of(lambda name=name: model.resident(name))
            what = "all matrices on the device"
            self.resident[name] = self.figure(f"resident.{name}", taken, what)

    def figure(self, name: str, seconds: list[float], what: str) -> float:
        """Adds a figure in milliseconds; returns seconds."""
        return 1e-3 * self.report.figure(name, [1e3 * one for one in seconds], "ms", what)

    def plan(self, **options: Any) -> Plan:
        """Plans with the measured rate of the link."""
        rate = self.machine.copy_rate
        return Plan(
            self.machine.device, self.model.parameters(), link_bytes_per_second=rate, **options
        )

    @contextmanager
    def offloaded(self, plan: Plan) -> Iterator[Callable[[str], torch.Tensor]]:
        """Commits a plan; gives a function that runs a step."""
        machine, model = self.machine, self.model
        with Offloader(plan, machine.stream) as offloader:
            owned = {info.name for info in offloader.parameter_infos() if info.owned}

            def weight(name: str, own: torch.Tensor) -> torch.Tensor:
                # Resident weights use the tensors that they came in.
                return torch.from_dlpack(offloader.view(name)) if name in owned else own

            weights = [
                {name: weight(f"layers.{at}.{name}", own) for name, own in layer.items()}
                for at, layer in enumerate(model.layers)
            ]

            def step(name: str) -> torch.Tensor:
                x = model.inputs[name]
                for group, layer in enumerate(weights):
                    with offloader.acquired(group, machine.stream):
                        if not machine.cuda:
                            machine.stream.synchronize()
                        x = layer_step(x, layer)
                return x

            yield step
            machine.wait()
            weights.clear()

    def measure(self, label: str, plan: Plan, names: list[str]) -> dict[str, float]:
        """Measures steps of a plan, after it has shown that it computes what it should."""
        machine, taken = self.machine, {}
        with self.offloaded(plan) as step:
            for name in names:
                for _ in range(2):
                    if not torch.equal(step(name), self.model.expected[name]):
                        raise RuntimeError(f"{label}: the output of {name} is not the resident one")
                seconds = machine.seconds_of(lambda name=name: step(name))
                info = plan.info
                resident, slots, copied, read = (
                    f"{count / 1e9:.2f} GB"
                    for count in (
                        info.resident_bytes,
                        info.slot_bytes,
                        info.step_bytes,
                        info.view_bytes,
                    )
                )
                what = (
                    f"{resident} resident, {slots} of slots for {info.depth} layers; "
                    f"{copied} copied, {read} read in place; "
                    f"predicted {1e3 * info.step_seconds:.2f} ms"
                )
                taken[name] = self.figure(f"{label}.{name}", seconds, what)
        return taken

    def bound(self, plan: Plan, name: str) -> float:
        """The longer of the time of the link and of the kernels."""
        info = plan.info
        passes = -(-self.model.rows[name] // 128)
        read = passes * info.view_bytes / self.machine.read_rate
        return max(info.step_bytes / self.machine.copy_rate + read, self.resident[name])

    def peer(self, budget: int) -> Plan:
        """The fastest plan under a budget of host memory that fits into the device's budget."""
        plans = []
        for at in range(1, PEERS + 1):
            try:
                plan = self.plan(offload_bytes=self.model.bytes * at // PEERS + 4096)
            except WeighbridgeError:
                continue  # less than one matrix
            if plan.info.resident_bytes + plan.info.slot_bytes <= budget:
                plans.append(plan)
        return min(plans, key=lambda plan: (plan.info.step_seconds, plan.info.slot_bytes))

    def budget(self, part: float) -> None:
        """Measures all plans under one budget."""
        budget, share = int(part * self.model.bytes), f"{100 * part:.0f}"
        names = list(self.model.rows)
        plan = self.plan(device_bytes=budget)
        taken = self.measure(f"budget{share}", plan, names)
        by_host = self.peer(budget)
        peer = self.measure(f"peer{share}", by_host, names)
        for name in names:
            bound = self.bound(plan, name)
            self.bar(f"{share} % on the device, {name}, over the bound", taken[name] / bound, 1.05)
            label = f"{share} % on the device, {name}, over the best offload_bytes"
            self.bar(label, taken[name] / peer[name], 1.02)
            layers = len(self.model.layers)
            known = self.plan(
                device_bytes=budget,
                rows=self.model.rows[name],
                group_seconds=[self.resident[name] / layers] * layers,
            )
            seconds = self.measure(f"known{share}", known, [name])[name]
            label = f"{share} % on the device, {name} with its rows and kernels known"
            self.bar(f"{label}, over the bound", seconds / self.bound(known, name), 1.05)
            self.bar(f"{label}, over the best offload_bytes", seconds / peer[name], 1.02)
            self.report.figure(
                f"known{share}.{name}.predicted",
                [known.info.step_seconds / seconds],
                "x",
                "predicted over measured",
            )

    def bar(self, name: str, figure: float, goal: float) -> None:
        """Adds a bar that a figure must not exceed. Without a GPU none says anything."""
        if self.machine.cuda:
            self.report.bar(name, figure, "<=", goal)


def main() -> int:
    """Runs the benchmark; returns 1 if a bar is missed.

    Without a GPU it shows, with few small layers, that it works; nothing is written.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--layers", type=int, default=16, help="at least 8 (default: 16)")
    parser.add_argument("--hidden", type=int, default=4096)
    arguments = parser.parse_args()
    if arguments.layers < 8:
        parser.error("slots for two of fewer than 8 layers are more than 25 % of the model")
    cuda = torch.cuda.is_available()
    report = Report("budget", weighbridge.__version__)
    report.peers = {"torch": torch.__version__}
    began = time.perf_counter()
    with torch.no_grad(), Device("cuda:0" if cuda else "host") as device:
        machine = Machine(device, report)
        where, rows = ("cuda", ROWS) if cuda else ("cpu", TINY_ROWS)
        model = Model(arguments.layers, arguments.hidden, rows, where)
        bench = Bench(report, machine, model)
        for part in PARTS:
            bench.budget(part)
        if cuda:
            report.write(arguments.out)
    print(f"{time.perf_counter() - began:.0f} s", file=sys.stderr)
    return 0 if all(bar["holds"] for bar in report.bars) else 1


if __name__ == "__main__":
    sys.exit(main())

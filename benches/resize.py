"""Benchmark of a budget that changes while the engine runs.

    make gpu-bench SUBJECT=resize

The matrices of twenty-four layers of Llama-3-8B in bf16, 10.5 GB, of which every layer leaves the
device and returns, behind fixed addresses. Freed memory counts once the driver's own number
of free bytes has risen. Bounds are measured in the same run: the copy engine's rate, and steps
before and after. GB is 10^9 bytes.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from budget import ROWS, Machine, Model, layer_step

import weighbridge
from report import RESULTS, ROOT, Report
from weighbridge import (
    Arbiter,
    Buffer,
    Device,
    ExpertCache,
    ExpertParameter,
    Offloader,
    Parameter,
    Plan,
)

sys.path.append(str(ROOT / "tests" / "python"))
from graphs import graph_of

TIMES = 3
TINY_ROWS = {"decode": 1, "prefill2048": 16, "prefill8192": 32}
PIECE = 64 << 20
PIECE_BYTES = 2 << 20
SHARES = (0, 25, 50, 75)
BUSY_CYCLES = 3_000_000_000


class Weights:
    """A committed plan, and steps over its weights."""

    def __init__(self, machine: Machine, model: Model, plan: Plan) -> None:
        self.machine, self.model, self.plan = machine, model, plan
        began = time.perf_counter()
        self.offloader = Offloader(plan, machine.stream)
        self.commit_seconds = time.perf_counter() - began
        fixed = plan.to_dict()["options"]["fixed_addresses"]
        owned = {info.name for info in self.offloader.parameter_infos() if fixed or info.owned}
        self.layers = [
            {
                name: torch.from_dlpack(self.offloader.view(full)) if full in owned else own
                for name, own in layer.items()
                for full in [f"layers.{at}.{name}"]
            }
            for at, layer in enumerate(model.layers)
        ]
        self.slots = self.offloader.stats.slot_bytes
        self.whole = 0
        if fixed:
            units = plan.info.groups
            pieces = -(-model.bytes // units // (2 << 20)) * (2 << 20)
            self.whole = self.slots + units * pieces

    def step(self, name: str = "decode") -> torch.Tensor:
        """Runs a step."""
        x = self.model.inputs[name]
        for group, layer in enumerate(self.layers):
            with self.offloader.acquired(group, self.machine.stream):
                if not self.machine.cuda:
                    self.machine.stream.synchronize()
                x = layer_step(x, layer)
        return x

    def check(self, what: str, result: torch.Tensor | None = None) -> None:
        """Raises RuntimeError if a step does not compute what the resident model does."""
        found = self.step() if result is None else result
        self.machine.wait()
        if not torch.equal(found, self.model.expected["decode"]):
            raise RuntimeError(f"{what}: the output is not the resident one")

    def resize(self, device_bytes: int) -> float:
        """Resizes; returns the seconds until the driver has the memory, or has given it."""
        self.machine.wait()
        began = time.perf_counter()
        progress = self.offloader.resize(device_bytes, self.machine.stream)
        seconds = time.perf_counter() - began
        if progress.device_bytes > device_bytes:
            raise RuntimeError(f"{progress.device_bytes} of {device_bytes} bytes are held")
        return seconds

    def close(self) -> None:
        """Frees everything."""
        self.machine.wait()
        self.layers.clear()
        self.offloader.close()


def free_bytes(device: Device) -> int:
    """Returns the driver's number of free bytes."""
    return device.info.free_bytes


class Bench:
    """One run of the benchmark."""

    def __init__(self, report: Report, machine: Machine, model: Model) -> None:
        self.report, self.machine, self.model = report, machine, model

    def bar(self, name: str, figure: float, relation: str, goal: float) -> None:
        """Adds a bar. Without a GPU none says anything."""
        if self.machine.cuda:
            self.report.bar(name, figure, relation, goal)

    def figure(self, name: str, seconds: list[float], what: str) -> float:
        """Adds a figure in milliseconds; returns seconds."""
        return 1e-3 * self.report.figure(name, [1e3 * one for one in seconds], "ms", what)

    def commit(
        self, fixed: bool, resident_layers: int = 0, keep: bool = False, compress: bool = False
    ) -> Weights:
        """Commits with all layers offloaded but some."""
        model = self.model
        share = model.bytes // len(model.layers) * (len(model.layers) - resident_layers)
        plan = Plan(
            self.machine.device,
            model.parameters(),
            offload_bytes=share + (share >> 8 if compress else 0) + (1 << 20),
            order="declared",
            transfer_mode="prefetch",
            fixed_addresses=fixed,
            keep_host_copy=keep,
            compress=compress,
        )
        return Weights(self.machine, model, plan)

    def costs(self) -> None:
        """What fixed addresses cost while nothing is resized."""
        self.commit(False).close()  # the first one touches memory that no one has used
        taken: dict[bool, tuple[float, float]] = {}
        for fixed in (False, True):
            weights = self.commit(fixed)
            weights.check(f"fixed {fixed}")
            label = "fixed" if fixed else "plain"
            commit = self.figure(
                f"{label}.commit", [weights.commit_seconds], "all layers offloaded"
            )
            steps = self.machine.seconds_of(weights.step)
            decode = self.figure(f"{label}.decode", steps, "all layers prefetched")
            taken[fixed] = (commit, decode)
            weights.close()
        self.bar(
            "decode with fixed addresses over without",
            taken[True][1] / taken[False][1],
            "<=",
            1.005,
        )
        self.bar(
            "commit with fixed addresses over without", taken[True][0] / taken[False][0], "<=", 1.05
        )

    def slots(self) -> None:
        """Layers with slots leave and return."""
        weights, moved = self.commit(True), self.model.bytes
        back, take, sleeps, wakes = [], [], [], []
        for _ in range(TIMES):
            take.append(weights.resize(weights.whole))
            weights.check("all on the device")
            full = free_bytes(self.machine.device)
            back.append(weights.resize(weights.slots))
            freed = free_bytes(self.machine.device) - full
            if self.machine.cuda and freed < moved:
                raise RuntimeError(f"{freed} bytes are free of {moved}")
            weights.check("all in host memory")
        weights.resize(weights.whole)
        for _ in range(TIMES):
            sleeps.append(weights.resize(0))
            # The driver still clears what it has got back; an engine sleeps for longer.
            time.sleep(0.2)
            wakes.append(weights.resize(weights.whole))
            weights.check("awake")
        what = f"{moved / 1e9:.2f} GB"
        self.figure("take", take, what)
        per_piece = self.figure("back", back, f"{what}; its host copies are there") / (
            moved / PIECE
        )
        self.figure("sleep", sleeps, what)
        self.figure("wake", wakes, what)
        self.figure("remap", [per_piece], "for each 64 MiB of it: unmap, map and access")
        rate = self.machine.copy_rate
        self.bar("free 10 GB, seconds", min(back) * 10e9 / moved, "<=", 0.1)
        self.bar("take back, part of the copy engine's peak", moved / min(take) / rate, ">=", 0.9)
        self.bar("wake, part of the copy engine's peak", moved / min(wakes) / rate, ">=", 0.9)
        self.bar("remap of 64 MiB, ms", 1e3 * per_piece, "<=", 0.5)
        self.under_steps(weights)
        if self.machine.cuda:
            self.under_kernels(weights)
            self.under_graphs(weights)
        weights.close()

    def compressed(self) -> None:
        """Layers that cross the link compressed leave, and return decoded."""
        weights = self.commit(True, compress=True)
        stats = weights.offloader.stats
        whole = weights.slots + self.model.bytes * 2  # more than all of it
        take, back, sleeps, wakes = [], [], [], []
        for _ in range(TIMES):
            take.append(weights.resize(whole))
            weights.check("decoded once")
            back.append(weights.resize(weights.slots))
            weights.check("decoded in each step")
        decode = self.machine.seconds_of(weights.step)
        for _ in range(TIMES):
            sleeps.append(weights.resize(0))
            wakes.append(weights.resize(weights.slots))
            weights.check("awake, compressed")
        encoded, decoded = stats.encoded_bytes / 1e9, stats.decoded_bytes / 1e9
        what = f"{decoded:.2f} GB, compressed to {encoded:.2f} GB"
        self.figure("compressed.take", take, what)
        self.figure("compressed.back", back, what)
        self.figure("compressed.sleep", sleeps, "with windows")
        self.figure("compressed.wake", wakes, "to slots and windows")
        self.figure("compressed.decode", decode, "all layers prefetched, compressed")
        weights.close()

    def under_steps(self, weights: Weights) -> None:
        """Steps that run while layers leave and return."""
        at = {}
        for size in (weights.whole, weights.slots):
            weights.resize(size)
            at[size] = sorted(self.machine.seconds_of(weights.step))[3]
        longest = 0.0
        for size in (weights.whole, weights.slots, weights.whole):
            weights.offloader.resize(size, self.machine.stream, wait=False)
            for _ in range(200):
                began = time.perf_counter()
                result = weights.step()
                self.machine.wait()
                progress = weights.offloader.resize_advance(self.machine.stream)
                longest = max(longest, time.perf_counter() - began)
                weights.check("a step during a resize", result)
                if progress.pending_units == 0:
                    break
            else:
                raise RuntimeError(f"{progress} after 200 steps")
        self.figure("step.resizing", [longest], "the longest step while layers move")
        slower = max(at.values())
        self.bar("a step during a resize over the slower one", longest / slower, "<=", 1.3)

    def under_kernels(self, weights: Weights) -> None:
        """A kernel of another stream runs all the time."""
        side = torch.cuda.Stream()
        for size, label in ((weights.slots, "back"), (weights.whole, "take")):
            self.machine.wait()
            with torch.cuda.stream(side):
                torch.cuda._sleep(BUSY_CYCLES)
                event = torch.cuda.Event()
                event.record()
            began = time.perf_counter()
            weights.offloader.resize(size, self.machine.stream)
            seconds = time.perf_counter() - began
            running = not event.query()
            what = "beside a kernel of another stream" + ("" if running else ", which ended first")
            self.figure(f"{label}.busy", [seconds], what)
            self.bar(f"{label}: the other kernel was not waited for", float(running), ">=", 1.0)
            self.machine.wait()
        weights.check("after a busy stream")

    def under_graphs(self, weights: Weights) -> None:
        """Graphs of both ends replay at every size."""
        graphs = []
        for size in (weights.slots, weights.whole):
            weights.resize(size)
            weights.offloader.begin_step(self.machine.stream)
            graphs.append(graph_of(self.captured(weights)))
        span = weights.whole - weights.slots
        for turn in range(12):
            size = weights.slots + span * (turn * 5 % 12) // 11
            weights.resize(size)
            for graph, result in graphs:
                result.zero_()
                graph.replay()
                weights.check(f"a replay at {size} bytes", result)
        weights.resize(0)
        weights.resize(weights.whole)
        for graph, result in graphs:
            taken = self.machine.seconds_of(graph.replay)
            weights.check("a replay after waking", result)
            self.figure(f"replay{len(taken)}", taken, "a graph, all layers on the device")
        seconds = [weights.resize(weights.slots), weights.resize(weights.whole)]
        self.figure("in-place.leave", seconds[:1], "graphs do not copy the layers: to host memory")
        self.figure("in-place.return", seconds[1:], "from there")

    def captured(self, weights: Weights) -> Callable[[], torch.Tensor]:
        """Returns a step for the stream that is current when it is called."""

        def step() -> torch.Tensor:
            stream = torch.cuda.current_stream().cuda_stream
            weights.offloader.begin_step(stream)
            x = self.model.inputs["decode"]
            for group, layer in enumerate(weights.layers):
                with weights.offloader.acquired(group, stream):
                    x = layer_step(x, layer)
            weights.offloader.join(stream)
            return x

        return step

    def to_host_rate(self) -> float:
        """Returns the bytes that a copy to pinned memory brings from the device in a second."""
        source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
        target = torch.empty(1 << 30, dtype=torch.uint8, pin_memory=True)
        rates = []
        for _ in range(TIMES):
            self.machine.wait()
            began = time.perf_counter()
            target.copy_(source)
            self.machine.wait()
            rates.append(target.nbytes / (time.perf_counter() - began))
        self.report.figure("to-host", [rate / 1e9 for rate in rates], "GB/s", "torch, 1 GiB")
        return max(rates)

    def pieces(self, size: int) -> None:
        """A weight of which a share is on the device, in pieces, and the rest is read in place."""
        machine = self.machine
        with Buffer.alloc(machine.device, size) as source:
            plan = Plan(
                machine.device,
                [Parameter("w", "w", "uint8", (size,), source=source.address)],
                device_bytes=1,
                transfer_mode="zero-copy",
                fixed_addresses=True,
            )
            offloader = Offloader(plan, machine.stream)
        address = offloader.parameter_info("w").device_address or 0
        for share in SHARES:
            if share:
                offloader.resize(size * share // 100, machine.stream)
            resident = offloader.parameter_info("w").resident_bytes
            if resident != size * share // 100 // PIECE_BYTES * PIECE_BYTES:
                raise RuntimeError(f"{resident} bytes of {size} are resident at {share} %")
            host = size - resident
            what = f"{host / 1e9:.2f} GB in host memory of {size / 1e9:.2f} GB that a kernel reads"
            if machine.cuda:
                import link

                rates = link.bandwidth(link.kernel_read(address, size), host)
            else:
                with Buffer.alloc(machine.device, size) as target:
                    copy = (target.address, address, size, machine.stream)
                    taken = machine.seconds_of(lambda copy=copy: machine.device.copy(*copy))
                rates = [host / one / 1e9 for one in taken]
            rate = 1e9 * self.report.figure(f"pieces.{share}", rates, "GB/s", what)
            name = f"partly resident view, {share} %: time over host bytes at the view bandwidth"
            self.bar(name, machine.read_rate / rate, "<=", 1.02)
        offloader.close()

    def experts(self, each: int, steps: int = 12) -> None:
        """Slots of an expert cache come and go under one graph of its calls."""
        machine, layers, count, used = self.machine, 8, 32, 4
        where = "cuda" if machine.cuda else "cpu"
        with Buffer.alloc(machine.device, layers * count * each) as source:
            rows = torch.from_dlpack(source.view("uint8", (layers * count, each), accessor="host"))
            rows.copy_(torch.arange(layers * count).remainder(251)[:, None].expand(-1, each))
            parameters = [
                Parameter(
                    f"w{layer}",
                    str(layer),
                    "uint8",
                    (count, each),
                    source=source.address + layer * count * each,
                    access_pattern="experts",
                )
                for layer in range(layers)
            ]
            plan = Plan(
                machine.device,
                parameters,
                offload_bytes=layers * count * each + (1 << 20),
                expert_bytes=layers * count * each + 2 * PIECE_BYTES,
                fixed_addresses=True,
            )
            offloader = Offloader(plan, machine.stream)
        of_layer = [ExpertParameter(layer, "w", f"w{layer}") for layer in range(layers)]
        cache = ExpertCache.for_offloader(offloader, of_layer)
        pool = torch.from_dlpack(cache.view(0))
        ids = torch.zeros((layers, used), dtype=torch.int32, device=where)
        slots = torch.zeros_like(ids)

        def step() -> torch.Tensor:
            stream = torch.cuda.current_stream().cuda_stream if machine.cuda else machine.stream
            found = []
            for layer in range(layers):
                at, to = ids[layer].data_ptr(), slots[layer].data_ptr()
                cache.route(layer, at, used, to, stream=stream)
                if not machine.cuda:
                    machine.wait()
                found.append(pool[slots[layer].long(), -1])
            return torch.stack(found)

        graph, result = graph_of(step) if machine.cuda else (None, None)
        whole = cache.info.slot_bytes + cache.info.state_bytes
        least = whole // 8 // PIECE_BYTES * PIECE_BYTES
        shrinks, grows = [], []
        for turn in range(steps):
            for size, taken in ((least, shrinks), (whole, grows)):
                machine.wait()
                before, began = free_bytes(machine.device), time.perf_counter()
                held = offloader.resize(size, machine.stream).device_bytes
                taken.append(time.perf_counter() - began)
                moved = abs(free_bytes(machine.device) - before)
                if held > size or (turn > 0 and machine.cuda and moved < 0.9 * (whole - least)):
                    raise RuntimeError(f"{held} of {size} bytes are held, {moved} have moved")
                ids.copy_(torch.randint(count, ids.shape, dtype=torch.int32))
                if graph is not None:
                    graph.replay()
                found = step() if result is None else result
                machine.wait()
                wanted = ids.long() + count * torch.arange(layers, device=where)[:, None]
                if not torch.equal(found.long(), wanted.remainder(251)):
                    raise RuntimeError(f"a step with {cache.info.slots} slots reads other experts")
        stats = cache.stats()
        if stats.refused or stats.hits + stats.misses > stats.calls * used:
            raise RuntimeError(f"{stats} does not add up")
        what = f"{(whole - least) / 1e9:.2f} GB of slots of an expert cache, in pieces of 2 MiB"
        self.figure("experts.shrink", shrinks[1:], what)
        seconds = self.figure("experts.grow", grows[1:], what)
        self.bar("slots of experts grow (GB/s)", (whole - least) / seconds / 1e9, ">=", 10)
        machine.wait()
        cache.close()
        offloader.close()

    def shared(self) -> None:
        """Two models, of which one is on the device, take turns."""
        both = [self.commit(True), self.commit(True)]
        budget = both[0].whole + both[1].slots
        with Arbiter(self.machine.device, budget) as arbiter:
            for weights in both:
                arbiter.add(weights.offloader, min_bytes=1, stream=self.machine.stream)
            taken = []
            for turn in range(2 * TIMES):
                self.machine.wait()
                began = time.perf_counter()
                held = arbiter.use(both[turn % 2].offloader).device_bytes
                taken.append(time.perf_counter() - began)
                if held > budget:
                    raise RuntimeError(f"{held} of {budget} bytes are held")
                both[turn % 2].check("used next")
        what = "one of two models leaves, and the other one comes"
        self.figure("arbiter.use", taken[2:], f"{what}, {self.model.bytes / 1e9:.2f} GB each")
        for weights in both:
            weights.close()

    def residents(self, keep: bool) -> None:
        """Layers that are resident in the plan leave to be read in place, and return."""
        weights = self.commit(True, len(self.model.layers) - 1, keep)
        label = "kept" if keep else "copied"
        self.figure(f"{label}.commit", [weights.commit_seconds], "all layers but one resident")
        whole = weights.offloader.resize_advance(self.machine.stream).device_bytes
        leave, come = [], []
        for _ in range(2):
            leave.append(weights.resize(weights.slots))
            weights.check("read in place")
            come.append(weights.resize(whole))
            weights.check("back")
        self.figure(
            f"{label}.leave", leave, "resident layers, with a host copy" if keep else "without"
        )
        self.figure(f"{label}.return", come, "resident layers")
        sleeps, wakes = [], []
        for _ in range(TIMES):
            sleeps.append(weights.resize(0))
            wakes.append(weights.resize(whole))
            weights.check("awake")
        what = "to their host copies" if keep else "to new pageable memory, through staging memory"
        self.figure(f"{label}.sleep", sleeps, f"resident layers, {what}")
        self.figure(f"{label}.wake", wakes, "resident layers, from there")
        if not keep and self.machine.cuda:
            moved = whole - weights.slots
            rate = moved / min(sleeps) / self.to_host_rate()
            self.bar("sleep without host copies, part of the rate to the host", rate, ">=", 0.9)
            rate = moved / min(wakes) / self.machine.copy_rate
            self.bar("wake without host copies, part of the copy engine's peak", rate, ">=", 0.8)
        weights.resize(weights.slots)
        self.figure(f"{label}.decode", self.machine.seconds_of(weights.step), "read in place")
        weights.close()


def main() -> int:
    """Runs the benchmark; returns 1 if a bar is missed.

    Without a GPU it shows, with few small layers, that it works; nothing is written.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--hidden", type=int, default=4096)
    arguments = parser.parse_args()
    cuda = torch.cuda.is_available()
    report = Report("resize", weighbridge.__version__)
    report.peers = {"torch": torch.__version__}
    began = time.perf_counter()
    with torch.no_grad(), Device("cuda:0" if cuda else "host") as device:
        machine = Machine(device, report)
        where, rows = ("cuda", ROWS) if cuda else ("cpu", TINY_ROWS)
        model = Model(arguments.layers, arguments.hidden, {"decode": rows["decode"]}, where)
        bench = Bench(report, machine, model)
        bench.costs()
        bench.slots()
        bench.compressed()
        for keep in (True, False):
            bench.residents(keep)
        bench.pieces((2 << 30) if cuda else (16 << 20))
        bench.experts((16 << 20) if cuda else (1 << 19))
        bench.shared()
        if cuda:
            report.write(arguments.out)
    print(f"{time.perf_counter() - began:.0f} s", file=sys.stderr)
    return 0 if all(bar["holds"] for bar in report.bars) else 1


if __name__ == "__main__":
    sys.exit(main())

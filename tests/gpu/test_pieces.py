"""Steps of several PyTorch graphs, with an eager attention between the graphs of each layer."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from weighbridge import Device, Offloader, Parameter, Plan

GROUPS, WIDTH, REPEATS = 8, 4096, 4


class Layers:
    """Layers of two matrices each: one before the attention, one behind it."""

    def __init__(self, device: Device) -> None:
        torch.manual_seed(0)
        shape = GROUPS, 2, WIDTH, WIDTH
        self.resident = torch.randn(shape, device="cuda", dtype=torch.bfloat16) / WIDTH**0.5
        host = self.resident.cpu()
        parameters = [
            Parameter(
                f"layers.{group}",
                f"layers.{group}",
                "bfloat16",
                (2, WIDTH, WIDTH),
                source=host[group].data_ptr(),
            )
            for group in range(GROUPS)
        ]
        self.stream = torch.cuda.Stream()
        self.handle = self.stream.cuda_stream
        plan = Plan(device, parameters, offload_bytes=1 << 40, transfer_mode="prefetch", depth=2)
        self.offloader = Offloader(plan, self.handle)
        plan.close()
        self.slots = [torch.from_dlpack(self.offloader.view(group)) for group in range(GROUPS)]

    def begin(self) -> None:
        self.offloader.begin_step(self.handle)

    def acquire(self, group: int) -> None:
        self.offloader.acquire_group(group, self.handle)

    def release(self, group: int) -> None:
        self.offloader.release_group(group, self.handle)


class Step:
    """A step for a number of rows, of a batch size of its own."""

    def __init__(self, layers: Layers, rows: int) -> None:
        self.layers = layers
        self.input, self.state, self.mid, self.seen = (
            torch.randn(rows, WIDTH, device="cuda").to(torch.bfloat16) for _ in range(4)
        )
        self.graphs: list[torch.cuda.CUDAGraph] = []
        self.run(layers.resident, lambda _: None, lambda _: None)
        self.expected = self.state.clone()

    def before(self, weights: Any, group: int) -> None:
        for _ in range(REPEATS):
            torch.mm(self.state, weights[group][0], out=self.mid)

    def attention(self) -> None:
        torch.tanh(self.mid, out=self.seen)

    def behind(self, weights: Any, group: int) -> None:
        for _ in range(REPEATS):
            torch.mm(self.seen, weights[group][1], out=self.state)

    def run(self, weights: Any, acquire: Callable[[int], None], release: Any) -> None:
        self.state.copy_(self.input)
        for group in range(GROUPS):
            acquire(group)
            self.before(weights, group)
            self.attention()
            self.behind(weights, group)
            release(group)

    def eager(self) -> None:
        self.layers.begin()
        self.run(self.layers.slots, self.layers.acquire, self.layers.release)

    def captured(self, work: Callable[[], None]) -> None:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.layers.stream):
            work()
            self.layers.offloader.join(self.layers.handle)
        self.graphs.append(graph)

    def capture(self) -> None:
        raise NotImplementedError

    def replay(self) -> None:
        raise NotImplementedError


class Between(Step):
    """Acquires and releases between the graphs."""

    def capture(self) -> None:
        slots = self.layers.slots
        self.layers.begin()
        for group in range(GROUPS):
            self.layers.acquire(group)
            self.captured(lambda group=group: self.before(slots, group))
            self.attention()
            self.captured(lambda group=group: self.behind(slots, group))
            self.layers.release(group)

    def replay(self) -> None:
        self.layers.begin()
        self.state.copy_(self.input)
        for group in range(GROUPS):
            self.layers.acquire(group)
            self.kernels(group)
            self.layers.release(group)

    def kernels(self, group: int) -> None:
        self.graphs[2 * group].replay()
        self.attention()
        self.graphs[2 * group + 1].replay()


class Within(Step):
    """Acquires and releases in the graphs, which are parts of a step."""

    def capture(self) -> None:
        for part in range(GROUPS + 1):
            self.captured(lambda part=part: self.part(part))
            self.attention()

    def part(self, part: int) -> None:
        layers = self.layers
        if part == 0:
            layers.begin()
        else:
            self.behind(layers.slots, part - 1)
            layers.release(part - 1)
        if part < GROUPS:
            layers.acquire(part)
            self.before(layers.slots, part)

    def replay(self) -> None:
        self.state.copy_(self.input)
        for part in range(GROUPS):
            self.graphs[part].replay()
            self.attention()
        self.graphs[GROUPS].replay()


@pytest.fixture
def layers(device: Device) -> Iterator[Layers]:
    layers = Layers(device)
    with torch.cuda.stream(layers.stream):
        yield layers
    torch.cuda.synchronize()
    layers.slots.clear()
    layers.offloader.close()


def test_steps_of_several_graphs_are_bit_identical_in_any_order(layers: Layers) -> None:
    sets = [kind(layers, rows) for rows in (64, 7) for kind in (Between, Within)]
    for step in sets:
        step.eager()  # the engine warms up
        before = layers.offloader.stats.copies
        step.capture()
        assert layers.offloader.stats.copies - before == GROUPS
    turns = random.Random(0)
    for turn in range(200):
        step = turns.choice(sets)
        step.state.zero_()
        kind = turns.choice(("replayed", "replayed", "eager"))
        if kind == "eager":
            step.eager()
        else:
            step.replay()
        if turn % 3:  # the others run without a wait in between
            assert torch.equal(step.state, step.expected), f"turn {turn}, {kind}, {type(step)}"
    torch.cuda.synchronize()
    assert all(torch.equal(step.state, step.expected) for step in sets)
    for step in sets:
        step.graphs.clear()


def seconds(work: Callable[[], None], runs: int = 15) -> float:
    """Returns the median of several runs."""
    taken = []
    for _ in range(runs):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        work()
        torch.cuda.synchronize()
        taken.append(time.perf_counter() - begin)
    return sorted(taken)[runs // 2]


def test_copies_between_graphs_run_beside_kernels(layers: Layers) -> None:
    between, within = Between(layers, 2048), Within(layers, 2048)
    for step in (between, within):
        step.eager()
        step.capture()

    def copies_only() -> None:
        layers.begin()
        for group in range(GROUPS):
            layers.acquire(group)
            layers.release(group)

    def kernels_only() -> None:
        for group in range(GROUPS):
            between.kernels(group)

    copies, kernels = seconds(copies_only), seconds(kernels_only)
    taken = {"between": seconds(between.replay), "within": seconds(within.replay)}
    print(
        f"copies {1e3 * copies:.2f} ms, kernels {1e3 * kernels:.2f} ms, a step with calls between "
        f"graphs {1e3 * taken['between']:.2f} ms, in graphs {1e3 * taken['within']:.2f} ms"
    )
    assert taken["between"] < copies + kernels
    assert torch.equal(between.state, between.expected)
    between.graphs.clear()
    within.graphs.clear()

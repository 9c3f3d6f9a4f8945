"""Offloaders that are resized on a GPU: graphs and compiled models go on, memory is freed."""

from __future__ import annotations

import random

import pytest
import torch

import weighbridge.torch as wt
from graphs import graph_of

LAYERS, WIDTH, PIECE = 8, 1024, 2 << 20


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(
            torch.nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)
        )

    def forward(self, x):
        for layer in self.layers:
            x = torch.relu(layer(x)) + x
        return x


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().cuda().to(torch.bfloat16).eval().requires_grad_(False)


@pytest.fixture
def x():
    torch.manual_seed(1)
    return torch.randn(4, WIDTH, device="cuda", dtype=torch.bfloat16)


@pytest.mark.parametrize("compress", [False, "auto"])
@pytest.mark.parametrize("offloaded", [3, LAYERS])
def test_graphs_are_bit_identical_through_resizes_and_sleep(net, x, offloaded, compress):
    with torch.no_grad():
        resident = net(x)
        handle = wt.offload(
            net,
            offload_bytes=offloaded * (PIECE + (8 << 10)),  # with space for any compressed bytes
            order="declared",
            transfer_mode="prefetch",
            fixed_addresses=True,
            compress=compress,
        )
        assert handle.stats.decoded_bytes == (offloaded * PIECE if compress else 0)
        slots = handle.stats.slot_bytes
        pieces = LAYERS + offloaded if compress else LAYERS  # with that space, a piece more each
        whole = slots + pieces * PIECE
        graphs = [graph_of(lambda: net(x))]
        handle.resize(device_bytes=whole)
        graphs.append(graph_of(lambda: net(x)))
        choose = random.Random(offloaded)
        for turn in range(200):
            budget = slots + choose.randrange(0, pieces + 1) * PIECE
            assert handle.resize(device_bytes=budget).device_bytes <= budget
            for graph, result in graphs:
                result.zero_()
                graph.replay()
                assert torch.equal(result, resident), f"turn {turn}, {budget} bytes"
            if turn % 10 == 0:
                assert torch.equal(net(x), resident)
                handle.sleep()
                handle.wake()
        for graph, result in graphs:
            result.zero_()
            graph.replay()
            assert torch.equal(result, resident)
        del graph, graphs
        handle.remove()
        assert torch.equal(net(x), resident)


def test_a_compiled_model_goes_on(net, x):
    with torch.no_grad():
        resident = net(x)
        handle = wt.offload(
            net, offload_bytes=1 << 30, transfer_mode="prefetch", fixed_addresses=True
        )
        compiled = torch.compile(net, backend="aot_eager")
        slots = handle.stats.slot_bytes
        for pieces in (0, LAYERS, 3, 0, 5):
            handle.resize(device_bytes=slots + pieces * PIECE)
            for _ in range(2):
                assert torch.equal(compiled(x), resident)
        handle.remove()


def test_sleep_gives_all_of_it_back_a_hundred_times(net, x):
    with torch.no_grad():
        resident = net(x)
        handle = wt.offload(
            net, offload_bytes=4 * PIECE, transfer_mode="prefetch", fixed_addresses=True
        )
        held = handle.offloader.resize_advance().device_bytes
        handle.sleep()
        handle.wake()
        torch.cuda.synchronize()
        awake = torch.cuda.mem_get_info()[0]
        for _ in range(100):
            handle.sleep()
            assert torch.cuda.mem_get_info()[0] - awake == held
            handle.wake()
            assert torch.cuda.mem_get_info()[0] == awake
        assert torch.equal(net(x), resident)
        handle.remove()


def test_models_with_graphs_share_a_budget():
    torch.manual_seed(0)
    with torch.no_grad():
        x = torch.randn(4, WIDTH, device="cuda", dtype=torch.bfloat16)
        nets = [Net().cuda().to(torch.bfloat16).eval().requires_grad_(False) for _ in range(3)]
        resident = [net(x) for net in nets]
        handles = [
            wt.offload(
                net, offload_bytes=1 << 30, transfer_mode="prefetch", depth=2, fixed_addresses=True
            )
            for net in nets
        ]
        budget = (LAYERS + 2 + 2 * 2) * PIECE
        shared = wt.Arbiter(budget)
        for at, handle in enumerate(handles):
            shared.add(handle, priority=at)
        graphs = [graph_of(lambda net=net: net(x)) for net in nets]
        choose = random.Random(5)
        for turn in range(100):
            at = choose.randrange(3)
            progress = shared.use(handles[at])
            assert progress.ready and progress.device_bytes <= budget
            graph, result = graphs[at]
            result.zero_()
            graph.replay()
            assert torch.equal(result, resident[at]), f"turn {turn}"
            assert torch.equal(nets[at](x), resident[at])
        del graph, graphs
        for handle in handles:
            shared.remove(handle)

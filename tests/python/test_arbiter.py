"""Models that share a budget: outputs, addresses and bytes."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from conftest import REPEATS

from weighbridge import Arbiter, Offloader, Parameter, Plan
from weighbridge.errors import Status, WeighbridgeError

torch = pytest.importorskip("torch")
wt = pytest.importorskip("weighbridge.torch")

ROOT = Path(__file__).resolve().parents[2]
PIECE = 2 << 20
LAYERS, WIDTH = 4, 32


class Net(torch.nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(WIDTH, WIDTH) for _ in range(depth))

    def forward(self, x):
        for layer in self.layers:
            x = torch.tanh(layer(x)) + x
        return x


def offloaded(seed: int, depth: int):
    torch.manual_seed(seed)
    net = Net(depth).eval().requires_grad_(False)
    x = torch.randn(3, WIDTH)
    expected = net(x)
    handle = wt.offload(
        net, offload_bytes=1 << 20, transfer_mode="prefetch", depth=2, fixed_addresses=True
    )
    return net, x, expected, handle


def test_a_pipeline_of_models_shares_a_budget():
    models = [offloaded(seed, depth) for seed, depth in enumerate((LAYERS, 8, 3))]
    budget = 12 * PIECE
    shared = wt.Arbiter(budget)
    for at, (*_, handle) in enumerate(models):
        shared.add(handle, priority=at)
    choose = random.Random(1)
    for turn in range(40):
        net, x, expected, handle = models[choose.randrange(3)]
        progress = shared.use(handle)
        assert progress.ready and progress.pending_offloaders == 0
        assert progress.device_bytes <= budget
        assert torch.equal(net(x), expected)
        info = shared.member_info(handle)
        assert info.device_bytes == min(info.whole_bytes, budget)
        held = [shared.member_info(other[3]).device_bytes for other in models]
        assert sum(held) == progress.device_bytes
        for other, bytes_ in zip(models, held):
            if bytes_ == 0:
                with pytest.raises(WeighbridgeError, match="asleep"):
                    other[3].offloader.acquire_group(0)
        if turn == 20:
            budget = 8 * PIECE
            assert shared.resize(device_bytes=budget).device_bytes <= budget
    handle = models[0][3]
    with pytest.raises(WeighbridgeError, match="arbiter"):
        handle.resize(device_bytes=budget)
    for net, x, expected, handle in models:
        shared.use(handle)
        shared.remove(handle)
        handle.remove()
        assert torch.equal(net(x), expected)


def test_a_model_goes_on_while_another_is_evicted():
    models = [offloaded(seed, 6) for seed in range(2)]
    shared = wt.Arbiter(10 * PIECE)
    for *_, handle in models:
        shared.add(handle, min_bytes=1)
    for turn in range(30):
        net, x, expected, handle = models[turn % 2]
        shared.use(handle, wait=False)
        for _ in range(3):
            assert torch.equal(net(x), expected)
            assert shared.advance().device_bytes <= 10 * PIECE


@pytest.mark.parametrize("name", [pytest.param("kv_cache", marks=REPEATS), "shared_pipeline"])
def test_the_examples_compute_what_resident_models_do(run_python, name, tmp_path):
    plot = tmp_path / "plot.svg"
    status, printed, error = run_python(str(ROOT / f"examples/python/{name}.py"), str(plot))
    assert status == 0, error
    assert "image 2" in printed or plot.read_text().count("<polyline") == 5


def test_offloaders_that_cannot_share_are_refused(device):
    parameters = [Parameter("layers.0.w", "layers.0", "uint8", (1000,))]
    with pytest.raises(LookupError, match="add one"):
        wt.Arbiter(1).advance()
    with Arbiter(device, 1 << 20) as arbiter:
        with Plan(device, parameters, offload_bytes=4096) as plan, Offloader(plan) as offloader:
            with pytest.raises(WeighbridgeError, match="fixed_addresses") as caught:
                arbiter.add(offloader)
            assert caught.value.status == Status.NOT_SUPPORTED
        plan = Plan(device, parameters, offload_bytes=4096, fixed_addresses=True)
        with plan, Offloader(plan) as offloader:
            with pytest.raises(WeighbridgeError, match="shares 1048576") as caught:
                arbiter.add(offloader)
            assert caught.value.status == Status.BUDGET


def test_a_budget_of_offloaded_bytes(device):
    parameters = [Parameter(f"layers.{at}.w", f"layers.{at}", "uint8", (9,)) for at in range(6)]
    plan = Plan(
        device,
        parameters,
        offload_bytes=1 << 20,
        fixed_addresses=True,
        transfer_mode="prefetch",
        depth=2,
    )
    with plan, Offloader(plan) as offloader:
        slots = offloader.stats.slot_bytes
        for pieces in range(7):
            held = offloader.resize(offload_bytes=pieces * PIECE).device_bytes
            assert held == slots + (6 - pieces) * PIECE
        assert offloader.resize(offload_bytes=PIECE - 1).device_bytes == slots + 6 * PIECE
        with pytest.raises(ValueError, match="give exactly one"):
            offloader.resize(1, offload_bytes=1)
        with pytest.raises(ValueError, match="give exactly one"):
            offloader.resize()

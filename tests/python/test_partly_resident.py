"""Weights in pieces: hot ones on the device, cold ones in host memory, at the same addresses."""

from __future__ import annotations

import random

import pytest

from weighbridge import Offloader, Parameter, Plan
from weighbridge.errors import Status, WeighbridgeError

torch = pytest.importorskip("torch")
wt = pytest.importorskip("weighbridge.torch")

PIECE = 2 << 20
ROWS, WIDTH = 2048, 2048  # eight pieces of float32
EXPERT = ROWS // 8


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(ROWS, WIDTH)
        self.experts = torch.nn.Linear(WIDTH, ROWS, bias=False)

    def forward(self, rows):
        return self.experts(self.table(rows))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().eval().requires_grad_(False)


def rebalanced(handle):
    for _ in range(100_000):
        progress = handle.rebalance(4 * PIECE)
        if progress.pending_bytes == 0:
            return progress
    raise AssertionError("a rebalance does not end")


def resident(handle):
    return {info.name: info.resident_bytes for info in handle.offloader.parameter_infos()}


def test_a_model_is_right_while_its_pieces_move(net):
    rows = torch.arange(0, ROWS, 97)
    expected, experts = net(rows), net.experts.weight.clone()
    handle = wt.offload(
        net, device_bytes=5 * PIECE, transfer_mode="zero-copy", fixed_addresses=True
    )
    assert torch.equal(net(rows), expected)
    addresses = {i.name: i.device_address for i in handle.offloader.parameter_infos()}
    assert resident(handle) == {"table.weight": 0, "experts.weight": 5 * PIECE}
    rng = random.Random(5)
    for turn in range(25):
        name = rng.choice(["table.weight", "experts.weight"])
        first = rng.randrange(8) * EXPERT
        handle.prefer(name, rng.randrange(9), rows=range(first, first + EXPERT))
        assert handle.rebalance(rng.randrange(4) * PIECE).device_bytes <= 5 * PIECE
        assert torch.equal(net(rows), expected), turn
    held = rebalanced(handle)
    assert held.device_bytes == 5 * PIECE
    assert torch.equal(handle.read("experts.weight"), experts)
    stats = handle.stats
    assert sum(resident(handle).values()) == stats.device_parameter_bytes == 5 * PIECE
    assert stats.offloaded_bytes + stats.resident_bytes == 16 * PIECE
    assert handle.resize(device_bytes=3 * PIECE).device_bytes == 3 * PIECE
    handle.sleep()
    handle.wake()
    assert torch.equal(net(rows), expected)
    assert {i.name: i.device_address for i in handle.offloader.parameter_infos()} == addresses
    handle.remove()
    assert torch.equal(net(rows), expected)


def test_hot_rows_and_bytes_come_to_the_device(net):
    handle = wt.offload(
        net, device_bytes=2 * PIECE, transfer_mode="zero-copy", fixed_addresses=True
    )
    handle.prefer("table.weight", 40, rows=slice(EXPERT, 2 * EXPERT))
    handle.prefer("experts.weight", 30, nbytes=range(7 * PIECE, 8 * PIECE))
    rebalanced(handle)
    assert resident(handle) == {"table.weight": PIECE, "experts.weight": PIECE}
    handle.prefer("experts.weight", 0)
    handle.prefer("table.weight", 2)
    rebalanced(handle)
    assert handle.rebalance(4 * PIECE).moved_bytes == 0
    assert resident(handle) == {"table.weight": 2 * PIECE, "experts.weight": 0}
    with pytest.raises(TypeError, match="not both"):
        handle.prefer("table.weight", 1, rows=range(1), nbytes=range(1))
    with pytest.raises(ValueError, match="step 1"):
        handle.prefer("table.weight", 1, rows=range(0, 9, 2))
    with pytest.raises(WeighbridgeError) as refused:
        handle.prefer("table.weight", 1, rows=range(ROWS, ROWS + 1))
    assert refused.value.status == Status.OUT_OF_RANGE
    with pytest.raises(WeighbridgeError) as refused:
        handle.prefer("table.weight", float("nan"))
    assert refused.value.status == Status.INVALID_ARGUMENT
    handle.remove()


def test_a_plan_counts_pieces(device):
    if device.info.address_granularity == 0:
        pytest.skip(device.info.address_reason)
    source = bytearray(range(256)) * (4 * PIECE // 256)
    address = torch.frombuffer(source, dtype=torch.uint8).data_ptr()
    plan = Plan(
        device,
        [Parameter("a", "a", "uint8", (4 * PIECE,), source=address)],
        device_bytes=3 * PIECE + 5,
        transfer_mode="zero-copy",
        fixed_addresses=True,
    )
    assert plan.info.resident_bytes == 3 * PIECE and plan.info.offloaded_bytes == PIECE
    assert plan.parameter_info(0).resident_bytes == 3 * PIECE
    assert plan.parameter_info(0).placement == "offloaded"
    assert plan.to_dict()["parameters"][0]["resident_bytes"] == 3 * PIECE
    with Offloader(plan) as offloader:
        offloader.prefer("a", 5.0, offset=3 * PIECE)
        offloader.prefer(0, 0.5, offset=PIECE, nbytes=PIECE)
        while offloader.rebalance(2 * PIECE).pending_bytes:
            pass
        info = offloader.parameter_info("a")
        assert info.resident_bytes == 3 * PIECE and info.transfer_mode == "zero-copy"
        assert info.host_address is None
        assert offloader.read("a") == source

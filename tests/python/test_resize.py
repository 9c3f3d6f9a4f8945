"""A budget that changes while the engine runs: addresses, outputs and bytes."""

from __future__ import annotations

import random

import pytest

from weighbridge import Offloader, Parameter, Plan
from weighbridge.errors import Status, WeighbridgeError

torch = pytest.importorskip("torch")
wt = pytest.importorskip("weighbridge.torch")

PIECE = 2 << 20
LAYERS, WIDTH = 6, 64


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS))

    def forward(self, x):
        for layer in self.layers:
            x = torch.relu(layer(x)) + x
        return x


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().eval().requires_grad_(False)


@pytest.fixture
def x():
    torch.manual_seed(1)
    return torch.randn(4, WIDTH)


def slot_addresses(handle):
    infos = handle.offloader.parameter_infos()
    return {info.name: info.device_address for info in infos}


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("offloaded", [2, LAYERS])
def test_outputs_and_addresses_are_the_same_at_every_budget(net, x, offloaded, keep):
    expected = net(x)
    nbytes = offloaded * sum(p.nbytes + 256 for p in net.layers[0].parameters())
    handle = wt.offload(
        net,
        offload_bytes=nbytes,
        order="declared",
        transfer_mode="prefetch",
        fixed_addresses=True,
        keep_host_copy=keep,
    )
    before, slots = slot_addresses(handle), handle.stats.slot_bytes
    choose = random.Random(1)
    for _ in range(30):
        budget = slots + choose.randrange(0, LAYERS + 2) * PIECE
        progress = handle.resize(device_bytes=budget)
        assert progress.pending_units == 0 and progress.device_bytes <= budget
        assert torch.equal(net(x), expected)
        if choose.random() < 0.2:
            handle.sleep()
            assert handle.offloader.resize_advance().device_bytes == 0
            with pytest.raises(WeighbridgeError, match="asleep"):
                handle.offloader.acquire_group(0)
            handle.wake()
            assert torch.equal(net(x), expected)
    assert slot_addresses(handle) == before
    handle.remove()
    assert torch.equal(net(x), expected)


def test_weights_that_change_are_right_at_every_budget(net, x):
    handle = wt.offload(net, offload_bytes=1 << 20, transfer_mode="prefetch", fixed_addresses=True)
    twin = Net().requires_grad_(False)
    slots = handle.stats.slot_bytes
    for turn, pieces in enumerate([0, LAYERS, 1, 9]):
        budget = slots + pieces * PIECE
        handle.resize(device_bytes=budget)
        state = {name: torch.full_like(p, 0.01 * (turn + 1)) for name, p in twin.named_parameters()}
        twin.load_state_dict(state)
        net.load_state_dict(state)
        assert torch.equal(net(x), twin(x)), f"loaded at {budget}"
        net.layers[1].weight.mul_(2)
        twin.layers[1].weight.mul_(2)
        assert torch.equal(net(x), twin(x)), f"changed in place at {budget}"


@pytest.mark.parametrize("mode", ["prefetch", "zero-copy"])
@pytest.mark.parametrize("by_data", [False, True])
def test_host_copies_of_residents_follow_changes_in_place(mode, by_data):
    """Of the layers, of 4 MiB each, some are resident, and leave by the copies that were kept."""
    torch.manual_seed(2)
    model, twin = (
        torch.nn.Sequential(*(torch.nn.Linear(1024, 1024) for _ in range(4))).requires_grad_(False)
        for _ in range(2)
    )
    twin.load_state_dict(model.state_dict())
    x = torch.randn(2, 1024)
    handle = wt.offload(
        model,
        device_bytes=17 << 20,
        transfer_mode=mode,
        fixed_addresses=True,
        keep_host_copy=True,
    )
    shared = wt.Arbiter(64 << 20)

    def sleep():
        handle.sleep()
        handle.wake()

    def shrink_and_grow():
        handle.resize(device_bytes=10 << 20)
        handle.resize(device_bytes=17 << 20)

    def give_to_others():
        shared.add(handle)
        shared.use(handle)
        shared.resize(device_bytes=0)
        shared.resize(device_bytes=64 << 20)
        shared.use(handle)

    for number, change in enumerate((sleep, shrink_and_grow, give_to_others)):
        for edited in (model, twin):
            for weight in edited.parameters():
                if by_data:
                    weight.data[::2].mul_(1.5 + number)
                else:
                    weight[::2].mul_(1.5 + number)
        change()
        assert torch.equal(model(x), twin(x)), f"after {change.__name__}"


def test_a_conversion_is_refused_before_it_begins(net, x):
    expected = net(x)
    handle = wt.offload(net, offload_bytes=1 << 20, fixed_addresses=True)
    with pytest.raises(RuntimeError, match="fixed addresses"):
        net.half()
    assert torch.equal(net(x), expected)
    handle.remove()
    assert net.half().layers[0].weight.dtype == torch.float16


def test_a_resize_without_waiting_goes_on_between_steps(net, x):
    expected = net(x)
    handle = wt.offload(net, offload_bytes=1 << 20, transfer_mode="prefetch", fixed_addresses=True)
    whole = handle.stats.slot_bytes + LAYERS * PIECE
    progress = handle.resize(device_bytes=whole, wait=False)
    for _ in range(1000):
        assert progress.device_bytes <= whole
        assert torch.equal(net(x), expected)
        if progress.pending_units == 0:
            break
        progress = handle.offloader.resize_advance()
    assert progress.device_bytes == whole


def test_a_plan_with_fixed_addresses_counts_whole_pieces(device):
    granularity = device.info.address_granularity
    assert granularity == PIECE and device.info.address_reason == ""
    parameters = [Parameter(f"layers.{at}.w", f"layers.{at}", "uint8", (1000,)) for at in range(5)]
    plan = Plan(device, parameters, device_bytes=3 * PIECE, fixed_addresses=True, depth=1)
    totals = plan.to_dict()["totals"]
    assert plan.info.resident_bytes + plan.info.slot_bytes <= 3 * PIECE
    assert plan.info.resident_bytes == 2 * PIECE and plan.info.slot_bytes == PIECE
    assert totals["granularity"] == PIECE
    assert totals["padding_bytes"] == 3 * PIECE - 3 * 1024
    with pytest.raises(WeighbridgeError) as caught:
        Plan(device, parameters, device_bytes=PIECE - 1, fixed_addresses=True)
    assert caught.value.status == Status.BUDGET


def test_an_offloader_without_fixed_addresses_says_so(device):
    parameters = [Parameter("layers.0.w", "layers.0", "uint8", (1000,))]
    with Plan(device, parameters, offload_bytes=4096) as plan, Offloader(plan) as offloader:
        with pytest.raises(WeighbridgeError, match="fixed_addresses") as caught:
            offloader.resize(1 << 30)
        assert caught.value.status == Status.NOT_SUPPORTED

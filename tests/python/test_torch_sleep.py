"""Models that are asleep: what has no memory raises when it is used."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

import weighbridge.torch as wt  # noqa: E402
from weighbridge import WeighbridgeError  # noqa: E402


def net():
    torch.manual_seed(0)
    return torch.nn.Sequential(*[torch.nn.Linear(64, 64) for _ in range(6)]).eval()


def uses(handle):
    model = handle.model
    return [
        lambda: [tensor.clone() for tensor in model.state_dict().values()],
        lambda: model.load_state_dict(net().state_dict()),
        lambda: [parameter.sum() for parameter in model.parameters()],
        lambda: [parameter.data.mul_(2) for parameter in reversed(list(model.parameters()))],
        lambda: copy.deepcopy(model),
        handle.remove,
    ]


@pytest.mark.parametrize("at", range(6))
def test_weights_that_stay_on_the_device_refuse_while_the_model_sleeps(at):
    resident, model, x = net(), net(), torch.ones(2, 64)
    handle = wt.offload(model, offload_bytes=40_000, fixed_addresses=True)
    handle.sleep()
    with pytest.raises((RuntimeError, WeighbridgeError), match="asleep"):
        uses(handle)[at]()
    handle.wake()
    with torch.no_grad():
        if at not in (1, 3):  # these may have changed offloaded weights first
            assert torch.equal(model(x), resident(x))
        model.load_state_dict(resident.state_dict())
        assert torch.equal(model(x), resident(x))
    handle.remove()


def test_a_model_that_an_arbiter_puts_to_sleep_refuses(recwarn):
    first, second = net(), net()
    options = {"offload_bytes": 40_000, "fixed_addresses": True}
    one, two = wt.offload(first, **options), wt.offload(second, **options)
    shared = wt.Arbiter(64 << 20)
    shared.add(one)
    shared.add(two)
    shared.use(one)
    shared.use(two)
    shared.resize(device_bytes=shared.member_info(two).slot_bytes)
    assert shared.member_info(one).asleep
    with pytest.raises(RuntimeError, match="asleep, where it has no memory"):
        [parameter.sum() for parameter in first.parameters()]
    shared.resize(device_bytes=64 << 20)
    shared.use(one)
    for mine, wanted in zip(first.parameters(), net().parameters()):
        assert torch.equal(mine, wanted)
    one.remove()
    two.remove()


def test_a_model_that_is_read_in_place_wakes_up():
    model, x = net(), torch.ones(2, 64)
    with torch.no_grad():
        expected = model(x)
        handle = wt.offload(
            model, offload_bytes=1 << 20, fixed_addresses=True, transfer_mode="zero-copy"
        )
        handle.sleep()
        handle.wake()
        assert torch.equal(model(x), expected)
    handle.remove()

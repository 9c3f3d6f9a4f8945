"""remove() makes the whole model resident, or changes nothing."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import weighbridge.torch as wt

from .twins import ALL, Net, Tied, equal, forward, shape, weights


class FailsAt(TorchDispatchMode):
    """Makes one allocation of torch fail."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number, self.count = number, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if "empty" in function.name() or "clone" in function.name():
            self.count += 1
            if self.count == self.number:
                raise torch.OutOfMemoryError("no memory, on purpose")
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("build", [Net, Tied])
def test_memory_is_exhausted_in_remove(compare, build):
    """Whichever allocation fails, the model still works, and remove() ends well afterwards."""
    resident = compare.made(build)
    wanted, state, form = forward(resident), weights(resident), shape(resident)
    number = 0
    while True:
        number += 1
        model = compare.made(build)
        handle = compare.offload(model)
        assert equal(forward(model), wanted)
        try:
            with FailsAt(number) as failing:
                handle.remove()
        except torch.OutOfMemoryError:
            assert equal(forward(model), wanted), f"WRONG numbers after failure {number}"
            assert equal(weights(model), state), f"WRONG state_dict() after failure {number}"
            handle.remove()
        assert equal(weights(model), state), "WRONG weights after remove()"
        assert shape(model) == form, "other parameters after remove()"
        assert equal(forward(model), wanted), "WRONG numbers after remove()"
        if failing.count < number:
            break
    assert number < 200


@pytest.mark.parametrize("build", [Net, Tied])
def test_memory_is_exhausted_in_offload(compare, build):
    """A failed offload() leaves the resident model."""
    resident = compare.made(build)
    wanted, state, form = forward(resident), weights(resident), shape(resident)
    for number in range(1, 200):
        model = compare.made(build)
        handle = None
        try:
            with FailsAt(number) as failing:
                handle = compare.offload(model)
        except torch.OutOfMemoryError:
            pass
        assert equal(forward(model), wanted), f"WRONG numbers after failure {number}"
        if handle:
            handle.remove()
        assert equal(weights(model), state), f"WRONG weights after failure {number}"
        assert shape(model) == form, f"other parameters after failure {number}"
        if failing.count < number:
            return
    raise AssertionError("offload() allocates more than 200 times")


def test_a_step_is_open_when_it_is_removed(compare):
    """A layer's hook calls remove()."""
    model = compare.made(Net)
    wanted, state = forward(model), weights(model)
    handle = compare.offload(model)
    hook = model.layers[2].up.register_forward_hook(lambda *_: handle.remove() and None)
    with compare.outcome.may_raise():
        assert equal(forward(model), wanted), "WRONG numbers of the step that removed"
    hook.remove()
    with compare.outcome.may_raise():
        handle.remove()
    assert equal(weights(model), state), "WRONG weights after remove()"
    assert equal(forward(model), wanted), "WRONG numbers after remove()"


def test_it_leaves_no_hooks_and_no_attributes(compare):
    plain, model = compare.made(Net), compare.made(Net)
    handle = compare.offload(model)
    forward(model)
    handle.remove()
    for (name, one), (_, other) in zip(plain.named_modules(), model.named_modules()):
        assert vars(one).keys() == vars(other).keys(), f"WRONG attributes of {name!r}"
        hooks = {key: len(value) for key, value in vars(one).items() if key.endswith("_hooks")}
        left = {key: len(value) for key, value in vars(other).items() if key.endswith("_hooks")}
        assert left == hooks, f"WRONG hooks of {name!r}"
        assert type(one) is type(other), f"WRONG class of {name!r}"


def test_the_model_is_removed_to_host_memory(where):
    """For a model that the device cannot hold."""
    model = Net().to(where)
    expected = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    handle = wt.offload(model, offload_bytes=ALL)
    assert wt.handle_of(model) is handle
    handle.remove("cpu")
    assert all(parameter.is_cpu for parameter in model.parameters())
    assert all(torch.equal(model.state_dict()[name], expected[name]) for name in expected)
    with pytest.raises(ValueError, match="not offloaded"):
        wt.handle_of(model)

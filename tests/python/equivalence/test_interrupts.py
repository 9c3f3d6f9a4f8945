"""Exceptions of every kind in a forward: the next step works, or its error names reset()."""

from __future__ import annotations

import asyncio

import pytest
import torch
from torch import nn

from .twins import Net, equal, forward, weights

ERRORS = [
    RuntimeError,
    KeyboardInterrupt,
    asyncio.CancelledError,
    GeneratorExit,
    SystemExit,
    StopIteration,
]


class Stops(nn.Module):
    """Raises its error, if it has one."""

    def __init__(self, error) -> None:
        super().__init__()
        self.error = error

    def forward(self, x):
        if self.error is not None:
            raise self.error
        return x


class Interrupted(Net):
    """Has a module that may raise within a layer, or after it."""

    def __init__(self, error, inside) -> None:
        super().__init__()
        self.stops = Stops(error)
        self.inside = inside
        layer = self.layers[2]
        if inside:
            layer.down = nn.Sequential(layer.down, self.stops)

    def forward(self, tokens):
        x = self.embed(tokens)
        for at, layer in enumerate(self.layers):
            x = layer(x)
            if at == 2 and not self.inside:
                x = self.stops(x)
        return self.head(x)


@pytest.mark.parametrize("inside", [True, False], ids=["within a layer", "between layers"])
@pytest.mark.parametrize("error", ERRORS)
def test_a_step_is_interrupted(compare, error, inside):
    model = compare.made(lambda: Interrupted(None, inside))
    wanted, state = forward(model), weights(model)
    handle = compare.offload(model)
    for _ in range(2):
        model.stops.error = error
        with pytest.raises(error):
            forward(model)
        model.stops.error = None
        try:
            found = forward(model)
        except Exception as failed:
            assert "reset" in str(failed), f"an error that does not name reset(): {failed}"
            compare.outcome.raised.append(f"{type(failed).__name__}: {failed}")
            handle.reset()
            found = forward(model)
        assert equal(found, wanted), "WRONG numbers after an interrupted step"
        assert equal(weights(model), state), "WRONG state_dict() after an interrupted step"
    model.stops.error = error
    with pytest.raises(error):
        forward(model)
    model.stops.error = None
    handle.remove()
    assert equal(forward(model), wanted), "WRONG numbers after remove()"


def test_a_hook_of_the_user_fails(compare):
    model = compare.made(Net)
    wanted = forward(model)
    handle = compare.offload(model)

    def fail(*_):
        raise KeyboardInterrupt

    for register in ("register_forward_pre_hook", "register_forward_hook"):
        hook = getattr(model.layers[1], register)(fail)
        with pytest.raises(KeyboardInterrupt):
            forward(model)
        hook.remove()
        with compare.outcome.may_raise():
            assert equal(forward(model), wanted), "WRONG numbers after a failed hook"
        handle.reset()
        assert equal(forward(model), wanted), "WRONG numbers after reset()"
    handle.remove()


def test_reset_between_steps_changes_nothing(compare):
    model = compare.made(Net)
    wanted = forward(model)
    handle = compare.offload(model)
    for _ in range(3):
        handle.reset()
        assert equal(forward(model), wanted), "WRONG numbers after reset()"
    handle.remove()


def test_a_generator_is_closed_early(compare):
    """A streaming engine runs layers within a generator, which its client abandons."""

    def layers(model):
        x = model.embed(torch.tensor([[1, 2]], device=model.embed.weight.device))
        for layer in model.layers:
            with torch.no_grad():
                x = layer(x)
            yield x

    model = compare.made(Net)
    wanted = forward(model)
    first = [x.clone() for x in layers(compare.made(Net))][:3]
    handle = compare.offload(model)
    stream = layers(model)
    with compare.outcome.may_raise():
        found = [next(stream).clone() for _ in range(3)]
        assert equal(found, first), "WRONG numbers of the generator"
    stream.close()
    with compare.outcome.may_raise():
        assert equal(forward(model), wanted), "WRONG numbers after it"
    handle.remove()
    assert equal(forward(model), wanted), "WRONG numbers after remove()"

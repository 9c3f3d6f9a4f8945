"""A model, or a part of it, is offloaded while it is offloaded already."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from .twins import Net, Tied, equal, forward, weights


@pytest.mark.parametrize("build", [Net, Tied])
@pytest.mark.parametrize("part", ["", "layers.2", "head"])
def test_it_is_offloaded_again(compare, build, part):
    """The second handle is an error, or both work, whichever is removed first."""
    for first in (0, 1):
        model, resident = compare.made(build), compare.made(build)
        wanted, state = forward(resident), weights(resident)
        handles = [compare.offload(model)]
        assert equal(forward(model), wanted)
        with compare.outcome.may_raise():
            handles.append(compare.offload(model.get_submodule(part)))
        for handle in handles[first:] + handles[:first]:
            with compare.outcome.may_raise():
                assert equal(forward(model), wanted), "WRONG numbers with two handles"
            handle.remove()
        assert equal(forward(model), wanted), "WRONG numbers after remove()"
        assert equal(weights(model), state), "WRONG weights after remove()"


def test_a_part_is_offloaded_and_then_the_whole(compare):
    model, resident = compare.made(Net), compare.made(Net)
    wanted, state = forward(resident), weights(resident)
    handles = [compare.offload(model.layers[1])]
    assert equal(forward(model), wanted)
    with compare.outcome.may_raise():
        handles.append(compare.offload(model))
    with compare.outcome.may_raise():
        assert equal(forward(model), wanted), "WRONG numbers with two handles"
    for handle in handles:
        handle.remove()
    assert equal(forward(model), wanted), "WRONG numbers after remove()"
    assert equal(weights(model), state), "WRONG weights after remove()"


class Halves(nn.Module):
    """Two nets that share an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = Net(3), Net(3)
        self.other.embed.weight = self.one.embed.weight

    def forward(self, tokens):
        return self.one(tokens) + self.other(tokens)


def test_two_models_that_share_a_weight(compare):
    model = compare.made(Halves)
    wanted, state = forward(model), weights(model)
    handles = []
    for half in (model.one, model.other):
        with compare.outcome.may_raise():
            handles.append(compare.offload(half))
    for handle in [*handles, None]:
        with compare.outcome.may_raise():
            assert equal(forward(model), wanted), "WRONG numbers"
        if handle:
            handle.remove()
    assert equal(weights(model), state), "WRONG weights after remove()"


def test_several_models_run_in_turn(compare):
    """Like the parts of a pipeline."""
    models = [compare.made(lambda count=count: Net(count)) for count in (2, 3, 4)]
    wanted = [forward(model) for model in models]
    handles = [compare.offload(model) for model in models]
    for _ in range(2):
        assert equal([forward(model) for model in models], wanted), "WRONG numbers"
    handles[1].remove()
    assert equal([forward(model) for model in models], wanted), "WRONG numbers after a remove()"
    handles[0].remove()
    handles[2].remove()
    assert equal([forward(model) for model in models], wanted), "WRONG numbers after remove()"


def test_it_is_offloaded_after_remove(compare):
    model = compare.made(Net)
    wanted = forward(model)
    for _ in range(3):
        handle = compare.offload(model)
        assert equal(forward(model), wanted), "WRONG numbers"
        handle.remove()
        assert equal(forward(model), wanted), "WRONG numbers after remove()"


def test_remove_is_called_twice(compare):
    model = compare.made(Net)
    wanted = forward(model)
    handle = compare.offload(model)
    handle.remove()
    with compare.outcome.may_raise():
        handle.remove()
    assert equal(forward(model), wanted)


def test_the_handle_is_dropped(compare):
    """Nothing else refers to the offloader: the model keeps it alive."""
    import gc

    model = compare.made(Net)
    wanted, state = forward(model), weights(model)
    compare.offload(model)
    gc.collect()
    for _ in range(2):
        with compare.outcome.may_raise():
            assert equal(forward(model), wanted), "WRONG numbers"
    with compare.outcome.may_raise():
        assert equal(weights(model), state), "WRONG state_dict()"


def test_the_model_is_dropped_before_the_handle(compare):
    import gc

    model = compare.made(Net)
    handle = compare.offload(model)
    forward(model)
    outputs = [layer.up.weight.shape for layer in model.layers]
    del model
    gc.collect()
    with compare.outcome.may_raise():
        handle.remove()
    assert outputs == [torch.Size([64, 32])] * 6

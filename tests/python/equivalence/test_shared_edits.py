"""One of the weights over one storage is given other memory: the others keep their own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from .twins import ALL, Net, Tied, equal, forward


class ByData(Net):
    """Two parameter objects over one storage."""

    def __init__(self) -> None:
        super().__init__()
        self.layers[4].up.weight = nn.Parameter(self.layers[1].up.weight.detach())


class Parts(Net):
    """A weight that is in the memory of another, as another layout, and a row of it."""

    def __init__(self) -> None:
        super().__init__()
        whole = self.layers[1].up.weight.detach()
        self.layers[4].down.weight = nn.Parameter(whole.t())
        self.layers[3].norm.weight = nn.Parameter(whole[1])


def whole(model):
    model.layers[1].up.weight.data = model.layers[1].up.weight.data * 2


def tied(model):
    model.layers[4].up.weight.data = model.layers[4].up.weight.data * 2


def part(model):
    model.layers[4].down.weight.data = model.layers[4].down.weight.data * 2


def row(model):
    model.layers[3].norm.weight.data = model.layers[3].norm.weight.data * 2


def another_object(model):
    data = model.layers[1].up.weight.data
    model.layers[1].up.weight = nn.Parameter(data * 2, requires_grad=False)


def both(model):
    whole(model)
    part(model)


CHANGES = [
    *((ByData, change) for change in (whole, tied)),
    *((Parts, change) for change in (whole, part, row, both)),
]


@pytest.mark.parametrize("reconciles", [False, True], ids=["step", "reconcile"])
@pytest.mark.parametrize("fixed", [False, True], ids=["any address", "fixed addresses"])
@pytest.mark.parametrize(("build", "change"), CHANGES)
def test_one_of_the_weights_over_one_storage_is_changed(compare, build, change, fixed, reconciles):
    def of_offloaded(model, handle):
        change(model)
        if reconciles:
            handle.reconcile()
        return forward(model)

    def use(model):
        change(model)
        return forward(model)

    options = {"transfer_mode": "prefetch", "fixed_addresses": fixed}
    compare(build, use, of_offloaded=of_offloaded, **options)
    assert not compare.outcome.raised


@pytest.mark.parametrize("build", [ByData, Parts])
def test_one_of_the_weights_over_one_storage_becomes_another_object(compare, build):
    def use(model):
        another_object(model)
        return forward(model)

    compare(build, use)


@pytest.mark.parametrize("assign", [False, True])
def test_a_state_is_loaded_into_a_model_with_a_tied_head_and_all_of_it_stays_offloaded(
    compare, assign
):
    """One object under two names is one weight, which is taken as any other."""
    model, other = compare.made(Tied), compare.made(Tied)
    with torch.no_grad():
        for weight in other.parameters():
            weight.mul_(2)
    handle = compare.offload(model, offload_bytes=ALL)
    forward(model)
    model.load_state_dict(other.state_dict(), assign=assign)
    assert equal(forward(model), forward(other))
    handle.reconcile()
    assert equal(forward(model), forward(other))
    assert not any(weight.apart for weight in handle._weights.all)
    handle.remove()

"""Programs that ask for the class of a layer, and classes with rules for their subclasses."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from .twins import Net, copied, forward


class Plain(nn.Module):
    """A layer."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(32, 32)

    def forward(self, x):
        return x + torch.tanh(self.up(x))


class Other(Plain):
    """Another kind of layer."""


known: dict[str, type] = {}


class Announced(Plain):
    """A class that needs a tag of each subclass, and registers it."""

    def __init_subclass__(cls, *, tag, **more):
        super().__init_subclass__(**more)
        known[tag] = cls


class Sealed(Plain):
    """A layer that takes no attributes."""

    def __setattr__(self, name, value):
        if name not in ("up", "training", "_parameters", "_modules", "_buffers") and (
            not name.startswith("_") or name == "__class__"
        ):
            raise AttributeError(f"no attribute {name!r} can be set")
        super().__setattr__(name, value)


def net_of(*kinds):
    """Returns a class of nets with layers of these classes in turn."""

    class Mixed(Net):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([kinds[i % len(kinds)]() for i in range(4)])

    return Mixed


FACTORS = {
    "==": lambda layer: 2 if type(layer) == Plain else 3,  # noqa: E721 - as programs do it
    "!=": lambda layer: 2 if type(layer) != Plain else 3,  # noqa: E721
    "in": lambda layer: 2 if type(layer) in (Plain, nn.Linear) else 3,
    "dictionary": lambda layer: {Plain: 2, Other: 3}.get(type(layer), 5),
    "isinstance": lambda layer: 2 if isinstance(layer, Other) else 3,
    "isinstance of its class": lambda layer: 2 if isinstance(Plain(), type(layer)) else 3,
    "subclass of its class": lambda layer: 2 if issubclass(Other, type(layer)) else 3,
    "name": lambda layer: len(type(layer).__name__),
}


@pytest.mark.parametrize("factor", list(FACTORS))
def test_a_forward_depends_on_the_classes_of_its_layers(compare, factor):
    class Chooses(net_of(Plain, Other)):
        def forward(self, tokens):
            x = self.embed(tokens)
            for layer in self.layers:
                x = layer(x) * FACTORS[factor](layer)
            return self.head(x)

    compare(Chooses, forward)


def test_weights_are_initialised_by_class(compare):
    def use(model):
        def fill(module):
            if type(module) == nn.Linear:  # noqa: E721
                nn.init.constant_(module.weight, 0.01)

        model.apply(fill)
        return forward(model)

    compare(Net, use)


def test_modules_are_converted_by_class(compare):
    def use(model):
        torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, inplace=True)
        return [type(model.head).__name__, copied(forward(model))]

    resident, model = compare.made(net_of(Plain)).cpu(), compare.made(net_of(Plain)).cpu()
    compare.offload(model)
    assert str(use(model)) == str(use(resident))


def test_a_class_registers_its_subclasses(compare):
    compare(net_of(Announced), forward)
    assert not known


def test_a_class_refuses_attributes(compare):
    compare(net_of(Sealed), forward)


def test_two_offloaded_models_have_the_classes_of_one(compare):
    one, other = compare.made(net_of(Plain)), compare.made(net_of(Plain))
    compare.offload(one)
    compare.offload(other)
    assert type(one.layers[0]) == type(other.layers[0]) == Plain  # noqa: E721
    assert isinstance(one.layers[0], type(other.layers[0]))

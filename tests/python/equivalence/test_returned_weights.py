"""Modules that return their weight, or keep it for later."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from .twins import Layer, Net, forward


class Position(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 32))


class Whole(Position):
    def forward(self, count):
        return self.weight[:4]


class View(Position):
    def forward(self, count):
        return self.weight.t().t()[:count]


class Detached(Position):
    def forward(self, count):
        return self.weight.detach()[None, :count]


class Expanded(Position):
    def forward(self, count):
        return self.weight.expand(2, -1, -1)[:, :count]


class InList(Position):
    def forward(self, count):
        return [{"position": self.weight[:count]}]


@dataclasses.dataclass
class State:
    x: torch.Tensor


class InObject(Position):
    def forward(self, count):
        return State(self.weight[:count])


class Deferred(Position):
    def forward(self, count):
        return lambda: self.weight[:count]


class Yields(Position):
    def forward(self, count):
        yield self.weight[:count]


class Chunks(Position):
    def forward(self, count):
        return self.weight.chunk(2)


def value_of(given):
    """Returns the tensor in what a module returned."""
    if isinstance(given, torch.Tensor):
        return given
    if callable(given):
        return value_of(given())
    if isinstance(given, dict):
        return given["position"]
    if isinstance(given, State):
        return given.x
    return value_of(next(iter(given)))


class Positioned(Net):
    """Uses what the module returned after every layer."""

    def __init__(self, position) -> None:
        super().__init__()
        self.position = position()

    def forward(self, tokens):
        given = self.position(tokens.shape[1])
        position = value_of(given)
        x = self.embed(tokens) + position
        for layer in self.layers:
            x = layer(x) + position
        return self.head(x)


@pytest.mark.parametrize(
    "position", [Whole, View, Detached, Expanded, InList, InObject, Deferred, Yields, Chunks]
)
def test_a_module_returns_its_weight(compare, position):
    compare(lambda: Positioned(position), forward)


class Stream(nn.Module):
    """Its forward is a generator: it runs when the caller asks for the values."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(32, 32)

    def forward(self, x):
        for factor in (1, 2):
            yield factor * self.linear(x)


class Streams(Net):
    layer = Stream

    def forward(self, tokens):
        x = self.embed(tokens)
        for layer in self.layers:
            x = x + sum(layer(x))
        return self.head(x)


def test_forward_is_a_generator(compare):
    compare(Streams, forward)


class Open(Net):
    """All generators are open at a time."""

    layer = Stream

    def forward(self, tokens):
        x = self.embed(tokens)
        for values in zip(*(layer(x) for layer in self.layers)):
            x = x + sum(values)
        return self.head(x)


def test_generators_of_all_layers_are_open_at_a_time(compare):
    compare(Open, forward)


class Keeping(Layer):
    """Keeps a view of its weight in an attribute of its own."""

    def forward(self, x):
        self.kept = [self.norm.weight[:32]]
        return super().forward(x)


class Kept(Net):
    layer = Keeping

    def forward(self, tokens):
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        for layer in self.layers:
            x = x * layer.kept[0]
        return self.head(x)


def test_a_layer_keeps_a_view_of_its_weight(compare):
    compare(Kept, forward)


def test_the_caller_keeps_a_weight_that_a_hook_saw(compare):
    def use(model):
        seen = []
        hooks = [
            layer.register_forward_hook(lambda module, *_: seen.append(module.norm.weight.view(-1)))
            for layer in model.layers
        ]
        forward(model)
        for hook in hooks:
            hook.remove()
        return seen

    compare(Net, use)


@pytest.mark.parametrize("kind", ["untyped_storage", "detach"])
def test_a_hook_keeps_memory_of_a_weight(compare, kind):
    def use(model):
        kept = []
        part = model.layers[2].up
        hook = part.register_forward_hook(lambda m, *_: kept.append(getattr(m.weight, kind)()))
        forward(model)
        forward(model)
        hook.remove()
        return [each.tolist() for each in kept]

    compare(Net, use, starts=("cold",))
    assert str(compare.outcome) == "equal"  # found in the first step
    compare(Net, use, starts=("warm",))


def test_outputs_are_the_callers_after_the_next_step(compare):
    def use(model):
        first = model.position(4)
        forward(model)
        return first

    compare(lambda: Positioned(Whole), use)

"""Steps whose layers run in another order than they are declared in."""

from __future__ import annotations

import random

import pytest
import torch
from torch import nn

from .twins import Net, forward


class Ordered(Net):
    def forward(self, tokens, order=range(6)):
        x = self.embed(tokens)
        for at in order:
            x = self.layers[at](x)
        return self.head(x)


ORDERS = {
    "early exit": [[0, 1, 2]] * 3,
    "reversed": [range(5, -1, -1)] * 2,
    "repeated": [[0, 0, 0, 1, 1, 5, 5, 5, 0]] * 2,
    "skipped": [[0, 2, 4], [1, 3, 5], [5], []],
    "random": [[random.Random(seed).randrange(6) for _ in range(8)] for seed in range(12)],
}


@pytest.mark.parametrize("kind", list(ORDERS))
def test_layers_run_in_another_order(compare, kind):
    def use(model):
        tokens = torch.tensor([[1, 2, 3]], device=model.head.weight.device)
        with torch.no_grad():
            return [model(tokens, order) for order in ORDERS[kind]]

    compare(Ordered, use)


class Recursive(nn.Module):
    """Calls itself within its own forward."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(32, 32)

    def forward(self, x, depth=2):
        return (self(x, depth - 1) if depth else x) + torch.tanh(self.linear(x))


class Recursion(Net):
    layer = Recursive


class Nested(nn.Module):
    """Calls the next layer within its own forward."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(32, 32)
        self.second = nn.Linear(32, 32)

    def forward(self, x, rest):
        x = self.first(x)
        return self.second(rest[0](x, rest[1:]) if rest else x)


class Nesting(Net):
    layer = Nested

    def forward(self, tokens):
        layers = list(self.layers)
        return self.head(layers[0](self.embed(tokens), layers[1:]))


@pytest.mark.parametrize("build", [Recursion, Nesting])
def test_layers_run_within_layers(compare, build):
    compare(build, forward)


class Alternating(Net):
    """Two steps that are interleaved, layer by layer, as two requests of one engine are."""

    def forward(self, tokens):
        x, y = self.embed(tokens), self.embed(tokens.flip(0))
        for layer in self.layers:
            x, y = layer(x), layer(y)
        return self.head(x), self.head(y)


def test_two_requests_are_interleaved(compare):
    compare(Alternating, forward)

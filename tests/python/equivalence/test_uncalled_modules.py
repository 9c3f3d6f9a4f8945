"""Weights that are read by another module than their own."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from .twins import Layer, Net, Tied, forward


class Queries(Net):
    """Like DETR: the weight of an embedding that is never called, and a head that is a function."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Embedding(4, 32)

    def forward(self, tokens):
        x = self.embed(tokens) + self.queries.weight.unsqueeze(0)
        for layer in self.layers:
            x = layer(x) + self.queries.weight
        return functional.linear(x, self.head.weight)


class Padding(Net):
    """Like Gemma: a row of the embedding is read beside its calls."""

    def forward(self, tokens):
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x) + self.embed.weight[0]
        return self.head(x)


class Neighbour(Net):
    """Every layer reads a weight of the next one and of the last one."""

    def forward(self, tokens):
        x = self.embed(tokens)
        for at, layer in enumerate(self.layers):
            x = layer(x) * self.layers[at - 1].norm.weight
            x = x + self.layers[(at + 1) % len(self.layers)].up.bias[:32]
        return self.head(x)


class Positions(nn.Module):
    """Like DeBERTa: its embedding is handed to every layer of another module."""

    def __init__(self) -> None:
        super().__init__()
        self.relative = nn.Embedding(8, 32)
        self.layers = nn.ModuleList([Layer() for _ in range(4)])

    def forward(self, x):
        for layer in self.layers:
            x = layer(x) + functional.layer_norm(self.relative.weight, (32,))[: x.shape[1]]
        return x


class Relative(Net):
    layer = Positions

    def __init__(self) -> None:
        super().__init__(2)


class Convolution(nn.Module):
    """Like Mamba: the convolution's weight is used, the convolution never called."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(32, 32, 3, groups=32, padding=2)
        self.A_log = nn.Parameter(torch.randn(32))

    def forward(self, x):
        y = functional.conv1d(
            x.transpose(1, 2), self.conv.weight, self.conv.bias, padding=2, groups=32
        )
        return x - torch.exp(self.A_log) * y[..., : x.shape[1]].transpose(1, 2)


class Convolutions(Net):
    layer = Convolution


class Dtype(Net):
    """Reads types, devices and shapes of weights, which need no window."""

    def forward(self, tokens):
        x = self.embed(tokens).to(self.layers[3].up.weight.dtype)
        for layer in self.layers:
            x = layer(x).to(layer.down.weight.device) * layer.up.weight.shape[0] / 64
        return self.head(x)


class Fused(Net):
    """Joins weights of layers once and keeps the joined one."""

    def forward(self, tokens):
        if not hasattr(self, "joined"):
            joined = torch.cat([layer.down.weight for layer in self.layers])
            self.joined = [joined.detach()]
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(x + self.joined[0].sum(dim=1).reshape(-1, 32).sum(dim=0))


@pytest.mark.parametrize(
    "build", [Queries, Padding, Neighbour, Relative, Convolutions, Dtype, Fused, Tied]
)
def test_weights_are_read_by_other_modules(compare, build):
    compare(build, forward)


def test_part_of_a_model_is_offloaded_and_read_by_other_modules(compare):
    compare(Neighbour, forward, select=["layers.1", "layers.3", "layers.5"])


def test_a_budget_for_a_part_of_a_model_whose_weights_are_read_elsewhere(compare):
    compare(Neighbour, forward, offload_bytes=60_000)


class Branch(Net):
    """Reads a weight elsewhere only for long inputs: not in the first step."""

    def forward(self, tokens):
        x = self.embed(tokens)
        for at, layer in enumerate(self.layers):
            x = layer(x)
            if tokens.shape[1] > 4:
                x = x * self.layers[at - 1].norm.weight
        return self.head(x)


def test_a_later_step_reads_what_the_first_did_not(compare):
    def use(model):
        tokens = torch.arange(12, device=model.head.weight.device).reshape(2, 6)
        with torch.no_grad():
            return [forward(model), model(tokens), forward(model), model(tokens)]

    compare(Branch, use)

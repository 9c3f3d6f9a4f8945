"""Buffers that layers change, such as running statistics, which PyTorch does not count."""

from __future__ import annotations

import torch
from torch import nn

from .twins import Net, forward


class Normalized(nn.Module):
    """A layer with running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(32, 32)
        self.norm = nn.BatchNorm1d(32)

    def forward(self, x):
        return x + self.norm(self.up(x).flatten(0, 1)).view_as(x)


class Statistics(Net):
    """A net of such layers."""

    layer = Normalized


def trained(model, run=None):
    found = []
    try:
        for training in (False, True, True, False):
            model.train(training)
            found.append(forward(model if run is None else run))
    finally:
        model.eval()
    return found


@torch.no_grad()
def test_running_statistics_are_those_of_training(compare):
    compare(Statistics, trained, buffers=True)


@torch.no_grad()
def test_running_statistics_that_are_not_watched_are_those_of_training(compare):
    compare(Statistics, trained, buffers=True, verify="off")


def test_running_statistics_of_compiled_models_are_those_of_training(compare):
    def use(model):
        torch.compiler.reset()
        forward(model)
        return trained(model, torch.compile(model, backend="aot_eager"))

    compare(Statistics, use, buffers=True)


def test_running_statistics_with_gradients_are_those_of_training(compare):
    def use(model):
        found = []
        for training in (False, True, True, False):
            model.train(training)
            model(torch.tensor([[1, 7, 3]], device=model.head.weight.device)).sum().backward()
            found += [forward(model), model.head.weight.grad]
        return found

    compare(Statistics, use, buffers=True)

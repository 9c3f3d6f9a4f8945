"""What requires gradients does not change: torch chooses its kernels, and so the bits, by it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from .twins import Net, forward


class Attention(nn.Module):
    """Torch's own attention, whose fast path depends on requires_grad."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 32)
        self.body = nn.Transformer(32, 4, 2, 2, 64, batch_first=True)

    def forward(self, tokens):
        x = self.embed(tokens)
        return self.body(x, x)


@pytest.mark.parametrize("frozen", [False, True], ids=["trainable", "frozen"])
def test_numbers_of_torchs_attention(compare, frozen):
    compare(lambda: Attention().requires_grad_(not frozen), forward)


@pytest.mark.parametrize("frozen", [False, True], ids=["trainable", "frozen"])
def test_numbers_with_gradients_enabled(compare, frozen):
    def use(model):
        device = model.embed.weight.device
        return model(torch.tensor([[1, 2, 3]], device=device)).detach()

    compare(lambda: Attention().requires_grad_(not frozen), use)


def test_what_parameters_require(compare):
    compare(Net, lambda model: [p.requires_grad for p in model.parameters()])


def test_gradients_that_exist_before_the_offload(compare):
    def build():
        model = Net(2)
        model(torch.tensor([[1, 2]])).sum().backward()
        return model

    def use(model):
        return [p.grad for p in model.parameters()]

    compare(build, use)

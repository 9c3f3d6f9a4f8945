"""Steps whose first copies begin before the step before has ended."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from .twins import Net, equal, forward


def multiply(model):
    for parameter in model.parameters():
        parameter.mul_(2)


def set_data(model):
    for layer in model.layers:
        layer.up.weight.data = layer.up.weight.data + 0.01


def set_parameter(model):
    model.layers[0].down.weight = nn.Parameter(model.layers[0].down.weight.detach() * 3)


def load(model):
    model.load_state_dict({name: t * 3 for name, t in model.state_dict().items()})


def late_copies(handle, model):
    """Returns how many copies of a step start only when their group is acquired."""
    forward(model)
    before = handle.stats.late_copies
    forward(model)
    return handle.stats.late_copies - before


@pytest.mark.parametrize("change", [multiply, set_data, set_parameter, load])
@torch.no_grad()
def test_changes_between_steps_count(compare, change):
    compare(Net, change, overlap_steps=True)


@pytest.mark.parametrize("how", [{"fused": True}, {"foreach": True}, {}])
def test_steps_of_optimizers_count(compare, how):
    """PyTorch does not count what fused ones change."""

    def use(model):
        found = []
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, **how)
        for _ in range(3):
            found.append(forward(model))
            device = model.head.weight.device
            model(torch.tensor([[1, 7, 3]], device=device)).square().mean().backward()
            found.append(forward(model))  # whose end copies for the next step
            optimizer.step()
            optimizer.zero_grad()
        return found

    compare(Net, use, overlap_steps=True)


@pytest.mark.parametrize("transfer_mode", ["prefetch"])
def test_the_first_copies_begin_in_the_step_before(compare):
    model = compare.made(Net)
    wanted = forward(model)
    handle = compare.offload(model, overlap_steps=True)
    assert equal(forward(model), wanted)
    assert late_copies(handle, model) == 0
    handle.remove()
    handle = compare.offload(model)
    assert late_copies(handle, model) > 0
    handle.remove()

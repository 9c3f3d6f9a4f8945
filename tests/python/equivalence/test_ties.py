"""Storages that several parameters share, wholly, in part, or transposed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from .twins import Net, Tied, equal, forward


class Transposed(Net):
    """The head is the embedding, transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Module()
        self.head.weight = nn.Parameter(self.embed.weight.detach().t())

    def forward(self, tokens):
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return x @ self.head.weight


class Attention(nn.Module):
    """Its q, k and v are rows of one storage, which is a parameter, too."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Parameter(torch.randn(96, 32) * 0.2)
        for at, name in enumerate("qkv"):
            rows = self.qkv.detach()[32 * at : 32 * at + 32]
            self.register_parameter(name, nn.Parameter(rows))

    def forward(self, x):
        q, k, v = (x @ getattr(self, name).t() for name in "qkv")
        scores = torch.softmax(q @ k.transpose(-1, -2), dim=-1)
        return x + scores @ v + (x @ self.qkv.t())[..., :32]


class Sliced(Net):
    layer = Attention


class OnlySlices(nn.Module):
    """Has the parts of a storage, but not the whole."""

    def __init__(self) -> None:
        super().__init__()
        whole = torch.randn(64, 32) * 0.2
        self.one, self.other = nn.Parameter(whole[:32]), nn.Parameter(whole[32:])

    def forward(self, x):
        return x + torch.tanh(x @ self.one) @ self.other


class Parts(Net):
    layer = OnlySlices


class Expanded(nn.Module):
    """A scale that is one number, expanded."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(1).expand(32))
        self.linear = nn.Linear(32, 32)

    def forward(self, x):
        return torch.tanh(self.linear(x)) * self.scale


class Broadcast(Net):
    layer = Expanded


class Strided(nn.Module):
    """A weight that is every other row of a storage."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter((torch.randn(64, 32) * 0.2)[::2])
        self.transposed = nn.Parameter((torch.randn(32, 32) * 0.2).t())

    def forward(self, x):
        return x + torch.tanh(x @ self.weight) @ self.transposed


class Gaps(Net):
    layer = Strided


class Overlapping(nn.Module):
    """Two weights that overlap in part."""

    def __init__(self) -> None:
        super().__init__()
        whole = torch.randn(48, 32) * 0.2
        self.one, self.other = nn.Parameter(whole[:32]), nn.Parameter(whole[16:])

    def forward(self, x):
        return x + torch.tanh(x @ self.one) @ self.other


class Overlaps(Net):
    layer = Overlapping


class OneLayer(Net):
    """Like ALBERT: one module object under many names."""

    def __init__(self) -> None:
        super().__init__(1)
        self.layers = nn.ModuleList([self.layers[0]] * 4)


class OneLayerTwice(Net):
    def __init__(self) -> None:
        super().__init__()
        self.layers.append(self.layers[1])
        self.alias = self.layers[3]


class SharedModule(nn.Module):
    """Like T5: the embedding is a module of both halves."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Embedding(50, 32)
        self.one, self.other = Net(3), Net(3)
        self.one.embed = self.other.embed = self.shared

    def forward(self, tokens):
        return self.one(tokens) + self.other(tokens)


class AcrossLayers(Net):
    """A weight of each layer is that of the first."""

    def __init__(self) -> None:
        super().__init__()
        for layer in self.layers:
            layer.down.weight = self.layers[0].down.weight


class ByData(Net):
    """Two parameter objects over one storage."""

    def __init__(self) -> None:
        super().__init__()
        self.head.weight = nn.Parameter(self.embed.weight.detach())


BUILDS = [
    Tied,
    Transposed,
    Sliced,
    Parts,
    Broadcast,
    Gaps,
    Overlaps,
    OneLayer,
    OneLayerTwice,
    SharedModule,
    AcrossLayers,
    ByData,
]


@pytest.mark.parametrize("build", BUILDS)
def test_shared_storages_give_the_same_numbers(compare, build):
    compare(build, forward)


@pytest.mark.parametrize("build", BUILDS)
def test_a_part_of_shared_storages_is_offloaded(compare, build):
    compare(build, forward, offload_bytes=12_000)


@pytest.mark.parametrize("build", [Transposed, Sliced, Parts, Broadcast, OneLayer, ByData, Tied])
def test_shared_storages_are_shared_after_remove(compare, build):
    """An edit of one is an edit of the other, as before the offload."""
    resident, model = compare.made(build), compare.made(build)
    handle = None
    with compare.outcome.may_raise():
        handle = compare.offload(model)
        forward(model)
    if handle:
        handle.remove()
    for each in (resident, model):
        name, parameter = list(each.named_parameters())[1 if build is Sliced else 0]
        with torch.no_grad():
            parameter.data[:1] = 2
    assert equal(forward(model), forward(resident)), f"WRONG: {name} shares no storage any more"


def part(model):
    model.head.weight = nn.Parameter(model.embed.weight.detach().clone())


def part_and_edit(model):
    part(model)
    with torch.no_grad():
        model.head.weight.mul_(2)


def part_by_data(model):
    model.head.weight = nn.Parameter(model.head.weight.detach())
    model.head.weight.data = model.head.weight.data.clone() * 3


def replace_both(model):
    model.head.weight = model.embed.weight = nn.Parameter(model.embed.weight.detach() * 2)


def tie(model):
    model.layers[4].up.weight = model.layers[1].up.weight


@pytest.mark.parametrize(
    "change",
    [
        part,
        part_and_edit,
        part_by_data,
        pytest.param(replace_both, marks=pytest.mark.other_memory),
        tie,
    ],
)
def test_ties_are_changed_after_the_offload(compare, change):
    def use(model):
        change(model)
        first = forward(model)
        with torch.no_grad():
            model.embed.weight.add_(1)
        return first, forward(model)

    compare(Tied, use)


def test_names_of_one_module_are_all_in_the_state(compare):
    compare(OneLayerTwice, lambda model: sorted(model.state_dict()))

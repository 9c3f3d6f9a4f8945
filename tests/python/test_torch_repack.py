"""handle.reconcile(): modules in the place of others, and tied weights of which one is replaced."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from torch import nn  # noqa: E402

import weighbridge.torch as wt  # noqa: E402

WIDTH = 64


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return self.two(torch.relu(self.one(x)))


class Model(nn.Module):
    """Its head has the weight of its embedding."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(32, WIDTH)
        self.blocks = nn.ModuleList([Block() for _ in range(4)])
        self.head = nn.Linear(WIDTH, 32, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


@pytest.fixture
def pair(where):
    """Returns a resident model, and one with the same weights and its handle."""
    torch.manual_seed(0)
    resident = Model().to(where)
    model = copy.deepcopy(resident)
    return resident, model, wt.offload(model, offload_bytes=1 << 24, device=where)


def check(resident, model, where):
    ids = torch.arange(12, device=where).reshape(2, 6)
    with torch.no_grad():
        for _ in range(2):
            assert torch.equal(model(ids), resident(ids))


def check_end(resident, model, handle, where):
    """Compares the models, and what the offloader has; then without the offload."""
    check(resident, model, where)
    names = {info.name for info in handle.offloader.parameter_infos()}
    assert names <= {name for name, _ in model.named_parameters(remove_duplicate=False)}
    assert {n for n, _ in model.named_parameters() if n.startswith("blocks.0")} <= names
    assert "embed.weight" in names
    handle.reconcile()
    check(resident, model, where)
    handle.remove()
    check(resident, model, where)


def inner(model, new):
    model.blocks[1].one = new(nn.Linear(WIDTH, WIDTH))


def of_another_shape(model, new):
    model.blocks[1].one = new(nn.Linear(WIDTH, 2 * WIDTH, bias=False))
    model.blocks[1].two = new(nn.Linear(2 * WIDTH, WIDTH))


def whole_group(model, new):
    model.blocks[2] = new(Block())


def tied_module(model, new):
    model.head = new(nn.Linear(WIDTH, 32, bias=False))


def tied_weight(model, new):
    model.head.weight = nn.Parameter(new(nn.Linear(WIDTH, 32)).weight.detach())


@pytest.mark.parametrize("change", [inner, of_another_shape, whole_group, tied_module, tied_weight])
def test_a_module_or_weight_in_the_place_of_another_is_taken(pair, where, change):
    resident, model, handle = pair
    check(resident, model, where)
    for one in (resident, model):
        torch.manual_seed(1)
        change(one, lambda module: module.to(where))
    handle.reconcile()
    check_end(resident, model, handle, where)


def test_the_weights_of_a_removed_module_are_removed(pair, where):
    resident, model, handle = pair
    for one in (resident, model):
        del one.blocks[3]
    handle.reconcile()
    check_end(resident, model, handle, where)


def test_a_weight_that_leaves_one_of_its_places_is_offloaded_at_the_others(pair, where):
    resident, model, handle = pair
    for one in (resident, model):
        one.head = nn.Linear(WIDTH, 32, bias=False, device=where)
        one.head.load_state_dict({"weight": torch.ones(32, WIDTH)})
    handle.reconcile()
    with torch.no_grad():
        for one in (resident, model):
            one.embed.weight.mul_(1.5)
    check_end(resident, model, handle, where)


def test_a_replaced_module_that_is_still_used_keeps_its_numbers(pair, where):
    _, model, handle = pair
    old = model.blocks[1].one
    expected = old.weight.detach().clone()
    model.blocks[1].one = nn.Linear(WIDTH, WIDTH, device=where)
    handle.reconcile()
    assert old.weight.is_cpu and torch.equal(old.weight, expected.cpu())
    handle.remove()
    assert torch.equal(old.weight, expected.cpu())


def test_a_module_is_taken_where_the_model_itself_is_the_group(where):
    """Which has the weights of all modules that are not in a list of layers."""
    torch.manual_seed(0)
    resident = nn.Sequential(nn.Sequential(*[nn.Linear(WIDTH, WIDTH) for _ in range(4)])).to(where)
    model = copy.deepcopy(resident)
    handle = wt.offload(model, offload_bytes=1 << 24, device=where)
    new = nn.Linear(WIDTH, WIDTH, device=where)
    for one in (resident, model):
        one[0][3] = copy.deepcopy(new)
    handle.reconcile()
    x = torch.ones(2, WIDTH, device=where)
    with torch.no_grad():
        assert torch.equal(model(x), resident(x))
    handle.remove()
    assert torch.equal(model[0][3].weight, new.weight)

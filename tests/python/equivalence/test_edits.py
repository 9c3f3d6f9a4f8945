"""Weights that are read, edited or replaced between steps."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from .twins import Layer, Net, Tied, equal, forward


def multiply(model):
    for parameter in model.parameters():
        parameter.mul_(2)


def add_to_data(model):
    for layer in model.layers:
        layer.up.weight.data.add_(0.01)


def add_by_operator(model):
    for layer in model.layers:
        layer.up.weight.data += 0.01


def set_data(model):
    for layer in model.layers:
        layer.up.weight.data = layer.up.weight.data + 0.01


def set_data_of_another_shape(model):
    model.head.weight.data = torch.ones(7, 32, device=model.head.weight.device)


def set_parameter(model):
    for layer in model.layers:
        layer.down.weight = nn.Parameter(layer.down.weight.detach() * 3)


def initialize(model):
    def constant(module):
        if isinstance(module, nn.Linear):
            nn.init.constant_(module.weight, 0.01)

    model.apply(constant)


def initialize_randomly(model):
    torch.manual_seed(5)
    for layer in model.layers:
        nn.init.xavier_uniform_(layer.up.weight)
        layer.down.reset_parameters()


def copy_from_a_neighbour(model):
    for one, other in zip(model.layers, model.layers[1:]):
        one.up.weight.copy_(other.up.weight)


def edit_a_row(model):
    model.embed.weight[3] = 0
    model.layers[1].up.bias[:4] = 1


def edit_through_a_view(model):
    model.layers[4].down.weight.t()[0].fill_(0.5)
    model.layers[2].up.weight.view(-1)[::3].neg_()


def edit_with_out(model):
    for layer in model.layers:
        torch.mul(layer.up.weight.detach(), 2, out=layer.up.weight.data)


def edit_by_foreach(model):
    torch._foreach_mul_([p.data for p in model.parameters()], 1.5)


def vector(model):
    vector_to_parameters(parameters_to_vector(model.parameters()) * 0.5, model.parameters())


def swap(model):
    first, second = model.layers[0].up, model.layers[5].up
    first.weight, second.weight = second.weight, first.weight


def swap_data(model):
    first, second = model.layers[0].up.weight, model.layers[5].up.weight
    first.data, second.data = second.data, first.data


def swap_tensors(model):
    torch.utils.swap_tensors(
        model.layers[0].up.weight, nn.Parameter(model.layers[0].up.weight.detach() * 2)
    )


def by_numpy(model):
    model.layers[3].up.weight.detach().cpu().numpy()[:] *= 2


def set_bias_to_none(model):
    for layer in model.layers:
        layer.up.bias = None


def add_bias(model):
    for layer in model.layers:
        layer.down.bias = nn.Parameter(torch.ones(32, device=layer.down.weight.device))


EDITS = [
    multiply,
    add_to_data,
    add_by_operator,
    set_data,
    set_data_of_another_shape,
    set_parameter,
    initialize,
    initialize_randomly,
    copy_from_a_neighbour,
    edit_a_row,
    edit_through_a_view,
    edit_with_out,
    edit_by_foreach,
    vector,
    swap,
    swap_data,
    swap_tensors,
    by_numpy,
    set_bias_to_none,
    add_bias,
]


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_counts(compare, edit):
    def use(model):
        with torch.no_grad():
            edit(model)
        return forward(model)

    compare(Net, use)


@pytest.mark.parametrize("edit", [multiply, initialize, edit_a_row, set_parameter])
def test_an_edit_of_a_tied_model_counts(compare, edit):
    def use(model):
        with torch.no_grad():
            edit(model)
        return forward(model)

    compare(Tied, use)


@pytest.mark.parametrize("edit", [multiply, set_data, initialize])
def test_an_edit_of_a_partly_offloaded_model_counts(compare, edit):
    def use(model):
        with torch.no_grad():
            edit(model)
        return forward(model)

    compare(Net, use, offload_bytes=60_000)


def norms(model):
    return [p.norm() for p in model.parameters()]


def values(model):
    return [p.detach().clone() for p in model.parameters()]


def data(model):
    return [p.data.clone() for p in model.parameters()]


def total_norm(model):
    return torch.linalg.vector_norm(torch.cat([p.detach().reshape(-1) for p in model.parameters()]))


def as_lists(model):
    return [layer.norm.weight.tolist() for layer in model.layers]


def as_numpy(model):
    return [p.detach().cpu().numpy().sum() for p in model.parameters()]


def as_items(model):
    return [layer.up.weight[0, 1].item() for layer in model.layers]


def printed(model):
    return [str(layer.norm.weight) for layer in model.layers]


def compared(model):
    pairs = zip(model.layers, model.layers[1:])
    return [torch.equal(one.up.weight, other.up.weight) for one, other in pairs]


def kept_and_read_later(model):
    kept = list(model.parameters())
    views = [p.view(-1) for p in kept]
    forward(model)
    return [p.detach().clone() for p in kept], [v.clone() for v in views]


def finite(model):
    return all(bool(torch.isfinite(p).all()) for p in model.parameters())


def by_dlpack(model):
    return [torch.from_dlpack(p.detach()).clone() for p in model.parameters()]


@pytest.mark.parametrize(
    "read",
    [
        norms,
        values,
        data,
        total_norm,
        as_lists,
        as_numpy,
        as_items,
        printed,
        compared,
        kept_and_read_later,
        finite,
        by_dlpack,
    ],
)
def test_a_read_between_steps_is_true(compare, read):
    def use(model):
        with torch.no_grad():
            return read(model)

    compare(Net, use)


def test_an_object_that_was_given_other_memory_is_replaced(compare):
    def use(model):
        old = model.layers[1].up.weight
        old.data = old.data * 2
        model.layers[1].up.weight = nn.Parameter(torch.ones_like(old))
        return forward(model), old

    compare(Net, use)


def transpose(model):
    model.layers[2].square.weight.data = model.layers[2].square.weight.data.t()


def cut(model):
    model.head.weight.data = model.head.weight.data[:40]


class Squares(Net):
    """A net with square weights, whose transposes have the same shape."""

    class layer(Layer):
        def __init__(self):
            super().__init__()
            self.square = nn.Linear(32, 32)

        def forward(self, x):
            return super().forward(self.square(x))


@pytest.mark.other_memory
@pytest.mark.parametrize("edit", [transpose, cut])
def test_a_weight_gets_another_layout_over_its_own_memory(compare, edit):
    def use(model):
        edit(model)
        return forward(model)

    compare(Squares, use)
    assert not compare.outcome.raised


def data_of(model):
    return {name: parameter.data for name, parameter in model.named_parameters()}


def put_data(model, values):
    for name, parameter in model.named_parameters():
        parameter.data = values[name]


def assign(model, values):
    model.load_state_dict(values, assign=True)


@pytest.mark.parametrize("transfer_mode", ["zero-copy", "prefetch"])
@pytest.mark.parametrize("read", [data_of, nn.Module.state_dict])
@pytest.mark.parametrize("put", [put_data, assign])
def test_weights_are_exchanged_and_put_back(compare, read, put):
    """As averaged weights are for an evaluation: what was taken out keeps its bytes."""

    def use(model):
        # What is read may be in host memory, and so what is put there until a step brings it back.
        device = next(model.parameters()).device
        old = read(model)
        put(model, {name: value * 2 for name, value in old.items()})
        found = [forward(model, device), {name: value.clone() for name, value in old.items()}]
        put(model, old)
        found += [forward(model, device), forward(model, device)]
        put(model, {name: value * 3 for name, value in old.items()})
        found.append(forward(model, device))
        return found

    compare(Net, use)
    assert not compare.outcome.raised


def test_weights_that_were_exchanged_are_offloaded_once_the_old_ones_are_dropped(compare):
    model = compare.made(Net)
    handle = compare.offload(model)
    old = data_of(model)
    put_data(model, {name: value * 2 for name, value in old.items()})
    with pytest.warns(UserWarning, match=r"'embed.weight'.* 2[0-9] more: something else, such"):
        wanted = forward(model)
    outside = [p.data_ptr() for p in model.parameters()]
    old.clear()
    assert equal(forward(model), wanted)
    assert not set(outside) & {p.data_ptr() for p in model.parameters()}
    handle.remove()

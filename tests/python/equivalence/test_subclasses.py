"""Weights that are tensor subclasses with tensors inside, as quantizers make them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from .twins import Net, equal, forward, weights


class Wide(Net):
    """Its layers are wide enough for every quantizer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 128)
        self.layers = nn.ModuleList([nn.Linear(128, 128, bias=False) for _ in range(4)])
        self.head = nn.Linear(128, 50)


def by_torchao(model, config="Int8WeightOnlyConfig"):
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    quantization.quantize_(model, getattr(quantization, config)())
    return model


def by_quanto(model):
    quanto = pytest.importorskip("optimum.quanto", reason="optimum-quanto is not installed")
    quanto.quantize(model, weights=quanto.qint8)
    quanto.freeze(model)
    return model


class Pair(torch.Tensor):
    """The sum of two tensors: the smallest subclass with tensors inside."""

    @staticmethod
    def __new__(cls, high, low):
        return torch.Tensor._make_wrapper_subclass(
            cls, high.shape, dtype=high.dtype, device=high.device, requires_grad=False
        )

    def __init__(self, high, low) -> None:
        self.high, self.low = high, low

    def __tensor_flatten__(self):
        return ["high", "low"], None

    @staticmethod
    def __tensor_unflatten__(inner, context, size, stride):
        return Pair(inner["high"], inner["low"])

    def dequantize(self):
        return self.high + self.low

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        kept = {
            torch.ops.aten.detach.default,
            torch.ops.aten.clone.default,
            torch.ops.aten.alias.default,
            torch.ops.aten._to_copy.default,
        }
        if function in kept:
            given = {k: v for k, v in (kwargs or {}).items() if k != "memory_format"}
            return cls(function(args[0].high, **given), function(args[0].low, **given))

        def whole(value):
            return value.dequantize() if isinstance(value, cls) else value

        args = torch.utils._pytree.tree_map(whole, args)
        return function(*args, **torch.utils._pytree.tree_map(whole, kwargs or {}))


def by_pairs(model):
    for layer in model.layers:
        weight = layer.weight.detach()
        high = weight.round(decimals=1)
        layer.weight = nn.Parameter(Pair(high, weight - high), requires_grad=False)
    return model


QUANTIZERS = {"pairs": by_pairs, "torchao": by_torchao, "quanto": by_quanto}


@pytest.mark.parametrize("kind", list(QUANTIZERS))
def test_a_quantized_model_is_offloaded(compare, kind):
    """Its weights have the right numbers, or an error names it; never a state_dict() of zeros."""
    compare(lambda: QUANTIZERS[kind](Wide()), forward)


@pytest.mark.parametrize("kind", list(QUANTIZERS))
def test_what_is_reported_has_moved(compare, kind):
    """The bytes that are said to be offloaded are those of real tensors."""
    model = compare.made(lambda: QUANTIZERS[kind](Wide()))
    with compare.outcome.may_raise():
        handle = compare.offload(model, select="layers")
        # At least a byte for each number of the four weights; at most the two tensors of a pair.
        count = 4 * 128 * 128
        assert count <= handle.plan.info.offloaded_bytes <= 9 * count, "WRONG reported bytes"
        handle.remove()


@pytest.mark.parametrize("kind", list(QUANTIZERS))
def test_a_model_is_quantized_after_the_offload(compare, kind):
    def use(model):
        QUANTIZERS[kind](model)
        return forward(model)

    compare(Wide, use)


@pytest.mark.parametrize("kind", ["pairs", "torchao"])
def test_a_model_is_quantized_inside_repack(compare, kind):
    """Module by module, or refused; numbers are those of the quantized model, or the old ones."""

    def quantize(module):
        if kind == "torchao":
            by_torchao(module)
        elif isinstance(module, nn.Linear):
            holder = nn.Module()
            holder.layers = [module]
            by_pairs(holder)

    resident, model = compare.made(Wide), compare.made(Wide)
    old = forward(resident)
    for module in [*resident.layers, resident.head]:
        quantize(module)
    handle = compare.offload(model)
    raised = len(compare.outcome.raised)
    with compare.outcome.may_raise(), handle.repack() as modules:
        for _, module in modules:
            quantize(module)
    refused = len(compare.outcome.raised) > raised
    with compare.outcome.may_raise():
        found = forward(model)
        assert equal(found, forward(resident)) or (refused and equal(found, old)), "WRONG numbers"
    handle.remove()
    found = forward(model)
    assert refused or equal(weights(model), weights(resident)), "WRONG weights after remove()"
    assert refused or equal(found, forward(resident)), "WRONG numbers after remove()"


@pytest.mark.other_memory
@pytest.mark.parametrize("way", ["directly", "repack"])
def test_the_tensors_inside_of_a_replacement_are_carried(compare, way):
    """They take the place of the weight in its group; the old object keeps its numbers."""
    resident, model = compare.made(Wide), compare.made(Wide)
    old = model.layers[1].weight
    numbers = old.detach().clone()
    by_pairs(resident)
    handle = compare.offload(model, select="layers")
    forward(model)
    if way == "directly":
        by_pairs(model)
    else:
        with handle.repack() as modules:
            for name, layer in modules:
                at = int(name.rpartition(".")[2])
                layer.weight = nn.Parameter(
                    Pair(*(part.clone() for part in inner(resident.layers[at].weight))),
                    requires_grad=False,
                )
    for _ in range(2):
        assert equal(forward(model), forward(resident)), "WRONG numbers"
    assert equal(old.detach(), numbers), "WRONG numbers of the old object"
    infos = {info.name: info.placement for info in handle.offloader.parameter_infos()}
    for at in range(4):
        assert f"layers.{at}.weight" not in infos
        assert infos[f"layers.{at}.weight.high"] == infos[f"layers.{at}.weight.low"] == "offloaded"
    handle.remove()
    assert equal(weights(model), weights(resident)), "WRONG weights after remove()"
    assert equal(forward(model), forward(resident)), "WRONG numbers after remove()"


def inner(pair):
    return pair.high, pair.low


class Labelled(nn.Parameter):
    """A parameter with attributes, as loaders of quantized files make them."""

    label = "none"


def test_a_parameter_of_another_class_keeps_its_class_and_attributes(compare):
    def build():
        model = Net()
        for at, layer in enumerate(model.layers):
            layer.up.weight = Labelled(layer.up.weight.detach())
            layer.up.weight.label = f"layer {at}"
        return model

    def use(model):
        first = [(type(layer.up.weight), layer.up.weight.label) for layer in model.layers]
        forward(model)
        return first, [(type(layer.up.weight), layer.up.weight.label) for layer in model.layers]

    compare(build, use)


def test_attributes_of_parameters_stay_after_remove(compare):
    """Training frameworks mark parameters with attributes."""
    model = compare.made(Net)
    for at, parameter in enumerate(model.parameters()):
        parameter.mark = at
    objects = list(model.parameters())
    handle = compare.offload(model)
    forward(model)
    handle.remove()
    found = [getattr(parameter, "mark", None) for parameter in model.parameters()]
    assert found == list(range(len(objects))), "WRONG attributes after remove()"
    assert all(a is b for a, b in zip(model.parameters(), objects)), "WRONG: other objects"

"""Weights of classes whose attributes say how to read their bytes, as quantizers make them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from .twins import Net, equal, forward, weights


class Scales:
    """What is needed to read packed numbers: tensors that the model does not list."""

    def __init__(self, largest: torch.Tensor, shape: torch.Size) -> None:
        self.largest, self.shape = largest, shape

    def to(self, device: torch.device) -> Scales:
        return Scales(self.largest.to(device), self.shape)


class Packed(nn.Parameter):
    """Two numbers of 4 bits in each byte, with their scales; packed when it is moved."""

    def __new__(cls, data, quant_state=None):
        made = torch.Tensor._make_subclass(cls, data, False)
        made.quant_state = quant_state
        return made

    def pack(self) -> Packed:
        largest = self.data.abs().amax(dim=1, keepdim=True).clamp(min=1e-6)
        codes = (self.data / largest * 7 + 8).round().to(torch.uint8)
        return Packed(codes[:, ::2] * 16 + codes[:, 1::2], Scales(largest, self.data.shape))

    def to(self, *args, **kwargs):
        if self.quant_state is None:
            return self.pack().to(*args, **kwargs)
        device = torch._C._nn._parse_to(*args, **kwargs)[0] or self.device
        with torch._C.DisableTorchFunctionSubclass():
            moved = torch.Tensor.to(self.data, device)
        return type(self)(moved, self.quant_state.to(device))

    def __deepcopy__(self, memo):
        return Packed(self.data.clone(), copy.deepcopy(self.quant_state, memo))


class Rewrapped(Packed):
    """Gives the results of all functions its own class and scales."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        result = super().__torch_function__(function, types, args, kwargs or {})
        scales = next((a.quant_state for a in args if isinstance(a, cls)), None)
        if isinstance(result, torch.Tensor) and not isinstance(result, cls):
            result = result.as_subclass(cls)
        if isinstance(result, cls):
            result.quant_state = scales
        return result


class PackedLinear(nn.Module):
    """Multiplies with packed numbers."""

    def __init__(self, linear: nn.Linear, kind: type[Packed] = Packed) -> None:
        super().__init__()
        packed = Packed(linear.weight.data).pack()
        self.weight = kind(packed.data, packed.quant_state)
        self.bias = linear.bias

    def forward(self, x):
        scales, data = self.weight.quant_state, self.weight.as_subclass(torch.Tensor)
        codes = torch.stack([data // 16, data % 16], dim=-1).reshape(scales.shape)
        return nn.functional.linear(
            x, (codes.to(x.dtype) - 8) / 7 * scales.largest.to(x.device), self.bias
        )


def packed(kind: type[Packed] = Packed) -> nn.Module:
    model = Net()
    for layer in model.layers:
        layer.up, layer.down = PackedLinear(layer.up, kind), PackedLinear(layer.down, kind)
    return model


KINDS = pytest.mark.parametrize("kind", [Packed, Rewrapped])


@KINDS
def test_packed_weights_are_offloaded(compare, kind):
    compare(lambda: packed(kind), forward)


@KINDS
def test_the_bytes_of_packed_weights_are_those_reported(compare, kind):
    model = compare.made(lambda: packed(kind))
    count = sum(layer.up.weight.nbytes + layer.down.weight.nbytes for layer in model.layers)
    handle = compare.offload(model, select=["up.weight", "down.weight"])
    assert handle.plan.info.offloaded_bytes == count, "WRONG reported bytes"
    handle.remove()


@KINDS
def test_packed_weights_keep_their_objects_classes_and_scales(compare, kind):
    model = compare.made(lambda: packed(kind))
    held = [(layer.up.weight, layer.up.weight.quant_state) for layer in model.layers]

    def check():
        for layer, (weight, scales) in zip(model.layers, held):
            assert layer.up.weight is weight, "WRONG: another object"
            assert type(weight) is kind, "WRONG class"
            assert weight.quant_state is scales, "WRONG scales"

    handle = compare.offload(model)
    check()
    forward(model)
    check()
    handle.remove()
    check()


def test_packed_weights_are_copied(compare):
    compare(packed, lambda model: forward(copy.deepcopy(model)))


def test_packed_weights_are_replaced_by_others(compare):
    """Other bytes with other scales, in an object of its own."""

    def use(model):
        other = nn.Linear(32, 64, device=model.embed.weight.device)
        with torch.no_grad():
            other.weight.copy_(torch.linspace(-2, 2, 2048).reshape(64, 32))
        model.layers[3].up.weight = PackedLinear(other).weight
        return forward(model)

    compare(packed, use)


class PackedOnMove(PackedLinear):
    """Its weight is packed when the module is moved, into fewer bytes of another type."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        self.weight = Packed(linear.weight.data)

    def _apply(self, function, recurse=True):
        if self.weight.quant_state is None:
            self.weight = self.weight.to(function(self.weight.data).device)
            return self
        return super()._apply(function, recurse)


def test_weights_are_packed_after_the_offload(compare):
    """By a move, as loaders do: the numbers of the resident model, or an error."""
    resident, model = compare.made(packed), compare.made(Net)
    for layer in model.layers:
        layer.up, layer.down = PackedOnMove(layer.up), PackedOnMove(layer.down)
    handle = compare.offload(model)
    with compare.outcome.may_raise():
        model.to(compare.where)
        assert equal(forward(model), forward(resident)), "WRONG numbers"
        assert equal(weights(model), weights(resident)), "WRONG state_dict()"
    handle.remove()
    assert equal(forward(model.to(compare.where)), forward(resident)), "WRONG after remove()"

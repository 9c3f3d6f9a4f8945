"""Types and devices that the library lacks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import weighbridge.torch as wt

from .twins import ALL, Net, equal, forward, weights

UNSUPPORTED = {
    "complex128": lambda: torch.randn(4, dtype=torch.complex128),
    "float8_e4m3fnuz": lambda: torch.ones(4).to(torch.float8_e4m3fnuz),
}


class Odd(Net):
    """Has one parameter of an unsupported type, which its forward ignores."""

    def __init__(self, kind) -> None:
        super().__init__()
        self.odd = nn.Parameter(UNSUPPORTED[kind](), requires_grad=False)


@pytest.mark.parametrize("choice", [{"exclude": "odd"}, {"select": "layers"}], ids=str)
@pytest.mark.parametrize("kind", list(UNSUPPORTED))
def test_the_rest_is_offloaded_beside_an_excluded_type_that_the_library_lacks(
    compare, kind, choice
):
    resident, model = compare.made(lambda: Odd(kind)), compare.made(lambda: Odd(kind))
    wanted, state = forward(resident), weights(resident)
    handle = compare.offload(model, **choice)
    assert handle.plan.info.offloaded_bytes > 0
    for _ in range(2):
        assert equal(forward(model), wanted), "WRONG numbers"
    assert equal(weights(model), state), "WRONG state_dict()"
    handle.remove()
    assert equal(weights(model), state), "WRONG weights after remove()"


@pytest.mark.parametrize("kind", list(UNSUPPORTED))
def test_a_selected_type_that_the_library_lacks_is_named_or_stays(compare, kind):
    compare(lambda: Odd(kind), forward)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "complex64"])
def test_other_types(compare, dtype):
    class Typed(Net):
        def forward(self, tokens):
            x = self.embed(tokens)
            for layer in self.layers:
                x = x + layer.weight * 2
            return x

    def build():
        model = Typed()
        model.layers = nn.ModuleList([nn.Embedding(32, 1) for _ in range(4)])
        for layer in model.layers:
            weight = layer.weight.detach().reshape(32).to(getattr(torch, dtype))
            layer.weight = nn.Parameter(weight)
        return model

    compare(build, forward)


@pytest.mark.parametrize("device", ["meta", "mps", "xpu", "nonsense"])
def test_a_device_that_cannot_hold_the_model_is_an_error(compare, device):
    model = compare.made(Net)
    wanted, state = forward(model), weights(model)
    with pytest.raises((ValueError, RuntimeError), match=device) as caught:
        wt.offload(model, offload_bytes=ALL, device=device, transfer_mode=compare.transfer_mode)
    compare.outcome.raised.append(f"{caught.type.__name__}: {caught.value}")
    assert equal(weights(model), state), "WRONG weights after a refused offload()"
    assert equal(forward(model), wanted), "WRONG numbers after a refused offload()"


def test_a_model_on_the_meta_device_without_a_file_is_an_error(compare):
    with torch.device("meta"):
        model = Net()
    with pytest.raises((ValueError, RuntimeError), match="meta") as caught:
        compare.offload(model, device=compare.where)
    compare.outcome.raised.append(f"{caught.type.__name__}: {caught.value}")
    assert all(parameter.is_meta for parameter in model.parameters())


def test_an_offloaded_model_is_moved_to_the_meta_device(compare):
    """Its weights are lost as in torch, or it is refused and they stay."""
    model = compare.made(Net)
    state = weights(model)
    handle = compare.offload(model)
    try:
        model.to("meta")
    except Exception as error:
        compare.outcome.raised.append(f"{type(error).__name__}: {error}")
        assert equal(weights(model), state), "WRONG weights after a refused move"
        handle.remove()
        assert equal(weights(model), state), "WRONG weights after remove()"
    else:
        assert all(parameter.is_meta for parameter in model.parameters()), "WRONG: half moved"


def test_empty_and_scalar_parameters(compare):
    class Small(Net):
        def __init__(self) -> None:
            super().__init__()
            self.empty = nn.Parameter(torch.empty(0, 5))
            self.scale = nn.Parameter(torch.tensor(1.5))

        def forward(self, tokens):
            return super().forward(tokens) * self.scale + self.empty.sum()

    compare(Small, forward)


def test_buffers_are_the_models_own(compare):
    """Batch norm in training writes to its buffers."""

    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(32, 32)
            self.norm = nn.BatchNorm1d(32)

        def forward(self, x):
            return torch.relu(self.norm(self.linear(x)))

    class Batch(Net):
        layer = Normed

        def forward(self, tokens):
            x = self.embed(tokens).reshape(-1, 32)
            for layer in self.layers:
                x = layer(x)
            return self.head(x)

    def use(model):
        model.train()
        first = forward(model)
        model.eval()
        return first, forward(model), dict(model.named_buffers())

    compare(Batch, use)


UNUSUAL = {
    "sparse": lambda: torch.eye(32).to_sparse(),
    "conjugated": lambda: torch.randn(32, 32, dtype=torch.complex64).conj(),
    "negated": lambda: torch.randn(32, 32, dtype=torch.complex64).conj().imag,
    "quantized": lambda: torch.quantize_per_tensor(torch.randn(32, 32), 0.1, 3, torch.qint8),
}


class Unusual(nn.Module):
    """A layer with a tensor whose memory does not have its numbers."""

    def __init__(self, kind) -> None:
        super().__init__()
        self.odd = nn.Parameter(UNUSUAL[kind](), requires_grad=False)
        self.up = nn.Linear(32, 32)

    def forward(self, x):
        odd = self.odd.dequantize() if self.odd.is_quantized else self.odd.to_dense()
        return x + self.up(x) @ odd.real if odd.is_complex() else x + self.up(x) @ odd


@pytest.mark.parametrize("kind", list(UNUSUAL))
def test_numbers_that_are_not_those_in_memory(compare, kind):
    def build():
        with compare.where:  # where moving it there would write the numbers out
            model = Net()
            model.layers = nn.ModuleList([Unusual(kind) for _ in range(3)])
            return model

    resident, model = compare.made(build), compare.made(build)
    with pytest.raises(ValueError, match=r"layers\.0\.odd"):
        compare.offload(model)
    assert equal(forward(model), forward(resident)), "WRONG numbers after a refusal"


def test_weights_that_were_made_in_inference_mode(compare):
    def build():
        with torch.inference_mode(), compare.where:
            return Net()

    def run(model):
        with torch.inference_mode():
            return forward(model)

    compare(build, lambda model: [run(model), forward(model)], run=run)

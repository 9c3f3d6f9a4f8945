"""Layers that are not entered by a call of the module that is their group."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call, grad, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from .twins import TOKENS, Layer, Net, forward


class CallsForward(Net):
    def forward(self, tokens):
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer.forward(x)
        return self.head(x)


def test_the_parent_calls_forward_of_layers(compare):
    compare(CallsForward, forward)


class Cell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(32, 32) * 0.1)

    def step(self, x):
        return x + x @ self.weight

    def forward(self, x):
        return self.step(x)


class CallsSteps(Net):
    layer = Cell

    def forward(self, tokens):
        x = self.embed(tokens)
        for cell in self.layers:
            x = cell.step(x)
        return self.head(x)


def test_the_parent_calls_another_method_of_layers(compare):
    compare(CallsSteps, forward)


class CallsChildren(Net):
    def forward(self, tokens):
        x = self.embed(tokens)
        for layer in self.layers:
            x = x + layer.down(torch.relu(layer.up(layer.norm(x))))
        return self.head(x)


def test_the_parent_calls_children_of_layers_and_never_the_layers(compare):
    compare(CallsChildren, forward)


class CallsChildrenLater(Net):
    """Like DiT: the last layer's norm is called again when all layers have run."""

    def forward(self, tokens):
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.layers[0].norm(x) + self.layers[-1].down(self.layers[2].up(x)))


def test_children_of_layers_are_called_after_the_layers(compare):
    compare(CallsChildrenLater, forward)


class CallsChildrenEarlier(Net):
    def forward(self, tokens):
        x = self.layers[4].norm(self.embed(tokens))
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def test_children_of_layers_are_called_before_the_layers(compare):
    compare(CallsChildrenEarlier, forward)


class Coder(nn.Module):
    """Like an autoencoder: encode and decode are called, forward never."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 32)
        self.encoder = nn.Sequential(*(Layer() for _ in range(3)))
        self.decoder = nn.Sequential(*(Layer() for _ in range(3)))
        self.shift = nn.Parameter(torch.randn(32))

    def encode(self, tokens):
        return self.encoder(self.embed(tokens)) + self.shift

    def decode(self, x):
        return self.decoder(x - self.shift)

    def forward(self, tokens):
        return self.decode(self.encode(tokens))


def encode_and_decode(model):
    with torch.no_grad():
        tokens = torch.tensor([[1, 2, 3]], device=model.shift.device)
        return model.decode(model.encode(tokens))


def test_a_model_is_used_by_other_methods_than_forward(compare):
    compare(Coder, encode_and_decode)


def test_one_layer_is_called_alone(compare):
    def use(model):
        x = torch.linspace(-1, 1, 64, device=model.head.weight.device).reshape(2, 32)
        with torch.no_grad():
            return [model.layers[at](x) for at in (3, 0, 5, 3)]

    compare(Net, use)


def test_a_function_of_a_layer_is_kept_and_called_later(compare):
    def use(model):
        x = torch.linspace(-1, 1, 64, device=model.head.weight.device).reshape(2, 32)
        kept = [layer.up.forward for layer in model.layers]
        with torch.no_grad():
            first = [call(x) for call in kept]
            forward(model)
            return first, [call(x) for call in kept]

    compare(Net, use)


def test_functional_call_takes_its_own_weights(compare):
    def use(model):
        given = {name: p.detach() * 2 for name, p in model.named_parameters()}
        tokens = torch.tensor([[1, 2, 3]], device=model.head.weight.device)
        with torch.no_grad():
            return functional_call(model, given, (tokens,))

    compare(Net, use)


def models_at_a_time(model, given, tokens):
    stacked = {name: torch.stack([p, p * 2]) for name, p in given.items()}
    with torch.no_grad():
        return vmap(lambda p: functional_call(model, p, (tokens,)))(stacked)


def gradients(model, given, tokens):
    return grad(lambda p: functional_call(model, p, (tokens,)).square().sum())(given)


def gradients_of_samples(model, given, tokens):
    def loss(p, sample):
        return functional_call(model, p, (sample[None],)).square().sum()

    return vmap(grad(loss), in_dims=(None, 0))(given, tokens)


def shapes(model, given, tokens):
    mode = FakeTensorMode()
    fake = {name: mode.from_tensor(p) for name, p in given.items()}
    with mode, torch.no_grad():
        return list(functional_call(model, fake, (mode.from_tensor(tokens),)).shape)


def recorded(model, given, tokens):
    with torch.no_grad():
        graph = make_fx(lambda *given: functional_call(model, *given), tracing_mode="fake")(
            given, (tokens,)
        )
        return graph(given, (tokens,))


@pytest.mark.parametrize("transfer_mode", ["zero-copy", "prefetch"])
@pytest.mark.parametrize(
    "call", [models_at_a_time, gradients, gradients_of_samples, shapes, recorded]
)
def test_functional_call_in_a_transform(compare, call):
    def use(model):
        given = {name: p.detach() for name, p in model.named_parameters()}
        tokens = torch.tensor(TOKENS, device=model.head.weight.device)
        return call(model, given, tokens)

    compare(Net, use)
    assert not compare.outcome.raised

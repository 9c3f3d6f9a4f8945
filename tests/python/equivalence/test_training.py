"""Gradients through offloaded weights: right, or refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from .test_lora import adapted
from .twins import TOKENS, Net


def frozen(build=Net):
    def make():
        return build().requires_grad_(False)

    return make


def tokens_of(model):
    return torch.tensor(TOKENS, device=next(model.parameters()).device)


def test_gradient_of_an_input(compare):
    def use(model):
        x = model.embed(tokens_of(model)).detach().requires_grad_(True)
        y = x
        for layer in model.layers:
            y = layer(y)
        model.head(y).square().sum().backward()
        return x.grad

    compare(frozen(), use)


class Scaled(Net):
    """Has one parameter that is trained, before every layer."""

    checkpointed = ""

    def __init__(self) -> None:
        super().__init__()
        self.requires_grad_(False)
        self.scale = nn.Parameter(torch.ones(32))

    def forward(self, tokens):
        x = self.embed(tokens) * self.scale
        for layer in self.layers:
            if self.checkpointed and torch.is_grad_enabled():
                x = checkpoint(layer, x, use_reentrant=self.checkpointed == "reentrant")
            else:
                x = layer(x)
        return self.head(x)


class Reentrant(Scaled):
    checkpointed = "reentrant"


class Checkpointed(Scaled):
    checkpointed = "yes"


@pytest.mark.parametrize("build", [Scaled, Checkpointed, Reentrant])
@pytest.mark.parametrize("select", [(), ("layers",)], ids=["all", "layers"])
def test_a_trained_parameter_before_frozen_layers(compare, build, select):
    def use(model):
        model(tokens_of(model)).square().mean().backward()
        return model.scale.grad

    compare(build, use, select=select, exclude="scale")


def test_backward_after_another_forward(compare):
    def use(model):
        first = model(tokens_of(model)).square().mean()
        with torch.no_grad():
            model(tokens_of(model))
        second = model(tokens_of(model).flip(1)).square().mean()
        first.backward()
        second.backward()
        return model.scale.grad

    compare(Scaled, use, exclude="scale")


def test_gradients_of_two_orders(compare):
    def use(model):
        loss = model(tokens_of(model)).square().mean()
        (first,) = torch.autograd.grad(loss, model.scale, create_graph=True)
        return torch.autograd.grad(first.square().sum(), model.scale)

    compare(Scaled, use, exclude="scale")


def lora():
    model = adapted().requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith((".a", ".b")))
    return model


def train(model):
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.01)
    losses = []
    for _ in range(3):
        loss = model(tokens_of(model)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return losses


def test_adapters_are_trained(compare):
    compare(lora, train)


def test_resident_adapters_are_trained(compare):
    compare(lora, train, exclude=["layers.*.a", "layers.*.b"], allow=["unmatched-selector"])


def test_all_weights_are_trained(compare):
    compare(Net, train)


def test_forward_mode_gradients(compare):
    def use(model):
        x = model.embed(tokens_of(model)).detach()

        def run(x):
            for layer in model.layers:
                x = layer(x)
            return x

        return torch.func.jvp(run, (x,), (torch.ones_like(x),))

    compare(frozen(), use)


def test_functional_gradients(compare):
    def use(model):
        x = model.embed(tokens_of(model)).detach()

        def run(x):
            for layer in model.layers:
                x = layer(x)
            return x.square().sum()

        return torch.func.grad(run)(x)

    compare(frozen(), use)

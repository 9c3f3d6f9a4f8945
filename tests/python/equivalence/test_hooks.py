"""Hooks and reparametrizations that the model had before the offload, or gets after it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import utils
from torch.nn.utils import parametrizations, parametrize, prune

from .twins import Net, forward


class Wrapped(Net):
    """Its layers are linear layers that a function reparametrizes."""

    def __init__(self, wrap) -> None:
        super().__init__()
        self.layers = nn.ModuleList([wrap(nn.Linear(32, 32)) for _ in range(6)])

    def forward(self, tokens):
        x = self.embed(tokens)
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return self.head(x)


def old(name):
    """Returns a function that newer versions of torch may lack."""
    return getattr(utils, name, None) or pytest.skip(f"torch has no {name}")


def masked(layer):
    return prune.l1_unstructured(layer, "weight", amount=0.3)


WRAPS = {
    "weight_norm": lambda layer: old("weight_norm")(layer),
    "spectral_norm": lambda layer: old("spectral_norm")(layer),
    "parametrized weight_norm": parametrizations.weight_norm,
    "parametrized spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "pruned": masked,
}


@pytest.mark.parametrize("wrap", list(WRAPS))
def test_layers_are_reparametrized_before_the_offload(compare, wrap):
    compare(lambda: Wrapped(WRAPS[wrap]), forward)


@pytest.mark.parametrize("wrap", ["weight_norm", "parametrized weight_norm", "pruned"])
def test_layers_are_reparametrized_after_the_offload(compare, wrap):
    def use(model):
        for layer in model.layers:
            WRAPS[wrap](layer)
        return forward(model)

    compare(lambda: Wrapped(lambda layer: layer), use)


def unmask(layer):
    prune.remove(layer, "weight")


UNWRAPS = {
    "weight_norm": lambda layer: old("remove_weight_norm")(layer),
    "spectral_norm": lambda layer: old("remove_spectral_norm")(layer),
    "parametrized weight_norm": lambda layer: parametrize.remove_parametrizations(layer, "weight"),
    "orthogonal": lambda layer: parametrize.remove_parametrizations(layer, "weight"),
    "pruned": unmask,
}


@pytest.mark.parametrize("wrap", list(UNWRAPS))
def test_a_reparametrization_is_folded_after_the_offload(compare, wrap):
    def use(model):
        for layer in model.layers:
            UNWRAPS[wrap](layer)
        return forward(model)

    compare(lambda: Wrapped(WRAPS[wrap]), use)


@pytest.mark.parametrize("wrap", ["weight_norm", "parametrized weight_norm"])
def test_a_reparametrization_is_folded_inside_repack(compare, wrap):
    def fold(layers):
        for layer in layers:
            if isinstance(layer, nn.Linear) and layer.weight.shape == (32, 32):
                UNWRAPS[wrap](layer)

    def of_offloaded(model, handle):
        with handle.repack() as modules:
            for _, module in modules:
                fold(module.modules())

    compare(
        lambda: Wrapped(WRAPS[wrap]), lambda model: fold(model.layers), of_offloaded=of_offloaded
    )


def test_parametrizations_are_cached(compare):
    def use(model):
        with parametrize.cached():
            return forward(model), forward(model)

    compare(lambda: Wrapped(parametrizations.weight_norm), use)


def scale_before(module, args):
    return (args[0] * module.weight.mean(),)


def scale_after(module, args, result):
    return result * module.weight[0].sum()


HOOKS = {
    "before forward": lambda layer: layer.register_forward_pre_hook(scale_before),
    "after forward": lambda layer: layer.register_forward_hook(scale_after),
    "after forward, first": lambda layer: layer.register_forward_hook(scale_after, prepend=True),
    "before forward, first": lambda layer: layer.register_forward_pre_hook(
        scale_before, prepend=True
    ),
}


def hooked(model, kind, part):
    for layer in model.layers:
        HOOKS[kind](getattr(layer, part) if part else layer)
    return model


@pytest.mark.parametrize("part", ["up", "norm"])
@pytest.mark.parametrize("kind", list(HOOKS))
def test_a_hook_registered_before_the_offload_reads_a_weight(compare, kind, part):
    def build():
        model = Net()
        for layer in model.layers:
            HOOKS[kind](getattr(layer, part))
        return model

    compare(build, forward)


@pytest.mark.parametrize("kind", list(HOOKS))
def test_a_hook_of_the_group_registered_before_the_offload_reads_a_weight(compare, kind):
    def build():
        model = Wrapped(lambda layer: layer)
        for layer in model.layers:
            HOOKS[kind](layer)
        return model

    compare(build, forward)


@pytest.mark.parametrize("kind", list(HOOKS))
def test_a_hook_of_the_group_registered_after_the_offload_reads_a_weight(compare, kind):
    def use(model):
        for layer in model.layers:
            HOOKS[kind](layer)
        return forward(model)

    compare(lambda: Wrapped(lambda layer: layer), use)


def test_a_global_hook_reads_weights(compare):
    def use(model):
        def read(module, args):
            seen.extend(p.detach().clone() for p in module.parameters(recurse=False))

        seen = []
        hook = nn.modules.module.register_module_forward_pre_hook(read)
        try:
            forward(model)
        finally:
            hook.remove()
        return seen

    compare(Net, use)


def test_forward_is_replaced_on_the_object(compare):
    """Like accelerate's hooks."""

    def use(model):
        for layer in model.layers:
            inner = layer.forward
            layer.forward = lambda x, inner=inner, layer=layer: inner(x) * layer.norm.weight
        return forward(model)

    compare(Net, use)


def test_forward_was_replaced_on_the_object_before_the_offload(compare):
    def build():
        model = Net()
        for layer in model.layers:
            inner = layer.forward
            layer.forward = lambda x, inner=inner, layer=layer: inner(x) * layer.norm.weight
        return model

    compare(build, forward)

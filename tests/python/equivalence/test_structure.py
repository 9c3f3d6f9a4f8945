"""Modules and names change: new heads, deleted layers, resized embeddings, renamed modules."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from .twins import Layer, Net, Tied, equal, forward, weights


def seeded(build, model):
    torch.manual_seed(3)
    return build().to(model.embed.weight.device)


def new_head(model):
    model.head = seeded(lambda: nn.Linear(32, 7, bias=False), model)


def new_head_of_the_same_shape(model):
    model.head = seeded(lambda: nn.Linear(32, 50, bias=False), model)


def new_layer(model):
    model.layers[2] = seeded(Layer, model)


def identity(model):
    model.layers[3] = nn.Identity()


def delete_last(model):
    del model.layers[-1]


def delete_first(model):
    del model.layers[0]


def delete_half(model):
    model.layers = model.layers[::2]


def reverse(model):
    model.layers = nn.ModuleList(reversed(list(model.layers)))


def swap(model):
    model.layers[0], model.layers[5] = model.layers[5], model.layers[0]


def repeat(model):
    model.layers = nn.ModuleList([*model.layers, model.layers[2]])


def insert(model):
    model.layers.insert(1, seeded(Layer, model))


def wrap_layer(model):
    model.layers[1] = nn.Sequential(model.layers[1])


def wrap_all(model):
    model.layers = nn.ModuleList([nn.Sequential(layer) for layer in model.layers])


def resize_embedding(model):
    old = model.embed.weight
    new = nn.Embedding(60, 32, device=old.device)
    with torch.no_grad():
        new.weight.zero_()
        new.weight[: old.shape[0]] = old
    model.embed = new


def resize_parameter(model):
    old = model.embed.weight
    grown = torch.cat([old.detach(), torch.ones(10, 32, device=old.device)])
    model.embed.weight = nn.Parameter(grown)


def move_submodule(model):
    model.layers[4].norm = model.layers[1].norm


def rename_parameter(model):
    linear = model.layers[1].up
    linear.register_parameter("kernel", linear.weight)
    del linear.weight
    linear.forward = lambda x: nn.functional.linear(x, linear.kernel, linear.bias)


def drop_weight(model):
    model.layers[1].up.weight = None
    model.layers[1].up.forward = lambda x: torch.cat([x, x], dim=-1)


def add_module(model):
    model.extra = seeded(lambda: nn.Linear(32, 32), model)
    inner = model.head.forward
    model.head.forward = lambda x: inner(model.extra(x))


CHANGES = [
    new_head,
    new_head_of_the_same_shape,
    new_layer,
    identity,
    delete_last,
    delete_first,
    delete_half,
    reverse,
    swap,
    repeat,
    insert,
    wrap_layer,
    wrap_all,
    resize_embedding,
    resize_parameter,
    move_submodule,
    rename_parameter,
    drop_weight,
    add_module,
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_stays_and_remove_ends_well(compare, change):
    def use(model):
        change(model)
        return forward(model)

    compare(Net, use)


@pytest.mark.parametrize("change", [new_head, resize_embedding, delete_last, reverse])
def test_a_change_of_a_tied_model_stays(compare, change):
    def use(model):
        change(model)
        return forward(model)

    compare(Tied, use)


@pytest.mark.other_memory
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_followed_by_a_conversion(compare, change):
    def use(model):
        change(model)
        model.bfloat16()
        return forward(model)

    compare(Net, use)


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_followed_by_repack(compare, change):
    def of_offloaded(model, handle):
        change(model)
        with handle.repack() as modules:
            for _ in modules:
                pass
        return forward(model)

    def use(model):
        change(model)
        return forward(model)

    compare(Net, use, of_offloaded=of_offloaded)


def test_the_users_own_object_stays(compare):
    model = compare.made(Net)
    handle = compare.offload(model)
    forward(model)
    new_head(model)
    mine = model.head.weight
    value = mine.detach().clone()
    forward(model)
    handle.remove()
    assert model.head.weight is mine, "WRONG: another object in the place of the user's"
    assert equal(mine.detach(), value), "WRONG weight"


def test_a_removed_layer_keeps_its_weights(compare):
    """The user keeps a layer that left the model."""
    model = compare.made(Net)
    wanted = weights(model.layers[5])
    handle = compare.offload(model)
    forward(model)
    kept = model.layers[5]
    del model.layers[5]
    forward(model)
    with compare.outcome.may_raise():
        assert equal(weights(kept), wanted), "WRONG weights of a layer that left the model"
    handle.remove()
    with compare.outcome.may_raise():
        assert equal(weights(kept), wanted), "WRONG weights of it after remove()"


def test_embeddings_of_transformers_are_resized(compare):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")

    def build():
        return transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                vocab_size=96,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=3,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=64,
                pad_token_id=0,
                tie_word_embeddings=True,
            )
        )

    def run(model):
        tokens = torch.arange(10, device=model.device)[None]
        with torch.no_grad():
            return model(input_ids=tokens, use_cache=False).logits

    def use(model):
        torch.manual_seed(3)
        model.resize_token_embeddings(100, mean_resizing=False)
        return run(model), model.get_input_embeddings().weight.shape[0]

    compare(build, use, run=run)

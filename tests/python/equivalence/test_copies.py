"""Copies of an offloaded model or its layers: resident with the true weights, or refused."""

from __future__ import annotations

import copy
import io
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from .twins import Layer, Net, Tied, equal, forward, weights


@pytest.mark.parametrize("build", [Net, Tied])
def test_a_deep_copy_of_the_model(compare, build):
    def use(model):
        copied = copy.deepcopy(model)
        return weights(copied), forward(copied), forward(copied)

    compare(build, use)


def test_a_copy_stays_when_the_model_is_removed(compare):
    copies = []

    def use(model):
        copies.append(copy.deepcopy(model))
        return forward(copies[-1])

    def of_offloaded(model, handle):
        copied = copy.deepcopy(model)
        handle.remove()
        return forward(copied)

    compare(Net, use, of_offloaded=of_offloaded)


def test_a_deep_copy_of_a_layer(compare):
    def use(model):
        x = torch.linspace(-1, 1, 64, device=model.head.weight.device).reshape(2, 32)
        layer = copy.deepcopy(model.layers[2])
        with torch.no_grad():
            return list(layer.parameters()), layer(x)

    compare(Net, use)


def test_a_deep_copy_of_a_weight(compare):
    compare(Net, lambda model: [copy.deepcopy(layer.up.weight) for layer in model.layers])


def test_a_copied_layer_is_appended(compare):
    def use(model):
        model.layers.append(copy.deepcopy(model.layers[1]))
        return forward(model)

    compare(Net, use)


def test_a_shallow_copy_of_the_model(compare):
    compare(Net, lambda model: forward(copy.copy(model)))


def test_a_pickled_model(compare):
    def use(model):
        return forward(pickle.loads(pickle.dumps(model)))

    compare(Net, use)


def test_a_pickled_layer(compare):
    def use(model):
        return list(pickle.loads(pickle.dumps(model.layers[3])).parameters())

    compare(Net, use)


@pytest.mark.parametrize("build", [Net, Tied])
def test_torch_save_of_the_model(compare, build):
    def use(model):
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        return forward(torch.load(file, weights_only=False))

    compare(build, use)


def test_torch_save_of_the_state(compare):
    def use(model):
        file = io.BytesIO()
        torch.save(model.state_dict(), file)
        file.seek(0)
        return torch.load(file)

    compare(Net, use)


def test_torch_save_of_a_list_of_parameters(compare):
    def use(model):
        file = io.BytesIO()
        torch.save(list(model.parameters()), file)
        file.seek(0)
        return torch.load(file, weights_only=False)

    compare(Net, use)


def test_an_averaged_model(compare):
    def use(model):
        averaged = AveragedModel(model)
        averaged.update_parameters(model)
        averaged.update_parameters(model)
        return forward(averaged.module)

    compare(Net, use)


def test_another_model_takes_the_weights(compare):
    def use(model):
        other = Net().to(model.head.weight.device).eval()
        other.load_state_dict(model.state_dict())
        return forward(other)

    compare(Net, use)


def test_another_model_takes_the_parameters(compare):
    def use(model):
        other = Net().to(model.head.weight.device).eval()
        with torch.no_grad():
            for own, given in zip(other.parameters(), model.parameters()):
                own.copy_(given)
        return forward(other)

    compare(Net, use)


def test_another_layer_shares_the_parameters(compare):
    def use(model):
        other = Layer().to(model.head.weight.device)
        other.up.weight = model.layers[1].up.weight
        x = torch.linspace(-1, 1, 64, device=model.head.weight.device).reshape(2, 32)
        with torch.no_grad():
            return other.up.weight, torch.nn.functional.linear(x, other.up.weight)

    compare(Net, use)


def test_it_is_shared_with_other_processes(compare):
    def use(model):
        model.share_memory()
        return model.head.weight.is_shared()

    compare(Net, use)


def test_memory_that_something_else_uses_is_named(compare):
    model = compare.made(Net)
    flat = model.layers[1].up.weight.data.view(-1)
    with pytest.warns(UserWarning, match=r"'layers\.1\.up\.weight': something else uses the mem"):
        handle = compare.offload(model)
    assert equal(flat, model.layers[1].up.weight.view(-1)), "WRONG bytes beside the offload"
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error")
        forward(model)
        handle.remove()
        del flat
        handle = compare.offload(model)  # the copies that it made are the model's alone
        vector = nn.utils.parameters_to_vector(model.parameters())
    nn.utils.vector_to_parameters(vector, model.parameters())
    with pytest.warns(UserWarning, match="something else uses the memory of the weights"):
        forward(model)

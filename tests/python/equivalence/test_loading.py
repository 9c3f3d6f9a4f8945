"""load_state_dict and state_dict of an offloaded model."""

from __future__ import annotations

import pytest
import torch

from .twins import Net, Tied, forward, weights


def doubled(state):
    return {name: tensor.detach().clone() * 2 for name, tensor in state.items()}


@pytest.mark.parametrize("assign", [False, True], ids=["copy", "assign"])
@pytest.mark.parametrize("build", [Net, Tied])
def test_a_whole_state_is_loaded(compare, build, assign):
    def use(model):
        model.load_state_dict(doubled(weights(model)), assign=assign)
        return forward(model), weights(model)

    compare(build, use)


@pytest.mark.parametrize("assign", [False, True], ids=["copy", "assign"])
def test_a_part_of_the_state_is_loaded(compare, assign):
    def use(model):
        state = doubled(weights(model))
        part = {name: tensor for name, tensor in state.items() if "layers.3" in name}
        missing, unexpected = model.load_state_dict(part, strict=False, assign=assign)
        return sorted(missing), unexpected, forward(model)

    compare(Net, use)


@pytest.mark.parametrize("assign", [False, True], ids=["copy", "assign"])
def test_a_layer_is_loaded(compare, assign):
    def use(model):
        layer = model.layers[2]
        layer.load_state_dict(doubled(weights(layer)), assign=assign)
        return forward(model)

    compare(Net, use)


def test_another_dtype_is_cast(compare):
    def use(model):
        state = {name: tensor.double() / 4 for name, tensor in weights(model).items()}
        model.load_state_dict(state)
        return forward(model)

    compare(Net, use)


def test_another_dtype_is_assigned(compare):
    def use(model):
        state = {name: tensor.double() / 4 for name, tensor in weights(model).items()}
        model.load_state_dict(state, assign=True)
        return forward(model)

    compare(Net, use)


@pytest.mark.parametrize("assign", [False, True], ids=["copy", "assign"])
def test_a_wrong_shape_is_an_error_as_in_torch(compare, assign):
    def use(model):
        state = doubled(weights(model))
        state["layers.2.up.weight"] = state["layers.2.up.weight"].t().contiguous()
        with pytest.raises(RuntimeError, match="size mismatch"):
            model.load_state_dict(state, assign=assign)
        return forward(model), weights(model)

    compare(Net, use)


def test_missing_and_unexpected_names_are_errors_as_in_torch(compare):
    def use(model):
        state = doubled(weights(model))
        state["other"] = state.pop("layers.2.up.weight")
        with pytest.raises(RuntimeError, match="Missing key"):
            model.load_state_dict(state)
        return forward(model), weights(model)

    compare(Net, use)


def test_the_models_own_state_is_loaded(compare):
    def use(model):
        model.load_state_dict(model.state_dict())
        return forward(model)

    compare(Net, use)


def test_a_state_that_was_saved_before_is_the_state_of_then(compare):
    """Torch's state_dict aliases the weights, so it follows edits; a copy is kept for later."""

    def use(model):
        saved = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        forward(model)
        model.load_state_dict(doubled(saved))
        forward(model)
        model.load_state_dict(saved)
        return forward(model), saved

    compare(Net, use)


def test_state_entries_are_edited(compare):
    """state_dict() aliases the weights of a resident model: an edit of an entry counts."""

    def use(model):
        state = model.state_dict()
        with torch.no_grad():
            state["layers.1.up.weight"].mul_(2)
            state["head.weight"].zero_()
        return forward(model)

    compare(Net, use)

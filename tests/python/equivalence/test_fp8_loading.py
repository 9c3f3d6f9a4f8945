"""Full-precision weights are loaded into a model whose weights are kept in FP8."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from weighbridge import QuantizeOptions

from .twins import Net, equal, weights

# One scale for each row.
OPTIONS = QuantizeOptions("float8_e4m3fn", block_rows=1)
SELECT = [f"layers.{at}.{part}.weight" for at in range(6) for part in ("up", "down")]


def widened(model):
    """Returns each weight of the layers as numbers: the FP8 values times their scales."""
    state = model.state_dict()
    found = {}
    for name, tensor in state.items():
        if tensor.dtype == torch.float8_e4m3fn:
            scale = state[f"{name}_scale_inv" if f"{name}_scale_inv" in state else f"{name}_scale"]
            found[name] = tensor.float() * scale.float().reshape(-1, 1)
    return found


def full(model):
    """Returns what a full-precision checkpoint of another training has."""
    state = {}
    torch.manual_seed(7)
    for name, parameter in Net().named_parameters():
        state[name] = (torch.randn(parameter.shape) * 3).to(model.embed.weight.device)
    return state


@pytest.mark.parametrize("assign", [False, True], ids=["copy", "assign"])
@pytest.mark.parametrize("strict", [False, True], ids=["lenient", "strict"])
def test_full_precision_weights_are_quantized_or_refused(compare, strict, assign):
    """As offload() would quantize them; after a refusal nothing has changed."""
    model = compare.made(Net)
    other = compare.made(Net)
    handle = compare.offload(model, quantize=OPTIONS, quantize_select=SELECT)
    before = weights(model)
    state = full(model)
    other.load_state_dict(state)
    wanted = compare.offload(other, quantize=OPTIONS, quantize_select=SELECT)
    try:
        model.load_state_dict(state, strict=strict, assign=assign)
    except Exception as error:
        compare.outcome.raised.append(f"{type(error).__name__}: {error}")
        assert equal(weights(model), before), "WRONG weights after a refused load_state_dict()"
    else:
        assert equal(weights(model), weights(other)), "WRONG weights"
    handle.remove()
    wanted.remove()


def test_one_full_precision_weight_is_loaded(compare):
    model = compare.made(Net)
    handle = compare.offload(model, quantize=OPTIONS, quantize_select=SELECT)
    before = widened(model)
    name = "layers.2.up.weight"
    given = torch.linspace(-5, 5, 64 * 32, device=model.embed.weight.device).reshape(64, 32)
    try:
        model.load_state_dict({name: given}, strict=False)
    except Exception as error:
        compare.outcome.raised.append(f"{type(error).__name__}: {error}")
        given = before[name]
    found = widened(model)
    # A row's largest number is 448 steps of its scale; E4M3 has 3 bits of mantissa.
    given = given.to(found[name].device)
    error = (found[name] - given).abs()
    bound = given.abs() / 16 + given.abs().amax(dim=1, keepdim=True) / 448
    assert bool((error <= bound).all()), "WRONG: raw bytes beside old scales"
    assert all(equal(found[key], before[key]) for key in before if key != name)
    handle.remove()


def test_its_own_state_is_loaded(compare):
    model = compare.made(Net)
    handle = compare.offload(model, quantize=OPTIONS, quantize_select=SELECT)
    before = weights(model)
    with compare.outcome.may_raise():
        model.load_state_dict(before)
    assert equal(weights(model), before), "WRONG weights"
    handle.remove()
    assert equal(weights(model), before), "WRONG weights after remove()"


def test_an_edit_of_a_weight_in_fp8(compare):
    """Assigning full-precision numbers to a weight in FP8 quantizes them, or is refused."""
    model = compare.made(Net)
    handle = compare.offload(model, quantize=OPTIONS, quantize_select=SELECT)
    before = widened(model)["layers.1.up.weight"]
    given = before * 3
    wanted = given
    try:
        model.layers[1].up.weight = nn.Parameter(given.clone(), requires_grad=False)
        found = model.state_dict()["layers.1.up.weight"]
    except Exception as error:
        compare.outcome.raised.append(f"{type(error).__name__}: {error}")
        wanted, found = before, model.state_dict()["layers.1.up.weight"]
    if found.dtype == torch.float8_e4m3fn:
        found = widened(model)["layers.1.up.weight"]
    assert torch.allclose(found.float(), wanted.float(), rtol=0.07, atol=0.02), "WRONG weight"
    handle.remove()

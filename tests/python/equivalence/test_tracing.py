"""Programs that are recorded from an offloaded model."""

from __future__ import annotations

import pytest
import torch
from torch import fx

from .twins import TOKENS, Layer, Net, forward


def tokens_of(model):
    return torch.tensor(TOKENS, device=model.head.weight.device)


def jit_trace(model):
    return torch.jit.trace(model, (tokens_of(model),))


def exported(model):
    return torch.export.export(model, (tokens_of(model),)).module()


def exported_strictly(model):
    return torch.export.export(model, (tokens_of(model),), strict=True).module()


def made_fx(model):
    from torch.fx.experimental.proxy_tensor import make_fx

    return make_fx(model)(tokens_of(model))


TRACES = [jit_trace, fx.symbolic_trace, exported, exported_strictly, made_fx]


@pytest.mark.parametrize("trace", TRACES)
def test_a_recorded_program_computes_the_same(compare, trace):
    def use(model):
        with torch.no_grad():
            program = trace(model)
            first = program(tokens_of(model))
            forward(model)
            return first, program(tokens_of(model)), forward(model)

    compare(Net, use)


@pytest.mark.parametrize("trace", [jit_trace, fx.symbolic_trace, exported])
def test_a_program_recorded_before_the_offload_computes_the_same(compare, trace):
    """Or fails: it shares the parameters with the model."""
    programs = {}

    def build():
        return Net()

    model, resident = compare.made(build), compare.made(build)
    with torch.no_grad():
        programs = trace(model)
        wanted = trace(resident)(tokens_of(resident))
        handle = compare.offload(model)
        with compare.outcome.may_raise():
            for _ in range(2):
                found = programs(tokens_of(model)).clone()
                assert torch.equal(found, wanted), "WRONG numbers of a program recorded before"
                assert torch.equal(forward(model), wanted), "WRONG numbers of the model"
        handle.remove()
        assert torch.equal(forward(model), wanted), "WRONG numbers after remove()"


def test_scripted(compare):
    def use(model):
        script = torch.jit.script(model.layers[1])
        with torch.no_grad():
            return script(torch.ones(2, 32, device=model.head.weight.device))

    compare(Net, use)


def test_a_model_with_a_scripted_layer_is_refused(compare):
    def build():
        model = Net()
        model.layers[2] = torch.jit.script(Layer())
        return model

    resident, model = compare.made(build), compare.made(build)
    with pytest.raises(ValueError, match=r"'layers\.2' is a ScriptModule"):
        compare.offload(model)
    assert torch.equal(forward(model), forward(resident)), "WRONG numbers after a refusal"


def test_vmap(compare):
    def use(model):
        with torch.no_grad():
            return torch.func.vmap(model)(tokens_of(model))

    compare(Net, use)

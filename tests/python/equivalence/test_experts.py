"""Gradients through fused experts that a cache carries."""

from __future__ import annotations

import warnings

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

from expert_models import build, calls, offload  # noqa: E402


def test_gradients_are_those_of_the_resident_model(where):
    model, twin = (build("mixtral", where, dtype=torch.float32) for _ in range(2))
    handle = offload(model)
    where_of = [net.model.layers[0].mlp.experts for net in (model, twin)]
    hidden = torch.linspace(-1, 1, 64, device=where).reshape(2, 32)
    ids = torch.tensor([[0, 3], [5, 1]], device=where)
    found = []
    for one in where_of:
        given = hidden.clone().requires_grad_()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = one(given, ids, torch.full((2, 2), 0.5, device=where))
        result.sum().backward()
        found.append((result.detach(), given.grad))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    assert calls(handle) == 0

"""Weights of experts that caches carry, read and changed between steps."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

from expert_models import IMPLEMENTATIONS, build, calls, logits, offload  # noqa: E402


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_changed_weights_are_read_at_the_next_step(implementation, where):
    model = build("mixtral", where, implementation)
    twin = build("mixtral", where, implementation)
    handle = offload(model)
    logits(model)
    experts = [net.model.layers[1].mlp.experts for net in (model, twin)]

    def changed(change):
        for one in experts:
            with torch.no_grad():
                change(one)
        assert torch.equal(logits(model), logits(twin))

    changed(lambda one: one.down_proj.mul_(2))
    changed(lambda one: setattr(one.down_proj, "data", one.down_proj.data * 3))
    fresh = torch.nn.Parameter(experts[1].gate_up_proj.detach() - 1, requires_grad=False)
    changed(lambda one: setattr(one, "gate_up_proj", fresh))
    state = {key: value * 0.5 for key, value in twin.state_dict().items()}
    for net in (model, twin):
        net.load_state_dict(state)
    assert torch.equal(logits(model), logits(twin))
    assert not handle.in_place
    # What PyTorch does not count needs a word.
    for one in experts:
        one.down_proj.data.add_(1)
    handle.reset_experts()
    assert torch.equal(logits(model), logits(twin))
    assert calls(handle) == 4 * 6


def test_compiled_code_reads_changed_weights(where):
    torch.compiler.reset()
    model, twin = (build("mixtral", where, num_hidden_layers=2) for _ in range(2))
    handle = offload(model)
    compiled = [torch.compile(net, backend="aot_eager") for net in (model, twin)]
    for _ in range(2):
        logits(compiled[0])
    for net in (model, twin):
        with torch.no_grad():
            net.model.layers[1].mlp.experts.down_proj.mul_(-2)
    assert torch.equal(logits(compiled[0]), logits(compiled[1]))
    assert calls(handle) == 2 * 3
    torch.compiler.reset()


def test_state_dict_has_the_true_weights(where):
    model = build("gpt-oss", where)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    handle = offload(model, 0.3)
    logits(model)
    state = model.state_dict()
    assert all(torch.equal(state[key].to(where), value) for key, value in before.items())
    handle.remove(device="cpu")
    state = model.state_dict()
    assert all(torch.equal(state[key], value.cpu()) for key, value in before.items())
    assert {value.device.type for value in state.values()} == {"cpu"}


def test_weights_of_another_shape_are_used_at_home(where):
    model = build("mixtral", where, "eager")
    twin = build("mixtral", where, "eager")
    handle = offload(model)
    logits(model)
    for net in (model, twin):
        experts = net.model.layers[2].mlp.experts
        wide = torch.cat([experts.gate_up_proj, experts.gate_up_proj], 0).detach()
        experts.gate_up_proj = torch.nn.Parameter(wide, requires_grad=False)
    assert torch.equal(logits(model), logits(twin))
    assert calls(handle) >= 4

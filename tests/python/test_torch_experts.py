"""Fused experts of transformers' models, carried by expert caches: the resident model's bits."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from conftest import ROOT  # noqa: E402
from expert_models import IMPLEMENTATIONS, MODELS, build, calls, expert_bytes, hits, logits, offload  # noqa: E402

import weighbridge.torch as wt  # noqa: E402
from weighbridge import ExpertCache, WeighbridgeError  # noqa: E402
from weighbridge.torch._expert_caches import MOST_SLOTS  # noqa: E402
from weighbridge.torch._experts import fused_experts  # noqa: E402


@pytest.mark.parametrize("kind", list(MODELS))
def test_the_fused_experts_of_a_model_are_found(kind, where):
    found = list(fused_experts(build(kind, where)))
    assert len(found) == MODELS[kind][3]
    for one in found:
        assert len(one.tensors) == MODELS[kind][2]
        assert one.functions == {"grouped_mm", "batched_mm"}
        assert one.ids in ("top_k_index", "router_indices")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("kind", list(MODELS))
def test_outputs_are_those_of_the_resident_model(kind, where, implementation):
    model = build(kind, where, implementation)
    wanted = [logits(model, count, first).clone() for count, first in ((1, 0), (2, 5), (3, 9))]
    # Half of the experts have slots, so that calls evict some.
    handle = offload(model, 0.5)
    for _ in range(3):
        for want, (count, first) in zip(wanted, ((1, 0), (2, 5), (3, 9))):
            assert torch.equal(logits(model, count, first), want)
    layers = MODELS[kind][3]
    assert calls(handle) == layers * 9, handle.in_place
    assert hits(handle) > 0
    assert sum(cache.stats().misses for cache in handle.expert_caches) > 0
    assert not handle.in_place
    handle.remove()
    assert torch.equal(logits(model, 1, 0), wanted[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_experts_of_other_types_are_carried(implementation, where, dtype):
    model = build("mixtral", where, implementation, dtype)
    wanted = logits(model).clone()
    handle = offload(model, 0.4)
    for _ in range(2):
        assert torch.equal(logits(model), wanted)
    assert calls(handle) == 8


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_call_that_may_need_more_experts_than_slots_reads_them_in_place(implementation, where):
    model = build("qwen3-moe", where, implementation)
    wanted = [logits(model, count).clone() for count in (40, 1)]
    handle = offload(model, 0.1)  # 6 of 64 experts, of which a layer has 16
    slots = handle.expert_caches[0].info.slots
    assert 4 <= slots < 16
    assert torch.equal(logits(model, 40), wanted[0])
    assert calls(handle) == 0
    assert torch.equal(logits(model, 1), wanted[1])
    assert calls(handle) == 4


def test_many_slots_are_divided_among_caches(where):
    model = build("qwen3-moe", where, num_experts=300, num_hidden_layers=6)
    wanted = logits(model).clone()
    handle = offload(model)
    slots = [cache.info.slots for cache in handle.expert_caches]
    assert len(slots) == 3
    assert max(slots) <= 600
    assert sum(slots) > 1700
    for _ in range(2):
        assert torch.equal(logits(model), wanted)
    assert calls(handle) == 12
    handle.remove()
    # The share of each is exact, if there are fewer slots.
    handle = offload(model, 0.5)
    info = handle.plan.info
    assert len(handle.expert_caches) == 2
    assert info.expert_bytes * 0.95 < handle.stats.expert_bytes <= info.expert_bytes
    assert torch.equal(logits(model), wanted)


def test_every_slot_is_counted_as_a_group_of_its_own():
    # The implementation of grouped_mm counts tokens by histc, with a bin for each slot.
    for bins in range(2, MOST_SLOTS + 1):
        numbers = torch.arange(bins).float()
        found = torch.histc(numbers, bins=bins, min=0, max=bins - 1)
        assert bool((found == 1).all()), bins


def test_residents_the_ring_and_the_cache_share_one_budget(where):
    model = build("mixtral", where)
    wanted = logits(model).clone()
    every = sum(parameter.nbytes for parameter in model.parameters())
    of_experts = expert_bytes(model) - 4096
    for budget in (every - of_experts // 2, every - of_experts + 120_000):
        handle = wt.offload(model, device_bytes=budget, transfer_mode="experts")
        info, stats = handle.plan.info, handle.stats
        assert info.resident_bytes + info.slot_bytes + info.expert_bytes == budget
        assert 0 < stats.expert_bytes <= info.expert_bytes
        reasons = {p.name: p.reason for p in handle.plan.parameters if "experts" in p.name}
        assert all("in slots of" in reason for reason in reasons.values())
        assert torch.equal(logits(model), wanted)
        assert calls(handle) == 4
        handle.remove()
    # Dense weights leave, too, where the cache is given more than is left.
    handle = wt.offload(
        model, device_bytes=every // 2, transfer_mode="experts", expert_bytes=every // 2 - 30_000
    )
    assert handle.plan.info.step_bytes > 0
    assert torch.equal(logits(model), wanted)
    assert calls(handle) == 4


def test_auto_makes_caches_where_it_is_given_memory_for_them(where):
    model = build("mixtral", where)
    wanted = logits(model).clone()
    handle = wt.offload(model, offload_bytes=1 << 24)
    assert handle.expert_caches == []
    handle.remove()
    handle = wt.offload(model, offload_bytes=1 << 24, expert_bytes=expert_bytes(model, 0.5))
    assert len(handle.expert_caches) == 1
    assert torch.equal(logits(model), wanted)


def test_what_cannot_be_cached_is_refused(where):
    model = build("mixtral", where)
    with pytest.raises(ValueError, match="expert_bytes is 0"):
        wt.offload(model, offload_bytes=1 << 24, transfer_mode="experts")
    before, wanted = [p.data_ptr() for p in model.parameters()], logits(model).clone()
    with pytest.raises(WeighbridgeError, match="a slot for each"):
        wt.offload(model, offload_bytes=1 << 24, transfer_mode="experts", expert_bytes=100)
    assert [p.data_ptr() for p in model.parameters()] == before
    assert torch.equal(logits(model), wanted)
    dense = torch.nn.Sequential(torch.nn.Linear(8, 8)).to(where)
    with pytest.raises(ValueError, match="Sequential has no fused experts"):
        wt.offload(dense, offload_bytes=1 << 20, expert_bytes=1 << 20, transfer_mode="experts")
    if where.type == "cuda":
        with pytest.raises(WeighbridgeError, match="by an expert cache"):
            offload(model, pin=False)


def test_a_model_is_loaded_with_its_experts_in_a_cache(where, tmp_path):
    from weighbridge.engines.transformers import from_pretrained

    kind = transformers.Qwen3MoeForCausalLM
    build("qwen3-moe", where).save_pretrained(tmp_path)
    model = kind.from_pretrained(tmp_path, dtype=torch.bfloat16).to(where).eval()
    wanted = logits(model).clone()
    loaded = from_pretrained(
        tmp_path,
        model_class=kind,
        dtype=torch.bfloat16,
        device=where,
        offload_bytes=1 << 24,
        transfer_mode="experts",
        expert_bytes=expert_bytes(model, 0.5),
    )
    assert torch.equal(logits(loaded), wanted)
    handle = wt.handle_of(loaded)
    assert calls(handle) == 4
    handle.remove()


def test_the_example_generates_the_resident_models_tokens(run_python):
    status, printed, error = run_python(str(ROOT / "examples/python/experts_torch.py"))
    assert status == 0, error
    assert "of 128 experts in slots" in printed


def test_caches_are_closed_with_the_offload(where):
    model = build("mixtral", where)
    handle = offload(model)
    cache = handle.expert_caches[0]
    assert isinstance(cache, ExpertCache)
    assert handle.stats.expert_bytes > 0
    handle.remove()
    assert cache.closed

"""How experts are called: alone, by compiled code, in graphs, on streams, as modules."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

from conftest import REPEATS  # noqa: E402
from expert_models import build, calls, hits, logits, offload  # noqa: E402

import weighbridge.torch as wt  # noqa: E402
from graphs import graph_of  # noqa: E402
from weighbridge.torch._expert_rows import ExpertRows, NotRowsError  # noqa: E402


def test_an_experts_module_called_by_itself_gives_the_resident_result(where):
    model = build("qwen3-moe", where)
    experts = model.model.layers[3].mlp.experts
    hidden = torch.linspace(-1, 1, 96, device=where, dtype=torch.bfloat16).reshape(3, 32)
    ids = torch.tensor([[15, 2, 0, 7]] * 3, device=where)
    weights = torch.rand(3, 4, device=where).bfloat16()
    with torch.no_grad():
        wanted = experts(hidden, ids, weights)
        handle = offload(model)
        assert torch.equal(experts(hidden, ids, weights), wanted)
        assert torch.equal(experts(hidden, top_k_index=ids, top_k_weights=weights), wanted)
        transposed = ids.t().contiguous().t()
        assert torch.equal(experts(hidden, transposed, weights), wanted)
        narrow = experts(hidden, ids.int(), weights)
    assert torch.equal(narrow, wanted)
    assert calls(handle) == 4


@pytest.mark.parametrize(
    "note", [{"_is_expert_parallel": True}, {"_hf_tp_plan": "grouped_gemm"}], ids=["5.20", "older"]
)
def test_a_part_of_the_experts_of_a_layer_is_read_at_home(where, note):
    model = build("mixtral", where)
    wanted = logits(model)
    handle = offload(model)
    for layer in model.model.layers:
        vars(layer.mlp.experts).update(note)
    assert torch.equal(logits(model), wanted)
    assert calls(handle) == 0


def test_slots_that_a_hook_keeps_are_refused(where):
    model = build("mixtral", where)
    handle = offload(model)
    experts = model.model.layers[0].mlp.experts
    kept = []
    gate = type(experts)._apply_gate

    def keeps(self, gate_up):
        kept.append(self.down_proj[0])
        return gate(self, gate_up)

    type(experts)._apply_gate = keeps
    try:
        with pytest.raises(RuntimeError, match="kept the slots"):
            logits(model)
    finally:
        type(experts)._apply_gate = gate
    kept.clear()
    logits(model)
    assert any("layers.0." in name for name in handle.in_place)


@pytest.mark.parametrize(
    ("kind", "backend", "implementation", "dtype"),
    [
        ("mixtral", "aot_eager", "grouped_mm", torch.bfloat16),
        pytest.param("gpt-oss", "aot_eager", "batched_mm", torch.bfloat16, marks=REPEATS),
        # Inductor rounds to 16 bits less often, the more operations it fuses.
        # The host compiles one for half a minute: `make cases` has it, `make gpu-test` both.
        pytest.param("mixtral", "inductor", "batched_mm", torch.float32, marks=pytest.mark.gpu),
        pytest.param("gpt-oss", "inductor", "grouped_mm", torch.float32, marks=REPEATS),
    ],
)
def test_compiled_models_route_in_their_code(kind, where, backend, implementation, dtype):
    torch.compiler.reset()
    model = build(kind, where, implementation, dtype, num_hidden_layers=2)
    steps = ((1, 0), (1, 5), (1, 0), (1, 9))
    compiled = torch.compile(model, backend=backend)
    wanted = [logits(compiled, count, first).clone() for count, first in steps]
    torch.compiler.reset()
    handle = offload(model, 0.5)
    compiled = torch.compile(model, backend=backend)
    found = [logits(compiled, count, first).clone() for count, first in steps]
    # The first step is not compiled.
    assert all(torch.equal(one, want) for one, want in zip(found[1:], wanted[1:]))
    assert calls(handle) == 2 * len(steps)
    assert hits(handle) > 0
    torch.compiler.reset()


@pytest.mark.gpu
@pytest.mark.parametrize("implementation", ["grouped_mm", "batched_mm"])
def test_a_graph_of_a_step_gives_the_resident_models_numbers(implementation):
    model = build("qwen3-moe", torch.device("cuda:0"), implementation)
    tokens = torch.zeros((1, 1), dtype=torch.int64, device="cuda:0")

    def step():
        return model(input_ids=tokens, use_cache=False).logits

    with torch.no_grad():
        wanted = []
        for token in range(20):
            tokens.fill_(token)
            wanted.append(step().clone())
        handle = offload(model, 0.3)
        step()
        graph, found = graph_of(step)
        for token in [*range(20), *range(20)]:
            tokens.fill_(token)
            graph.replay()
            assert torch.equal(found, wanted[token])
    assert hits(handle) > 0
    assert sum(cache.stats().evictions for cache in handle.expert_caches) > 0


@pytest.mark.gpu
def test_steps_on_two_streams_do_not_evict_what_the_other_reads():
    model = build("qwen3-moe", torch.device("cuda:0"))
    wanted = [logits(model, 2, first).clone() for first in range(40)]
    handle = offload(model, 0.3)
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    torch.cuda.synchronize()
    found = []
    for first in range(40):
        with torch.cuda.stream(streams[first % 2]):
            found.append(logits(model, 2, first))
    torch.cuda.synchronize()
    assert all(torch.equal(one, want) for one, want in zip(found, wanted))
    assert sum(cache.stats().evictions for cache in handle.expert_caches) > 0


def test_rows_of_experts_do_nothing_that_would_read_others():
    pool = torch.arange(12.0).reshape(3, 4)
    rows = ExpertRows(pool, [2, -1, 0])
    assert rows.shape == (3, 4)
    assert torch.equal(rows[torch.tensor(2)], pool[0])
    assert torch.equal(rows[0], pool[2])
    for wrong in (
        lambda: rows[1],
        lambda: rows[3],
        lambda: rows[-1],
        lambda: rows[torch.tensor([0])],
        lambda: rows[:],
        lambda: rows.transpose(0, 1),
        lambda: torch.nn.functional.linear(torch.zeros(4), rows),
        lambda: rows @ pool,
    ):
        with pytest.raises(TypeError):
            wrong()
    with pytest.raises(NotRowsError, match="expert 1"):
        rows[1]


class Experts(torch.nn.Module):
    """Experts that are modules, called in an order that depends on the data."""

    def __init__(self, width, count):
        super().__init__()
        self.router = torch.nn.Linear(width, count)
        self.experts = torch.nn.ModuleList([torch.nn.Linear(width, width) for _ in range(count)])

    def forward(self, x):
        weights, ids = self.router(x).softmax(-1).topk(2)
        out = torch.zeros_like(x)
        for expert in ids.flatten().unique().tolist()[:: 1 if x.sum() > 0 else -1]:
            token, place = torch.where(ids == expert)
            out[token] += self.experts[expert](x[token]) * weights[token, place, None]
        return x + out


@pytest.mark.parametrize("transfer_mode", ["auto", "prefetch", "on-demand", "zero-copy"])
@pytest.mark.parametrize("groups", ["auto", "experts"])
def test_experts_that_are_modules_give_the_resident_models_numbers(where, transfer_mode, groups):
    torch.manual_seed(0)
    model = torch.nn.Sequential(*[Experts(16, 6) for _ in range(3)]).to(where).eval()
    inputs = [torch.randn(5, 16, device=where) for _ in range(6)]
    named = [f"{layer}.experts.{at}" for layer in range(3) for at in range(6)]
    with torch.no_grad():
        wanted = [model(x) for x in inputs]
        handle = wt.offload(
            model,
            offload_bytes=1 << 20,
            transfer_mode=transfer_mode,
            groups="auto" if groups == "auto" else named,
        )
        for _ in range(2):
            for x, want in zip(inputs, wanted):
                assert torch.equal(model(x), want)
        if transfer_mode == "prefetch":
            assert handle.stats.moved_bytes > 0

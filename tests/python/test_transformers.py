"""Small models of transformers: outputs equal the resident model's, bit for bit."""

from __future__ import annotations

import functools

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from conftest import REPEATS  # noqa: E402

import weighbridge.torch as wt  # noqa: E402
from graphs import graph_of  # noqa: E402

SMALL = {"vocab_size": 96, "max_position_embeddings": 64}
LAYERED = {
    **SMALL,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
MODELS = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", LAYERED),
    "mixtral": (
        "MixtralForCausalLM",
        "MixtralConfig",
        {**LAYERED, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "gpt2": (
        "GPT2LMHeadModel",
        "GPT2Config",
        {"vocab_size": 96, "n_positions": 64, "n_embd": 32, "n_layer": 4, "n_head": 4},
    ),
}


def build(kind: str, where) -> torch.nn.Module:
    torch.manual_seed(0)
    model, config, options = MODELS[kind]
    made = getattr(transformers, model)(getattr(transformers, config)(**options))
    return made.to(where).eval()


def logits(model, where) -> torch.Tensor:
    tokens = torch.arange(24, device=where).reshape(2, 12) * 3 % 96
    with torch.no_grad():
        return model(input_ids=tokens, use_cache=False).logits.cpu()


@pytest.mark.parametrize("pin", [None, False])
@pytest.mark.parametrize("transfer_mode", ["zero-copy", "on-demand", "prefetch", "auto"])
@pytest.mark.parametrize("kind", list(MODELS))
def test_outputs_are_bit_identical(kind, where, transfer_mode, pin):
    if transfer_mode == "zero-copy" and pin is False and where.type == "cuda":
        pytest.skip("zero-copy needs pinned memory; test_offloader tests the error")
    model = build(kind, where)
    resident = logits(model, where)
    handle = wt.offload(model, offload_bytes=1 << 24, transfer_mode=transfer_mode, pin=pin)
    assert handle.plan.info.resident_bytes == 0
    for _ in range(2):
        assert torch.equal(logits(model, where), resident)
    stats = handle.stats
    assert stats.offloaded_bytes == handle.plan.info.payload_bytes
    handle.remove()
    assert torch.equal(logits(model, where), resident)


# Mixtral's routing reads the tokens of each expert on the host, which no graph can capture.
STATIC = ["llama", "gpt2"]


@functools.cache
def compiled_logits(kind, where, backend):
    """Those of a resident model, compiled; once for all tests."""
    torch._dynamo.reset()
    return logits(torch.compile(build(kind, where), backend=backend), where)


# Copies from pageable memory are other ones on a GPU alone, and compiled code takes seconds.
@pytest.mark.slow
@pytest.mark.parametrize("pin", [None, False] if torch.cuda.is_available() else [None])
@pytest.mark.parametrize(
    "transfer_mode",
    [
        "prefetch",
        *(pytest.param(mode, marks=REPEATS) for mode in ("zero-copy", "on-demand", "auto")),
    ],
)
@pytest.mark.parametrize("kind", ["llama", pytest.param("gpt2", marks=REPEATS)])
def test_compiled_outputs_are_bit_identical(kind, where, transfer_mode, pin):
    """With the eager backend; on a GPU, once with the compiler's own kernels."""
    cuda = where.type == "cuda"
    if transfer_mode == "zero-copy" and pin is False and cuda:
        pytest.skip("zero-copy needs pinned memory; test_offloader tests the error")
    if not cuda and kind == "gpt2" and transfer_mode != "prefetch":
        pytest.skip("compiling takes seconds: every mode has llama; on a GPU, both models")
    backend = "inductor" if cuda and transfer_mode == "auto" and pin is None else "aot_eager"
    resident = compiled_logits(kind, where, backend)
    model = build(kind, where)
    torch._dynamo.reset()
    handle = wt.offload(model, offload_bytes=1 << 24, transfer_mode=transfer_mode, pin=pin)
    compiled = torch.compile(model, backend=backend)
    logits(compiled, where)  # the first step, which is watched, is not compiled
    first = logits(compiled, where)
    if backend == "inductor":
        # It does not fuse across the operators around a layer, so it rounds differently.
        torch.testing.assert_close(first, resident, rtol=1e-4, atol=1e-5)
    else:
        assert torch.equal(first, resident)
    for _ in range(2):
        assert torch.equal(logits(compiled, where), first)
    handle.remove()
    torch._dynamo.reset()


@pytest.mark.gpu
@pytest.mark.parametrize("pin", [None, False])
@pytest.mark.parametrize("transfer_mode", ["zero-copy", "on-demand", "prefetch", "auto"])
@pytest.mark.parametrize("kind", STATIC)
def test_graphs_are_bit_identical(kind, where, transfer_mode, pin):
    if where.type != "cuda" or (transfer_mode == "zero-copy" and pin is False):
        pytest.skip("graphs need CUDA, and zero-copy needs pinned memory")
    model = build(kind, where)
    tokens = torch.arange(24, device=where).reshape(2, 12) * 3 % 96

    def step():
        return model(input_ids=tokens, use_cache=False).logits

    with torch.no_grad():
        eager = step().clone()
        # Llama masks differently in a capture, so it rounds differently.
        graph, result = graph_of(step)
        graph.replay()
        captured = result.clone()
        handle = wt.offload(model, offload_bytes=1 << 24, transfer_mode=transfer_mode, pin=pin)
        graph, result = graph_of(step)
        for turn in range(30):
            if turn % 4 == 3:
                assert torch.equal(step(), eager), f"eager, turn {turn}"
            else:
                result.zero_()
                graph.replay()
                assert torch.equal(result, captured), f"replayed, turn {turn}"
        del graph
        handle.remove()


def test_generation_with_half_of_the_layers_is_identical(where):
    model = build("llama", where)
    tokens = torch.tensor([[5, 9, 2]], device=where)

    def generate():
        return model.generate(tokens, max_new_tokens=12, do_sample=False, pad_token_id=0).cpu()

    resident = generate()
    handle = wt.offload(model, offload_bytes=1 << 24, select=["layers.0", "layers.2"])
    groups = {group.name for group in handle.plan.groups if group.offloaded_bytes}
    assert groups == {"model.layers.0", "model.layers.2"}
    assert torch.equal(generate(), resident)
    handle.remove()

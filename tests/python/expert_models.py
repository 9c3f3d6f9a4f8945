"""Tiny models of transformers with fused experts, offloaded with expert caches."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

import weighbridge.torch as wt  # noqa: E402
from weighbridge.torch._experts import fused_experts  # noqa: E402

LAYERED = {
    "vocab_size": 96,
    "max_position_embeddings": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
LATENT = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "qk_nope_head_dim": 8,
    "num_key_value_heads": 4,
}
# Name of the classes, options, expert tensors of a layer, layers with experts.
MODELS = {
    "mixtral": ("Mixtral", {"num_local_experts": 8, "num_experts_per_tok": 2}, 2, 4),
    "qwen3-moe": (
        "Qwen3Moe",
        {"num_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 16, "head_dim": 8},
        2,
        4,
    ),
    "deepseek-v3": (
        "DeepseekV3",
        {
            **LATENT,
            "moe_intermediate_size": 16,
            "n_routed_experts": 8,
            "num_experts_per_tok": 2,
            "n_group": 2,
            "topk_group": 1,
            "first_k_dense_replace": 1,
        },
        2,
        3,
    ),
    "gpt-oss": (
        "GptOss",
        {"num_local_experts": 8, "num_experts_per_tok": 2, "head_dim": 8, "sliding_window": 8},
        4,
        4,
    ),
}
IMPLEMENTATIONS = ["eager", "grouped_mm", "batched_mm"]


def build(kind, where, implementation="grouped_mm", dtype=torch.bfloat16, **options):
    torch.manual_seed(0)
    name, own, _, _ = MODELS[kind]
    config = getattr(transformers, f"{name}Config")(**{**LAYERED, **own, **options})
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    with torch.no_grad():  # else experts of some models are all zeros
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    model.set_experts_implementation(implementation)
    return model.to(where, dtype).eval()


def logits(model, count=3, first=0):
    where = next(model.parameters()).device
    tokens = (torch.arange(count, device=where)[None] + first) * 7 % 96
    with torch.no_grad():
        return model(input_ids=tokens, use_cache=False).logits


def expert_bytes(model, share=1.0):
    layers = list(fused_experts(model))
    sizes = (one.tensor(own).nbytes for one in layers for own in one.tensors)
    return int(sum(sizes) * share) + 4096  # beside the state


def offload(model, share=1.0, **options):
    given = {"offload_bytes": 1 << 24, "expert_bytes": expert_bytes(model, share), **options}
    return wt.offload(model, transfer_mode="experts", **given)


def hits(handle):
    return sum(cache.stats().hits for cache in handle.expert_caches)


def calls(handle):
    return sum(cache.stats().calls for cache in handle.expert_caches)

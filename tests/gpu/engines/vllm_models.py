"""Models for vLLM: their configurations, and checkpoints with other values in every layer."""

from __future__ import annotations

import json
from pathlib import Path

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 8448,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "bos_token_id": 0,
    "eos_token_id": 1,
}
SMALL = {
    **LLAMA,
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "vocab_size": 8192,
}
LARGE = {
    **LLAMA,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 32000,
}
EXPERTS = {
    **SMALL,
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "num_hidden_layers": 6,
    "num_experts": 16,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}


def write_config(folder: Path, config: dict) -> Path:
    """Writes a model's folder without weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_checkpoint(folder: Path, config: dict) -> Path:
    """Writes a model's folder with random weights, other ones in each layer."""
    import torch
    from safetensors.torch import save_file

    if (folder / "config.json").exists():
        return folder
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device).manual_seed(7)
    hidden, heads = config["hidden_size"], config["head_dim"]

    def normal(*shape: int) -> torch.Tensor:
        made = torch.randn(*shape, generator=generator, device=device) * shape[-1] ** -0.5
        return made.to(torch.bfloat16).cpu()

    def around_one(size: int) -> torch.Tensor:
        made = 1 + 0.1 * torch.randn(size, generator=generator, device=device)
        return made.to(torch.bfloat16).cpu()

    def mlp(prefix: str, inner: int) -> dict[str, torch.Tensor]:
        return {
            f"{prefix}.gate_proj.weight": normal(inner, hidden),
            f"{prefix}.up_proj.weight": normal(inner, hidden),
            f"{prefix}.down_proj.weight": normal(hidden, inner),
        }

    tensors = {
        "model.embed_tokens.weight": normal(config["vocab_size"], hidden),
        "model.norm.weight": around_one(hidden),
        "lm_head.weight": normal(config["vocab_size"], hidden),
    }
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        queries, keys = config["num_attention_heads"] * heads, config["num_key_value_heads"] * heads
        tensors |= {
            f"{prefix}.input_layernorm.weight": around_one(hidden),
            f"{prefix}.post_attention_layernorm.weight": around_one(hidden),
            f"{prefix}.self_attn.q_proj.weight": normal(queries, hidden),
            f"{prefix}.self_attn.k_proj.weight": normal(keys, hidden),
            f"{prefix}.self_attn.v_proj.weight": normal(keys, hidden),
            f"{prefix}.self_attn.o_proj.weight": normal(hidden, queries),
        }
        if "num_experts" in config:
            tensors[f"{prefix}.self_attn.q_norm.weight"] = around_one(heads)
            tensors[f"{prefix}.self_attn.k_norm.weight"] = around_one(heads)
            tensors[f"{prefix}.mlp.gate.weight"] = normal(config["num_experts"], hidden)
            for expert in range(config["num_experts"]):
                inner = config["moe_intermediate_size"]
                tensors |= mlp(f"{prefix}.mlp.experts.{expert}", inner)
        else:
            tensors |= mlp(f"{prefix}.mlp", config["intermediate_size"])
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return write_config(folder, config)

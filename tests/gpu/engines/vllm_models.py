"""Models for vLLM: their configurations, and checkpoints with other values in every layer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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
LARGE_EXPERTS = {  # Qwen3-30B-A3B with 12 of its 48 layers
    **EXPERTS,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 12,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "vocab_size": 32000,
}


AWQ = {
    **SMALL,
    "quantization_config": {
        "quant_method": "awq",
        "bits": 4,
        "group_size": 128,
        "zero_point": True,
        "version": "gemm",
    },
}
NVFP4 = {
    **SMALL,
    "quantization_config": {
        "quant_method": "modelopt",
        "quant_algo": "NVFP4",
        "group_size": 16,
        "ignore": ["lm_head"],
    },
}
LATENT = {
    **SMALL,
    "architectures": ["DeepseekV2ForCausalLM"],
    "model_type": "deepseek_v2",
    "num_hidden_layers": 6,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "q_lora_rank": None,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "first_k_dense_replace": 6,
    "moe_layer_freq": 1,
}
del LATENT["head_dim"]
PROPOSER = {**SMALL, "num_hidden_layers": 2}


def write_config(folder: Path, config: dict) -> Path:
    """Writes a model's folder without weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


class Random:
    """Random tensors, the same in every run."""

    def __init__(self, method: str = "") -> None:
        import torch

        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.generator = torch.Generator(self.device).manual_seed(7)
        self.method = method

    def normal(self, *shape: int) -> Any:
        """Values that keep the size of what a matrix of this shape multiplies."""
        import torch

        made = torch.randn(*shape, generator=self.generator, device=self.device)
        return (made * shape[-1] ** -0.5).to(torch.bfloat16).cpu()

    def around_one(self, *shape: int) -> Any:
        import torch

        made = 1 + 0.1 * torch.randn(*shape, generator=self.generator, device=self.device)
        return made.to(torch.bfloat16).cpu()

    def integers(self, *shape: int, dtype: Any) -> Any:
        """Every bit at random."""
        import torch

        info = torch.iinfo(dtype)
        made = torch.randint(
            info.min, info.max, shape, generator=self.generator, device=self.device, dtype=dtype
        )
        return made.cpu()

    def linear(self, name: str, outputs: int, inputs: int) -> dict[str, Any]:
        """The tensors of a linear layer, quantized by the method."""
        import torch

        if self.method == "awq":
            scale = 0.15 * inputs**-0.5
            return {
                f"{name}.qweight": self.integers(inputs, outputs // 8, dtype=torch.int32),
                f"{name}.qzeros": self.integers(inputs // 128, outputs // 8, dtype=torch.int32),
                f"{name}.scales": (self.around_one(inputs // 128, outputs) * scale).half(),
            }
        if self.method == "modelopt":
            blocks = self.around_one(outputs, inputs // 16).to(torch.float8_e4m3fn)
            return {
                f"{name}.weight": self.integers(outputs, inputs // 2, dtype=torch.uint8),
                f"{name}.weight_scale": blocks,
                f"{name}.weight_scale_2": torch.tensor(0.35 * inputs**-0.5),
                f"{name}.input_scale": torch.tensor(1.0),
            }
        return {f"{name}.weight": self.normal(outputs, inputs)}


def write_checkpoint(folder: Path, config: dict) -> Path:
    """Writes a model's folder with random weights, other ones in each layer."""
    from safetensors.torch import save_file

    if (folder / "config.json").exists():
        return folder
    random = Random(config.get("quantization_config", {}).get("quant_method", ""))
    hidden, linear = config["hidden_size"], random.linear

    def mlp(prefix: str, inner: int) -> dict[str, Any]:
        return {
            **linear(f"{prefix}.gate_proj", inner, hidden),
            **linear(f"{prefix}.up_proj", inner, hidden),
            **linear(f"{prefix}.down_proj", hidden, inner),
        }

    tensors = {
        "model.embed_tokens.weight": random.normal(config["vocab_size"], hidden),
        "model.norm.weight": random.around_one(hidden),
        "lm_head.weight": random.normal(config["vocab_size"], hidden),
    }
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        tensors[f"{prefix}.input_layernorm.weight"] = random.around_one(hidden)
        tensors[f"{prefix}.post_attention_layernorm.weight"] = random.around_one(hidden)
        attention, heads = f"{prefix}.self_attn", config["num_attention_heads"]
        if "kv_lora_rank" in config:
            rank, rope = config["kv_lora_rank"], config["qk_rope_head_dim"]
            nope, value = config["qk_nope_head_dim"], config["v_head_dim"]
            tensors |= {
                **linear(f"{attention}.q_proj", heads * (nope + rope), hidden),
                **linear(f"{attention}.kv_a_proj_with_mqa", rank + rope, hidden),
                f"{attention}.kv_a_layernorm.weight": random.around_one(rank),
                **linear(f"{attention}.kv_b_proj", heads * (nope + value), rank),
                **linear(f"{attention}.o_proj", hidden, heads * value),
            }
        else:
            queries = heads * config["head_dim"]
            keys = config["num_key_value_heads"] * config["head_dim"]
            tensors |= {
                **linear(f"{attention}.q_proj", queries, hidden),
                **linear(f"{attention}.k_proj", keys, hidden),
                **linear(f"{attention}.v_proj", keys, hidden),
                **linear(f"{attention}.o_proj", hidden, queries),
            }
        if "num_experts" in config:
            tensors[f"{attention}.q_norm.weight"] = random.around_one(config["head_dim"])
            tensors[f"{attention}.k_norm.weight"] = random.around_one(config["head_dim"])
            tensors[f"{prefix}.mlp.gate.weight"] = random.normal(config["num_experts"], hidden)
            for expert in range(config["num_experts"]):
                inner = config["moe_intermediate_size"]
                tensors |= mlp(f"{prefix}.mlp.experts.{expert}", inner)
        else:
            tensors |= mlp(f"{prefix}.mlp", config["intermediate_size"])
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return write_config(folder, config)


def write_adapter(folder: Path, config: dict, rank: int = 8) -> Path:
    """Writes an adapter for two matrices of each layer."""
    from safetensors.torch import save_file

    random, hidden, tensors = Random(), config["hidden_size"], {}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"base_model.model.model.layers.{layer}"
        for name, outputs, inputs in (
            ("self_attn.q_proj", config["num_attention_heads"] * config["head_dim"], hidden),
            ("mlp.down_proj", hidden, config["intermediate_size"]),
        ):
            tensors[f"{prefix}.{name}.lora_A.weight"] = random.normal(rank, inputs)
            tensors[f"{prefix}.{name}.lora_B.weight"] = random.normal(outputs, rank)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    given = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": ["q_proj", "down_proj"],
        "base_model_name_or_path": "",
        "bias": "none",
        "task_type": "CAUSAL_LM",
    }
    (folder / "adapter_config.json").write_text(json.dumps(given))
    return folder

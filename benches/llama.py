"""A model of Llama-3-8B's layers, sixteen of them, with random weights."""

from __future__ import annotations

import torch
import transformers

LAYERS = 16
SHAPE = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_hidden_layers": LAYERS,
    "vocab_size": 32000,
    "max_position_embeddings": 8192,
    "dtype": "bfloat16",
}


def build(device: str = "cuda", **shape: int) -> torch.nn.Module:
    """Builds the model on a device, with other numbers of its shape if they are given."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**{**SHAPE, **shape})
    with torch.device(device):
        torch.set_default_dtype(torch.bfloat16)
        model = transformers.LlamaModel(config)
        torch.set_default_dtype(torch.float32)
    return model.eval().requires_grad_(False)

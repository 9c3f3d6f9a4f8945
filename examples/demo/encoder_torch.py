"""The sentence encoder in PyTorch, function for function the one in ``encoder_numpy``.

It runs on the device of the weights, the ids and the mask: all on one CUDA device, or all on the
CPU. Weights are only read, so they may be tensors over memory that PyTorch does not own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from model import Config

Get = Callable[[str], torch.Tensor]
Visit = Callable[[str], AbstractContextManager]


@torch.inference_mode()
def encode(
    weights: Mapping[str, torch.Tensor],
    config: Config,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    visit: Visit = nullcontext,
) -> torch.Tensor:
    """Sentence vectors of length one, (sentences, hidden), from two (sentences, tokens) tensors."""
    with visit("embeddings"):
        hidden = embed(input_ids, scoped(weights, "embeddings"), config)
    for index in range(config.num_hidden_layers):
        group = f"encoder.layer.{index}"
        with visit(group):
            hidden = layer(hidden, attention_mask, scoped(weights, group), config)
    return pool(hidden, attention_mask)


def scoped(weights: Mapping[str, torch.Tensor], group: str) -> Get:
    """Returns a ``get`` for one group, which takes names without the group's name."""
    return lambda name: weights[f"{group}.{name}"]


def embed(input_ids: torch.Tensor, get: Get, config: Config) -> torch.Tensor:
    """(sentences, tokens) ids to (sentences, tokens, hidden)."""
    tokens = input_ids.shape[1]
    # Only the rows of these tokens are read from the large table of words.
    hidden = F.embedding(input_ids, get("word_embeddings.weight"))
    # One sentence at a time: every token is of type 0.
    hidden = hidden + get("token_type_embeddings.weight")[0]
    hidden = hidden + get("position_embeddings.weight")[:tokens]
    return layer_norm(hidden, "LayerNorm", get, config)


def layer(hidden: torch.Tensor, mask: torch.Tensor, get: Get, config: Config) -> torch.Tensor:
    """One layer: (sentences, tokens, hidden) and a (sentences, tokens) mask to the same shape.

    ``get`` takes names within the layer, such as ``attention.self.query.weight``.
    """
    attended = linear(attention(hidden, mask, get, config), "attention.output.dense", get)
    hidden = layer_norm(hidden + attended, "attention.output.LayerNorm", get, config)
    widened = F.gelu(linear(hidden, "intermediate.dense", get))
    narrowed = linear(widened, "output.dense", get)
    return layer_norm(hidden + narrowed, "output.LayerNorm", get, config)


def attention(hidden: torch.Tensor, mask: torch.Tensor, get: Get, config: Config) -> torch.Tensor:
    """Self-attention before its output projection; (sentences, tokens, hidden) to the same."""
    sentences, tokens, width = hidden.shape
    heads = config.num_attention_heads

    def split(name: str) -> torch.Tensor:  # (sentences, heads, tokens, width / heads)
        projected = linear(hidden, name, get)
        return projected.reshape(sentences, tokens, heads, -1).transpose(1, 2)

    query, key = split("attention.self.query"), split("attention.self.key")
    value = split("attention.self.value")
    scores = (query @ key.transpose(2, 3)) * (width // heads) ** -0.5
    # Padding is attended to with weight exactly zero.
    scores = scores.masked_fill(mask[:, None, None, :] == 0, float("-inf"))
    mixed = scores.softmax(dim=-1) @ value
    return mixed.transpose(1, 2).reshape(sentences, tokens, width)


def pool(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean over each sentence's own tokens, scaled to length one; to (sentences, hidden)."""
    present = mask[:, :, None].to(hidden.dtype)
    mean = (hidden * present).sum(dim=1) / present.sum(dim=1)
    return F.normalize(mean, dim=1)


def linear(x: torch.Tensor, name: str, get: Get) -> torch.Tensor:
    """(..., inputs) to (..., outputs); the weight is stored as (outputs, inputs)."""
    return F.linear(x, get(f"{name}.weight"), get(f"{name}.bias"))


def layer_norm(x: torch.Tensor, name: str, get: Get, config: Config) -> torch.Tensor:
    """Zero mean and unit variance over the last axis, then scale and shift; any shape."""
    weight, bias = get(f"{name}.weight"), get(f"{name}.bias")
    return F.layer_norm(x, x.shape[-1:], weight, bias, config.layer_norm_eps)

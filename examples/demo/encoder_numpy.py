"""The sentence encoder in NumPy: BERT, mean over tokens, vectors of length one.

The caller passes the weights, in a mapping or through ``get(name)`` for one group at a time; they
are only read. The computation has the type of the weights: float32 weights give float32 results,
float64 weights float64 results.

Equal weights and inputs give bit-identical results, whatever the addresses of the weights. This
requires the same NumPy and BLAS on the same processor, the same number of BLAS threads, and batches
of the same shape: each of these may select a kernel that sums in another order. OpenBLAS 0.3.31's
kernels for AVX-512, AVX2, AVX and SSE gave the same bits for float32 weights at every multiple of 4
from 0 to 60 above a 64-byte boundary; for addresses that are not multiples of the item size see
``linear``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from model import Config

Get = Callable[[str], np.ndarray]
# A context manager around every read of a group's weights: an offloader holds them inside of it.
Visit = Callable[[str], AbstractContextManager]


def encode(
    weights: Mapping[str, np.ndarray],
    config: Config,
    input_ids: np.ndarray,
    attention_mask: np.ndarray,
    visit: Visit = nullcontext,
) -> np.ndarray:
    """Sentence vectors of length one, (sentences, hidden), from two (sentences, tokens) arrays."""
    with visit("embeddings"):
        hidden = embed(input_ids, scoped(weights, "embeddings"), config)
    for index in range(config.num_hidden_layers):
        group = f"encoder.layer.{index}"
        with visit(group):
            hidden = layer(hidden, attention_mask, scoped(weights, group), config)
    return pool(hidden, attention_mask)


def scoped(weights: Mapping[str, np.ndarray], group: str) -> Get:
    """Returns a ``get`` for one group, which takes names without the group's name."""
    return lambda name: weights[f"{group}.{name}"]


def embed(input_ids: np.ndarray, get: Get, config: Config) -> np.ndarray:
    """(sentences, tokens) ids to (sentences, tokens, hidden)."""
    tokens = input_ids.shape[1]
    # Only the rows of these tokens are read from the large table of words.
    hidden = get("word_embeddings.weight")[input_ids]
    # One sentence at a time: every token is of type 0.
    hidden = hidden + get("token_type_embeddings.weight")[0]
    hidden = hidden + get("position_embeddings.weight")[:tokens]
    return layer_norm(hidden, "LayerNorm", get, config)


def layer(hidden: np.ndarray, mask: np.ndarray, get: Get, config: Config) -> np.ndarray:
    """One layer: (sentences, tokens, hidden) and a (sentences, tokens) mask to the same shape.

    ``get`` takes names within the layer, such as ``attention.self.query.weight``.
    """
    attended = linear(attention(hidden, mask, get, config), "attention.output.dense", get)
    hidden = layer_norm(hidden + attended, "attention.output.LayerNorm", get, config)
    widened = gelu(linear(hidden, "intermediate.dense", get))
    narrowed = linear(widened, "output.dense", get)
    return layer_norm(hidden + narrowed, "output.LayerNorm", get, config)


def attention(hidden: np.ndarray, mask: np.ndarray, get: Get, config: Config) -> np.ndarray:
    """Self-attention before its output projection; (sentences, tokens, hidden) to the same."""
    sentences, tokens, width = hidden.shape
    heads = config.num_attention_heads

    def split(name: str) -> np.ndarray:  # (sentences, heads, tokens, width / heads)
        projected = linear(hidden, name, get)
        return projected.reshape(sentences, tokens, heads, -1).transpose(0, 2, 1, 3)

    query, key = split("attention.self.query"), split("attention.self.key")
    value = split("attention.self.value")
    scores = (query @ key.transpose(0, 1, 3, 2)) * (width // heads) ** -0.5
    # Padding is attended to with weight exactly zero.
    scores = np.where(mask[:, np.newaxis, np.newaxis, :] != 0, scores, -np.inf)
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    mixed = (scores / scores.sum(axis=-1, keepdims=True)) @ value
    return mixed.transpose(0, 2, 1, 3).reshape(sentences, tokens, width)


def pool(hidden: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Mean over each sentence's own tokens, scaled to length one; to (sentences, hidden)."""
    present = mask[:, :, np.newaxis].astype(hidden.dtype)
    mean = (hidden * present).sum(axis=1) / present.sum(axis=1)
    return mean / np.sqrt((mean * mean).sum(axis=1, keepdims=True))


def linear(x: np.ndarray, name: str, get: Get) -> np.ndarray:
    """(..., inputs) to (..., outputs); the weight is stored as (outputs, inputs)."""
    # Copies only a weight that is not row-major or not aligned to its item size: the product would
    # copy it into another order, for which BLAS runs another kernel, whose last bits can differ.
    weight = np.require(get(f"{name}.weight"), requirements=["ALIGNED", "C_CONTIGUOUS"])
    # Flattened so that the batch is one large product rather than one per sentence.
    flat = x.reshape(-1, x.shape[-1]) @ weight.T + get(f"{name}.bias")
    return flat.reshape(*x.shape[:-1], -1)


def layer_norm(x: np.ndarray, name: str, get: Get, config: Config) -> np.ndarray:
    """Zero mean and unit variance over the last axis, then scale and shift; any shape."""
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = (centred * centred).mean(axis=-1, keepdims=True)
    scaled = centred / np.sqrt(variance + config.layer_norm_eps)
    return scaled * get(f"{name}.weight") + get(f"{name}.bias")


def gelu(x: np.ndarray) -> np.ndarray:
    """The exact GELU, x times the normal distribution function; any shape."""
    return x * (erf(x * math.sqrt(0.5)) + 1) * 0.5


# math.erf at steps of 1/256 up to 6, where erf is 1 to the last bit of a float64, and its slope.
_STEP = 1 / 256
_GRID = np.arange(6 * 256 + 1) * _STEP
_ERF = np.array([math.erf(point) for point in _GRID])
_SLOPE = 2 / math.sqrt(math.pi) * np.exp(-_GRID * _GRID)


def erf(x: np.ndarray) -> np.ndarray:
    """The error function, any shape, to within 3e-12 before rounding to the type of ``x``.

    NumPy has none, and math.erf takes one number at a time. The nearest tabulated point ``a``
    and three terms of the Taylor series there are both fast and exact enough: with d at most
    1/512 the next term, erf''''(a) d**4 / 24, is below 3e-12. float32 rounds at 3e-8.
    """
    size = np.minimum(np.abs(x, dtype=np.float64), _GRID[-1])
    index = (size * (1 / _STEP) + 0.5).astype(np.intp)
    a = index * _STEP
    d = size - a
    # mode="clip" skips the bounds check, and a NaN stays a NaN instead of a bad index.
    series = d * (1 - a * d + (2 * a * a - 1) * (d * d) * (1 / 3))
    value = _ERF.take(index, mode="clip") + _SLOPE.take(index, mode="clip") * series
    return np.copysign(value, x).astype(x.dtype)

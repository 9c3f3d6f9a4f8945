"""The sentence encoder: BERT, mean over tokens, vectors of length one.

The arithmetic is in ``encoder_numpy`` and ``encoder_torch``. The caller passes the weights; they
are only read, so they may be over memory that the framework does not own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from model import Config

Array = TypeVar("Array", bound=Any)
# A context manager around every read of a group's weights: an offloader holds them inside of it.
Visit = Callable[[str], AbstractContextManager]


class Weights(Generic[Array]):
    """The weights of one group, by names without the group's name."""

    def __init__(self, weights: Mapping[str, Array], group: str) -> None:
        self._weights = weights
        self._group = group

    def __getitem__(self, name: str) -> Array:
        return self._weights[f"{self._group}.{name}"]


class Encoder(ABC, Generic[Array]):
    """Computes sentence vectors in one framework's arrays. Shapes are those of the batch:
    (sentences, tokens, hidden), and (sentences, tokens) for ids and mask."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def encode(
        self,
        weights: Mapping[str, Array],
        input_ids: Array,
        attention_mask: Array,
        visit: Visit = nullcontext,
    ) -> Array:
        """Returns sentence vectors of length one, (sentences, hidden)."""
        with visit("embeddings"):
            hidden = self.embed(input_ids, Weights(weights, "embeddings"))
        for index in range(self.config.num_hidden_layers):
            group = f"encoder.layer.{index}"
            with visit(group):
                hidden = self.layer(hidden, attention_mask, Weights(weights, group))
        return self.pool(hidden, attention_mask)

    def embed(self, input_ids: Array, weights: Weights[Array]) -> Array:
        """Returns the hidden state of each token."""
        tokens = input_ids.shape[1]
        # Only the rows of these tokens are read from the large table of words.
        hidden = self.rows(weights["word_embeddings.weight"], input_ids)
        # One sentence at a time: every token is of type 0.
        hidden = hidden + weights["token_type_embeddings.weight"][0]
        hidden = hidden + weights["position_embeddings.weight"][:tokens]
        return self.layer_norm(hidden, "LayerNorm", weights)

    def layer(self, hidden: Array, mask: Array, weights: Weights[Array]) -> Array:
        """Returns the hidden state after one layer."""
        attended = self.linear(
            self.attention(hidden, mask, weights), "attention.output.dense", weights
        )
        hidden = self.layer_norm(hidden + attended, "attention.output.LayerNorm", weights)
        widened = self.gelu(self.linear(hidden, "intermediate.dense", weights))
        narrowed = self.linear(widened, "output.dense", weights)
        return self.layer_norm(hidden + narrowed, "output.LayerNorm", weights)

    def attention(self, hidden: Array, mask: Array, weights: Weights[Array]) -> Array:
        """Returns self-attention before its output projection."""
        sentences, tokens, width = hidden.shape
        heads = self.config.num_attention_heads

        def split(name: str) -> Array:  # (sentences, heads, tokens, width / heads)
            projected = self.linear(hidden, f"attention.self.{name}", weights)
            return projected.reshape(sentences, tokens, heads, -1).swapaxes(1, 2)

        query, key, value = split("query"), split("key"), split("value")
        scores = (query @ key.swapaxes(2, 3)) * (width // heads) ** -0.5
        # Padding is attended to with weight exactly zero.
        mixed = self.softmax(scores, mask[:, None, None, :] != 0) @ value
        return mixed.swapaxes(1, 2).reshape(sentences, tokens, width)

    @abstractmethod
    def rows(self, table: Array, ids: Array) -> Array:
        """Returns the rows of a table."""

    @abstractmethod
    def linear(self, x: Array, name: str, weights: Weights[Array]) -> Array:
        """(..., inputs) to (..., outputs); the weight is stored as (outputs, inputs)."""

    @abstractmethod
    def layer_norm(self, x: Array, name: str, weights: Weights[Array]) -> Array:
        """Zero mean and unit variance over the last axis, then scale and shift."""

    @abstractmethod
    def gelu(self, x: Array) -> Array:
        """The exact GELU, x times the normal distribution function."""

    @abstractmethod
    def softmax(self, scores: Array, present: Array) -> Array:
        """Softmax over the last axis, with weight zero where ``present`` is false."""

    @abstractmethod
    def pool(self, hidden: Array, mask: Array) -> Array:
        """The mean over each sentence's own tokens, scaled to length one."""

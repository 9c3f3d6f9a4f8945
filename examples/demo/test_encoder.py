"""Properties of the demo's encoder, which need no expected values."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from safetensors.numpy import load_file

from encoder import Weights as GroupWeights
from encoder_numpy import NumpyEncoder, erf
from model import (
    UNUSED_TENSORS,
    Config,
    load_config,
    load_tokenizer,
    model_folder,
    tokenize,
    weight_groups,
    weights_path,
)

SENTENCES = (
    "A man is eating food.",
    "Someone is having a meal.",
    "The stock market fell sharply today.",
    "Several researchers published a long and detailed study of coral reefs in the Pacific.",
)
Weights = dict[str, np.ndarray]
Tokens = tuple[np.ndarray, np.ndarray]


def encode(weights: Weights, config: Config, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return NumpyEncoder(config).encode(weights, ids, mask)


@pytest.fixture(scope="module")
def config() -> Config:
    return load_config()


@pytest.fixture(scope="module")
def weights() -> Weights:
    return load_file(weights_path())


@pytest.fixture(scope="module")
def tokens(config: Config) -> Callable[..., Tokens]:
    tokenizer = load_tokenizer(config)
    return lambda *sentences: tokenize(tokenizer, sentences)


def test_groups_name_every_weight_in_the_file(config: Config, weights: Weights) -> None:
    groups = weight_groups(config)
    layers = [f"encoder.layer.{index}" for index in range(6)]
    assert list(groups) == ["embeddings", *layers, "pooler"]
    names = [name for group in groups.values() for name in group]
    assert sorted([*names, *UNUSED_TENSORS]) == sorted(weights)


def test_tokens_are_padded_to_the_longest_sentence(
    config: Config, tokens: Callable[..., Tokens]
) -> None:
    input_ids, mask = tokens(*SENTENCES)
    assert input_ids.shape == mask.shape == (len(SENTENCES), mask.sum(axis=1).max())
    assert (input_ids[mask == 0] == 0).all()
    assert tokens("word " * 1000)[0].shape == (1, config.max_tokens)


def test_shapes_type_and_length(
    config: Config, weights: Weights, tokens: Callable[..., Tokens]
) -> None:
    vectors = encode(weights, config, *tokens(*SENTENCES))
    assert vectors.shape == (len(SENTENCES), config.hidden_size)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_layer_keeps_the_shape(
    config: Config, weights: Weights, tokens: Callable[..., Tokens]
) -> None:
    mask = tokens(*SENTENCES)[1]
    hidden = np.random.default_rng(0).normal(size=(*mask.shape, config.hidden_size))
    hidden = hidden.astype(np.float32)
    out = NumpyEncoder(config).layer(hidden, mask, GroupWeights(weights, "encoder.layer.0"))
    assert out.shape == hidden.shape
    assert out.dtype == hidden.dtype


def test_padding_does_not_change_a_sentence(
    config: Config, weights: Weights, tokens: Callable[..., Tokens]
) -> None:
    together = encode(weights, config, *tokens(*SENTENCES))
    for sentence, vector in zip(SENTENCES, together):
        alone = encode(weights, config, *tokens(sentence))[0]
        np.testing.assert_allclose(alone, vector, rtol=0, atol=1e-6)


def test_a_paraphrase_is_closer_than_an_unrelated_sentence(
    config: Config, weights: Weights, tokens: Callable[..., Tokens]
) -> None:
    eating, meal, market, _ = encode(weights, config, *tokens(*SENTENCES))
    assert eating @ meal > 0.5
    assert eating @ meal > eating @ market + 0.3
    assert eating @ meal > meal @ market + 0.3


def test_float32_is_close_to_float64(
    config: Config, weights: Weights, tokens: Callable[..., Tokens]
) -> None:
    batch = tokens(*SENTENCES)
    doubled = {name: weight.astype(np.float64) for name, weight in weights.items()}
    exact = encode(doubled, config, *batch)
    assert exact.dtype == np.float64
    np.testing.assert_allclose(encode(weights, config, *batch), exact, rtol=0, atol=1e-5)


@pytest.mark.parametrize("offset", [0, 1, 2, 3, 4, 8, 12, 16, 20, 24, 32, 48, 60])
def test_the_address_of_the_weights_changes_no_bit(
    config: Config, weights: Weights, tokens: Callable[..., Tokens], offset: int
) -> None:
    moved = {name: _at(weight, offset) for name, weight in weights.items()}
    # Batches of few tokens and of many run different BLAS kernels.
    for sentences in (SENTENCES[:1], SENTENCES, SENTENCES * 8, ("Hi",)):
        batch = tokens(*sentences)
        expected = encode(weights, config, *batch)
        assert encode(moved, config, *batch).tobytes() == expected.tobytes()


def test_the_torch_encoder_agrees(
    config: Config, weights: Weights, tokens: Callable[..., Tokens]
) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from encoder_torch import TorchEncoder

    batch = tokens(*SENTENCES)
    tensors = {name: torch.from_numpy(weight) for name, weight in weights.items()}
    vectors = TorchEncoder(config).encode(tensors, *map(torch.from_numpy, batch))
    np.testing.assert_allclose(vectors.numpy(), encode(weights, config, *batch), rtol=0, atol=1e-6)


def test_the_transformers_library_agrees(
    config: Config, weights: Weights, tokens: Callable[..., Tokens]
) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")

    reference = transformers.AutoModel.from_pretrained(model_folder()).eval()
    input_ids, mask = tokens(*SENTENCES)
    with torch.no_grad():
        hidden = reference(
            input_ids=torch.from_numpy(input_ids), attention_mask=torch.from_numpy(mask)
        ).last_hidden_state.numpy()
    mean = np.stack([row[kept == 1].mean(axis=0) for row, kept in zip(hidden, mask)])
    expected = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    vectors = encode(weights, config, input_ids, mask)
    np.testing.assert_allclose(vectors, expected, rtol=0, atol=1e-6)


def test_erf_agrees_with_the_math_module() -> None:
    # An odd count of points, so that most fall between those of the table.
    points = np.concatenate([np.linspace(-7, 7, 20_011), np.logspace(-9, 0, 101)])
    exact = np.array([math.erf(point) for point in points])
    np.testing.assert_allclose(erf(points), exact, rtol=0, atol=3e-12)
    single = points.astype(np.float32)
    exact = np.array([math.erf(point) for point in single.tolist()])
    # Half a unit in the last place below 1 is 2**-25.
    np.testing.assert_allclose(erf(single), exact, rtol=0, atol=2**-25 + 3e-12)


def _at(array: np.ndarray, offset: int) -> np.ndarray:
    """A read-only copy whose address is ``offset`` above a multiple of 64."""
    memory = np.empty(array.nbytes + 128, dtype=np.uint8)
    start = -memory.ctypes.data % 64 + offset
    view = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    view[...] = array
    view.flags.writeable = False
    return view

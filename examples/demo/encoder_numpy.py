"""The sentence encoder in NumPy.

The computation has the type of the weights: float32 weights give float32 results, float64 weights
float64 results.

Equal weights and inputs give bit-identical results, whatever the addresses of the weights. This
requires the same NumPy and BLAS on the same processor, the same number of BLAS threads, and batches
of the same shape: each of these may select a kernel that sums in another order. OpenBLAS 0.3.31's
kernels for AVX-512, AVX2, AVX and SSE gave the same bits for float32 weights at every multiple of 4
from 0 to 60 above a 64-byte boundary; for addresses that are not multiples of the item size see
``linear``.
"""

from __future__ import annotations

import math

import numpy as np

from encoder import Encoder, Weights


class NumpyEncoder(Encoder[np.ndarray]):
    """The encoder on the host."""

    def rows(self, table: np.ndarray, ids: np.ndarray) -> np.ndarray:
        return table[ids]

    def linear(self, x: np.ndarray, name: str, weights: Weights[np.ndarray]) -> np.ndarray:
        # Copies only a weight that is not row-major or not aligned to its item size: the product
        # would copy it into another order, for which BLAS runs another kernel, whose last bits can
        # differ.
        weight = np.require(weights[f"{name}.weight"], requirements=["ALIGNED", "C_CONTIGUOUS"])
        # Flattened so that the batch is one large product rather than one per sentence.
        flat = x.reshape(-1, x.shape[-1]) @ weight.T + weights[f"{name}.bias"]
        return flat.reshape(*x.shape[:-1], -1)

    def layer_norm(self, x: np.ndarray, name: str, weights: Weights[np.ndarray]) -> np.ndarray:
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = (centred * centred).mean(axis=-1, keepdims=True)
        scaled = centred / np.sqrt(variance + self.config.layer_norm_eps)
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def gelu(self, x: np.ndarray) -> np.ndarray:
        return x * (erf(x * math.sqrt(0.5)) + 1) * 0.5

    def softmax(self, scores: np.ndarray, present: np.ndarray) -> np.ndarray:
        scores = np.where(present, scores, -np.inf)
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        return scores / scores.sum(axis=-1, keepdims=True)

    def pool(self, hidden: np.ndarray, mask: np.ndarray) -> np.ndarray:
        present = mask[:, :, np.newaxis].astype(hidden.dtype)
        mean = (hidden * present).sum(axis=1) / present.sum(axis=1)
        return mean / np.sqrt((mean * mean).sum(axis=1, keepdims=True))


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

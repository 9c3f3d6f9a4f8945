"""Quantization by NumPy and ml_dtypes, which the library's results must equal bit for bit."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from weighbridge import QuantizeOptions

LARGEST = {"float8_e4m3fn": 448.0, "float8_e5m2": 57344.0}


def blocks(rows: int, cols: int, **more) -> QuantizeOptions:
    """Returns options with blocks of that size."""
    return QuantizeOptions(block_rows=rows, block_cols=cols, **more)


def numbers(shape, dtype="bfloat16", seed=0) -> np.ndarray:
    """Returns random numbers over 24 powers of two."""
    random = np.random.default_rng(seed)
    magnitudes = np.exp2(random.integers(-12, 12, shape))
    return (random.standard_normal(shape) * magnitudes).astype(
        np.dtype(getattr(ml_dtypes, dtype, dtype))
    )


def scale_type(options: QuantizeOptions):
    """Returns NumPy's type of the scales."""
    return np.float32 if options.scale_dtype == "float32" else ml_dtypes.float8_e8m0fnu


def block_of(options: QuantizeOptions, shape) -> tuple[int, int]:
    """Returns the rows and columns that share a scale in a matrix."""
    return options.block_rows or shape[-2], options.block_cols or shape[-1]


def expand(scales: np.ndarray, options: QuantizeOptions, shape) -> np.ndarray:
    """Returns the scale of each element of a matrix."""
    rows, cols = block_of(options, shape)
    return np.repeat(np.repeat(scales, rows, 0), cols, 1)[: shape[0], : shape[1]]


def reference(x: np.ndarray, options: QuantizeOptions) -> tuple[np.ndarray, np.ndarray]:
    """Returns the scales of each matrix, and the codes."""
    matrices = x.astype(np.float32).reshape(-1, *x.shape[-2:])
    rows, cols = block_of(options, x.shape)
    largest = np.float32(LARGEST[options.format])
    kind = getattr(ml_dtypes, options.format)
    scales, codes = [], []
    for matrix in matrices:
        grid = [-(-n // b) for n, b in zip(matrix.shape, (rows, cols))]
        found = np.ones(grid, np.float32)
        for i, j in np.ndindex(*grid):
            part = matrix[i * rows : (i + 1) * rows, j * cols : (j + 1) * cols]
            maximum = np.abs(part[np.isfinite(part)]).max(initial=0)
            if maximum > 0:
                found[i, j] = max(np.float32(maximum) / largest, np.finfo(np.float32).tiny)
        if options.scale_dtype == "float8_e8m0fnu":
            found = np.exp2(np.ceil(np.log2(found.astype(np.float64)))).astype(np.float32)
        scaled = matrix * expand(np.float32(1) / found, options, matrix.shape)
        code = np.clip(scaled, -largest, largest).astype(kind).view(np.uint8)
        code[np.isnan(matrix)] = 0x7F
        scales.append(found)
        codes.append(code)
    return np.stack(scales), np.stack(codes).reshape(x.shape)

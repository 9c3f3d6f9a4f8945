"""Prints what the codec makes of real weights, by kind of tensor and by type, as a table.

    python benches/ratios.py NAME=FILE.safetensors ...

A row is a model's tensors of one kind; a column is a type that they are converted to first. FP8 has
the scales of weighbridge's quantizer, by row or by blocks of 128 x 128. A figure is the compressed
bytes of all tensors of the row, headers and directories included, for each of their bytes.
docs/codec.md has the table of the models that are named there.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file

from weighbridge import Codec, Device, QuantizeOptions, Quantizer

KINDS = {
    "embeddings": re.compile(r"embed"),
    "attention": re.compile(r"attention|attn|query|key|value"),
    "norms and biases": re.compile(r"norm|bias"),
}
COLUMNS = ("bf16", "f16", "f32", "e4m3 by row", "e4m3 by block", "e5m2 by row")


def kind_of(name: str, shape: tuple[int, ...]) -> str:
    """Returns the row of a tensor."""
    if len(shape) < 2:
        return "norms and biases"
    found = (kind for kind, pattern in KINDS.items() if pattern.search(name.lower()))
    return next(found, "other matrices")


def half(values: np.ndarray) -> np.ndarray:
    """Converts to f16; values that are too large become infinite."""
    with np.errstate(over="ignore"):
        return values.astype(np.float16)


class Ratios:
    """Compresses tensors, and sums up their bytes by row and column."""

    def __init__(self, device: Device) -> None:
        self.quantizer = Quantizer(device)
        self.bytes: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
        self.converters: Mapping[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {
            "bf16": ("bfloat16", lambda values: values.astype(ml_dtypes.bfloat16)),
            "f16": ("float16", half),
            "f32": ("float32", lambda values: values.astype(np.float32)),
            "e4m3 by row": ("float8_e4m3fn", self.fp8("float8_e4m3fn", 1, 0)),
            "e4m3 by block": ("float8_e4m3fn", self.fp8("float8_e4m3fn", 128, 128)),
            "e5m2 by row": ("float8_e5m2", self.fp8("float8_e5m2", 1, 0)),
        }

    def fp8(self, format: str, rows: int, cols: int) -> Callable[[np.ndarray], np.ndarray]:
        """Returns a conversion to FP8 with scales of this block."""

        def convert(values: np.ndarray) -> np.ndarray:
            wide = np.ascontiguousarray(values, np.float32).reshape(len(values), -1)
            options = QuantizeOptions(format, block_rows=rows, block_cols=cols)  # type: ignore[arg-type]
            codes = np.empty(wide.shape, np.uint8)
            scales = np.empty(
                Quantizer.scales_info("float32", wide.shape, options).nbytes, np.uint8
            )
            addresses = codes.ctypes.data, scales.ctypes.data
            self.quantizer.quantize(
                wide.ctypes.data, "float32", wide.shape, *addresses, options=options
            )
            return codes

        return convert

    def add(self, rows: tuple[str, ...], values: np.ndarray) -> None:
        """Adds a tensor to some rows."""
        for column, (dtype, convert) in self.converters.items():
            if values.ndim < 2 and "by" in column:
                continue
            converted = np.ascontiguousarray(convert(values)).reshape(-1).view(np.uint8)
            encoded = len(Codec(dtype).encode(converted))
            for row in rows:
                sums = self.bytes[row, column]
                sums[0] += encoded
                sums[1] += converted.nbytes

    def line(self, row: str) -> str:
        """Returns a row of the table."""
        cells = []
        for column in COLUMNS:
            encoded, raw = self.bytes[row, column]
            cells.append(f"{encoded / raw:.3f}" if raw else "")
        return f"| {row} | " + " | ".join(cells) + " |"


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else None)
    parser.add_argument("models", nargs="*", metavar="NAME=FILE")
    arguments = parser.parse_args()
    with Device("host") as device:
        ratios, rows = Ratios(device), []
        for model in arguments.models:
            name, _, path = model.partition("=")
            kinds = []
            for tensor, values in load_file(Path(path)).items():
                if values.dtype.kind == "f" or values.dtype == ml_dtypes.bfloat16:
                    kind = kind_of(tensor, values.shape)
                    whole = () if kind == "norms and biases" else (f"{name}: all matrices",)
                    kinds.append(f"{name}: {kind}")
                    ratios.add((kinds[-1], *whole), values)
            rows += [*sorted(set(kinds)), f"{name}: all matrices"]
        normal = np.random.default_rng(1).standard_normal((2048, 2048), np.float32)
        ratios.add(("normally distributed",), normal)
        random = np.random.default_rng(1).integers(0, 1 << 32, (1024, 1024), np.uint32)
        for column in ("bf16", "f16", "f32"):
            dtype = ratios.converters[column][0]
            encoded = len(Codec(dtype).encode(random.view(np.uint8).reshape(-1)))
            ratios.bytes["random bits", column] = [encoded, random.nbytes]
        print("| tensors | " + " | ".join(COLUMNS) + " |\n|---|" + "---|" * len(COLUMNS))
        for row in [*rows, "normally distributed", "random bits"]:
            print(ratios.line(row))
        ratios.quantizer.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Quantizes a checkpoint to FP8, from file to file: ``python -m weighbridge quantize IN OUT``."""

from __future__ import annotations

import argparse
import sys

from .._text import in_words
from ..errors import WeighbridgeError
from ..memory import Device
from ..quantize_file import quantize_file
from ..quantizer import QuantizeOptions
from .arguments import add_selectors, bytes_argument
from .bar import progress_bar

_BLOCKS = {"tensor": (0, 0), "row": (1, 0), "column": (0, 1)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("source", metavar="IN", help="a safetensors file")
    parser.add_argument("target", metavar="OUT", help="the file to write")
    parser.add_argument("--format", choices=("e4m3fn", "e5m2"), default="e4m3fn")
    parser.add_argument(
        "--block",
        type=_block_argument,
        default=(128, 128),
        metavar="B",
        help='elements that share a scale: "tensor", "row", "column", or ROWSxCOLS (128x128)',
    )
    parser.add_argument("--scale-dtype", choices=("float32", "e8m0"), default="float32")
    add_selectors(parser, "quantized")
    parser.add_argument(
        "--no-default-exclude",
        action="store_false",
        dest="default_exclude",
        help="quantize embeddings, output heads, routers and gates of experts, too",
    )
    parser.add_argument("--device", default="host", metavar="NAME", help='"host" or "cuda:N"')
    parser.add_argument(
        "--staging-bytes",
        type=bytes_argument,
        default=0,
        metavar="N",
        help="limit of the device memory (128 MiB)",
    )


def _block_argument(text: str) -> tuple[int, int]:
    if text in _BLOCKS:
        return _BLOCKS[text]
    rows, x, cols = text.partition("x")
    if not x or not rows.isdigit() or not cols.isdigit():
        known = ", ".join(_BLOCKS)
        raise argparse.ArgumentTypeError(f"{text!r} is not a block: write {known} or 128x128")
    return int(rows), int(cols)


def run(arguments: argparse.Namespace) -> int:
    """Quantizes, and prints what was done; returns 1 if it fails."""
    rows, cols = arguments.block
    options = QuantizeOptions(
        f"float8_{arguments.format}",  # type: ignore[arg-type]
        "float8_e8m0fnu" if arguments.scale_dtype == "e8m0" else "float32",
        rows,
        cols,
    )
    try:
        with Device(arguments.device) as device, progress_bar("quantizing") as progress:
            done = quantize_file(
                device,
                arguments.source,
                arguments.target,
                options,
                select=arguments.select,
                exclude=arguments.exclude,
                default_exclude=arguments.default_exclude,
                staging_bytes=arguments.staging_bytes,
                progress=progress,
            )
    except KeyboardInterrupt:
        print("weighbridge quantize: cancelled, no file was written", file=sys.stderr)
        return 130
    except (WeighbridgeError, OSError, ValueError) as error:
        print(f"weighbridge quantize: {error}", file=sys.stderr)
        return 1
    before, after = in_words(done.bytes_before), in_words(done.bytes_after)
    print(f"{arguments.target}: {len(done.quantized)} tensors quantized, {before} became {after}")
    if done.kept:
        print(f"{len(done.kept)} kept unquantized, such as {done.kept[0]} (--no-default-exclude)")
    if done.nonfinite:
        print(f"{done.nonfinite} elements were NaN or infinite", file=sys.stderr)
    return 0

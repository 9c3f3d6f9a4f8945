"""Compresses a checkpoint without loss, and back: ``python -m weighbridge compress IN OUT``."""

from __future__ import annotations

import argparse
import sys

from .._text import in_words
from ..compress_file import INDEX, compress_file, decompress_file
from ..errors import WeighbridgeError
from .bar import progress_bar

COMMANDS = {
    "compress": "write a checkpoint with its tensors compressed, bit for bit",
    "decompress": "write the checkpoint that was compressed",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments, which are those of both commands."""
    what = f"a safetensors file, or the index of several ({INDEX})"
    parser.add_argument("source", metavar="IN", help=what)
    parser.add_argument("target", metavar="OUT", help="the file to write, or the index of several")
    parser.add_argument(
        "--verify",
        action="store_true",
        help="compare with the source what compressed tensors decompress to; decompress compares "
        "checksums in any case",
    )
    parser.add_argument(
        "--threads", type=int, default=0, metavar="N", help="threads (all, up to 32)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Compresses or decompresses, and prints what was done; returns 1 if it fails."""
    command: str = arguments.command
    work = compress_file if command == "compress" else decompress_file
    try:
        with progress_bar(f"{command}ing") as progress:
            done = work(
                arguments.source,
                arguments.target,
                threads=arguments.threads,
                verify=arguments.verify or command == "decompress",
                progress=progress,
            )
    except KeyboardInterrupt:
        print(f"weighbridge {command}: cancelled, no file was written", file=sys.stderr)
        return 130
    except (WeighbridgeError, OSError, ValueError) as error:
        print(f"weighbridge {command}: {error}", file=sys.stderr)
        return 1
    before, after = in_words(done.bytes_before), in_words(done.bytes_after)
    ratio = done.bytes_after / done.bytes_before
    print(
        f"{arguments.target}: {done.tensors} tensors {command}ed, {done.kept} as they were; "
        f"{before} became {after} ({ratio:.3f})"
    )
    return 0

"""Arguments that several commands have."""

from __future__ import annotations

import argparse

from .._text import byte_count


def bytes_argument(text: str) -> int:
    """Parses a number of bytes such as ``40MB``."""
    try:
        return byte_count(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add_selectors(parser: argparse.ArgumentParser, done: str) -> None:
    """Adds ``--select`` and ``--exclude``; ``done`` is what happens to selected parameters."""
    for name, effect in (("--select", done), ("--exclude", f"not {done}")):
        parser.add_argument(
            name,
            action="append",
            default=[],
            metavar="SELECTOR",
            help=f"parameters that are {effect}: whole segments of a name, or a glob",
        )

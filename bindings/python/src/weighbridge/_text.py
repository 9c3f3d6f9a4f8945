"""Numbers of bytes and tables as text."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from typing import Any

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def byte_count(text: str) -> int:
    """Parses ``"60MB"``, ``"1.5GiB"`` or ``"4096"``; raises ValueError for any other text."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]i?B)?", text.strip(), re.IGNORECASE)
    if match is None:
        raise ValueError(f"{text!r} is not a number of bytes: write 60MB, 1.5GiB or 4096")
    return int(float(match[1]) * _UNITS[(match[2] or "").upper()])


def in_words(count: int | None) -> str:
    """Returns a number of bytes such as ``"1.5 GiB"``; None means without a limit."""
    if count is None:
        return "no limit"
    for unit, shift in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if count >= 1 << shift:
            return f"{count / (1 << shift):.1f} {unit}"
    return f"{count} bytes"


def print_table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    right: Sequence[int] = (),
    styles: dict[str, str] | None = None,
) -> None:
    """Prints a table. ``right`` are the columns of numbers; ``styles`` are by a cell's text."""
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        _print_plain(title, columns, rows, right)
        return
    table = Table(title=Text(title), title_justify="left")
    for at, column in enumerate(columns):
        justify: Any = "right" if at in right else "left"
        table.add_column(column, justify=justify, overflow="fold", no_wrap=at == 0)
    for row in rows:
        table.add_row(*(Text(cell, style=(styles or {}).get(cell, "")) for cell in row))
    # A pipe has no width.
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 200
    Console(file=sys.stdout, width=width).print(table)


def _print_plain(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int]
) -> None:
    print(title)
    lines = [list(columns), *(list(row) for row in rows)] if any(columns) else rows
    widths = [max(len(row[at]) for row in lines) for at in range(len(columns))] if rows else []
    for row in lines if rows else ():
        cells = [
            f"{cell:>{width}}" if at in right else f"{cell:<{width}}"
            for at, (cell, width) in enumerate(zip(row, widths))
        ]
        print(f"  {'  '.join(cells)}".rstrip())

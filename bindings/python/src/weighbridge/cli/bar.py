"""The progress bar of long commands."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .._progress import Callback


@contextmanager
def progress_bar(doing: str) -> Iterator[Callback | None]:
    """A progress bar on standard error, if rich is installed."""
    try:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn
    except ImportError:
        yield None
        return
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(doing, total=None)

        def show(_phase: str, done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield show

"""Threads take turns in running an offloaded model."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_WAITING = ("concurrent.futures._base", "queue", "selectors", "threading")
"""Modules in which a thread is while it waits for another."""


class Turns:
    """Whose turn it is.

    The forward of a model holds ``lock``, and so does one of its layers that is called by itself. A
    forward that runs layers on other threads and waits for them would wait forever: these layers
    run beside it, with their weights at home.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.windows = threading.RLock()
        """Held while weights are in slots, and while a layer runs beside the forward that waits."""
        self.runs: int | None = None
        """The thread that runs the model's forward."""
        self._beside = threading.local()

    def take(self) -> bool:
        """Waits for the lock; returns False, without it, if its holder waits for other threads."""
        while not self.lock.acquire(timeout=0.002):
            if getattr(self._beside, "runs", False) or self._holder_waits():
                return False
        return True

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Runs a layer while no weight is in a slot, beside a forward that waits.

        Raises RuntimeError if a layer that is in its slots waits.
        """
        found = 0
        while not self.windows.acquire(timeout=0.02):
            found = found + 1 if self._holder_waits() else 0
            if found > 100:
                raise RuntimeError(
                    "the forward of an offloaded layer waits for another layer, which it calls on "
                    "another thread: name a module around both in `groups`, or call remove() first"
                )
        before = getattr(self._beside, "runs", False)
        self._beside.runs = True
        try:
            yield
        finally:
            self._beside.runs = before
            self.windows.release()

    def _holder_waits(self) -> bool:
        frame = None if self.runs is None else sys._current_frames().get(self.runs)
        return frame is not None and frame.f_globals.get("__name__") in _WAITING

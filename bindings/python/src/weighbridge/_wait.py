"""Waiting for the library in short calls: Ctrl-C cannot interrupt a native one."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TypeVar

from .errors import WaitTimeoutError

_SECONDS = 0.1
_T = TypeVar("_T")


def wait_for(timeout: float | None, call: Callable[[int], _T]) -> _T:
    """Returns what ``call`` returns, which takes the milliseconds that it may wait.

    ``timeout`` is in seconds, None to wait without one; raises TimeoutError when it expires.
    """
    deadline = math.inf if timeout is None else time.monotonic() + timeout
    while True:
        left = min(max(deadline - time.monotonic(), 0), _SECONDS)
        try:
            return call(math.ceil(left * 1000))
        except WaitTimeoutError:
            if time.monotonic() >= deadline:
                raise

"""Progress of long calls, and how Ctrl-C interrupts them."""

from __future__ import annotations

import ctypes
import functools
from typing import TYPE_CHECKING, Any, Callable, Optional

from . import _abi
from ._enums import PHASE
from .errors import Status, make

if TYPE_CHECKING:
    from collections.abc import Generator

Callback = Callable[[str, int, int], Optional[bool]]
"""Receives the phase ("fault", "pin", "read" or "quantize"), the bytes done and the total bytes;
``False`` cancels the call, any other result continues it."""


class _CallbackExit(Exception):
    """Carries a GeneratorExit of the user's callback."""


class _Outcome:
    raised: BaseException | None = None
    cancelled = False


# The keys of the four arguments in max() below, by whether the call is cancelled. The result is the
# first argument, always 0, to continue; the phase, never 0, or the total to cancel.
_KEYS = ((1, 0, 0, 0), (1, 2, 0, 2))


def _receive(outcome: _Outcome, callback: Callback | None) -> Generator[int, int, None]:
    given = [0, 0, 0, 0]
    at = 3
    while True:
        try:
            while True:
                key = _KEYS[outcome.cancelled][at]
                at = (at + 1) % 4
                given[at] = yield key
                if at == 3 and callback is not None and not outcome.cancelled:
                    try:
                        answer = callback(PHASE.word(given[1]), given[2], given[3])
                    except (
                        GeneratorExit
                    ) as error:  # of the callback: it does not end this generator
                        raise _CallbackExit from error
                    if answer is False:
                        outcome.cancelled = True
        except GeneratorExit:
            return
        except _CallbackExit as error:
            outcome.raised = error.__cause__
            outcome.cancelled = True
        except BaseException as error:
            outcome.raised = error
            outcome.cancelled = True


class Cancel:
    """The progress callback of a call on a thread of its own, which cancels the call on demand.

    It runs no Python code: the call never waits for an interpreter that another thread keeps busy.
    C calls ``atoi(user, phase, done, total)``, which reads a number of one digit at ``user`` and
    ignores the other arguments.
    """

    def __init__(self) -> None:
        self._digit = ctypes.create_string_buffer(b"0")
        self.native: Any = ctypes.cast(ctypes.CDLL(None).atoi, _abi.wb_progress)
        self.user = ctypes.addressof(self._digit)

    def cancel(self) -> None:
        """Ends the call soon, which raises then."""
        self._digit.value = b"1"

    def check(self) -> None:
        """Raises that the call was cancelled; to be called after the native call."""
        if self._digit.value != b"0":
            raise make(Status.CANCELLED, "cancelled by another thread")


class Progress:
    """The native progress callback of one call, with or without a callback of the user.

    It lets the interpreter handle signals regularly, so that Ctrl-C cancels the call.

    Python raises a signal's exception as soon as any Python code runs. In a Python function that C
    calls, that is before the first statement, where no ``try`` of the function catches it, and
    ctypes would print and discard it. A generator resumes inside its ``try``. So C calls no Python
    function but ``max(user, phase, done, total, key=generator.send)``: native code that sends the
    arguments to the generator one by one and returns the one with the largest key.
    """

    def __init__(self, callback: Callback | None = None) -> None:
        self.user = 0
        self._outcome = _Outcome()
        steps = _receive(self._outcome, callback)
        next(steps)
        self.native: Any = _abi.wb_progress(functools.partial(max, key=steps.send))

    def check(self) -> None:
        """Raises what the callback or a signal raised; to be called after the native call."""
        outcome = self._outcome
        if outcome.raised is not None:
            raise outcome.raised
        if outcome.cancelled:
            raise make(Status.CANCELLED, "cancelled by the progress callback")

"""Progress of long calls, and how Ctrl-C gets into them."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Callable, Optional

from . import _abi
from .errors import Status, make

if TYPE_CHECKING:
    from collections.abc import Generator

Callback = Callable[[str, int, int], Optional[bool]]
"""Receives the phase ("fault", "pin", "read" or "quantize"), the bytes done and the bytes in all;
``False`` cancels the call, any other result continues it."""


class _State:
    raised: BaseException | None = None
    cancelled = False


# What the four arguments count in max() below, by whether the call is cancelled: the first one,
# always 0, wins to continue; the phase, never 0, or the total to cancel.
_KEYS = ((1, 0, 0, 0), (1, 2, 0, 2))


def _receive(state: _State, callback: Callback | None) -> Generator[int, int, None]:
    given = [0, 0, 0, 0]
    at = 3
    while True:
        try:
            while True:
                key = _KEYS[state.cancelled][at]
                at = (at + 1) % 4
                given[at] = yield key
                if at == 3 and callback is not None and not state.cancelled:
                    phase = _abi.PHASE.word(given[1])
                    if callback(phase, given[2], given[3]) is False:
                        state.cancelled = True
        except GeneratorExit:
            return
        except BaseException as error:
            state.raised = error
            state.cancelled = True


class Progress:
    """A progress callback for one call.

    Also without a callback of the user's it lets the interpreter look at signals now and then, so
    that Ctrl-C cancels the call.

    A signal's exception is raised as soon as any Python code runs, that is before the first
    statement of a Python function that C calls, where no ``try`` of it can catch it: it would be
    printed and lost. A generator is resumed inside its ``try``. So C calls no Python function but
    ``max(user, phase, done, total, key=generator.send)``: native code that sends the generator one
    argument after the other and gives back the one for which the generator answered most.
    """

    def __init__(self, callback: Callback | None = None) -> None:
        self._state = _State()
        steps = _receive(self._state, callback)
        next(steps)
        self.native: Any = _abi.wb_progress(functools.partial(max, key=steps.send))

    def check(self) -> None:
        """Raise what the callback or a signal raised; to be called after the native call."""
        state = self._state
        if state.raised is not None:
            raise state.raised
        if state.cancelled:
            raise make(Status.CANCELLED, "cancelled by the progress callback")

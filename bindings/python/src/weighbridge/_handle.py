"""Handles of C as Python objects: who holds a reference, and when it is dropped.

A :class:`Reference` is one reference of C's. Everything that needs the C object alive holds the
``Reference``: the public object until it is closed, each call while it runs, each array over the
memory. So a ``close`` in one thread cannot pull the memory from under a call in another, nor from
under an array. When the last of them lets go, the reference is dropped.

At the end of the interpreter nothing is dropped: arrays and running streams may still use the
memory, and the process gives it back whole. ``weakref.finalize`` sees to that: its callbacks do
nothing once its own exit handler ran, and with ``atexit = False`` that handler does not call them.
"""

from __future__ import annotations

import ctypes
import weakref
from typing import Any, Callable, TypeVar

from . import _keepalive
from .errors import ClosedError, Status

_Self = TypeVar("_Self", bound="Handle")


class Reference:
    """One reference of C's, dropped with this object. Made empty, for a call to write into.

    The call writes the handle into memory that the finalizer already watches, so an interrupt
    cannot come between the two.
    """

    __slots__ = ("__weakref__", "_as_parameter_")

    def __init__(self, release: Callable[[ctypes.c_void_p], None]) -> None:
        # ctypes passes this in place of the object.
        self._as_parameter_ = ctypes.c_void_p()
        weakref.finalize(self, _drop, release, self._as_parameter_).atexit = False

    @property
    def out(self) -> Any:
        """Where a call writes the handle."""
        return ctypes.byref(self._as_parameter_)


def _drop(release: Callable[[ctypes.c_void_p], None], pointer: ctypes.c_void_p) -> None:
    if pointer:
        release(pointer)
        _keepalive.collect()


class Handle:
    """A public object over a reference: closed by ``with``, ``close``, or with its last use."""

    _noun = "object"
    _reference: Reference | None

    def _live(self) -> Reference:
        """The reference, to be passed to a call; it is held until the call has returned."""
        reference = self._reference
        if reference is None:
            raise ClosedError(Status.HANDLE, f"this {self._noun} is closed: it cannot be used")
        return reference

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._reference is None

    def close(self) -> None:
        """Drop this object's reference; a second time does nothing.

        What still uses the memory (views, arrays, DLPack consumers) keeps it.
        """
        self._reference = None

    def release(self) -> None:
        """Close it, by C's name."""
        self.close()

    def __enter__(self: _Self) -> _Self:
        self._live()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

"""C handles as Python objects, and when they are released.

A :class:`Reference` is one reference to a C object. Everything that needs the C object alive holds
the ``Reference``: the public object until it is closed, each call while it runs, each array over
the memory. So ``close`` in one thread cannot free memory that a call in another thread or an array
uses. The reference is released when its last holder drops it.

When the interpreter exits, nothing is released: arrays and running streams may still use the
memory, and the process returns it as a whole. ``weakref.finalize`` ensures that: its callbacks do
nothing after its own exit handler ran, and with ``atexit = False`` that handler does not call them.
The process outlives a subinterpreter, whose references are therefore released at its exit, the
newest first; handles are NULL afterwards, which calls refuse.
"""

from __future__ import annotations

import ctypes
import weakref
from typing import Any, Callable, TypeVar

from . import _keepalive
from .errors import ClosedError, Status

_Self = TypeVar("_Self", bound="Closeable")


def _is_subinterpreter() -> bool:
    current = ctypes.pythonapi.PyInterpreterState_Get
    main = ctypes.pythonapi.PyInterpreterState_Main
    current.restype = main.restype = ctypes.c_void_p
    return bool(current() != main())


_SUBINTERPRETER = _is_subinterpreter()


def at_end(owner: Any, function: Callable[..., None], *arguments: Any) -> Callable[[], None]:
    """Returns what calls the function once, at the latest when ``owner`` is gone.

    Not when the interpreter exits, unless it is a subinterpreter.
    """
    finalizer = weakref.finalize(owner, function, *arguments)
    finalizer.atexit = _SUBINTERPRETER
    return finalizer


class Reference:
    """One reference to a C object, released with this object. It is created empty.

    A call writes the handle into memory that the finalizer already watches, so an interrupt
    between the two cannot leak it.
    """

    __slots__ = ("__weakref__", "_as_parameter_")

    def __init__(self, release: Callable[[ctypes.c_void_p], None]) -> None:
        # ctypes passes this attribute in place of the object.
        self._as_parameter_ = ctypes.c_void_p()
        at_end(self, _release, release, self._as_parameter_)

    @property
    def out(self) -> Any:
        """The argument through which a call writes the handle."""
        return ctypes.byref(self._as_parameter_)

    @property
    def handle(self) -> int:
        """The handle as a field of a struct has it; keep this object until the call returns."""
        return self._as_parameter_.value or 0


def _release(release: Callable[[ctypes.c_void_p], None], pointer: ctypes.c_void_p) -> None:
    if pointer:
        release(pointer)
        pointer.value = None
        _keepalive.collect()


def reference_of(given: Any, noun: str) -> Reference:
    """Returns the reference of an argument that must be an open object of the noun."""
    if not isinstance(given, Closeable) or given._noun != noun:
        raise TypeError(f"{noun} is {given!r}; it must be a weighbridge.{noun.capitalize()}")
    return given._live()


class Closeable:
    """A public object that holds a reference until it is closed, or until its last use."""

    _noun = "object"
    _reference: Reference | None

    def _live(self) -> Reference:
        """Returns the reference, to be passed to a call, which holds it until it returns."""
        reference = self._reference
        if reference is None:
            raise ClosedError(Status.HANDLE, f"this {self._noun} is closed: it cannot be used")
        return reference

    @property
    def closed(self) -> bool:
        """Whether the object is closed."""
        return self._reference is None

    def close(self) -> None:
        """Drops this object's reference; closing it again is a no-op.

        Views, arrays and DLPack consumers that still use the memory keep it alive.
        """
        self._reference = None

    def release(self) -> None:
        """Closes the object; the name that C uses."""
        self.close()

    def __copy__(self: _Self) -> _Self:
        """Returns an object of its own with the same reference."""
        made = object.__new__(type(self))
        made.__dict__.update(self.__dict__)
        return made

    def __deepcopy__(self: _Self, memo: object) -> _Self:
        raise self._not_elsewhere("deep-copied")

    def __reduce_ex__(self, protocol: object) -> Any:
        raise self._not_elsewhere("pickled")

    def _not_elsewhere(self, verb: str) -> TypeError:
        return TypeError(
            f"a {self._noun} cannot be {verb}: it refers to memory and streams of this process; "
            "make another one, or use its arrays"
        )

    def __enter__(self: _Self) -> _Self:
        self._live()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

"""Keeps Python objects alive whose memory was handed to the library, until it lets go of it.

The library says so through a native deleter that it may call on any thread, without the
interpreter's lock, even after the interpreter has ended: no Python function can be that deleter.
Here it is libc's ``sem_post`` with a semaphore of the object's own. Python looks at the semaphores
when it drops a reference, when it registers, drains or measures, and after garbage collections
(for consumers that Python does not see go), and then lets the object go.

Each object carries one reference count that belongs to no Python variable, and its semaphore lies
in memory of malloc: both survive the interpreter's end, when streams may still work on the memory.
"""

from __future__ import annotations

import ctypes
import gc

_SEMAPHORE_BYTES = 64  # sem_t is 32 bytes on 64-bit glibc, less elsewhere.

# PyDLL keeps the interpreter's lock: these calls are shorter than giving it away.
_c = ctypes.PyDLL(None)
_malloc = _c.malloc
_malloc.restype, _malloc.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)
_free = _c.free
_free.restype, _free.argtypes = None, (ctypes.c_void_p,)
_init = _c.sem_init
_init.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_uint)
_trywait = _c.sem_trywait
_trywait.argtypes = (ctypes.c_void_p,)
_hold = _c.Py_IncRef
_hold.restype, _hold.argtypes = None, (ctypes.py_object,)
_let_go = _c.Py_DecRef
_let_go.restype, _let_go.argtypes = None, (ctypes.py_object,)

DELETER = ctypes.cast(_c.sem_post, ctypes.c_void_p).value
"""The native deleter; its owner is what :func:`keep` gave."""

_kept: dict[int, object] = {}


def keep(held: object) -> int:
    """Keep an object alive until ``DELETER`` is called with the result."""
    owner: int = _malloc(_SEMAPHORE_BYTES) or 0
    if not owner:
        raise MemoryError
    _init(owner, 0, 0)
    _hold(held)
    if not _kept:
        gc.callbacks.append(_after_collection)
    _kept[owner] = held
    return owner


def discard(owner: int) -> None:
    """Let an object go at once, when the library did not take it."""
    held = _kept.pop(owner, None)
    if not _kept and _after_collection in gc.callbacks:
        gc.callbacks.remove(_after_collection)
    _let_go(held)
    _free(owner)


def collect() -> None:
    """Let those objects go that the library is done with."""
    for owner in list(_kept):
        if _trywait(owner) == 0:  # at most one caller, in any thread, gets a 0
            discard(owner)


def _after_collection(phase: str, _: object) -> None:
    if phase == "stop":
        collect()

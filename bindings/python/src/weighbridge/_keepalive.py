"""Keeps Python objects alive whose memory was handed to the library, until it lets go of it.

The library says so through a native deleter that it may call on any thread, without the
interpreter's lock, even after the interpreter has ended: no Python function can be that deleter.
Here it is libc's ``sem_post``, with a semaphore of the object's own that begins with 1 and is
counted up to 2. Python looks at the semaphores when it drops a reference, when it registers, drains
or measures, and after garbage collections (for consumers that Python does not see go), and then
lets the object go.

Each object carries one reference count that belongs to no Python variable, and its semaphore lies
in memory of malloc: both survive the interpreter's end, when streams may still work on the memory.
"""

from __future__ import annotations

import ctypes
import gc
import threading

_SEMAPHORE_BYTES = 32  # sem_t on 64-bit glibc and musl

# PyDLL keeps the interpreter's lock: these calls are shorter than giving it away.
_c = ctypes.PyDLL(None)
_malloc = _c.malloc
_malloc.restype, _malloc.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)
_free = _c.free
_free.restype, _free.argtypes = None, (ctypes.c_void_p,)
_init = _c.sem_init
_init.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_uint)
_value = _c.sem_getvalue
_value.argtypes = (ctypes.c_void_p, ctypes.POINTER(ctypes.c_int))
_post = _c.sem_post
_post.argtypes = (ctypes.c_void_p,)
_hold = _c.Py_IncRef
_hold.restype, _hold.argtypes = None, (ctypes.py_object,)
_let_go = _c.Py_DecRef
_let_go.restype, _let_go.argtypes = None, (ctypes.py_object,)

DELETER = ctypes.cast(_post, ctypes.c_void_p).value
"""The native deleter; its owner is what :func:`keep` gave."""

_kept: dict[int, object] = {}
_collecting = threading.Lock()


def keep(held: object, nbytes: int = 0) -> int:
    """Keep an object alive until ``DELETER`` is called with the result.

    The result is the address of ``nbytes`` bytes, of which the first 32 are the semaphore's.
    """
    owner: int = _malloc(max(nbytes, _SEMAPHORE_BYTES)) or 0
    if not owner:
        raise MemoryError
    _init(owner, 0, 1)
    _hold(held)
    _kept[owner] = held
    # It stays: a callback that is removed while CPython calls them all makes it leave out the next.
    if _after_collection not in gc.callbacks:
        gc.callbacks.append(_after_collection)
    return owner


def discard(owner: int) -> None:
    """Let an object go that the library did not take."""
    _post(owner)
    collect()


def collect() -> None:
    """Let those objects go that the library is done with."""
    # One at a time: whoever finds another at it leaves what is done to the next.
    if not _kept or not _collecting.acquire(blocking=False):
        return
    try:
        value = ctypes.c_int()
        for owner in list(_kept):
            if _value(owner, value) == 0 and value.value > 1:
                held = _kept.pop(owner)
                _free(owner)
                _let_go(held)
                del held  # its destructor may run Python code, this function included
    finally:
        _collecting.release()


def _after_collection(phase: str, _: object) -> None:
    if phase == "stop":
        collect()

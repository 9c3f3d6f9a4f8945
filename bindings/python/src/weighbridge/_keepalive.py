"""Keeps Python objects alive while the library uses their memory.

The library reports its last use through a native deleter, which it may call on any thread, without
the interpreter's lock, even after the interpreter has exited: no Python function can be that
deleter. The deleter here is libc's ``sem_post`` on a semaphore of the object, which starts at 1 and
is raised to 2. Python checks the semaphores when it releases a reference, when it registers memory,
drains or reads statistics, and after garbage collections (for consumers that Python does not see),
and then releases the object.

Each object carries one reference count that belongs to no Python variable, and its semaphore lies
in memory of malloc: both survive the interpreter's exit, when streams may still use the memory.
"""

from __future__ import annotations

import ctypes
import gc
import threading

_SEMAPHORE_BYTES = 32  # sem_t on 64-bit glibc and musl

# PyDLL keeps the interpreter's lock: these calls are shorter than releasing and taking it.
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
_retain = _c.Py_IncRef
_retain.restype, _retain.argtypes = None, (ctypes.py_object,)
_release = _c.Py_DecRef
_release.restype, _release.argtypes = None, (ctypes.py_object,)

DELETER = ctypes.cast(_post, ctypes.c_void_p).value
"""The native deleter; its argument is what :func:`keep` returned."""

_kept: dict[int, object] = {}
_collecting = threading.Lock()


def keep(held: object, nbytes: int = 0) -> int:
    """Keeps an object alive until ``DELETER`` is called with the result.

    The result is the address of ``nbytes`` bytes, the first 32 of which hold the semaphore.
    """
    owner: int = _malloc(max(nbytes, _SEMAPHORE_BYTES)) or 0
    if not owner:
        raise MemoryError
    _init(owner, 0, 1)
    _retain(held)
    _kept[owner] = held
    # The callback is never removed: when one is removed while CPython calls them, CPython skips
    # the next.
    if _after_collection not in gc.callbacks:
        gc.callbacks.append(_after_collection)
    return owner


def discard(owner: int) -> None:
    """Releases an object that the library did not take."""
    _post(owner)
    collect()


def collect() -> None:
    """Releases the objects whose deleter was called."""
    # One thread at a time: a thread that finds another collecting leaves its objects to the next
    # collection.
    if not _kept or not _collecting.acquire(blocking=False):
        return
    try:
        value = ctypes.c_int()
        for owner in list(_kept):
            if _value(owner, value) == 0 and value.value > 1:
                held = _kept.pop(owner)
                _free(owner)
                _release(held)
                del held  # its destructor may run Python code, this function included
    finally:
        _collecting.release()


def _after_collection(phase: str, _: object) -> None:
    if phase == "stop":
        collect()

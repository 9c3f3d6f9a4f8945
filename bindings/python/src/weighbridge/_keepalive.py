"""Keeps Python objects alive while the library uses their memory.

The library reports its last use through a native deleter, which it may call on any thread, without
the interpreter's lock, even after the interpreter has exited: no Python function can be that
deleter. The deleter here is the library's own: it adds the object's owner block to a list of this
interpreter. Python empties the list when it releases a reference, when it registers memory, drains
or reads statistics, and after garbage collections (for consumers that Python does not see), and
then releases the objects. So the cost is that of the objects that are released, however many are
kept.

Each object carries one reference count that belongs to no Python variable, and its owner block and
the list lie in memory of malloc: they survive the interpreter's exit, when streams may still use
the memory.
"""

from __future__ import annotations

import ctypes
import gc
import threading

from ._library import lib

# An owner block begins with the link to the next one and the address of the list.
_Block = ctypes.c_void_p * 2

# PyDLL keeps the interpreter's lock: these calls are shorter than releasing and taking it.
_c = ctypes.PyDLL(None)
_calloc = _c.calloc
_calloc.restype, _calloc.argtypes = ctypes.c_void_p, (ctypes.c_size_t, ctypes.c_size_t)
_free = _c.free
_free.restype, _free.argtypes = None, (ctypes.c_void_p,)
_retain = _c.Py_IncRef
_retain.restype, _retain.argtypes = None, (ctypes.py_object,)
_release = _c.Py_DecRef
_release.restype, _release.argtypes = None, (ctypes.py_object,)

DELETER = ctypes.cast(lib.wb_python_owner_release, ctypes.c_void_p).value
"""The native deleter; its argument is what :func:`keep` returned."""


def _allocate(nbytes: int) -> int:
    address: int = _calloc(1, nbytes) or 0
    if not address:
        raise MemoryError
    return address


# Never freed: streams may release memory after the interpreter's exit.
_list = _allocate(ctypes.sizeof(ctypes.c_void_p))
_newest = ctypes.c_void_p.from_address(_list)

_kept: dict[int, object] = {}
_collecting = threading.Lock()


def keep(held: object, nbytes: int = 0) -> int:
    """Keeps an object alive until ``DELETER`` is called with the result.

    The result is the address of ``nbytes`` zeroed bytes, but for the second eight of them. The
    deleter overwrites the first eight.
    """
    owner = _allocate(max(nbytes, ctypes.sizeof(_Block)))
    _Block.from_address(owner)[1] = _list
    _retain(held)
    _kept[owner] = held
    # The callback is never removed: when one is removed while CPython calls them, CPython skips
    # the next.
    if _after_collection not in gc.callbacks:
        gc.callbacks.append(_after_collection)
    return owner


def discard(owner: int) -> None:
    """Releases an object that the library did not take."""
    lib.wb_python_owner_release(owner)
    collect()


def collect() -> None:
    """Releases the objects whose deleter was called."""
    # One call at a time, so that destructors that collect do not nest: the first one continues
    # until nothing is left.
    while _newest.value and _collecting.acquire(blocking=False):
        try:
            owner = lib.wb_python_owners_take(_list)
            while owner:
                following = _Block.from_address(owner)[0]
                held = _kept.pop(owner)
                _free(owner)
                _release(held)
                del held  # its destructor may run Python code, this function included
                owner = following
        finally:
            _collecting.release()


def _after_collection(phase: str, _: object) -> None:
    if phase == "stop":
        collect()

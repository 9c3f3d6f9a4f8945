"""DLPack capsules, made and taken."""

from __future__ import annotations

import ctypes
from ctypes import byref, c_char_p, c_int, c_void_p, py_object
from typing import TYPE_CHECKING, Any, Optional

from . import _abi
from ._library import lib
from .errors import check

if TYPE_CHECKING:
    from ._handle import Reference

CPU = 1
CUDA = 2

_python = ctypes.pythonapi
_new = _python.PyCapsule_New
_new.restype, _new.argtypes = py_object, (c_void_p, c_void_p, c_void_p)
_is_valid = _python.PyCapsule_IsValid
_is_valid.restype, _is_valid.argtypes = c_int, (py_object, c_void_p)
_pointer = _python.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = c_void_p, (py_object, c_void_p)
_rename = _python.PyCapsule_SetName
_rename.restype, _rename.argtypes = c_int, (py_object, c_void_p)
_hold = _python.Py_IncRef
_hold.restype, _hold.argtypes = None, (py_object,)

# Native, so that it works at any time; it frees a tensor that no consumer took.
_DESTROY = ctypes.cast(lib.wb_python_capsule_destroy, c_void_p)


def _immortal(name: bytes) -> int:
    """The address of a name that capsules may point to until the very end of the process."""
    _hold(name)
    return ctypes.cast(c_char_p(name), c_void_p).value or 0


_FRESH = {False: _immortal(b"dltensor"), True: _immortal(b"dltensor_versioned")}
_USED = {False: _immortal(b"used_dltensor"), True: _immortal(b"used_dltensor_versioned")}


def capsule(view: Reference, versioned: bool) -> Any:
    """A capsule over a view."""
    export = lib.wb_view_to_dlpack_versioned if versioned else lib.wb_view_to_dlpack
    tensor, error = c_void_p(), _abi.wb_error()
    check(export(view, byref(tensor), byref(error)), error)
    return _new(tensor, _FRESH[versioned], _DESTROY)


def check_stream(stream: Optional[int], device: tuple[int, int]) -> None:
    """Refuse what the protocol does not allow as ``stream``."""
    if stream is None:
        return
    if isinstance(stream, bool) or not isinstance(stream, int):
        raise TypeError(f"stream is {stream!r}: DLPack takes an integer or None")
    if device[0] == CPU and stream != -1:
        raise ValueError(f"stream is {stream}: memory of the host has no streams, pass None")
    if device[0] == CUDA and (stream == 0 or stream < -1):
        raise ValueError(
            f"stream is {stream}: pass None or 1 for the legacy default stream, 2 for the "
            "per-thread one, a handle, or -1 for no synchronisation"
        )


class Taken:
    """The tensor of a capsule, for as long as it is offered to the library.

    The capsule counts as used meanwhile: an interrupt can then leak a tensor, and never free one
    that the library has. It becomes fresh again if the library did not take it.
    """

    def __init__(self, array: Any) -> None:
        self.consumed = False
        self._capsule = array if type(array).__name__ == "PyCapsule" else _export(array)
        for versioned, name in _FRESH.items():
            if _is_valid(self._capsule, name):
                self.versioned = versioned
                return
        raise BufferError("this is no fresh DLPack capsule: a capsule can be taken once only")

    def __enter__(self) -> Taken:
        self.tensor = _pointer(self._capsule, _FRESH[self.versioned])
        _rename(self._capsule, _USED[self.versioned])
        return self

    def __exit__(self, *_: object) -> None:
        if not self.consumed:
            _rename(self._capsule, _FRESH[self.versioned])


def _export(array: Any) -> Any:
    export = getattr(array, "__dlpack__", None)
    if export is None:
        raise TypeError(f"{type(array).__name__} has no __dlpack__: use View.copy_from")
    try:
        return export(max_version=(1, 0))
    except TypeError:  # a producer from before DLPack 1.0
        return export()

"""DLPack capsules, made and taken."""

from __future__ import annotations

import ctypes
from ctypes import byref, c_char_p, c_int, c_int32, c_uint32, c_uint64, c_void_p, py_object
from typing import TYPE_CHECKING, Any

from . import _abi, _keepalive
from ._library import lib
from .errors import check

if TYPE_CHECKING:
    from ._handle import Reference

CPU = 1
CUDA = 2

# Not ctypes.pythonapi, whose functions every package of the process gives its own prototypes.
_python = ctypes.PyDLL(None)
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


def check_stream(stream: int | None, device: tuple[int, int]) -> None:
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


class _Tensor(ctypes.Structure):
    """DLTensor."""

    _fields_ = [
        ("data", c_void_p),
        ("device_type", c_int32),
        ("device_id", c_int32),
        ("ndim", c_int32),
        ("dtype", c_uint32),
        ("shape", c_void_p),
        ("strides", c_void_p),
        ("byte_offset", c_uint64),
    ]


class _Managed(ctypes.Structure):
    """DLManagedTensor."""

    _fields_ = [("tensor", _Tensor), ("context", c_void_p), ("deleter", c_void_p)]


class _ManagedVersioned(ctypes.Structure):
    """DLManagedTensorVersioned."""

    _fields_ = [
        ("major", c_uint32),
        ("minor", c_uint32),
        ("context", c_void_p),
        ("deleter", c_void_p),
        ("flags", c_uint64),
        ("tensor", _Tensor),
    ]


_delete = ctypes.CFUNCTYPE(None, c_void_p)


class _Owned:
    """A producer's tensor, deleted with this object once it was taken."""

    def __init__(self, address: int, deleter: int | None) -> None:
        self.taken = False
        self._address = address
        # The type is held here since this may be deleted when the module is already gone.
        self._deleter = _delete(deleter) if deleter else None

    def __del__(self) -> None:
        if self.taken and self._deleter is not None:
            self._deleter(self._address)


class Taken:
    """A producer's tensor, for as long as it is offered to the library.

    The library is not given the producer's deleter, which may need the interpreter's lock (NumPy's
    does): it would call it on threads that can outlive the interpreter, where waiting for the lock
    ends the thread, and with it the process. It is given a tensor of our own with the same content,
    whose deleter is native, and Python deletes the producer's one afterwards (see _keepalive).

    That deleter, ``sem_post``, gets the tensor itself, so the tensor must begin with a semaphore. A
    semaphore of value 1 with nobody waiting is, in glibc and musl, also what a tensor begins with
    that follows DLPack 1.0: the numbers 1 and 0.
    """

    def __init__(self, array: Any) -> None:
        self._capsule = array if type(array).__name__ == "PyCapsule" else _export(array)
        for versioned, name in _FRESH.items():
            if _is_valid(self._capsule, name):
                self._versioned = versioned
                return
        raise BufferError("this is no fresh DLPack capsule: a capsule can be taken once only")

    def __enter__(self) -> Taken:
        address = _pointer(self._capsule, _FRESH[self._versioned])
        given = (_ManagedVersioned if self._versioned else _Managed).from_address(address)
        if self._versioned and given.major != 1:
            raise BufferError(f"the tensor is of DLPack {given.major}; this library takes 1")
        self._owned = _Owned(address, given.deleter)
        self.tensor = _keepalive.keep(self._owned, ctypes.sizeof(_ManagedVersioned))
        ours = _ManagedVersioned.from_address(self.tensor)
        if (ours.major, ours.minor) != (1, 0):
            _keepalive.discard(self.tensor)
            raise BufferError("the semaphores of this C library are not as expected: copy instead")
        ours.deleter = _keepalive.DELETER
        ours.flags = given.flags if self._versioned else 0
        ours.tensor = given.tensor
        # From here on the capsule counts as used: an interrupt may leak a tensor, never free it.
        _rename(self._capsule, _USED[self._versioned])
        return self

    def finish(self, success: bool) -> None:
        """Say whether the library took the tensor; if not, the capsule has it again."""
        if success:
            self._owned.taken = True
            return
        _keepalive.discard(self.tensor)
        _rename(self._capsule, _FRESH[self._versioned])

    def __exit__(self, *_: object) -> None:
        del self._owned


def _export(array: Any) -> Any:
    export = getattr(array, "__dlpack__", None)
    if export is None:
        raise TypeError(f"{type(array).__name__} has no __dlpack__: use View.copy_from")
    try:
        return export(max_version=(1, 0))
    except TypeError:  # a producer from before DLPack 1.0
        return export()

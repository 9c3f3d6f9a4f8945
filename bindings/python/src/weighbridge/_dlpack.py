"""DLPack capsules: export of views, import of tensors."""

from __future__ import annotations

import ctypes
from ctypes import byref, c_char_p, c_int, c_int32, c_uint32, c_uint64, c_void_p, py_object
from typing import Any

from . import _keepalive
from ._abi import wb_error
from ._call import call
from ._enums import ACCESSOR
from ._handle import Reference
from ._library import lib
from ._options import Options

CPU = 1
CUDA = 2

# Not ctypes.pythonapi: every package of the process sets its own prototypes on those functions.
_python = ctypes.PyDLL(None)
_new = _python.PyCapsule_New
_new.restype, _new.argtypes = py_object, (c_void_p, c_void_p, c_void_p)
_is_valid = _python.PyCapsule_IsValid
_is_valid.restype, _is_valid.argtypes = c_int, (py_object, c_void_p)
_pointer = _python.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = c_void_p, (py_object, c_void_p)
_rename = _python.PyCapsule_SetName
_rename.restype, _rename.argtypes = c_int, (py_object, c_void_p)
_retain = _python.Py_IncRef
_retain.restype, _retain.argtypes = None, (py_object,)

# Native, so that it works at any time; it deletes a tensor that no consumer took.
_DESTROY = ctypes.cast(lib.wb_python_capsule_destroy, c_void_p)


def _immortal(name: bytes) -> int:
    """Returns the address of a name that capsules may use until the process exits."""
    _retain(name)
    return ctypes.cast(c_char_p(name), c_void_p).value or 0


_FRESH = {False: _immortal(b"dltensor"), True: _immortal(b"dltensor_versioned")}
_USED = {False: _immortal(b"used_dltensor"), True: _immortal(b"used_dltensor_versioned")}


def capsule(view: Reference, versioned: bool) -> Any:
    """Returns a capsule over a view, for a consumer that does not write into read-only memory."""
    tensor = c_void_p()
    call(
        lib.wb_view_to_dlpack_versioned if versioned else lib.wb_view_to_dlpack_for_reading,
        view,
        byref(tensor),
    )
    return _new(tensor, _FRESH[versioned], _DESTROY)


def check_stream(stream: int | None, device: tuple[int, int]) -> None:
    """Raises TypeError or ValueError for a ``stream`` that the protocol does not allow."""
    if stream is None:
        return
    if isinstance(stream, bool) or not isinstance(stream, int):
        raise TypeError(f"stream is {stream!r}: DLPack takes an integer or None")
    if device[0] == CPU and stream != -1:
        raise ValueError(f"stream is {stream}: host memory has no streams, pass None")
    if device[0] == CUDA and (stream == 0 or stream < -1):
        raise ValueError(
            f"stream is {stream}: pass None or 1 for the legacy default stream, 2 for the "
            "per-thread one, a handle, or -1 for no synchronization"
        )


def import_tensor(device: Reference, array: Any, accessor: str, options: Options) -> Reference:
    """Registers the memory of an object with ``__dlpack__``, or of a capsule; returns a view."""
    code, error = ACCESSOR.code(accessor), wb_error()
    _keepalive.collect()
    with _Tensor(array) as tensor:
        reference = Reference(lib.wb_view_release)
        status = lib.wb_view_from_dlpack_versioned(
            device, tensor.address, code, options.c, reference.out, byref(error)
        )
        tensor.finish(status == 0)
    options.check(status, error)
    return reference


class _DLTensor(ctypes.Structure):
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


class _DLManagedTensor(ctypes.Structure):
    _fields_ = [("tensor", _DLTensor), ("context", c_void_p), ("deleter", c_void_p)]


class _DLManagedTensorVersioned(ctypes.Structure):
    _fields_ = [
        ("major", c_uint32),
        ("minor", c_uint32),
        ("context", c_void_p),
        ("deleter", c_void_p),
        ("flags", c_uint64),
        ("tensor", _DLTensor),
    ]


_delete = ctypes.CFUNCTYPE(None, c_void_p)


class _Owned:
    """A producer's tensor, deleted with this object if the library took it."""

    def __init__(self, address: int, deleter: int | None) -> None:
        self.taken = False
        self._address = address
        # This object holds the function, because it may be deleted after the module is.
        self._deleter = _delete(deleter) if deleter else None

    def __del__(self) -> None:
        if self.taken and self._deleter is not None:
            self._deleter(self._address)


class _Tensor:
    """A producer's tensor while it is offered to the library.

    The library does not get the producer's deleter, which may need the interpreter's lock (NumPy's
    does): it would call it on threads that can outlive the interpreter, where waiting for the lock
    ends the thread, and with it the process. It gets a second tensor with the same content, whose
    deleter is native; Python calls the producer's deleter afterwards (see _keepalive).

    The native deleter receives the tensor itself, so the tensor is an owner block of _keepalive:
    its version is where the link will be, and its context, which is the producer's, is the list.
    """

    def __init__(self, array: Any) -> None:
        self._capsule = array if type(array).__name__ == "PyCapsule" else _export(array)
        for versioned, name in _FRESH.items():
            if _is_valid(self._capsule, name):
                self._versioned = versioned
                return
        raise BufferError("this is not a fresh DLPack capsule: a capsule can be taken once only")

    def __enter__(self) -> _Tensor:
        address = _pointer(self._capsule, _FRESH[self._versioned])
        kind = _DLManagedTensorVersioned if self._versioned else _DLManagedTensor
        given: Any = kind.from_address(address)
        if self._versioned and given.major != 1:
            raise BufferError(f"the tensor is of DLPack {given.major}; this library takes 1")
        self._owned = _Owned(address, given.deleter)
        self.address = _keepalive.keep(self._owned, ctypes.sizeof(_DLManagedTensorVersioned))
        offered = _DLManagedTensorVersioned.from_address(self.address)
        offered.major = 1
        offered.deleter = _keepalive.DELETER
        offered.flags = given.flags if self._versioned else 0
        offered.tensor = given.tensor
        # From here on the capsule counts as used: an interrupt may leak a tensor, never free it
        # twice.
        _rename(self._capsule, _USED[self._versioned])
        return self

    def finish(self, success: bool) -> None:
        """Records whether the library took the tensor; if not, the capsule is fresh again."""
        if success:
            self._owned.taken = True
            return
        _keepalive.discard(self.address)
        _rename(self._capsule, _FRESH[self._versioned])

    def __exit__(self, *_: object) -> None:
        del self._owned


def _export(array: Any) -> Any:
    # A view of the library: the import keeps the read-only flag.
    array = array.for_reading() if hasattr(array, "for_reading") else array
    export = getattr(array, "__dlpack__", None)
    if export is None:
        raise TypeError(f"{type(array).__name__} has no __dlpack__: use View.copy_from")
    try:
        return export(max_version=(1, 0))
    except TypeError:  # a producer from before DLPack 1.0
        return export()

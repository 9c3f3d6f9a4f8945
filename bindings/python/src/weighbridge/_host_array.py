"""Arrays of other packages in host memory: their address, type, shape and strides."""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

from . import _dlpack
from ._arguments import unsigned
from ._export import span_of
from ._handle import Reference
from ._options import Options
from .dtypes import Dtype
from .info import view_info


class HostArray(NamedTuple):
    """An array in host memory."""

    address: int
    dtype: Dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None
    """In elements; None for contiguous."""
    held: Any
    """Keeps the memory alive."""


def of_array(array: Any, device: Reference) -> HostArray:
    """Returns the memory of an array; raises TypeError or ValueError for any other object."""
    interface = getattr(array, "__array_interface__", None)
    if isinstance(interface, dict) and hasattr(array, "dtype"):
        # "data" may also be None or an object with the buffer protocol, which is handled below.
        if isinstance(interface.get("data"), tuple):
            return _of_interface(array, interface)
    if hasattr(array, "__dlpack__"):
        # Without pinning, the import only reads the tensor's own description.
        return of_view(_dlpack.import_tensor(device, array, "host", Options(pin=False)))
    return _of_memory(memoryview(array))


def of_view(view: Reference) -> HostArray:
    """Returns the memory of a view, which the result keeps alive if the view is closed."""
    info = view_info(view)
    held, _ = span_of(view, info)
    return HostArray(info.address, info.dtype, info.shape, info.strides, held)


def _of_interface(array: Any, interface: dict[str, Any]) -> HostArray:
    dtype, shape = Dtype.of(array.dtype), tuple(interface["shape"])
    strides = interface.get("strides")
    address = unsigned(interface["data"][0], "address")
    return HostArray(address, dtype, shape, _in_elements(strides, dtype), array)


def _of_memory(memory: memoryview) -> HostArray:
    dtype = Dtype.of_format(memory.format, memory.itemsize)
    shape, strides = tuple(memory.shape or ()), memory.strides
    return HostArray(address_of(memory), dtype, shape, _in_elements(strides, dtype), memory)


def _in_elements(strides: tuple[int, ...] | None, dtype: Dtype) -> tuple[int, ...] | None:
    if strides is None:
        return None
    if any(stride % dtype.itemsize for stride in strides):
        raise ValueError(
            f"strides of {tuple(strides)} bytes are not multiples of {dtype.label}'s "
            f"{dtype.itemsize}: make the array contiguous"
        )
    return tuple(stride // dtype.itemsize for stride in strides)


class _PyBuffer(ctypes.Structure):
    _fields_ = [
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.c_void_p),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_void_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    ]


_PYBUF_FULL_RO = 0x11C

# Not ctypes.pythonapi: every package of the process sets its own prototypes on those functions.
_python = ctypes.PyDLL(None)
_get_buffer = _python.PyObject_GetBuffer
_get_buffer.restype = ctypes.c_int
_get_buffer.argtypes = (ctypes.py_object, ctypes.POINTER(_PyBuffer), ctypes.c_int)
_release_buffer = _python.PyBuffer_Release
_release_buffer.restype = None
_release_buffer.argtypes = (ctypes.POINTER(_PyBuffer),)


def address_of(view: memoryview) -> int:
    """Returns the address of a memoryview's first element, valid while the view is alive."""
    found = _PyBuffer()
    _get_buffer(view, ctypes.byref(found), _PYBUF_FULL_RO)
    address: int = found.buf or 0
    _release_buffer(ctypes.byref(found))
    return address

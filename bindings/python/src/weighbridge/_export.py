"""Host memory of the library as memoryviews and NumPy arrays, without a copy."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

from ._extras import need
from ._handle import Reference
from .errors import Status, make
from .info import ViewInfo

if TYPE_CHECKING:
    import numpy as np


def memoryview_of(reference: Reference, address: int, nbytes: int, read_only: bool) -> memoryview:
    """Returns a memoryview that keeps ``reference``, and so its memory, alive."""
    if nbytes == 0 or address == 0:
        return memoryview(b"" if read_only else bytearray())
    array = (ctypes.c_ubyte * nbytes).from_address(address)
    array.keeps_alive = reference  # type: ignore[attr-defined]
    view = memoryview(array).cast("B")
    return view.toreadonly() if read_only else view


def span_of(reference: Reference, info: ViewInfo) -> tuple[memoryview, int]:
    """Returns the bytes from a view's first to its last, and where in them its element 0 is."""
    if info.elements and info.address == 0:
        raise make(
            Status.NOT_MAPPED,
            f"asked for elements in host memory; the view's {info.nbytes} bytes are in device "
            "memory: copy them into a buffer with Device.copy",
        )
    size = info.dtype.itemsize
    below = sum(
        (count - 1) * -stride * size
        for count, stride in zip(info.shape, info.strides)
        if info.elements and stride < 0
    )
    span = info.span_bytes if info.elements else 0
    return memoryview_of(reference, info.address - below, span, info.read_only), below


def array_of(reference: Reference, info: ViewInfo, bits: bool) -> np.ndarray[Any, Any]:
    """Returns a NumPy array over a view's elements, which keeps its memory alive."""
    need("numpy", "numpy", "an array over a view")
    import numpy as np

    dtype = info.dtype.bits() if bits else info.dtype.numpy()
    if info.elements == 0:
        empty = np.empty(info.shape, dtype)
        empty.flags.writeable = not info.read_only
        return empty
    memory, below = span_of(reference, info)
    # An array over an array of bytes: of the memoryview itself, NumPy would take the ctypes array,
    # which is writable, as the base.
    base = np.frombuffer(memory, np.uint8)
    array: np.ndarray[Any, Any] = np.ndarray(info.shape, dtype, base, below, byte_strides(info))
    return array


def byte_strides(info: ViewInfo) -> tuple[int, ...]:
    """Returns the strides in bytes. A stride that does not fit in 64 bits belongs to a dimension
    of at most one element and becomes 0."""
    steps = (stride * info.dtype.itemsize for stride in info.strides)
    return tuple(step if -(1 << 63) <= step < 1 << 63 else 0 for step in steps)

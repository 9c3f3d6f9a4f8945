"""Where the elements of somebody else's array lie, and how."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from ._handle import Handle
from ._options import unsigned
from .buffer import address_of
from .dtypes import Dtype

if TYPE_CHECKING:
    from .device import Device


class Source(NamedTuple):
    """An array in host memory."""

    address: int
    dtype: Dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None
    """In elements; None for contiguous."""
    held: Any
    """Keeps the memory alive."""


def of(array: Any, device: Device) -> Source:
    """The source that an array is; TypeError or ValueError for one that is none."""
    if isinstance(array, Handle):
        return _of_view(array)
    interface = getattr(array, "__array_interface__", None)
    if isinstance(interface, dict) and hasattr(array, "dtype"):
        # Others give an object with the buffer protocol here, if anything.
        if isinstance(interface.get("data"), tuple):
            return _of_interface(array, interface)
    if hasattr(array, "__dlpack__"):
        return _of_dlpack(array, device)
    return _of_memory(memoryview(array))


def _of_view(view: Any) -> Source:
    from .view import View

    if not isinstance(view, View):
        raise TypeError(f"{view!r} has no element type: pass its view, or its memoryview()")
    info = view.info
    # numpy() holds the memory, also if the view is closed meanwhile.
    return Source(info.address, info.dtype, info.shape, info.strides, view.numpy(bits=True))


def _of_interface(array: Any, interface: dict[str, Any]) -> Source:
    dtype, shape = Dtype.of(array.dtype), tuple(interface["shape"])
    strides = interface.get("strides")
    address = unsigned(interface["data"][0], "address")
    return Source(address, dtype, shape, _in_elements(strides, dtype), array)


def _of_dlpack(array: Any, device: Device) -> Source:
    from .view import View

    # Not pinned, the import only reads what the tensor says of itself.
    return _of_view(View.from_dlpack(device, array, access="host", pin=False))


def _of_memory(memory: memoryview) -> Source:
    dtype = Dtype.of_format(memory.format, memory.itemsize)
    shape, strides = tuple(memory.shape or ()), memory.strides
    address = address_of(memory, contiguous=False)
    return Source(address, dtype, shape, _in_elements(strides, dtype), memory)


def _in_elements(strides: tuple[int, ...] | None, dtype: Dtype) -> tuple[int, ...] | None:
    if strides is None:
        return None
    if any(stride % dtype.itemsize for stride in strides):
        raise ValueError(
            f"strides of {tuple(strides)} bytes are no multiples of {dtype.label}'s "
            f"{dtype.itemsize}: make the array contiguous"
        )
    return tuple(stride // dtype.itemsize for stride in strides)

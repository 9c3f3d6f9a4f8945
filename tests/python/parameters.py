"""NumPy arrays as parameters, and the bytes that a device has for them."""

from __future__ import annotations

import numpy as np

from weighbridge import Device, Offloader, Parameter, View


def address_of(array: np.ndarray) -> int:
    """Returns the address of the first element."""
    return array.__array_interface__["data"][0]


def parameter_of(name: str, array: np.ndarray, **more) -> Parameter:
    """Returns an array as a parameter, in the group of its name's first two segments."""
    return Parameter(
        name,
        more.pop("group", ".".join(name.split(".")[:2])),
        array.dtype,
        array.shape,
        tuple(stride // array.itemsize for stride in array.strides),
        source=address_of(array),
        held=array,
        **more,
    )


def replace(offloader: Offloader, name: str, array: np.ndarray, stream=None) -> None:
    """Replaces a parameter by an array."""
    strides = tuple(stride // array.itemsize for stride in array.strides)
    offloader.replace(name, address_of(array), array.dtype, array.shape, strides, stream)


def read(device: Device, view: View, stream) -> np.ndarray:
    """Returns a copy of what the device sees through a view, in the order of the stream."""
    info = view.info
    back = device.buffer(max(info.span_bytes, 1))
    low = sum(min(stride * (size - 1), 0) for stride, size in zip(info.strides, info.shape))
    if info.span_bytes:
        start = info.device_address + low * info.dtype.itemsize
        device.copy(back.address, start, info.span_bytes, stream=stream)
    stream.synchronize()
    strides = [stride * info.dtype.itemsize for stride in info.strides]
    offset = -low * info.dtype.itemsize
    return np.ndarray(info.shape, info.dtype.numpy(), back.memoryview(), offset, strides).copy()

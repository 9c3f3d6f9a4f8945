"""NumPy arrays as parameters, a model of them, and the bytes that a device has for them."""

from __future__ import annotations

import numpy as np

from weighbridge import Device, Offloader, Parameter, View

LAYERS = 6
SHAPES = [(64, 33), (40,), (0, 3), (), (3, 5, 7)]
TRANSFER_MODES = ["zero-copy", "on-demand", "prefetch", "auto"]


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


class Model:
    """Layers of arrays, some strided, some empty, one scalar, one tied across layers."""

    def __init__(self, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        self.arrays: dict[str, np.ndarray] = {}
        for layer in range(LAYERS):
            for at, shape in enumerate(SHAPES):
                name = f"layers.{layer}.w{at}"
                self.arrays[name] = random.standard_normal(shape).astype(np.float32)
            wide = random.integers(0, 100, (10, 40)).astype(np.int16)
            self.arrays[f"layers.{layer}.strided"] = wide[:, ::3]
            self.arrays[f"layers.{layer}.turned"] = random.standard_normal((9, 17)).T
        self.arrays["layers.0.tied"] = self.arrays["layers.5.tied"] = random.standard_normal(77)

    def parameters(self, **more: dict) -> list[Parameter]:
        return [
            parameter_of(name, array, **more.get(name, {})) for name, array in self.arrays.items()
        ]


def check_step(device, offloader, arrays, stream, order=None) -> None:
    """Checks every offloaded parameter while its group is acquired."""
    groups = [group.name for group in offloader.plan.groups]
    for index in order if order is not None else range(len(groups)):
        with offloader.acquired(index, stream):
            for name, array in arrays.items():
                if name.startswith(groups[index] + ".") and array.size:
                    if offloader.parameter_info(name).placement == "offloaded":
                        seen = read(device, offloader.view(name), stream)
                        assert np.array_equal(seen, array), name

"""Where each weight lives: in host memory while the budget lasts, else on the device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from weighbridge import Device, Safetensors, View

# What GPU kernels that load 16 bytes at a time need; NumPy needs an element's own.
CUDA_ALIGNMENT = 16


@dataclass
class Held:
    """One weight and where it is."""

    group: str
    nbytes: int
    offloaded: bool
    copied: bool


@dataclass
class Placement:
    """The weights as the encoder reads them, and what is held where."""

    weights: dict[str, Any] = field(default_factory=dict)
    held: list[Held] = field(default_factory=list)
    _owned: ExitStack = field(default_factory=ExitStack)

    def by_group(self) -> dict[str, tuple[int, int, int]]:
        """Bytes (offloaded, of these copied to be aligned, on the device) of each group."""
        groups: dict[str, tuple[int, int, int]] = {}
        for held in self.held:
            offloaded, copied, resident = groups.get(held.group, (0, 0, 0))
            groups[held.group] = (
                offloaded + held.nbytes * held.offloaded,
                copied + held.nbytes * (held.offloaded and held.copied),
                resident + held.nbytes * (not held.offloaded),
            )
        return groups

    def totals(self) -> tuple[int, int, int]:
        """The sums of :meth:`by_group`."""
        offloaded, copied, resident = zip(*self.by_group().values())
        return sum(offloaded), sum(copied), sum(resident)

    def close(self) -> None:
        """Lets go of the weights and gives all memory back."""
        self.weights.clear()
        self._owned.close()


def place(
    device: Device,
    file: Safetensors,
    groups: Mapping[str, Sequence[str]],
    offload_bytes: int,
    cuda: bool,
) -> Placement:
    """Offloads weights in the groups' order, each that fits into what is left of the budget."""
    placement = Placement()
    to_device = _copy_to_cuda if cuda else _copy_to_host_device
    left = offload_bytes
    for group, names in groups.items():
        for name in names:
            alignment = CUDA_ALIGNMENT if cuda else _itemsize(file, name)
            view, copied = file.load(name, alignment=alignment)
            nbytes = view.nbytes
            offloaded = nbytes <= left
            if offloaded:
                left -= nbytes
                placement._owned.callback(view.close)
                placement.weights[name] = _tensor(view) if cuda else view.numpy()
            else:
                placement.weights[name] = to_device(device, view, placement._owned.callback)
                view.close()
            placement.held.append(Held(group, nbytes, offloaded, copied))
    return placement


def _itemsize(file: Safetensors, name: str) -> int:
    dtype = file.info(name).dtype
    return dtype.itemsize if dtype else 1


def _tensor(view: View) -> Any:
    import torch

    return torch.from_dlpack(view)


def _copy_to_cuda(_: Device, view: View, __: Callable[..., Any]) -> Any:
    resident = _tensor(view).clone()
    # The view is closed behind this: the copy must have read it.
    import torch

    torch.cuda.synchronize()
    return resident


def _copy_to_host_device(device: Device, view: View, at_close: Callable[..., Any]) -> Any:
    import ctypes

    import numpy as np

    address = device.alloc(view.nbytes)
    at_close(device.free, address)
    with device.stream() as stream:
        device.copy(address, view, stream=stream)
        stream.synchronize()
    memory = (ctypes.c_char * view.nbytes).from_address(address)
    return np.frombuffer(memory, view.numpy().dtype).reshape(view.shape)

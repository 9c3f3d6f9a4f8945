"""Acquire and release as operators that say what they change, for compiled models.

A compiler may move and drop what has no effect that it sees. These operators change a layer's input
and its output as far as it knows (in truth, not at all): what computes with the input comes behind
``acquire``, and ``release`` comes behind what computes the output.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from ._handle import OffloadHandle

_handles: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
_numbers = itertools.count(1)


def register(handle: OffloadHandle) -> int:
    """The number by which operators find a handle."""
    number = next(_numbers)
    _handles[number] = handle
    return number


def forget(number: int) -> None:
    """The handle is done."""
    _handles.pop(number, None)


@torch.library.custom_op("weighbridge::acquire", mutates_args={"tensors"})
def _acquire(tensors: Sequence[torch.Tensor], handle: int, group: int) -> None:
    _handles[handle].acquire_group(group)


@torch.library.custom_op("weighbridge::release", mutates_args={"tensors"})
def _release(tensors: Sequence[torch.Tensor], handle: int, group: int) -> None:
    _handles[handle].release_group(group)


@_acquire.register_fake
def _(tensors: Sequence[torch.Tensor], handle: int, group: int) -> None:
    return None


@_release.register_fake
def _(tensors: Sequence[torch.Tensor], handle: int, group: int) -> None:
    return None


def tensors_in(*values: Any) -> list[torch.Tensor]:
    """The tensors among arguments or results, to the depth that layers have them at."""
    found = []
    for value in values:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += tensors_in(*value)
        elif isinstance(value, dict):
            found += tensors_in(*value.values())
    return found


def acquire(inputs: list[torch.Tensor], handle: int, group: int) -> None:
    """The group's parameters are there for what computes with the inputs."""
    torch.ops.weighbridge.acquire(inputs, handle, group)


def release(outputs: list[torch.Tensor], handle: int, group: int) -> None:
    """They may be gone once the outputs are computed."""
    torch.ops.weighbridge.release(outputs, handle, group)

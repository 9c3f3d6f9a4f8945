"""Acquire and release as custom operators, for compiled models.

A compiler may move or drop an operator without visible effects. These operators claim to change a
layer's input and its output, which they do not: so computations with the input stay after
``acquire``, and ``release`` stays after the computation of the output.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Sequence
from typing import Any, Protocol

import torch


class Groups(Protocol):
    """An object whose groups the operators acquire and release on the current stream."""

    def acquire_group(self, group: int) -> None:
        """Makes the current stream wait for the group."""

    def release_group(self, group: int) -> None:
        """Declares the work queued on the current stream the last use of the group."""


_registered: weakref.WeakValueDictionary[int, Groups] = weakref.WeakValueDictionary()
_numbers = itertools.count(1)


def register(groups: Groups) -> int:
    """Returns the number by which the operators find the object."""
    number = next(_numbers)
    _registered[number] = groups
    return number


def unregister(number: int) -> None:
    """Removes an object; its operators are no longer called."""
    _registered.pop(number, None)


@torch.library.custom_op("weighbridge::acquire", mutates_args={"tensors"})
def _acquire(tensors: Sequence[torch.Tensor], handle: int, group: int) -> None:
    _registered[handle].acquire_group(group)


@torch.library.custom_op("weighbridge::release", mutates_args={"tensors"})
def _release(tensors: Sequence[torch.Tensor], handle: int, group: int) -> None:
    _registered[handle].release_group(group)


@_acquire.register_fake
def _(tensors: Sequence[torch.Tensor], handle: int, group: int) -> None:
    return None


@_release.register_fake
def _(tensors: Sequence[torch.Tensor], handle: int, group: int) -> None:
    return None


def tensors_in(*values: Any) -> list[torch.Tensor]:
    """Returns the tensors among arguments or results, at any depth of lists and dictionaries."""
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
    """Acquires a group before anything computes with the inputs."""
    torch.ops.weighbridge.acquire(inputs, handle, group)


def release(outputs: list[torch.Tensor], handle: int, group: int) -> None:
    """Releases a group after the outputs are computed."""
    torch.ops.weighbridge.release(outputs, handle, group)

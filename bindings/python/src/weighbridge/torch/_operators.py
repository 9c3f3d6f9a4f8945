"""Acquire and release as custom operators, for compiled models.

A compiled step reads its weights' memory from the results of ``acquire``, so nothing that uses
them runs earlier. ``release`` claims to change that memory, so everything that uses it runs
earlier; and to change a small tensor, ``order``, that every ``acquire`` reads, so the operators
keep their order and stay.
"""

from __future__ import annotations

import itertools
import weakref
from typing import Protocol

import torch


class Slots(Protocol):
    """An object whose groups the operators acquire and release on the current stream."""

    def acquire_group(self, group: int) -> None:
        """Makes the current stream wait for the group."""

    def release_group(self, group: int) -> None:
        """Declares the work queued on the current stream the last use of the group."""

    def slots(self, group: int) -> list[torch.Tensor]:
        """Returns the slots of the group's weights, as flat tensors."""


_registered: weakref.WeakValueDictionary[int, Slots] = weakref.WeakValueDictionary()
_numbers = itertools.count(1)


def register(slots: Slots) -> int:
    """Returns the number by which the operators find the object."""
    number = next(_numbers)
    _registered[number] = slots
    return number


def unregister(number: int) -> None:
    """Removes an object; its operators are no longer called."""
    _registered.pop(number, None)


def _of(number: int) -> Slots:
    found = _registered.get(number)
    if found is None:
        raise RuntimeError(
            "a compiled step was made for an offloaded model whose handle was removed: compile "
            "the model again"
        )
    return found


@torch.library.custom_op("weighbridge::acquire", mutates_args=())
def acquire(order: torch.Tensor, handle: int, group: int) -> list[torch.Tensor]:
    """Acquires a group and returns the slots of its weights."""
    slots = _of(handle)
    slots.acquire_group(group)
    return slots.slots(group)


@acquire.register_fake
def _(order: torch.Tensor, handle: int, group: int) -> list[torch.Tensor]:
    return [
        torch.empty(slot.numel(), dtype=slot.dtype, device=slot.device)
        for slot in _of(handle).slots(group)
    ]


@torch.library.custom_op("weighbridge::release", mutates_args=("order", "slots"))
def release(order: torch.Tensor, slots: list[torch.Tensor], handle: int, group: int) -> None:
    """Releases a group after everything that uses its slots."""
    _of(handle).release_group(group)


@release.register_fake
def _(order: torch.Tensor, slots: list[torch.Tensor], handle: int, group: int) -> None:
    return None


@torch.library.custom_op("weighbridge::check", mutates_args=())
def check(slots: list[torch.Tensor], results: list[torch.Tensor]) -> None:
    """Raises, when a compiler traces a layer, if the layer returns its slots or changes them."""


@check.register_fake
def _(slots: list[torch.Tensor], results: list[torch.Tensor]) -> None:
    own = {slot.untyped_storage()._cdata for slot in slots}
    if any(result.untyped_storage()._cdata in own for result in results):
        raise RuntimeError(
            "a layer returns its offloaded weight, or a view of it, whose device memory is about "
            "to be overwritten: exclude the weight, or run the model once before it is compiled"
        )
    if any(slot._version for slot in slots):
        raise RuntimeError(
            "a layer changes its offloaded weight in place, which compiled code cannot do: exclude "
            "the weight, or run the model once before it is compiled"
        )


def flat(slot: torch.Tensor, count: int) -> torch.Tensor:
    """Returns ``count`` bytes of a slot as a flat tensor.

    Compilers take the operators' results for memory that is free after its last use, and may give
    it to another tensor of the same size and type. Models compute with no doubles of that size.
    """
    wide = torch.float64 if count % 8 == 0 and slot.dtype.itemsize < 8 else torch.uint8
    return torch.empty(0, dtype=wide, device=slot.device).set_(
        slot.untyped_storage(), 0, (count // wide.itemsize,), (1,)
    )

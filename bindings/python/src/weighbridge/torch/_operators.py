"""Acquire and release as custom operators, for compiled models.

Compiled code reads the slots of a layer's weights from the results of ``acquire``, so nothing that
reads them runs earlier. ``release`` claims to change the slots, so what reads them runs before it.
``finish``, in between, reads the layer's arguments and results, so that no pass of a compiler moves
``release`` before them. Inductor puts computations off; those that a change of a tensor leaves no
more time for, it does after the operator that changes it: ``finish`` changes the slots for that
reason, too. ``acquire`` and ``release`` also change a small tensor, ``order``, so that groups stay
in turn. A lowering keeps Inductor from using the slots for other tensors after ``release``.

A compiler that cannot change a tensor in place gives ``release`` a copy, and may read the slot
later: ``release`` raises when it finds that.
"""

from __future__ import annotations

import functools
import itertools
import sys
import weakref
from types import FrameType
from typing import Any, Protocol

import torch
from torch.utils.weak import WeakIdKeyDictionary

from ._inductor import never_reuse_results
from ._tensors import like


class Slots(Protocol):
    """An object whose groups the operators acquire and release on the current stream."""

    def acquire_slots(self, group: int, layout: str) -> list[torch.Tensor]:
        """Makes the current stream wait for the group; returns tensors over its slots. Raises
        RuntimeError if they have another layout."""

    def release_slots(self, group: int) -> list[int]:
        """Declares the work queued on the current stream the last use of the group; returns the
        addresses of its slots."""

    def route_slots(self, group: int, layout: str, ids: torch.Tensor) -> list[torch.Tensor]:
        """Brings experts into slots on the current stream; returns the slot of each id, and tensors
        over the slots. Raises RuntimeError if these have another layout."""

    def slots(self, group: int) -> list[torch.Tensor]:
        """Returns the slots of the group's weights."""


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


@functools.cache
def acquire(count: int) -> Any:
    """Returns the operator that acquires a group and returns the slots of its ``count`` weights.

    There is one for each count, since an operator that changes a tensor may not return a list.
    """
    name = f"acquire_{count}"
    results = ", ".join(["Tensor"] * count)
    schema = f"(Tensor(a!) order, int handle, int group, str layout) -> ({results})"

    def run(order: torch.Tensor, handle: int, group: int, layout: str) -> Any:
        return _several(_of(handle).acquire_slots(group, layout))

    def fake(order: torch.Tensor, handle: int, group: int, layout: str) -> Any:
        never_reuse_results(operator)
        made = [like(slot, slot.device) for slot in _of(handle).slots(group)]
        _versions.update((slot, slot._version) for slot in made)
        return _several(made)

    made = torch.library.custom_op(
        f"weighbridge::{name}", run, mutates_args=("order",), schema=schema
    )
    made.register_fake(fake)
    operator = getattr(torch.ops.weighbridge, name).default
    return operator


@functools.cache
def route(count: int) -> Any:
    """Returns the operator that brings experts into slots, and returns the slot of each id and the
    slots of the ``count`` expert tensors."""
    name = f"route_{count}"
    results = ", ".join(["Tensor"] * (count + 1))
    schema = f"(Tensor(a!) order, Tensor ids, int handle, int group, str layout) -> ({results})"

    def run(order: torch.Tensor, ids: torch.Tensor, handle: int, group: int, layout: str) -> Any:
        return tuple(_of(handle).route_slots(group, layout, ids))

    def fake(order: torch.Tensor, ids: torch.Tensor, handle: int, group: int, layout: str) -> Any:
        never_reuse_results(operator)
        made = [like(slot, slot.device) for slot in _of(handle).slots(group)]
        _versions.update((slot, slot._version) for slot in made)
        return (ids.new_empty(ids.shape), *made)

    made = torch.library.custom_op(
        f"weighbridge::{name}", run, mutates_args=("order",), schema=schema
    )
    made.register_fake(fake)
    operator = getattr(torch.ops.weighbridge, name).default
    return operator


def _several(tensors: list[torch.Tensor]) -> Any:
    return tensors[0] if len(tensors) == 1 else tuple(tensors)


@torch.library.custom_op("weighbridge::finish", mutates_args=("slots",))
def finish(
    slots: list[torch.Tensor], results: list[torch.Tensor], arguments: list[torch.Tensor]
) -> None:
    """Computes everything that reads the slots. Raises, when a compiler traces a layer, if the
    layer returns its slots or changes them."""


@torch.library.custom_op("weighbridge::release", mutates_args=("order", "slots"))
def release(order: torch.Tensor, slots: list[torch.Tensor], handle: int, group: int) -> None:
    """Releases a group after everything that uses its slots."""
    _release(slots, handle, group)


@torch.library.custom_op("weighbridge::release_experts", mutates_args=("order",))
def release_experts(
    order: torch.Tensor,
    slots: list[torch.Tensor],
    results: list[torch.Tensor],
    arguments: list[torch.Tensor],
    handle: int,
    group: int,
) -> None:
    """:func:`finish` and :func:`release` of slots of experts, which the next call may overwrite.

    For the compiler it does not change the slots: a backend that copies what changes would read
    slots that have no memory. What reads them has become ``results``.
    """
    _release(slots, handle, group)


def _release(slots: list[torch.Tensor], handle: int, group: int) -> None:
    addresses = _of(handle).release_slots(group)
    if [slot.data_ptr() for slot in slots] != addresses and not _runs_in_program_order():
        raise RuntimeError(
            "the compiler may read a layer's offloaded weights after their device memory is "
            "overwritten. The result was discarded. Exclude the weights from which the layer "
            "computes more than its results, or do not compile it (torch.compiler.disable)"
        )


def _runs_in_program_order() -> bool:
    """Returns whether the caller runs operator by operator, in the order of the program.

    Backends without a scheduler, such as aot_eager, call an operator that changes its arguments
    through a function of PyTorch that copies them first.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__") == "torch._higher_order_ops.auto_functionalize":
            return True
        frame = frame.f_back
    return False


_versions = WeakIdKeyDictionary()
"""The version that a traced slot has if only these operators change it."""


def _count_change(slots: list[torch.Tensor]) -> None:
    for slot in slots:
        if slot in _versions:
            _versions[slot] += 1


@finish.register_fake
def _(
    slots: list[torch.Tensor], results: list[torch.Tensor], arguments: list[torch.Tensor]
) -> None:
    _count_change(slots)
    _check_layer(slots, results)


@release_experts.register_fake
def _(
    order: torch.Tensor,
    slots: list[torch.Tensor],
    results: list[torch.Tensor],
    arguments: list[torch.Tensor],
    handle: int,
    group: int,
) -> None:
    _check_layer(slots, results)


def _check_layer(slots: list[torch.Tensor], results: list[torch.Tensor]) -> None:
    own = {slot.untyped_storage()._cdata for slot in slots}
    if any(result.untyped_storage()._cdata in own for result in results):
        raise RuntimeError(
            "a layer returns its offloaded weight, or a view of it, whose device memory is about "
            "to be overwritten: exclude the weight, or run the model once before it is compiled"
        )
    if any(slot._version > _versions.get(slot, slot._version) for slot in slots):
        raise RuntimeError(
            "a layer changes its offloaded weight in place, which compiled code cannot do: exclude "
            "the weight, or run the model once before it is compiled"
        )


@release.register_fake
def _(order: torch.Tensor, slots: list[torch.Tensor], handle: int, group: int) -> None:
    _count_change(slots)

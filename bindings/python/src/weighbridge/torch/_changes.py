"""Changes of offloaded weights outside of their layers, which the offloader follows."""

from __future__ import annotations

import bisect
import sys
import warnings
from collections import Counter
from typing import TYPE_CHECKING

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ..errors import Status, WeighbridgeError, make
from ._tensors import address_of, aliases_of, copy_bytes, like, span_of
from ._weight import (
    Holder,
    Weight,
    Where,
    inner_tensors,
    is_functorch_wrapped,
    same_memory,
    version_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from ._weights import Weights


def follow(weights: Weights, some: Iterable[Weight]) -> None:
    """Takes notice of what was done to offloaded weights outside of their layers.

    A weight that uses other memory than its home, or whose place another object has taken,
    replaces the offloader's.
    """
    if not weights.placed:
        weights.follow_unfinished()
    replaced = False
    for weight in some:
        if weight.in_slot or weight.stored is None:
            continue
        if not weight.is_at_home():
            apart = weight.apart and not _is_elsewhere(weights, weight)
            replaced |= not apart or not borrowed(weights, [weight])
        elif weight.apart:
            replaced = True  # it was given its home again
        else:
            version = version_of(weight.tensor)
            if version != weight.version:
                if weight.where is Where.HOST:
                    weights.begin_step()  # copies that are in slots are out of date
                weight.version = version
        if weight.is_replaced():
            tensor = weight.tensor
            for holder in [holder for holder in weight.holders if not holder.has(tensor)]:
                replaced |= _replaced_object(weights, weight, holder)
    if replaced:
        try:
            _take_moved(weights)
        finally:
            weights.set(weights.all)


def _take_moved(weights: Weights) -> None:
    """Takes the bytes of weights that were given other memory. If that fails, they are read there,
    and taken later; but those that fixed addresses never take have the bytes of before, unless
    their objects have become more than bytes."""
    given = [w for w in _given_memory(weights) if w.home is not None and not w.apart]
    warn_of_others(given, weights.all)
    moved = separate(weights)
    lacking = borrowed(weights, moved)
    _warn_of_borrowed([weight for weight in moved if weight in lacking and not weight.apart])
    not_taken = set(moved)
    for weight in weights.all:
        weight.apart = weight in not_taken
    refused: dict[Weight, WeighbridgeError] = {}
    for weight in moved:
        if weight in lacking:
            if _is_elsewhere(weights, weight):
                _to_device(weights, weight.tensor)
        elif weight.part_of is not None:
            weight.part_of = None  # apart from now on, and resident
            weight.apart = False
            weight.place(None, None, Where.ENGINE)
        else:
            try:
                weights.replace(weight, weight.tensor)
            except WeighbridgeError as error:
                refused[weight] = error
                never = weights.plan_is_fixed and error.status == Status.NOT_SUPPORTED
                weight.apart = not (never and _is_plain(weight.tensor))
                weight.go_home()
    if refused:
        raise _refusal(refused) from next(iter(refused.values()))


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor is nothing but its bytes: packed weights have more, such as scales."""
    return type(tensor) in (torch.Tensor, torch.nn.Parameter) and not tensor.__dict__


def _refusal(refused: dict[Weight, WeighbridgeError]) -> WeighbridgeError:
    """Returns the error of weights that the offloader does not take."""
    later = [repr(weight.name) for weight in refused if weight.apart]
    never = [repr(weight.name) for weight in refused if not weight.apart]
    what = []
    if later:
        what.append(f"{_first(later)}: they are read where they are until it can")
    if never:
        what.append(
            f"{_first(never)}: they keep the bytes of before (for others call remove() "
            "first, or offload without fixed_addresses)"
        )
    first = next(iter(refused.values()))
    message = (
        f"the offloader cannot take what weights were given; {', and '.join(what)}: {first.message}"
    )
    return make(first.status, message, first.code, first.code_domain)


def _given_memory(weights: Weights) -> list[Weight]:
    return [weight for weight in weights.all if weight.has_other_memory()]


def borrowed(weights: Weights, moved: Iterable[Weight]) -> set[Weight]:
    """Returns those of the weights, which were given other memory, whose home something else uses,
    such as a ``weight.data`` of before: new bytes there would change it."""
    wholes = [weight for weight in moved if weight.part_of is None]
    if not wholes:
        return set()
    tied = set(_tied(weights, wholes))
    return tied.union(_shared(weights, [weight for weight in wholes if weight.refused is None]))


def _tied(weights: Weights, some: list[Weight]) -> Iterator[Weight]:
    """Yields those of the weights whose home is another weight's, too, or has a part that is one,
    unless that was given the same memory."""
    addresses = {weight.home_address for weight in some if weight.home is not None}
    users: dict[int, list[Weight]] = {address: [] for address in addresses}
    for user in weights.all if addresses else ():
        whole = user if user.part_of is None else user.part_of
        if whole.home is not None and whole.home_address in users:
            users[whole.home_address].append(user)
    for weight in some:
        others = users.get(weight.home_address, ())
        if weight.home is not None and not all(
            same_memory(other.tensor, weight.tensor) for other in others
        ):
            yield weight


def _shared(weights: Weights, some: Iterable[Weight]) -> Iterator[Weight]:
    """Yields those of the weights whose home, or bytes for the host, something else uses."""
    own = {id(t): t for w in weights.all for t in (w.tensor, w.home, w.stored) if t is not None}
    users = Counter(t.untyped_storage()._cdata for t in own.values() if not t.is_meta)
    for weight in some:
        places = [t for t in (weight.home, weight.stored) if t is not None]
        if any(aliases_of(t) > users[t.untyped_storage()._cdata] for t in places):
            yield weight


def _warn_of_borrowed(weights: list[Weight]) -> None:
    if weights:
        warnings.warn(
            f"{_first([repr(weight.name) for weight in weights])}: something else, such as an "
            "earlier weight.data, a state_dict() or another weight, uses the memory that the "
            "weights had. They are read where they are now, and are not offloaded, until it is "
            "dropped",
            stacklevel=2,
        )


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def separate(weights: Weights) -> list[Weight]:
    """Returns the weights that were given other memory, each of its own from now on: the home of
    another weight may get new bytes, or leave."""
    given = _given_memory(weights)
    _give_own_memory(weights, [weight.tensor for weight in given])
    return given


def separate_others(weights: Weights) -> None:
    """Gives memory of their own to parameters and buffers of the model that are in the home of a
    weight and none itself, as ``torch.nn.utils.weight_norm`` makes them of ``weight.data``."""
    if next(_shared(weights, weights.all), None) is not None:
        known = {id(weight.tensor) for weight in weights.all}
        tensors = (*weights.model.parameters(), *weights.model.buffers())
        _give_own_memory(weights, [one for one in tensors if id(one) not in known])


def _give_own_memory(weights: Weights, tensors: list[torch.Tensor]) -> None:
    """Gives memory of their own to those of the tensors that are in the home of a weight."""
    homes = [weight.home for weight in weights.all if tensors and weight.home is not None]
    spans = sorted((address_of(home), span_of(home)[1]) for home in homes)
    for tensor in tensors:
        address = 0 if tensor.is_meta else address_of(tensor)
        at = bisect.bisect(spans, (address, sys.maxsize)) - 1
        if at >= 0 and address < sum(spans[at]):
            _to_device(weights, tensor)


def _is_elsewhere(weights: Weights, weight: Weight) -> bool:
    """Whether a weight was given memory that the model's kernels do not read."""
    return weight.tensor.device.type not in (weights.device.type, "meta")


def _to_device(weights: Weights, tensor: torch.Tensor) -> None:
    """Gives a tensor memory of its own on the device, with its bytes."""
    own = like(tensor, weights.device)
    copy_bytes(tensor, own)
    tensor.data = own


def _replaced_object(weights: Weights, weight: Weight, holder: Holder) -> bool:
    """Follows another object in a weight's place; returns whether the offloader changed."""
    held = holder.held()
    if held is None or holder.outer is not None:
        return False  # moved elsewhere: the object is still the weight
    if is_functorch_wrapped(held):
        return False  # stands for the weight in a transform, such as vmap
    if is_traceable_wrapper_subclass(held):
        _add_inner(weights, weight, holder, held)
    elif len(weight.holders) > 1:
        group = _group_of(weights, holder)
        weights.untie(weight, holder)
        weights.add(holder, group, held)
    else:
        _give_up(weights, weight)
        weight.tensor = held
        if weight.home is None:
            weights.replace(weight, held)
    return True


def _group_of(weights: Weights, holder: Holder) -> str:
    """Returns the name of a weight's group."""
    return weights.offloader.plan.groups[weights.infos()[holder.name].group].name


def _give_up(weights: Weights, weight: Weight) -> None:
    """Gives a weight's object memory of its own, unless it has that, for a caller that keeps it."""
    if weight.home is not None and weight.is_at_home():
        weight.tensor.data = weights.copy_of(weight, weights.device)


def _add_inner(weights: Weights, weight: Weight, holder: Holder, outer: torch.Tensor) -> None:
    """Takes the tensors inside of a subclass that is where a weight was."""
    group = _group_of(weights, holder)
    known = {id(weight.tensor) for weight in weights.all}  # by a call that an error has ended
    for name, part in inner_tensors(holder.name, outer):
        if id(part) not in known:
            own = Holder(name, holder.path, holder.module, holder.own, outer)
            weights.add(own, group, part)
    if len(weight.holders) > 1:
        weights.untie(weight, holder)
    else:
        _give_up(weights, weight)
        weights.drop(weight)


def warn_of_others(leaving: list[Weight], weights: Iterable[Weight]) -> None:
    """Warns if something beside the weights uses memory that weights leave."""
    users: dict[int, int] = {}
    for weight in weights:
        if not weight.tensor.is_meta:
            storage = weight.tensor.untyped_storage()._cdata
            users[storage] = users.get(storage, 0) + 1
    names = [
        repr(weight.name)
        for weight in leaving
        if not weight.tensor.is_meta
        and aliases_of(weight.tensor) > users[weight.tensor.untyped_storage()._cdata]
    ]
    if names:
        warnings.warn(
            f"{_first(names)}: something else uses the memory of the weights, "
            "such as a state_dict(), a flat buffer or a view. What is changed through it from now "
            "on does not reach the offloaded weights: drop it, or change the weights themselves",
            stacklevel=2,
        )

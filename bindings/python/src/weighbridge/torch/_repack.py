"""Changes offloaded weights module by module, as quantization does."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ._changes import borrowed
from ._weight import Holder, Weight, weights_in
from ._weights import Weights


def repacked_modules(weights: Weights) -> Iterator[tuple[str, torch.nn.Module]]:
    """Yields each module with offloaded weights while its weights are on the device.

    When the next module is taken, changes of the last one go to the offloader.
    """
    for number, group in enumerate(weights.offloader.plan.groups):
        offloaded = [w for w in weights.offloaded(number) if w.home is not None and w.is_at_home()]
        if not offloaded:
            continue
        for weight in offloaded:
            weight.tensor.data = weights.copy_of(weight, weights.device)
        try:
            yield group.name, weights.modules[number]
        finally:
            inside = set(map(id, weights.model.modules()))
            try:
                _lose(weights, number, group.name, inside)
                _take(weights, number, group.name, inside)
            finally:
                _give_places(weights)


def reconcile(weights: Weights) -> None:
    """Replaces, adds and removes weights until the offloader has those of the groups' modules."""
    inside = set(map(id, weights.model.modules()))
    groups = list(enumerate(weights.offloader.plan.groups))
    try:
        for number, group in groups:
            _lose(weights, number, group.name, inside)
        for number, group in groups:
            _take(weights, number, group.name, inside)
    finally:
        _give_places(weights)


def _lose(weights: Weights, number: int, group: str, inside: set[int]) -> None:
    """Removes the weights of modules that are no longer in a group: others that are now in their
    place may have their names. ``inside`` has the ids of the model's modules."""
    found = _found(weights, number, group, inside)
    tensors = {id(one.tensor) for one in found}
    places = {(h.module, h.own) for one in found for h in one.holders if h.outer is None}
    for weight in dict.fromkeys(weights.of_group(number)):
        if id(weight.tensor) not in tensors:
            gone = [h for h in weight.holders if (h.module, h.own) not in places]
            _remove(weights, weight, number, gone)


def _found(weights: Weights, number: int, group: str, inside: set[int]) -> list[Weight]:
    """Returns the weights that a group's module has now; none if the model no longer has it."""
    module = weights.modules[number]
    if id(module) not in inside:
        return []
    others = set(map(id, weights.modules)) - {id(module)}
    return weights_in(module, group, weights.buffers, others)


def _remove(weights: Weights, weight: Weight, number: int, holders: list[Holder]) -> None:
    """Removes those names of a weight that are in a group; the weight, if it has no others."""
    info = weights.offloader.parameter_info
    gone = [holder for holder in holders if info(holder.name).group == number]
    if len(gone) == len(weight.holders):
        if weight.home is not None and weight.part_of is None and weight.is_at_home():
            # Something else may use the tensor, whose memory gets other bytes.
            weight.tensor.data = weights.copy_of(weight, torch.device("cpu"))
        weights.drop(weight)
        return
    for holder in gone:
        weights.untie(weight, holder)


def _take(weights: Weights, number: int, group: str, inside: set[int]) -> None:
    """Replaces, adds and removes a group's weights until the offloader has the module's.

    A weight has changed if it does not use the offloader's memory.
    """
    known = {id(weight.tensor): weight for weight in weights.all}
    left = set(weights.all)
    before = [one for one in dict.fromkeys(weights.of_group(number)) if one in left]
    lacking = borrowed(weights, [weight for weight in before if weight.has_other_memory()])
    placed = {(h.module, h.own): (w, h) for w in before for h in w.holders if h.outer is None}
    kept = set()
    for found in _found(weights, number, group, inside):
        weight, holder = known.get(id(found.tensor)), found.holders[0]
        if weight is None:
            place = holder
            if holder.outer is None:  # else it is inside of what took the place
                weight, place = placed.get((holder.module, holder.own), (None, holder))
            if weight is not None and len(weight.holders) > 1:  # no longer tied to the others
                weights.untie(weight, place)
                weight = None
            if weight is None:
                weight = weights.add(holder, group, found.tensor)
            else:
                weight.tensor = found.tensor
                weights.replace(weight, found.tensor)
        elif weight.has_other_memory() and weight.part_of is None and weight not in lacking:
            weights.replace(weight, weight.tensor)
        kept.add(weight)
    for weight in before:
        if weight not in kept:
            _remove(weights, weight, number, list(weight.holders))


def _give_places(weights: Weights) -> None:
    """Gives weights their places after a change."""
    weights.placed = False
    try:
        weights.offloader.compact(weights.stream())
    finally:
        weights.set(weights.all)

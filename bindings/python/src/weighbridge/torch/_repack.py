"""Changes offloaded weights module by module, as quantization does."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ._changes import borrowed
from ._weight import weights_in
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
            try:
                _take(weights, number, group.name)
            finally:
                _give_places(weights)


def reconcile(weights: Weights) -> None:
    """Replaces, adds and removes weights until the offloader has those of the groups' modules."""
    try:
        for number, group in enumerate(weights.offloader.plan.groups):
            _take(weights, number, group.name)
    finally:
        _give_places(weights)


def _take(weights: Weights, number: int, group: str) -> None:
    """Replaces, adds and removes a group's weights until the offloader has the module's.

    A weight has changed if it does not use the offloader's memory.
    """
    module = weights.modules[number]
    others = set(map(id, weights.modules)) - {id(module)}
    known = {id(weight.tensor): weight for weight in weights.all}
    before = weights.of_group(number)
    lacking = borrowed(weights, [weight for weight in before if weight.has_other_memory()])
    placed = {(h.module, h.own): (w, h) for w in before for h in w.holders if h.outer is None}
    kept = set()
    for found in weights_in(module, group, weights.buffers, others):
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
            weights.drop(weight)


def _give_places(weights: Weights) -> None:
    """Gives weights their places after a change."""
    weights.placed = False
    try:
        weights.offloader.compact(weights.stream())
    finally:
        weights.set(weights.all)

"""Changes offloaded weights module by module, as quantization does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch

from ..plan import PlanGroupInfo
from ._groups import group_of_each
from ._tensors import address_of, like, put
from ._weights import Weights


def repacked_modules(
    weights: Weights, groups: Literal["auto"] | Sequence[str]
) -> Iterator[tuple[str, torch.nn.Module]]:
    """Yields each module with offloaded weights while its weights are on the device.

    ``groups`` are the modules that were named as groups. When the next module is taken, changes of
    the last one go to the offloader.
    """
    for number, group in enumerate(weights.offloader.plan.groups):
        inside = {name: info for name, info in weights.infos().items() if info.group == number}
        offloaded = [name for name, info in inside.items() if info.placement == "offloaded"]
        if not offloaded:
            continue
        for name in offloaded:
            stored = weights.stored(name)
            fresh = like(stored, weights.device)
            fresh.copy_(stored)
            put(*weights.module_of(name), fresh)
        try:
            yield group.name, weights.model.get_submodule(group.name)
        finally:
            _commit(weights, groups, group, list(inside))


def _commit(
    weights: Weights,
    groups: Literal["auto"] | Sequence[str],
    group: PlanGroupInfo,
    before: list[str],
) -> None:
    """Replaces, adds and removes a group's weights until the offloader has the module's.

    A weight has changed if it does not use the offloader's memory.
    """
    group_of = group_of_each(weights.model, groups, [name for name, _ in weights.named()])
    now = {name: weight for name, weight in weights.named() if group_of[name] == group.name}
    offloader = weights.offloader
    for name in before:
        if name not in now:
            offloader.remove(name, weights.stream())
    for name, weight in now.items():
        if name not in before:
            weights.add(name, group.name, weight)
        elif address_of(weight) != offloader.parameter_info(name).device_address:
            weights.replace(name, weight)
        info = offloader.parameter_info(name)
        if info.placement == "offloaded" and info.device_address is not None:
            weights.point_at_device(name)
    offloader.compact(weights.stream())

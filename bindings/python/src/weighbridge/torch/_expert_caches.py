"""Makes the caches of a model's experts, within the device memory that the plan has for them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from ..experts import ExpertCache, ExpertParameter
from ..offloader import Offloader
from ..plan import Plan
from ._expert_window import ExpertWindow, Pool
from ._experts import FusedExperts
from ._tensors import typed

if TYPE_CHECKING:
    from ._weights import Weights

MOST_SLOTS = 992
"""Of a cache: PyTorch multiplies fewer than 1024 groups of rows at once, and a slot is a group;
vLLM sorts rows by fewer than 1024 experts in whole warps."""
FEW_SLOTS = 256
"""As many, and those of two layers, are given to one cache: groups without rows cost time, too."""


Shared = tuple[Pool, list[FusedExperts]]
"""A pool, and the layers that share it."""


def make_pools(
    offloader: Offloader, plan: Plan, experts: Sequence[FusedExperts]
) -> Iterator[Shared]:
    """Yields a pool for each cache of the experts that the plan offloads."""
    planned = {parameter.name: parameter for parameter in plan.parameters}
    of_kind: dict[object, list[FusedExperts]] = {}
    for one in experts:
        if all(planned[name].placement == "offloaded" for name in one.names):
            of_kind.setdefault(one.kind, []).append(one)
    totals = {kind: sum(map(_bytes, layers)) for kind, layers in of_kind.items()}
    for kind, layers in of_kind.items():
        share = plan.info.expert_bytes * totals[kind] // sum(totals.values())
        for part in _parts(layers, share, plan.fixed_addresses):
            part_share = share * sum(map(_bytes, part)) // totals[kind]
            yield _pool(offloader, part, part_share), part


def make_windows(weights: Weights, plan: Plan, pools: Iterable[Shared]) -> dict[int, ExpertWindow]:
    """Returns windows of the layers of pools by number. These follow the numbers of the plan's
    groups."""
    windows: dict[int, ExpertWindow] = {}
    for pool, layers in pools:
        for layer, one in enumerate(layers):
            held = [weight for name in one.names if (weight := weights.named(name))]
            number = len(plan.groups) + len(windows)
            windows[number] = ExpertWindow(weights, number, one, held, pool, layer)
    return windows


def _parts(
    layers: list[FusedExperts], share: int, fixed_addresses: bool
) -> list[list[FusedExperts]]:
    """Divides layers among caches: as few as have slots for their share of the memory. With fixed
    addresses tensors of slots are for all experts, whatever the share."""
    slots = sum(map(_experts, layers))
    if not fixed_addresses:
        slots = min(share // _expert_bytes(layers[0]), slots)
    count = min(max(-(-slots // _most_slots(layers)), 1), len(layers))
    bounds = [at * len(layers) // count for at in range(count + 1)]
    return [layers[first:last] for first, last in zip(bounds, bounds[1:])]


def _pool(offloader: Offloader, layers: Sequence[FusedExperts], share: int) -> Pool:
    tensors = [
        ExpertParameter(layer, own, name)
        for layer, one in enumerate(layers)
        for own, name in zip(one.tensors, one.names)
    ]
    most = _most_slots(layers)
    fits = share // _expert_bytes(layers[0]) <= most
    slots, device_bytes = (0, share) if fits else (min(most, sum(map(_experts, layers))), 0)
    cache = ExpertCache.for_offloader(offloader, tensors, slots=slots, device_bytes=device_bytes)
    pool = [
        typed(layers[0].tensor(own), cache.view(index))
        for index, own in enumerate(layers[0].tensors)
    ]
    return Pool(cache, pool)


def _most_slots(layers: Sequence[FusedExperts]) -> int:
    return min(MOST_SLOTS, max(FEW_SLOTS, 2 * max(map(_experts, layers))))


def _experts(one: FusedExperts) -> int:
    return int(one.tensor(one.tensors[0]).shape[0])


def _bytes(one: FusedExperts) -> int:
    held = map(one.tensor, one.tensors)
    return sum(tensor.numel() * tensor.dtype.itemsize for tensor in held)


def _expert_bytes(one: FusedExperts) -> int:
    return max(_bytes(one) // _experts(one), 1)


def experts_of(tensors: Sequence[FusedExperts]) -> set[int]:
    """Returns the ids of the expert tensors."""
    return {id(one.tensor(own)) for one in tensors for own in one.tensors}


def check_kept(windows: Sequence[ExpertWindow]) -> None:
    """Raises RuntimeError if compiled code has kept slots."""
    for window in windows:
        if window.compiled.kept():
            window.refuse("kept")


def close(windows: Sequence[ExpertWindow], device: torch.device) -> None:
    """Closes the caches, once the work on the device has ended."""
    if windows and device.type == "cuda":
        torch.cuda.synchronize(device)
    for window in windows:
        window.pool.cache.close()

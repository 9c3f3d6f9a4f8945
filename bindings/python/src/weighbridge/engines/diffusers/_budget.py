"""Divides a budget of device memory among models that run one after another.

Each model keeps its memory while the others run. So a byte is worth the time that it saves in a
call of the pipeline: the model that denoises runs many times, and usually gets what the others can
do without. The time is what the plans of :class:`weighbridge.Plan` predict.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from ...errors import Status, WeighbridgeError, make
from ...plan import PlanInfo

SIXTEENTHS = (0.5, 1, 2, 3, 4, 6, 8, 10, 12, 14)
"""Of what a model has beyond slots for two groups: the budgets that are tried."""


FINENESS = 1 << 14
"""Parts of the budget by which divisions differ."""


class Point(NamedTuple):
    """What a model needs, and how long it runs in a call of the pipeline."""

    nbytes: int
    seconds: float


class Component(NamedTuple):
    """A model of a pipeline."""

    nbytes: int
    """Of its weights."""
    runs: float
    """How often it runs in a call of the pipeline."""
    plan: Callable[..., PlanInfo]
    """Plans its offload under a budget, as options of :class:`weighbridge.Plan`."""


def divide(
    device_bytes: int, components: Mapping[str, Component], whole: Mapping[str, int]
) -> dict[str, int]:
    """Returns the budget of each model; fails with ``Status.BUDGET`` if they do not fit.

    A budget of at least a model's bytes means that it is not offloaded. ``whole`` are the bytes of
    others that stay on the device.
    """
    asked, device_bytes = device_bytes, device_bytes - sum(whole.values())
    curves = {name: _curve(component) for name, component in components.items()}
    if sum(curve[0].nbytes for curve in curves.values()) > device_bytes:
        # Without slots for a group weights are read in place, which takes longest.
        for name, component in components.items():
            curves[name].insert(0, _smallest(component, curves[name][0].nbytes))
    smallest = {name: curve[0].nbytes for name, curve in curves.items()}
    needed = sum(smallest.values()) + sum(whole.values())
    if needed > asked:
        each = ", ".join(f"{name} {nbytes}" for name, nbytes in {**smallest, **whole}.items())
        raise make(
            Status.BUDGET,
            f"asked to run the pipeline in {asked} bytes of device memory; its models need "
            f"{needed} at least ({each}): give more device_bytes",
        )
    found = dict(zip(curves, _fastest(device_bytes, list(curves.values()))))
    partly = [name for name in found if found[name] < components[name].nbytes]
    if partly:  # what is left is less than a step between two points
        often = max(partly, key=lambda name: components[name].runs)
        found[often] += device_bytes - sum(found.values())
    return found


def _fastest(device_bytes: int, curves: Sequence[Sequence[Point]]) -> tuple[int, ...]:
    """Returns the bytes of a point of each curve: with the least time of those that fit."""
    # By bytes: what takes less time than all that needs fewer bytes, and its points.
    front: list[tuple[int, float, tuple[int, ...]]] = [(0, 0.0, ())]
    for at, curve in enumerate(curves):
        others = sum(later[0].nbytes for later in curves[at + 1 :])
        longer = sorted(
            (nbytes + point.nbytes, seconds + point.seconds, (*chosen, point.nbytes))
            for nbytes, seconds, chosen in front
            for point in curve
            if nbytes + point.nbytes + others <= device_bytes
        )
        front, bucket = [], -1
        for one in longer:
            if front and one[1] >= front[-1][1]:
                continue
            if one[0] * FINENESS // device_bytes == bucket:
                continue  # nearly the same bytes
            bucket = one[0] * FINENESS // device_bytes
            front.append(one)
    return front[-1][2]


def _curve(component: Component) -> list[Point]:
    """Returns the time of a model for some budgets, the smallest first."""
    found = [
        _point(component, component.plan(offload_bytes=1 << 62, depth=depth)) for depth in (1, 2)
    ]
    floor = found[-1].nbytes
    for part in SIXTEENTHS:
        asked = floor + int((component.nbytes - floor) * part / 16)
        if floor < asked < component.nbytes:
            found.append(_point(component, component.plan(device_bytes=asked)))
    whole = component.plan(device_bytes=component.nbytes)
    found = [point for point in found if point.nbytes < component.nbytes]
    return [*found, Point(component.nbytes, component.runs * whole.kernel_seconds)]


def _point(component: Component, info: PlanInfo) -> Point:
    # A ring of one group takes turns with the kernels, which may take as long as its copies.
    seconds = info.step_seconds * (2 if info.depth == 1 and info.ring_bytes else 1)
    return Point(info.resident_bytes + info.slot_bytes, component.runs * seconds)


def _smallest(component: Component, high: int) -> Point:
    """Returns about the fewest bytes that a model can run in."""
    low, found = 0, None
    while found is None or high - low > max(component.nbytes >> 6, 4096):
        middle = high if found is None else (low + high) // 2
        try:
            found = component.plan(device_bytes=middle)
            high = middle
        except WeighbridgeError as error:
            if error.status not in (Status.BUDGET, Status.SLOTS_BUDGET) or found is None:
                raise
            low = middle
    return Point(high, _point(component, found).seconds)

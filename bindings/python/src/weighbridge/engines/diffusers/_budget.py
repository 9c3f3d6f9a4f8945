"""Divides a budget of device memory among models that run one after another.

Each model keeps its memory while the others run. So a byte is worth the time that it saves in a
call of the pipeline: the model that denoises runs many times, and usually gets what the others can
do without. The time is what the plans of :class:`weighbridge.Plan` predict.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from ...errors import Status, WeighbridgeError, make
from ...plan import PlanInfo

SIXTEENTHS = (0.25, 0.5, 1, 1.5, 2, 3, 4, 6, 8, 10, 12, 14)
"""Of what a model has beyond the least that it needs: the budgets that are tried, beside both."""


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
    plan: Callable[[int], PlanInfo]
    """Plans its offload for a budget of device memory."""


def divide(device_bytes: int, components: Mapping[str, Component]) -> dict[str, int]:
    """Returns the budget of each model; fails with ``Status.BUDGET`` if they do not fit.

    A budget of at least a model's bytes means that it is not offloaded.
    """
    curves = {name: _curve(component) for name, component in components.items()}
    given = {name: curve[0] for name, curve in curves.items()}
    left = device_bytes - sum(point.nbytes for point in given.values())
    if left < 0:
        smallest = ", ".join(f"{name} {point.nbytes}" for name, point in given.items())
        raise make(
            Status.BUDGET,
            f"asked to run the pipeline in {device_bytes} bytes of device memory; its models need "
            f"{device_bytes - left} at least ({smallest}): give more device_bytes",
        )
    while True:
        best, gain = None, 0.0
        for name, curve in curves.items():
            now = given[name]
            for point in curve:
                more = point.nbytes - now.nbytes
                if 0 < more <= left and (now.seconds - point.seconds) / more > gain:
                    best, gain = (name, point), (now.seconds - point.seconds) / more
        if best is None:
            break
        name, point = best
        left -= point.nbytes - given[name].nbytes
        given[name] = point
    found = {name: point.nbytes for name, point in given.items()}
    partly = [name for name in found if found[name] < components[name].nbytes]
    if partly:  # what is left is less than a step between two points
        found[max(partly, key=lambda name: components[name].runs)] += left
    return found


def _curve(component: Component) -> list[Point]:
    """Returns the time of a model for some budgets, the smallest first."""
    floor = _smallest(component)
    span = component.nbytes - floor
    found = []
    for asked in sorted({floor, *(floor + int(span * part / 16) for part in SIXTEENTHS)}):
        if asked < component.nbytes:
            info = component.plan(asked)
            used = min(asked, info.resident_bytes + info.slot_bytes)
            found.append(Point(used, component.runs * _seconds(info)))
    whole = component.plan(component.nbytes)
    found.append(Point(component.nbytes, component.runs * whole.kernel_seconds))
    return found


def _smallest(component: Component) -> int:
    """Returns about the fewest bytes that a model can run in."""
    low, high = 0, component.nbytes
    while high - low > max(component.nbytes >> 6, 4096):
        middle = (low + high) // 2
        try:
            component.plan(middle)
            high = middle
        except WeighbridgeError as error:
            if error.status not in (Status.BUDGET, Status.SLOTS_BUDGET):
                raise
            low = middle
    return high


def _seconds(info: PlanInfo) -> float:
    # A ring of one group takes turns with the kernels, which may take as long as its copies.
    return info.step_seconds * (2 if info.depth == 1 and info.ring_bytes else 1)

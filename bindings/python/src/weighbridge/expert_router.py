"""What caches of experts would find, predicted from how often a router picks each expert.

For engines that know the frequencies of their router, by calibration or from counters, and have no
trace. A file of frequencies is JSON: ``{"weighbridge": "expert frequencies", "version": 1,
"frequencies": [[0.4, 0.1, ...], ...]}``, of each layer the part of the steps that use an expert.
"""

from __future__ import annotations

import heapq
import json
import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from .expert_trace import ExpertTrace, HitRates, replay
from .plan import Plan

KIND = "expert frequencies"
VERSION = 1
_NEVER = 1 << 40


@dataclass(frozen=True)
class ExpertRouter:
    """Of each layer, the part of the steps that use an expert, from 0 to 1.

    Its predictions are those of a router that draws the experts of each step independently of the
    steps before: one that repeats itself more than its frequencies say finds more.
    """

    frequencies: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        for layer, given in enumerate(self.frequencies):
            wrong = [one for one in given if not 0 <= one <= 1]
            if wrong or not given:
                found = wrong[0] if wrong else "missing"
                raise ValueError(
                    f"a frequency of layer {layer} is {found}; each expert of it needs one, "
                    "the part of the steps that use the expert, from 0 to 1"
                )
        if not any(map(any, self.frequencies)):
            raise ValueError("no expert has a frequency above 0: nothing can be predicted")

    @classmethod
    def of_trace(cls, trace: ExpertTrace) -> ExpertRouter:
        """Returns the frequencies of a trace."""
        uses = Counter((call.layer, expert) for call in trace.calls for expert in call.experts)
        calls = Counter(call.layer for call in trace.calls)
        return cls(
            tuple(
                tuple(uses[layer, expert] / max(calls[layer], 1) for expert in range(count))
                for layer, count in enumerate(trace.experts)
            )
        )

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> ExpertRouter:
        """Reads a file of frequencies; raises ValueError for any other."""
        with open(path, encoding="utf-8") as file:
            try:
                found = json.load(file)
            except ValueError:
                raise ValueError(f"{os.fspath(path)} is not JSON") from None
        kind = found.get("weighbridge") if isinstance(found, dict) else None
        if kind != KIND or found.get("version") != VERSION:
            raise ValueError(
                f'{os.fspath(path)} does not begin with {{"weighbridge": "{KIND}", "version": '
                f"{VERSION}, ..."
            )
        layers = found.get("frequencies")
        if not isinstance(layers, list) or not all(map(_are_numbers, layers)):
            raise ValueError(f"{os.fspath(path)}: frequencies is not a list of numbers a layer")
        return cls(tuple(map(tuple, layers)))

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes the frequencies to a file."""
        found = {"weighbridge": KIND, "version": VERSION, "frequencies": self.frequencies}
        with open(path, "w", encoding="utf-8") as file:
            json.dump(found, file)

    @property
    def total(self) -> int:
        """The number of experts of all layers."""
        return sum(map(len, self.frequencies))

    def predict(self, slots: int) -> HitRates:
        """Predicts what a cache with these slots finds, all layers sharing them, once it is full.

        Least recently used: an expert that is used again after some steps is still in its slot if
        the experts that were used meanwhile, of all layers, are no more than the slots. Their
        number is taken as normally distributed.
        """
        if slots < 1:
            raise ValueError(f"asked for {slots} slots; a cache has at least one")
        uses = [one for layer in self.frequencies for one in layer]
        kept = _kept(self.frequencies, slots)
        layers = [
            (sum(_found(one, of) for one in layer), sum(layer))
            for layer, of in zip(self.frequencies, kept)
        ]
        found, total = (sum(one) for one in zip(*layers))
        best = sum(heapq.nlargest(slots, uses)) / total
        return HitRates(
            slots=slots,
            lru=found / total,
            frequency=best,
            optimum=best,  # of what does not know which experts follow
            lru_layers=tuple(hits / max(of, 1e-300) for hits, of in layers),
            lru_misses=total - found,
        )


def predict_for(plan: Plan, source: ExpertRouter | ExpertTrace) -> HitRates:
    """Predicts what the caches of a plan find of what a router is known to pick.

    ``source`` has all experts that the plan offloads; the plan's own prediction,
    ``plan.info.expert_hit_rate``, is that of a router of which nothing is known.
    """
    slots = round(plan.info.expert_hit_rate * source.total)
    if slots == 0:
        raise ValueError(
            "the plan has no device memory for caches of experts: give it parameters with the "
            'access pattern "experts" and device_bytes or expert_bytes'
        )
    return replay(source, slots) if isinstance(source, ExpertTrace) else source.predict(slots)


def step_seconds(
    rates: HitRates, resident_seconds: float, expert_bytes: float, view_bytes_per_second: float
) -> float:
    """Predicts a step: its time with all experts on the device, and that of gathering what the
    slots lack, as :meth:`Device.measure_link` measures the link."""
    return resident_seconds + rates.lru_misses * expert_bytes / view_bytes_per_second


def _found(use: float, kept: Sequence[tuple[int, int, float]]) -> float:
    """Returns the uses in a step that find the expert in a slot."""
    parts = (chance * ((1 - use) ** first - (1 - use) ** end) for first, end, chance in kept)
    return use * sum(parts)


def _kept(layers: Sequence[Sequence[float]], slots: int) -> list[list[tuple[int, int, float]]]:
    """Returns, for each layer, ranges of steps, from 0, in which an expert is not used, and how
    probable it is that it still has its slot when it is used in the step behind them."""
    uses = [one for layer in layers for one in layer if one > 0]
    if slots >= len(uses):
        return [[(0, _NEVER, 1.0)]] * len(layers)
    kept: list[list[tuple[int, int, float]]] = [[] for _ in layers]
    first = 0
    while first < _NEVER:
        end = max(first + 1, first * 21 // 20)
        used = [1 - (1 - one) ** (first + 1) for one in uses]
        spread = math.sqrt(sum(part * (1 - part) for part in used))
        chances = []
        total = sum(used)
        for layer, found in zip(layers, kept):
            # Half of the experts of its last call, if not used since, leave before it.
            before = sum(one * (1 - one) ** first for one in layer) / 2
            chance = _normal((slots + before - total) / max(spread, 1e-9))
            found.append((first, end, chance))
            chances.append(chance)
        if max(chances) < 1e-6:
            break
        first = end
    return kept


def _normal(deviations: float) -> float:
    """Returns how probable it is that a normal number is below some standard deviations."""
    return (1 + math.erf(deviations / math.sqrt(2))) / 2


def _are_numbers(layer: object) -> bool:
    return isinstance(layer, list) and all(isinstance(one, (int, float)) for one in layer)

"""Traces of routings: which experts each layer used in each step, and what a cache makes of it.

A trace is a text file, compressed if its name ends in ``.gz``. The first line is a JSON object
with the number of experts of each layer: ``{"weighbridge": "expert trace", "version": 1,
"experts": [128, 128]}``. Each further line is a call: ``[step, layer, [ids]]``, in the order of
the calls.
"""

from __future__ import annotations

import gzip
import heapq
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

KIND = "expert trace"
VERSION = 1

Expert = tuple[int, int]
"""A layer, and the number of one of its experts."""


class Call(NamedTuple):
    """The experts that a layer used in a step."""

    step: int
    layer: int
    experts: tuple[int, ...]
    """Each once, in ascending order."""


@dataclass
class ExpertTrace:
    """Calls in their order, and the number of experts of each layer.

    It is its own recorder: an engine calls :meth:`record` after each router.
    """

    experts: tuple[int, ...]
    calls: list[Call] = field(default_factory=list)

    def record(self, layer: int, ids: Any, step: int | None = None) -> None:
        """Adds a call. ``ids`` are numbers, or an array or tensor of them, of any shape.

        Ids without an expert, such as -1 for padding, are left out. A step begins, unless it is
        named, with a layer that does not follow the one before it.
        """
        if not 0 <= layer < len(self.experts):
            raise ValueError(f"layer {layer} is not one of the {len(self.experts)} of the trace")
        last = self.calls[-1] if self.calls else None
        if step is None:
            step = 0 if last is None else last.step + (layer <= last.layer)
        numbers = {number for number in _numbers(ids) if 0 <= number < self.experts[layer]}
        self.calls.append(Call(step, layer, tuple(sorted(numbers))))

    @property
    def total(self) -> int:
        """The number of experts of all layers."""
        return sum(self.experts)

    @property
    def steps(self) -> int:
        """The number of steps."""
        return len({call.step for call in self.calls})

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes the trace to a file."""
        head = {"weighbridge": KIND, "version": VERSION, "experts": list(self.experts)}
        with _open(path, "wt") as file:
            for line in (head, *self.calls):
                file.write(json.dumps(line, separators=(",", ":")) + "\n")

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> ExpertTrace:
        """Reads a trace from a file; raises ValueError, which names the line, for any other."""
        with _open(path, "rt") as file:
            return cls._parse(file, os.fspath(path))

    @classmethod
    def _parse(cls, lines: Iterable[str], name: str) -> ExpertTrace:
        trace: ExpertTrace | None = None
        for number, line in enumerate(lines, 1):
            where = f"{name}, line {number}"
            try:
                found = json.loads(line)
            except (ValueError, RecursionError):
                raise ValueError(f"{where} is not JSON: is it a trace?") from None
            if trace is None:
                trace = cls(_head(found, where))
                continue
            step, layer, ids = _call(found, where)
            if trace.calls and step < trace.calls[-1].step:
                raise ValueError(f"{where}: step {step} follows step {trace.calls[-1].step}")
            if not 0 <= layer < len(trace.experts):
                raise ValueError(f"{where}: layer {layer}; the trace has {len(trace.experts)}")
            wrong = [one for one in ids if not 0 <= one < trace.experts[layer]]
            if wrong:
                most = trace.experts[layer]
                raise ValueError(f"{where}: expert {wrong[0]}; layer {layer} has {most}")
            trace.calls.append(Call(step, layer, tuple(sorted(set(ids)))))
        if trace is None:
            raise ValueError(f"{name} is empty: it is not a trace")
        return trace


@dataclass(frozen=True)
class HitRates:
    """The part of experts that calls find in slots, by how slots are given.

    Calls before the first evictions, which find empty slots, count as well.
    """

    slots: int
    lru: float
    """Least recently used, as the cache does it, slot for slot."""
    frequency: float
    """The experts that the trace uses most often stay in the slots for good."""
    optimum: float
    """Belady's: what is used again latest leaves. No cache does better that keeps what it read."""
    lru_layers: tuple[float, ...]
    """Of each layer, least recently used."""
    lru_misses: float
    """Experts that a step has to gather, least recently used."""


def replay(trace: ExpertTrace, slots: int) -> HitRates:
    """Replays a trace with a number of slots, all layers sharing them."""
    widest = max((len(call.experts) for call in trace.calls), default=0)
    if slots < max(widest, 1):
        raise ValueError(f"{slots} slots do not hold the {widest} experts that a call uses")
    hits, counts = Counter[int](), Counter[int]()
    for call, found in zip(trace.calls, lru_hits(trace, slots)):
        hits[call.layer] += found
        counts[call.layer] += len(call.experts)
    total = max(sum(counts.values()), 1)
    uses = Counter((call.layer, expert) for call in trace.calls for expert in call.experts)
    return HitRates(
        slots=slots,
        lru=sum(hits.values()) / total,
        frequency=sum(count for _, count in uses.most_common(slots)) / total,
        optimum=_optimum(trace, slots) / total,
        lru_misses=(sum(counts.values()) - sum(hits.values())) / max(trace.steps, 1),
        lru_layers=tuple(hits[at] / max(counts[at], 1) for at in range(len(trace.experts))),
    )


def lru_hits(trace: ExpertTrace, slots: int) -> Iterator[int]:
    """Yields the hits of each call of a cache that evicts the least recently used experts."""
    # Slots in the order in which they are taken: by their last call, and by number within one.
    order: dict[int, Expert | None] = dict.fromkeys(range(slots))
    slot_of: dict[Expert, int] = {}
    for call in trace.calls:
        needed = [(call.layer, expert) for expert in call.experts]
        used = {slot_of[one]: one for one in needed if one in slot_of}
        hits = len(used)
        for slot in used:
            del order[slot]
        absent = [one for one in needed if one not in slot_of]
        victims = sorted(slot for slot, _ in zip(order, absent))
        for slot, one in zip(victims, absent):
            evicted = order.pop(slot)
            if evicted is not None:
                del slot_of[evicted]
            slot_of[one], used[slot] = slot, one
        order.update(sorted(used.items()))
        yield hits


def _optimum(trace: ExpertTrace, slots: int) -> int:
    """The hits of a cache that evicts what is used again latest, never what a call needs."""
    never = len(trace.calls)
    following: list[dict[int, int]] = [{} for _ in trace.calls]
    last: dict[Expert, int] = {}
    for at in range(never - 1, -1, -1):
        call = trace.calls[at]
        for expert in call.experts:
            following[at][expert] = last.get((call.layer, expert), never)
            last[call.layer, expert] = at
    hits = 0
    held: dict[Expert, int] = {}
    queue: list[tuple[int, Expert]] = []  # by next use, the latest first; some entries are outdated
    for at, call in enumerate(trace.calls):
        needed = {(call.layer, expert) for expert in call.experts}
        absent = needed - held.keys()
        hits += len(needed) - len(absent)
        kept = []
        while len(held) + len(absent) > slots:
            use, one = heapq.heappop(queue)
            if held.get(one) != -use:
                continue
            if one in needed:
                kept.append((use, one))
            else:
                del held[one]
        for entry in kept:
            heapq.heappush(queue, entry)
        for one in needed:
            held[one] = following[at][one[1]]
            heapq.heappush(queue, (-held[one], one))
    return hits


def _open(path: str | os.PathLike[str], mode: str) -> Any:
    if os.fspath(path).endswith(".gz"):
        return gzip.open(path, mode, encoding="utf-8")
    return open(path, mode, encoding="utf-8")


def _numbers(ids: Any) -> Iterator[int]:
    """Returns the numbers of an array, a tensor or nested sequences."""
    given = ids.tolist() if hasattr(ids, "tolist") else ids
    if isinstance(given, Sequence) or isinstance(given, (set, frozenset)):
        for one in given:
            yield from _numbers(one)
    else:
        yield int(given)


def _head(found: Any, where: str) -> tuple[int, ...]:
    if not isinstance(found, dict) or found.get("weighbridge") != KIND:
        raise ValueError(f'{where} is not the head of a trace: {{"weighbridge": "{KIND}", ...}}')
    if found.get("version") != VERSION:
        raise ValueError(f"{where}: version {found.get('version')!r} of the format; known is 1")
    experts = found.get("experts")
    if not isinstance(experts, list) or not experts or not all(map(_is_count, experts)):
        raise ValueError(f"{where}: experts is {experts!r}; it must be a number for each layer")
    return tuple(experts)


def _call(found: Any, where: str) -> tuple[int, int, list[int]]:
    if isinstance(found, list) and len(found) == 3 and isinstance(found[2], list):
        step, layer, ids = found
        if all(isinstance(one, int) for one in (step, layer, *ids)):
            return step, layer, ids
    raise ValueError(f"{where} is not a call: [step, layer, [ids]]")


def _is_count(number: Any) -> bool:
    return isinstance(number, int) and number > 0

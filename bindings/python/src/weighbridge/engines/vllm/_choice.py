"""Which weights of each layer leave the device, decided when the layer has been built."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...torch._staged import Candidate, pages
from ._options import Options

_SMALL = 1 << 16
"""Weights of fewer bytes, such as norms, stay: what they free is not worth a copy."""


class Spread:
    """Offloads as many bytes of each layer, up to a budget for all of them."""

    def __init__(self, options: Options, budget_bytes: int, layers: int) -> None:
        self._options = options
        self._budget = budget_bytes
        self._layers = layers
        self._seen: set[int] = set()
        self._used = 0

    def choose(self, layer: int, candidates: Sequence[Candidate]) -> Sequence[int]:
        """Chooses the sparse ones first, then the largest, up to the layer's share."""
        self._seen.add(layer)
        share = self._budget * min(len(self._seen), self._layers) // max(self._layers, 1)
        chosen = []
        order = sorted(
            range(len(candidates)),
            key=lambda at: (not candidates[at].sparse, -candidates[at].bytes),
        )
        for at in order:
            name, count, _ = candidates[at]
            small = count < _SMALL and not self._options.select
            if self._options.selects(name) and not small and self._used + pages(count) <= share:
                self._used += pages(count)
                chosen.append(at)
        return chosen

    def grow(self, layer: int, more_bytes: int) -> bool:
        """Takes bytes from the budget, or returns some."""
        more = pages(more_bytes)
        if self._used + more > self._budget:
            return False
        self._used += more
        return True


class Planned:
    """Offloads the weights of each layer that a plan of layers without bytes names."""

    def __init__(self, names: Mapping[int, set[str]]) -> None:
        self._names = names
        self._free: dict[int, int] = {}
        """The bytes of planned weights of a layer that have gone."""

    def choose(self, layer: int, candidates: Sequence[Candidate]) -> Sequence[int]:
        """Chooses planned weights, and those with new names in the place of planned ones."""
        chosen = []
        for at, (name, count, _) in enumerate(candidates):
            if name in self._names.get(layer, ()):
                chosen.append(at)
            elif _SMALL <= count <= self._free.get(layer, 0):
                self._free[layer] -= count
                chosen.append(at)
        return chosen

    def grow(self, layer: int, more_bytes: int) -> bool:
        """Only device memory is limited."""
        self._free[layer] = self._free.get(layer, 0) - min(more_bytes, 0)
        return True


class LastOfGroup:
    """Offloads the last layers in each group of layers, as vLLM's options for prefetching say."""

    def __init__(self, options: Options) -> None:
        self._options = options

    def choose(self, layer: int, candidates: Sequence[Candidate]) -> Sequence[int]:
        """Chooses all selected weights of such a layer."""
        size, last = self._options.group_size, self._options.num_in_group
        if layer % size < size - last:
            return []
        return [at for at, found in enumerate(candidates) if self._options.selects(found.name)]

    def grow(self, layer: int, more_bytes: int) -> bool:
        """There is no budget."""
        return True

"""Which weights of each layer leave the device, decided when the layer has been built."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch

from .._enums import AccessPattern
from ..torch._staged import Candidate, pages
from ._options import LayerOptions

_SMALL = 1 << 16
"""Weights of fewer bytes, such as norms, stay: what they free is not worth a copy."""


class Spread:
    """Offloads as many bytes of each layer, up to a budget for all of them."""

    def __init__(self, options: LayerOptions, budget_bytes: int, layers: int) -> None:
        self._options = options
        self._budget = budget_bytes
        self._layers = layers
        self._seen: set[int] = set()
        self._used = 0

    def choose(self, layer: int, candidates: Sequence[Candidate]) -> Sequence[int]:
        """Chooses the sparse ones first, then the largest, up to the layer's share. Those of an
        expert cache, which carries whole experts, leave together, or the share is the next one's.
        """
        self._seen.add(layer)
        share = self._budget * min(len(self._seen), self._layers) // max(self._layers, 1)
        order = sorted(
            (at for at, found in enumerate(candidates) if self._options.selects(found.name)),
            key=lambda at: (candidates[at].pattern == "dense", -candidates[at].bytes),
        )
        experts = [at for at in order if candidates[at].pattern == "experts"]
        of_experts = sum(pages(candidates[at].bytes) for at in experts)
        if self._used + of_experts > share:
            return []
        self._used += of_experts
        chosen = experts.copy()
        for at in order:
            count = candidates[at].bytes
            small = count < _SMALL and not self._options.select
            if at not in experts and not small and self._used + pages(count) <= share:
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

    def __init__(self, options: LayerOptions, names: Mapping[int, set[str]]) -> None:
        self._options = options
        self._names = names
        self._free: dict[int, int] = {}
        """The bytes of planned weights of a layer that have gone."""

    def choose(self, layer: int, candidates: Sequence[Candidate]) -> Sequence[int]:
        """Chooses planned weights, all of an expert cache, and those with new names in the place of
        planned ones."""
        chosen = []
        for at, (name, count, pattern) in enumerate(candidates):
            of_experts = pattern == "experts" and self._options.selects(name)
            if of_experts or name in self._names.get(layer, ()):
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
    """Offloads the last layers in each group of layers, as engines' options for prefetching say."""

    def __init__(self, options: LayerOptions) -> None:
        self._options = options
        self.named: dict[int, Collection[str]] = {}
        """The names of the weights that may leave, of the layers for which the model gives them."""

    def choose(self, layer: int, candidates: Sequence[Candidate]) -> Sequence[int]:
        """Chooses all selected weights of such a layer."""
        size, last = self._options.group_size, self._options.num_in_group
        if layer % size < size - last:
            return []
        return [
            at
            for at, found in enumerate(candidates)
            if self._options.selects(found.name)
            and (layer not in self.named or found.name in self.named[layer])
        ]

    def grow(self, layer: int, more_bytes: int) -> bool:
        """There is no budget."""
        return True


def pattern_of(module: torch.nn.Module, own: str) -> AccessPattern:
    """Returns how much of a parameter a step reads: of the matrices of fused experts, a part."""
    tensor = module._parameters.get(own)
    sparse = tensor is not None and tensor.dim() == 3 and own.startswith(("w13_", "w2_"))
    return "sparse" if sparse else "dense"

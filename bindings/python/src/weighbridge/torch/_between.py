"""Layers whose weights enter and leave their slots in calls that split a compiled model.

An engine that compiles a model in pieces splits it at operators that it does not trace, such as
attention. What runs inside of such a call runs between two pieces, whether they are compiled,
captured or neither. So a layer's weights change places there, and the pieces stay those of the
engine: the same code, and as many of them.

A piece has the end of one layer and the begin of the next. So each layer has two groups: the
weights before its calls and those behind them. One that is read outside of its group's time is read
at home, which is slower and gives the same result.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ._hooked import RunningLayers
from ._weights import Weights


@dataclass(frozen=True)
class Call:
    """A method of an object, by which a layer leaves compiled code."""

    owner: Any
    name: str


@dataclass(frozen=True)
class Split:
    """A layer and where it is split."""

    before: str
    """The name of the group of the weights that are used before the first call ends."""
    behind: str
    """The name of that of the other weights."""
    calls: Sequence[Call]
    """In the order of a step; one at least."""


class SplitLayers(RunningLayers):
    """The layers of a model that are split by calls, in the order of a step."""

    def __init__(self, weights: Weights, layers: Sequence[Split]) -> None:
        self._numbers: dict[str, int] = {}
        super().__init__(weights)
        self._layers = layers
        self._wrapped: list[Call] = []
        for at, layer in enumerate(layers):
            for call in layer.calls:
                self._wrap(at, call, call is layer.calls[0], call is layer.calls[-1])

    def add(self, group: int) -> None:
        """Takes notice of a group with weights that have slots."""
        self._numbers[self.weights.offloader.plan.groups[group].name] = group

    def begin(self) -> None:
        """Puts what precedes the first call into the slots."""
        self._only([])
        self._open_named(self._layers[0].before)

    def end(self) -> None:
        """Takes home what follows the last call."""
        self._only([])

    def close(self) -> None:
        """Restores the methods. The weights stay at home."""
        for call in self._wrapped:
            call.owner.__dict__.pop(call.name, None)
        self._wrapped.clear()
        super().close()

    def _wrap(self, at: int, call: Call, first: bool, last: bool) -> None:
        layer = self._layers[at]
        following = self._layers[at + 1].before if at + 1 < len(self._layers) else None
        run = getattr(call.owner, call.name)

        @functools.wraps(run)
        def run_between(*args: Any, **kwargs: Any) -> Any:
            if first:
                self._only([layer.before])
            result = run(*args, **kwargs)
            if last:
                self._only([] if first else [layer.behind])
            if first:
                self._open_named(layer.behind)
            if last and following is not None:
                self._open_named(following)
            return result

        call.owner.__dict__[call.name] = run_between
        self._wrapped.append(call)

    def _only(self, names: Sequence[str]) -> None:
        """Takes home the weights of all groups but these."""
        kept = {self._numbers.get(name) for name in names}
        for group in [group for group in self._open if group not in kept]:
            self.leave(group)

    def _open_named(self, name: str) -> None:
        group = self._numbers.get(name)
        if group is not None and group not in self._open:
            self.enter(group)

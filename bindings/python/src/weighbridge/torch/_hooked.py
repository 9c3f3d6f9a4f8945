"""Layers that run in windows by hooks, for engines that compile a model without guards.

Such an engine traces a layer once, and runs code of its own in between, which reads weights by
their modules. So the weights' own tensors use the slots from the operator that acquires a layer's
group until the one that releases it, for every reader: compiled code, an opaque operator, or a
capture. Outside of that they use their homes, which always have the true bytes.

The operators claim to change the layer's input and its results, so compilers keep the layer between
them. An engine that splits a traced model names them among the operators that split it: then they
are neither compiled nor captured in pieces.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Iterable
from typing import Any

import torch

from ..errors import WeighbridgeError
from ._weights import Weights

OPERATORS = ("weighbridge::enter_layer", "weighbridge::leave_layer")

_hooked: weakref.WeakValueDictionary[int, HookedLayers] = weakref.WeakValueDictionary()


@torch.library.custom_op("weighbridge::enter_layer", mutates_args=("tensors",))
def enter_layer(tensors: list[torch.Tensor], handle: int, group: int) -> None:
    """Puts a layer's weights into their slots, before anything that reads ``tensors``."""
    _of(handle).enter(group)


@torch.library.custom_op("weighbridge::leave_layer", mutates_args=("tensors",))
def leave_layer(tensors: list[torch.Tensor], handle: int, group: int) -> None:
    """Takes a layer's weights home, after everything that computes ``tensors``."""
    _of(handle).leave(group)


@enter_layer.register_fake
@leave_layer.register_fake
def _(tensors: list[torch.Tensor], handle: int, group: int) -> None:
    """Computes nothing."""


def _of(handle: int) -> HookedLayers:
    found = _hooked.get(handle)
    if found is None:
        raise RuntimeError(
            "a compiled step was made for an offloaded model that is closed: load the model again"
        )
    return found


class RunningLayers:
    """The layers of a model whose weights are in their slots while they run.

    A subclass says when a group's weights enter their slots, and when they leave them.
    """

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self._open: list[int] = []
        self._steps: list[Any] = []
        self._hooks: list[Any] = []
        self._abandoned = False
        """Whether a failed capture has left groups that could not be released in it."""
        self.groups: list[str] = []
        """The numbers and names of the groups that enter their slots."""
        for group, window in sorted(weights.windows.items()):
            if window.uses:
                self.groups.append(f"{group}:{weights.offloader.plan.groups[group].name}")
                self.add(group)
        model = weights.model
        self._hooks.append(model.register_forward_pre_hook(self._begin))
        self._hooks.append(model.register_forward_hook(self._end, always_call=True))

    def add(self, group: int) -> None:
        """Takes notice of a group with weights that have slots."""

    def begin(self) -> None:
        """Called before the model's forward."""

    def end(self) -> None:
        """Called after it, unless it has failed."""

    def enter(self, group: int) -> None:
        """Acquires a group on the current stream, and puts its weights into the slots."""
        weights = self.weights
        if not weights.is_capturing():
            if self._abandoned:
                self._reset()
            weights.follow(weights.offloaded(group))
        weights.acquire_group(group)
        self._open.append(group)
        for use in weights.windows[group].uses:
            use.weight.in_slot += 1
            use.weight.tensor.data = use.slot

    def leave(self, group: int) -> None:
        """Takes the weights of a group home, and releases it."""
        self._open.remove(group)
        self._take_home(group)
        self.weights.release_group(group)

    def join(self) -> None:
        """Makes the current stream wait for every copy, at the end of a capture."""
        self.weights.offloader.join(self.weights.stream())

    def close(self) -> None:
        """Removes the hooks. The weights stay at home."""
        self._abandon()
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _begin(self, module: torch.nn.Module, args: Any) -> None:
        if self._steps and self.weights.turns.runs == threading.get_ident():
            # An interrupt, which hooks do not see, has ended the forward before.
            self._end(module, args, None)
        step = self.weights.step()
        step.__enter__()
        self._steps.append(step)
        if not self.weights.is_capturing():
            self.weights.follow_experts()
        self.begin()

    def _end(self, _module: torch.nn.Module, _args: Any, result: Any) -> None:
        """Called after the model's forward, also if it has raised: without a result then."""
        if result is not None:
            self.end()
        if self._open:
            self._abandon()
        if self._steps:
            self._steps.pop().__exit__(None, None, None)

    def _abandon(self) -> None:
        """Ends windows that an exception has left open."""
        left, self._open = self._open, []
        for group in reversed(left):
            self._take_home(group)
        if left and self.weights.is_capturing():
            self._abandoned = True
            for group in left:
                with contextlib.suppress(WeighbridgeError):  # as the capture may have failed
                    self.weights.release_group(group)
        elif left:
            self._reset()

    def _reset(self) -> None:
        self._abandoned = False
        self.weights.offloader.reset_all(self.weights.stream())

    def _take_home(self, group: int) -> None:
        for use in self.weights.windows[group].uses:
            use.weight.in_slot -= 1
            if not use.weight.in_slot:
                use.weight.go_home()


class HookedLayers(RunningLayers):
    """The layers of a model that acquire their groups by hooks."""

    def __init__(self, weights: Weights) -> None:
        self.handle = weights.number
        """By which the operators find this; compiled code contains it."""
        super().__init__(weights)
        _hooked[self.handle] = self

    def add(self, group: int) -> None:
        """Hooks the module of a group."""
        module, handle = self.weights.modules[group], self.handle

        def before(_module: torch.nn.Module, args: Any, kwargs: Any) -> None:
            if torch.compiler.is_compiling():
                inputs = _floating([*args, *kwargs.values()])[:1]
                torch.ops.weighbridge.enter_layer(inputs, handle, group)
            else:
                self.enter(group)

        def after(_module: torch.nn.Module, _args: Any, result: Any) -> None:
            if torch.compiler.is_compiling():
                torch.ops.weighbridge.leave_layer(_floating([result]), handle, group)
            else:
                self.leave(group)

        self._hooks.append(module.register_forward_pre_hook(before, with_kwargs=True))
        self._hooks.append(module.register_forward_hook(after))

    def close(self) -> None:
        """Removes the hooks. The weights stay at home."""
        super().close()
        _hooked.pop(self.handle, None)


def _floating(values: Iterable[Any]) -> list[torch.Tensor]:
    """Returns the tensors of floating-point numbers: others, such as positions, are shared by all
    layers, and a change of them would be copied."""
    found = []
    for value in values:
        if isinstance(value, torch.Tensor):
            if value.is_floating_point():
                found.append(value)
        elif isinstance(value, (list, tuple)):
            found += _floating(value)
    return found

"""The forward of a group's module as compilers trace it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Callable

import torch

from . import _operators
from ._tensors import span_of, tensors_in

if TYPE_CHECKING:
    from ._window import Use


def _is_exporting() -> bool:
    """Returns whether torch.export traces. Dynamo takes ``torch.compiler.is_exporting()`` for true
    in PyTorch 2.11 also when it compiles."""
    return bool(getattr(torch.compiler, "_is_exporting_flag", False))


class CompiledWindow:
    """What compiled code needs of a window: constants, and where its weights go."""

    def __init__(
        self, module: torch.nn.Module, handle: int, group: int, order: torch.Tensor
    ) -> None:
        self.module = module
        self.handle = handle
        self.group = group
        self.order = order
        self.slots: list[torch.Tensor] = []
        self.places: list[Any] = []

    def set(self, uses: Sequence[Use]) -> None:
        """Takes the weights of the window. Those inside of tensor subclasses stay at home."""
        self.slots, self.places = [], []
        for use in uses:
            slot = use.slot
            holders = [
                h for h in use.weight.holders if h.outer is None and h.has(use.weight.tensor)
            ]
            if holders:
                self.slots.append(_operators.flat(slot, span_of(slot)[1]))
                layout = slot.dtype, tuple(slot.shape), tuple(slot.stride())
                self.places.append((*layout, [(h.module, h.own, h.is_buffer()) for h in holders]))

    def run(self, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Calls the module's forward with the weights in the slot; for a compiler to trace."""
        if not self.places or _is_exporting() or self._needs_gradient(args, kwargs):
            return forward(*args, **kwargs)
        slots = torch.ops.weighbridge.acquire(self.order, self.handle, self.group)
        replaced = []
        for slot, (dtype, shape, strides, holders) in zip(slots, self.places):
            weight = slot.view(dtype).as_strided(shape, strides)
            for module, own, is_buffer in holders:
                held = module._buffers if is_buffer else module._parameters
                replaced.append((module, own, is_buffer, held[own]))
                held[own] = weight
        result = forward(*args, **kwargs)
        for module, own, is_buffer, weight in replaced:
            held = module._buffers if is_buffer else module._parameters
            held[own] = weight
        torch.ops.weighbridge.check(slots, list(tensors_in(result)))
        torch.ops.weighbridge.release(self.order, slots, self.handle, self.group)
        return result

    def _needs_gradient(self, args: Any, kwargs: Any) -> bool:
        """Returns whether a backward pass will read the weights again."""
        if not torch.is_grad_enabled():
            return False
        tensors = (*self.module.parameters(), *tensors_in(args, kwargs))
        return any(tensor.requires_grad for tensor in tensors)

"""The forward of a group's module as compilers trace it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Callable

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode

from . import _operators
from ._tensors import aliases_of, tensors_in

if TYPE_CHECKING:
    from ._weight import Weight
    from ._window import Use


def is_exporting() -> bool:
    """Returns whether torch.export traces. Dynamo takes ``torch.compiler.is_exporting()`` for true
    in PyTorch 2.11 also when it compiles."""
    return bool(getattr(torch.compiler, "_is_exporting_flag", False))


def is_recording() -> bool:
    """Returns whether something records operations, or computes with other tensors in the place of
    weights: what it sees of the weights must be their own tensors, at home."""
    return torch.jit.is_tracing() or _get_current_dispatch_mode() is not None


class CompiledWindow:
    """What compiled code needs of a window: constants, and where its weights go."""

    def __init__(
        self, module: torch.nn.Module, handle: int, group: int, order: torch.Tensor
    ) -> None:
        self.module = module
        self.handle = handle
        self.group = group
        self.order = order
        self.acquire: Any = None
        self.slots: list[torch.Tensor] = []
        self.holders: list[list[tuple[torch.nn.Module, str, bool]]] = []
        self.addresses: list[int] = []
        self.layout = ""
        """Of the slots. Compilers guard it, so code for other weights is not used again."""
        self.weights: list[Weight] = []
        self._aliases: list[int] = []

    def set(self, uses: Sequence[Use]) -> None:
        """Takes the weights of the window. Those inside of tensor subclasses stay at home."""
        self.slots, self.holders, self.weights = [], [], []
        for use in uses:
            holders = [
                h for h in use.weight.holders if h.outer is None and h.has(use.weight.tensor)
            ]
            if holders:
                self.slots.append(use.traced)
                self.weights.append(use.weight)
                self.holders.append([(h.module, h.own, h.is_buffer()) for h in holders])
        if self.slots:
            self.acquire = _operators.acquire(len(self.slots))
        self.layout = str([(t.dtype, tuple(t.shape), t.stride()) for t in self.slots])
        self.addresses = [slot.data_ptr() for slot in self.slots]
        self._aliases = [aliases_of(slot) for slot in self.slots]

    def kept(self) -> list[Weight]:
        """Returns the weights whose slots something still uses after the forward."""
        counts = zip(self.weights, self.slots, self._aliases)
        return [weight for weight, slot, count in counts if aliases_of(slot) > count]

    def run(self, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Calls the module's forward with the weights in the slot; for a compiler to trace."""
        if not self.slots or is_exporting() or self.needs_gradient(args, kwargs):
            return forward(*args, **kwargs)
        acquired = self.acquire(self.order, self.handle, self.group, self.layout)
        slots = [acquired] if isinstance(acquired, torch.Tensor) else list(acquired)
        replaced = []
        for slot, holders in zip(slots, self.holders):
            for module, own, is_buffer in holders:
                held: Any = module._buffers if is_buffer else module._parameters
                replaced.append((module, own, is_buffer, held[own]))
                held[own] = slot
        result = forward(*args, **kwargs)
        for module, own, is_buffer, weight in replaced:
            held = module._buffers if is_buffer else module._parameters
            held[own] = weight
        arguments = list(tensors_in(args, kwargs))
        torch.ops.weighbridge.finish(slots, list(tensors_in(result)), arguments)
        torch.ops.weighbridge.release(self.order, slots, self.handle, self.group)
        return result

    def needs_gradient(self, args: Any, kwargs: Any) -> bool:
        """Returns whether a backward pass will read the weights again."""
        if not torch.is_grad_enabled():
            return False
        tensors = (*self.module.parameters(), *tensors_in(args, kwargs))
        return any(tensor.requires_grad for tensor in tensors)

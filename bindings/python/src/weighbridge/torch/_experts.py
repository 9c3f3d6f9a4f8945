"""Finds the fused experts of a model: modules of transformers that have the weights of all experts
of a layer as tensors ``[experts, ...]``, and get the numbers of those to use as a tensor.

Only modules whose code is known are taken: others may do anything with their weights. That code is
transformers' own, of its ``use_experts_implementation``. A module's forward is the function that
its configuration names: ``grouped_mm`` and ``batched_mm``, which compute the same whatever the
experts' numbers are, or the forward of the class itself, which takes experts one after another in
the order of their numbers.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

FUNCTIONS = ("grouped_mm", "batched_mm")
"""Implementations that compute the same whatever numbers experts have."""
_PACKAGE = "transformers."
_INTEGRATION = "transformers.integrations.moe"


@dataclass(frozen=True, eq=False)
class FusedExperts:
    """A module of fused experts, which is found before it is offloaded."""

    path: str
    """The module's name in the model."""
    module: torch.nn.Module
    tensors: tuple[str, ...]
    """The names of its expert tensors."""
    ids: str
    """The name of the argument, the second, that has the numbers of the experts."""
    functions: frozenset[str]
    """Those of ``FUNCTIONS`` that are transformers' own."""

    @property
    def names(self) -> list[str]:
        """The names of the tensors in the model."""
        return [f"{self.path}.{own}" if self.path else own for own in self.tensors]

    @property
    def kind(self) -> tuple[Any, ...]:
        """What layers have in common that share the slots of a cache."""
        held = (self.module._parameters[own] for own in self.tensors)
        return tuple(
            (own, tensor.dtype, tuple(tensor.shape[1:]))
            for own, tensor in zip(self.tensors, held)
            if tensor is not None
        )

    def tensor(self, own: str) -> torch.Tensor:
        """Returns one of the expert tensors."""
        found = self.module._parameters[own]
        assert found is not None
        return found


def fused_experts(model: torch.nn.Module) -> Iterator[FusedExperts]:
    """Yields the modules of fused experts of a model."""
    for path, module in model.named_modules():
        found = _fused(path, module)
        if found is not None:
            yield found


def _fused(path: str, module: torch.nn.Module) -> FusedExperts | None:
    kind = type(module)
    forward = kind.forward
    inside = inspect.getclosurevars(forward).nonlocals if hasattr(forward, "__wrapped__") else {}
    interface, original = inside.get("experts_interface"), inside.get("original_forward")
    if interface is None or original is None or not kind.__module__.startswith(_PACKAGE):
        return None
    if getattr(original, "__module__", "") != kind.__module__:
        return None
    experts = getattr(module, "num_experts", None)
    if not isinstance(experts, int):
        return None
    held = {own: tensor for own, tensor in module._parameters.items() if tensor is not None}
    takes = list(inspect.signature(original).parameters)  # self, hidden states, ids, weights
    if not any(tensor.ndim == 3 for tensor in held.values()) or len(takes) < 3:
        return None
    for tensor in held.values():
        if type(tensor) is not torch.nn.Parameter or tensor.ndim < 2 or tensor.shape[0] != experts:
            return None
        if not tensor[0].is_contiguous():
            return None
    own = {name for name in FUNCTIONS if _is_of_transformers(interface.get(name))}
    return FusedExperts(path, module, tuple(held), takes[2], frozenset(own))


def is_expert_parallel(module: Any) -> bool:
    """Returns whether a module has only some of its layer's experts: numbers beyond those have a
    meaning then. Releases of transformers before 5.20 note it as a plan of the module."""
    plan = getattr(module, "_hf_tp_plan", None)
    return bool(getattr(module, "_is_expert_parallel", False)) or bool(plan)


def _is_of_transformers(function: Any) -> bool:
    return getattr(function, "__module__", None) == _INTEGRATION

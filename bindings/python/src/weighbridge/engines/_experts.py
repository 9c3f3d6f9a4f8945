"""What an engine's plug-in knows of fused experts that expert caches carry."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

import torch

from ..torch._experts import FusedExperts
from ..torch._weights import Weights


class CachedExperts(Protocol):
    """The fused experts of an engine's model that expert caches carry."""

    device_bytes: int
    """What the caches may take; 0 is what a budget of device memory leaves."""

    def has(self, module: torch.nn.Module, own: str) -> bool:
        """Returns whether a cache carries a module's parameter, as far as that is known."""

    def decide(self, model: torch.nn.Module) -> None:
        """Decides it for all, once the model is loaded."""

    def fused(self, names: Collection[str]) -> Sequence[FusedExperts]:
        """Returns the experts whose tensors are all among the names of offloaded parameters."""

    def attach(self, weights: Weights) -> None:
        """Has the modules run on the slots of the caches."""

    def detach(self) -> None:
        """Restores the modules."""

"""Caches of diffusers, which know blocks by their classes, for offloaded models."""

from __future__ import annotations

import functools
from typing import Any

import torch

Registry: Any = None
try:
    from diffusers.hooks import _helpers
except ImportError:  # a version without it looks classes up in another way
    pass
else:
    Registry = getattr(_helpers, "TransformerBlockRegistry", None)


def let_caches_be_enabled(model: torch.nn.Module) -> None:
    """Makes ``enable_cache`` of an offloaded model know the classes that its blocks have now."""
    made: Any = type(model)
    original = getattr(made, "enable_cache", None)
    if Registry is None or original is None:
        return

    @functools.wraps(original)
    def enable_cache(self: torch.nn.Module, config: Any) -> None:
        added = _register(self)
        try:
            original(self, config)
        finally:  # a registered class would never be freed
            for kind in added:
                Registry._registry.pop(kind, None)

    made.enable_cache = enable_cache


def _register(model: torch.nn.Module) -> list[type]:
    """Registers the classes of offloaded blocks like those that they are made from."""
    Registry._register()  # diffusers fills it when it is first asked
    kinds = dict.fromkeys(type(module) for module in model.modules())
    added = []
    for kind in kinds:
        base = next((one for one in kind.__mro__ if one in Registry._registry), None)
        if base is not None and base is not kind:
            Registry._registry[kind] = Registry._registry[base]
            added.append(kind)
    return added

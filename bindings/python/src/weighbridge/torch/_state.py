"""Saves and loads a module whose weights are offloaded."""

from __future__ import annotations

from typing import Any

import torch

from ._tensors import address_of, put, weight_of
from ._weights import Weights


def state_dict_hooks(weights: Weights, name: str) -> list[Any]:
    """Registers hooks for a weight: saving reads its backing store, loading replaces it."""
    module, own = weights.module_of(name)

    def save(_module: torch.nn.Module, state: dict[str, Any], prefix: str, _meta: Any) -> None:
        if prefix + own in state:
            state[prefix + own] = weights.stored(name)

    def before_load(_module: torch.nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
        if state.get(prefix + own) is None:
            return
        if weights.device.type == "cuda":
            torch.cuda.synchronize(weights.device)
        weights.offloader.reset(weights.stream())
        put(module, own, weights.stored(name))

    def after_load(_module: torch.nn.Module, _keys: Any) -> None:
        weight = weight_of(module, own)
        if address_of(weight) == weights.offloader.parameter_info(name).host_address:
            weights.replace(name, weight)
            weights.point_at_device(name)

    return [
        module.register_state_dict_post_hook(save),
        module.register_load_state_dict_pre_hook(before_load),
        module.register_load_state_dict_post_hook(after_load),
    ]

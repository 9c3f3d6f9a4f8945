"""Saves and loads a model whose weights are offloaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable, NoReturn

import torch

if TYPE_CHECKING:
    from ._weight import Holder, Weight
    from ._weights import Weights


class _Hook:
    """A hook of a module, which is therefore not pickled while it is offloaded."""

    def __init__(self, function: Callable[..., None]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> None:
        self._function(*args)

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise RuntimeError(
            "asked to pickle a part of an offloaded model: save its state_dict(), or call the "
            "handle's remove() first"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> _Hook:
        return self


def state_hooks(weights: Weights) -> list[Any]:
    """Registers hooks: saving reads the backing store, loading is followed at once."""
    hooks: list[Any] = []
    for weight in weights.all:
        for holder in weight.holders:
            if weight.stored is not None and holder.outer is None:
                hooks += _hooks_of(weights, weight, holder)

    def after_load(module: torch.nn.Module, _keys: Any) -> None:
        weights.follow_within(module)

    for module in {weights.model, *weights.modules}:
        hooks.append(module.register_load_state_dict_post_hook(_Hook(after_load)))
    return hooks


def _hooks_of(weights: Weights, weight: Weight, holder: Holder) -> list[Any]:
    module, own = holder.module, holder.own

    def save(_module: torch.nn.Module, state: dict[str, Any], prefix: str, _meta: Any) -> None:
        """Gives the bytes at home, for the host if they are there, so that saving needs no device
        memory, and is right while another thread runs the layer."""
        saved = state.get(prefix + own)
        if not isinstance(saved, torch.Tensor) or type(saved) is not torch.Tensor:
            return  # another class may have attributes, which views lack
        if weight.stored is not None:
            if weight.is_place_of(saved) and saved is not weight.tensor:
                state[prefix + own] = weights.shown(weight)

    def before_load(_module: torch.nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
        """Quantizes to FP8 a full-precision value for a weight in FP8, as ``replace`` does."""
        given = state.get(prefix + own)
        if given is not None and weight.closed and weight.is_at_home():
            # Memory to load to, from which the offloader takes the bytes when the layer is loaded.
            weight.tensor.data = weights.copy_of(weight, weights.device)
        scale = weights.named(weights.scales.get(holder.name, ""))
        if given is None or scale is None:
            return
        if given.dtype.itemsize > 1 and given.is_floating_point():
            weights.replace(weight, given)
            weights.set(weights.all)
            state[prefix + own] = weight.tensor
            state[prefix + scale.holders[0].own] = scale.tensor

    return [
        module.register_state_dict_post_hook(_Hook(save)),
        module.register_load_state_dict_pre_hook(_Hook(before_load)),
    ]

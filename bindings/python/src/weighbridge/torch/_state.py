"""Saving and loading a module whose weights are elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ._tensors import address_of, put, tensor_of, weight_of

if TYPE_CHECKING:
    from ._handle import OffloadHandle


def state_dict_hooks(
    handle: OffloadHandle, module: torch.nn.Module, own: str, name: str
) -> list[Any]:
    """Saving gives the true weight, and a load writes it where it is kept."""

    def save(_module: torch.nn.Module, state: dict[str, Any], prefix: str, _meta: Any) -> None:
        if prefix + own in state:
            state[prefix + own] = handle.true_weight(name)

    def before_load(_module: torch.nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
        given = state.get(prefix + own)
        if given is None:
            return
        if handle.torch_device.type == "cuda":
            torch.cuda.synchronize(handle.torch_device)
        handle._offloader.reset(handle._stream())
        put(module, own, handle.true_weight(name))

    def after_load(_module: torch.nn.Module, _keys: Any) -> None:
        parameter = weight_of(module, own)
        if address_of(parameter) == handle._offloader.info(name).host_address:
            handle._write(name, parameter)
            put(module, own, tensor_of(handle._offloader.view(name)))

    return [
        module.register_state_dict_post_hook(save),
        module.register_load_state_dict_pre_hook(before_load),
        module.register_load_state_dict_post_hook(after_load),
    ]

"""Tensors over memory of the library."""

from __future__ import annotations

from typing import Any, Optional

import torch

from ..dtypes import Dtype
from ..view import View

_DTYPES = {
    name: getattr(torch, attribute)
    for name, attribute in {
        "float8_e4m3fn": "float8_e4m3fn",
        "float8_e5m2": "float8_e5m2",
        "float8_e8m0fnu": "float8_e8m0fnu",
        "bfloat16": "bfloat16",
    }.items()
    if hasattr(torch, attribute)
}


# Weights that were replaced as objects, by the old one's id and where the new one is: the old one,
# so that no other gets its id, and the new one.
Shared = Optional[dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]]]


def dtype_of(tensor: torch.Tensor) -> Dtype:
    """The type of a tensor's elements; TypeError for one that the library has not."""
    return Dtype.of(str(tensor.dtype).rpartition(".")[2])


def tensor_of(view: View) -> torch.Tensor:
    """The tensor over a view's memory, without a copy; it keeps the memory."""
    return torch.from_dlpack(view)


def address_of(tensor: torch.Tensor) -> int:
    """The address of the first element; 0 for a tensor without memory."""
    return 0 if tensor.is_meta else tensor.data_ptr()


def like(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the same type, shape and strides on a device, without its bytes."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)


def weights_of(model: torch.nn.Module, buffers: bool) -> list[tuple[str, torch.Tensor]]:
    """The parameters of a module, and its buffers if they are asked for, by all their names."""
    found: list[tuple[str, torch.Tensor]] = list(model.named_parameters(remove_duplicate=False))
    return found + (list(model.named_buffers(remove_duplicate=False)) if buffers else [])


def weight_of(module: torch.nn.Module, name: str) -> Any:
    """A module's own parameter or buffer."""
    parameter = module._parameters.get(name)
    return module._buffers[name] if parameter is None else parameter


def put(module: torch.nn.Module, name: str, tensor: torch.Tensor, shared: Shared = None) -> Any:
    """Let a module's weight be over other memory, as the same object where that can be.

    Where it cannot, the new object goes into ``shared`` under the old one, so that whoever shares
    the old one is given the same.
    """
    weight = weight_of(module, name)
    if not weight.is_meta and weight.dtype == tensor.dtype:
        weight.data = tensor
        return weight
    key = (id(weight), tensor.data_ptr())
    _, made = (shared or {}).get(key, (None, None))
    if made is None:
        is_parameter = isinstance(weight, torch.nn.Parameter)
        made = torch.nn.Parameter(tensor, requires_grad=False) if is_parameter else tensor
        if shared is not None:
            shared[key] = (weight, made)
    held: dict[str, Any] = module._parameters if name in module._parameters else module._buffers
    held[name] = made
    return made

"""Tensors over memory of the library, and the weights of modules."""

from __future__ import annotations

from typing import Any, Optional

import torch

from ..dtypes import Dtype
from ..memory import View

# New weight objects by the id of the old object and the address of the new one: the old object, so
# that its id stays unique, and the new one.
Shared = Optional[dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]]]


def dtype_of(tensor: torch.Tensor) -> Dtype:
    """Returns the element type of a tensor; raises ValueError if the library lacks it."""
    return Dtype.of(str(tensor.dtype).rpartition(".")[2])


def tensor_of(view: View) -> torch.Tensor:
    """Returns a tensor over a view's memory, without a copy; it keeps the memory alive."""
    return torch.from_dlpack(view)


def address_of(tensor: torch.Tensor) -> int:
    """Returns the address of the first element; 0 for a tensor on the meta device."""
    return 0 if tensor.is_meta else tensor.data_ptr()


def like(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Returns an uninitialized tensor of the same type, shape and strides on a device."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)


def weights_of(model: torch.nn.Module, buffers: bool) -> list[tuple[str, torch.Tensor]]:
    """Returns the parameters of a module by all their names, with its buffers if asked."""
    found: list[tuple[str, torch.Tensor]] = list(model.named_parameters(remove_duplicate=False))
    return found + (list(model.named_buffers(remove_duplicate=False)) if buffers else [])


def weight_of(module: torch.nn.Module, name: str) -> Any:
    """Returns a module's own parameter or buffer."""
    parameter = module._parameters.get(name)
    return module._buffers[name] if parameter is None else parameter


def put(module: torch.nn.Module, name: str, tensor: torch.Tensor, shared: Shared = None) -> Any:
    """Makes a module's weight use other memory, as the same object if possible.

    Otherwise the new object is stored in ``shared`` under the old one, so that other modules that
    share the old object get the same new one.
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

"""Tensors over memory of the library."""

from __future__ import annotations

from typing import Any

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


def put(module: torch.nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Let a module's parameter be over other memory, as the same object where that can be."""
    parameter: Any = module._parameters[name]
    if parameter.is_meta or parameter.dtype != tensor.dtype:
        module._parameters[name] = torch.nn.Parameter(tensor, requires_grad=False)
    else:
        parameter.data = tensor

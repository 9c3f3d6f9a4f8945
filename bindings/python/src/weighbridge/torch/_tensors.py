"""Tensors over memory of the library, and the bytes of tensors."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import torch

from ..dtypes import Dtype, DtypeLike
from ..memory import View
from ..offloader_info import OffloaderParameterInfo
from ..plan import Parameter
from ..safetensors import Safetensors


def dtype_of(tensor: torch.Tensor) -> Dtype | None:
    """Returns the element type of a tensor; None if the library lacks it."""
    try:
        return Dtype.of(str(tensor.dtype).rpartition(".")[2])
    except ValueError:
        return None


def tensor_of(view: View) -> torch.Tensor:
    """Returns a tensor over a view's memory, without a copy; it keeps the memory alive.

    Of read-only memory, such as a parameter that stays in its file, it must not be written.
    """
    return torch.from_dlpack(view.for_reading())


def tensor_in(file: Safetensors, name: str) -> torch.Tensor:
    """Returns a tensor of a file: over its memory, or decoded if it is compressed there."""
    info = file.tensor_info(name)
    if info.encoded_bytes == 0:
        return tensor_of(file.view(name, accessor="host", alignment=0))
    assert isinstance(info.dtype, Dtype) and info.shape is not None
    dtype: torch.dtype = getattr(torch, info.dtype.label)
    return torch.frombuffer(file.read(name), dtype=torch.uint8).view(dtype).view(info.shape)


def typed(tensor: torch.Tensor, view: View) -> torch.Tensor:
    """Returns a tensor over a view, of the type of a weight that was given as plain bytes."""
    with _mode_of(tensor):
        found = tensor_of(view)
        if dtype_of(tensor) is None:
            found = found.view(tensor.dtype).squeeze(-1)
        return found


def refusing(tensor: torch.Tensor, view: View, why: str) -> torch.Tensor:
    """Returns a tensor like :func:`typed` whose every use raises RuntimeError with these words:
    what is in the view's memory is not what the tensor would have there."""
    found = typed(tensor, view)
    refuse(found, why)
    return found


def refuse(tensor: torch.Tensor, why: str) -> None:
    """Makes every use of a tensor, and of all others with its storage, raise RuntimeError."""
    torch._C._set_storage_data_ptr_access_error_msg(tensor.untyped_storage()._cdata, why)


def refuses(tensor: torch.Tensor) -> bool:
    """Returns whether every use of a tensor raises: see :func:`refusing`."""
    try:
        tensor.data_ptr()
    except RuntimeError:
        return True
    return False


def strided(data: bytearray, tensor: torch.Tensor, info: OffloaderParameterInfo) -> torch.Tensor:
    """Returns bytes, from the lowest element on, as a tensor of a parameter's layout."""
    before = sum(
        (size - 1) * -stride for size, stride in zip(info.shape, info.strides) if stride < 0
    )
    with _mode_of(tensor):
        found = torch.frombuffer(data, dtype=torch.uint8).view(_torch_dtype(info))
        return found.as_strided(info.shape, info.strides, before)


def _torch_dtype(info: OffloaderParameterInfo) -> torch.dtype:
    """Returns the type of a parameter that is compressed, which PyTorch has, too."""
    found: torch.dtype = getattr(torch, info.dtype.label if isinstance(info.dtype, Dtype) else "")
    return found


def view_within(tensor: torch.Tensor, offset: int, whole: torch.Tensor) -> torch.Tensor:
    """Returns a tensor of the type and layout of ``tensor`` over memory of ``whole``, whose first
    element is ``offset`` bytes after that of ``whole``."""
    start = whole.storage_offset() * whole.dtype.itemsize + offset
    with _mode_of(tensor):
        found = torch.empty(0, dtype=tensor.dtype, device=whole.device)
        return found.set_(
            whole.untyped_storage(), start // tensor.dtype.itemsize, tensor.shape, tensor.stride()
        )


def parameter_of(name: str, group: str, tensor: torch.Tensor, **more: Any) -> Parameter:
    """Returns a tensor as a parameter of a plan; one of a type that the library lacks as bytes."""
    shape, strides = tuple(tensor.shape), tuple(tensor.stride())
    dtype: DtypeLike | None = dtype_of(tensor)
    if dtype is None:
        itemsize = tensor.dtype.itemsize
        strides = (*(stride * itemsize for stride in strides), 1)
        dtype, shape = "uint8", (*shape, itemsize)
    return Parameter(
        name, group, dtype, shape, strides, source=address_of(tensor), held=tensor, **more
    )


def address_of(tensor: torch.Tensor) -> int:
    """Returns the address of the first element; 0 for a tensor on the meta device, and for one
    that refuses to be used."""
    try:
        return 0 if tensor.is_meta else tensor.data_ptr()
    except RuntimeError:
        return 0


def like(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Returns an uninitialized tensor of the same type, shape and strides on a device."""
    with _mode_of(tensor):
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)


def _mode_of(tensor: torch.Tensor) -> Any:
    """Returns a context in which tensors are made that can take the place of ``tensor``'s memory:
    those of inference mode and others cannot take each other's."""
    return torch.inference_mode(tensor.is_inference())


def span_of(tensor: torch.Tensor) -> tuple[int, int]:
    """Returns the first byte of a tensor in its storage and the bytes to the end of its last."""
    if tensor.numel() == 0:
        return 0, 0
    last: int = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
    itemsize = tensor.dtype.itemsize
    return int(tensor.storage_offset()) * itemsize, (last + 1) * itemsize


def bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    """Returns the bytes of a tensor, its gaps included, as a flat tensor over the same memory."""
    start, count = span_of(tensor)
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(
        tensor.untyped_storage(), start, (count,), (1,)
    )


def copy_bytes(source: torch.Tensor, target: torch.Tensor) -> None:
    """Copies every byte of a tensor to another of the same layout, whatever their strides."""
    with torch.no_grad():
        bytes_of(target).copy_(bytes_of(source))


def aliases_of(tensor: torch.Tensor) -> int:
    """Returns the number of tensors, and other objects, that share the tensor's storage."""
    return users_of(tensor.untyped_storage()._cdata) - 1


def users_of(storage: int) -> int:
    """Returns the number of tensors and other objects that use a storage, given by its address."""
    return int(torch._C._storage_Use_Count(storage))


def references_to(storage: torch.UntypedStorage) -> int:
    """Returns the number of tensors and other objects that use a storage, and of references to its
    object, all of which are one of these. It is for comparisons with itself."""
    return users_of(storage._cdata) + sys.getrefcount(storage)


def tensors_in(*values: Any) -> Iterator[torch.Tensor]:
    """Returns the tensors among arguments or results, at any depth of lists, dictionaries and
    dataclasses."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from tensors_in(*value)
        elif isinstance(value, dict):
            yield from tensors_in(*value.values())
        elif is_dataclass(value):
            yield from tensors_in(*[getattr(value, field.name, None) for field in fields(value)])

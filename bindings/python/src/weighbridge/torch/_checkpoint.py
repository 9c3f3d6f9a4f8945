"""Weights and buffers of a model from safetensors files, by the rules of ``load_state_dict``."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .._enums import FileMode
from ..dtypes import Dtype
from ..memory import Device
from ..plan import Parameter
from ..safetensors import Safetensors, SafetensorsTensorInfo
from ._tensors import dtype_of, like, parameter_of, tensor_in

SHOWN = 8
"""How many names an error lists."""


class Numbers(Protocol):
    """Where the weights of a model are read from."""

    missing_keys: list[str]
    unexpected_keys: list[str]

    @property
    def sources(self) -> Mapping[int, Parameter]:
        """Returns bytes in files, by the id of the model's tensor."""

    def load_buffers(self) -> None:
        """Gives the model's buffers their numbers."""

    def close(self) -> None:
        """Closes the files."""


@dataclass(eq=False)
class Entry:
    """A parameter or buffer of a model, with every place where modules have it."""

    tensor: torch.Tensor
    names: list[str] = field(default_factory=list)
    """Its names in ``state_dict()``; none if it is a buffer that is not saved."""
    holders: list[tuple[dict[str, Any], str, str]] = field(default_factory=list)
    """The dictionary that has it, its key there, and its name in the model."""
    is_buffer: bool = False


class Checkpoint:
    """Files from which a model's weights are read.

    Every name, shape and type is checked when it is made, and the model is unchanged until
    :meth:`load_buffers`. Raises ValueError that names everything that does not fit.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        device: Device,
        paths: Sequence[str | os.PathLike[str]],
        where: torch.device,
        strict: bool = True,
        buffers: bool = False,
        file_mode: FileMode = "source",
    ) -> None:
        self.sources: dict[int, Parameter] = {}
        """The bytes in the files, by the id of the model's tensor."""
        self.missing_keys: list[str] = []
        """The names of the model that no file has."""
        self.unexpected_keys: list[str] = []
        """The names in the files that the model does not have."""
        self._loaded: list[tuple[Entry, torch.Tensor]] = []
        self._files: list[Safetensors] = []
        try:
            self._files += [Safetensors(device, path, file_mode=file_mode) for path in paths]
            self._read(type(model).__name__, entries_of(model), where, strict, buffers)
        except BaseException:
            self.close()
            raise

    def load_buffers(self) -> None:
        """Gives the model's buffers their numbers in the files."""
        for entry, loaded in self._loaded:
            for held, key, _ in entry.holders:
                if held[key].is_meta:
                    held[key] = loaded
                else:
                    held[key].copy_(loaded)

    def close(self) -> None:
        """Closes the files; what was read from them stays mapped as long as it is used."""
        for file in self._files:
            file.close()

    def _read(
        self, model: str, entries: list[Entry], where: torch.device, strict: bool, buffers: bool
    ) -> None:
        found, wrong = self._names()
        known = {name for entry in entries for name in entry.names}
        self.unexpected_keys = [name for name in found if name not in known]
        read: dict[Any, Parameter | torch.Tensor] = {}
        for entry in entries:
            name = next((name for name in reversed(entry.names) if name in found), None)
            if name is None:
                continue
            problem = _difference(name, entry, found[name].tensor_info(name))
            problem = problem or _shared_in_part(name, entry, entries)
            if problem:
                wrong.append(problem)
            else:
                planned = buffers or not entry.is_buffer
                read[_memory(entry.tensor)] = _read_one(found[name], name, entry, where, planned)
        meta = []
        for entry in entries:
            given = read.get(_memory(entry.tensor))
            if isinstance(given, Parameter):
                self.sources[id(entry.tensor)] = given
            elif given is not None:
                self._loaded.append((entry, given))
            elif not any(name in found for name in entry.names):
                if self._files:
                    self.missing_keys += entry.names[:1]
                if entry.tensor.is_meta:
                    meta.append(entry)
        wrong += self._unmatched(strict, meta)
        if wrong:
            what = "the checkpoint does not fit" if self._files else "there is no checkpoint for"
            raise ValueError(f"{what} the model {model}: " + "; ".join(wrong))

    def _names(self) -> tuple[dict[str, Safetensors], list[str]]:
        """Returns the file of each name, and what is wrong with the names."""
        found: dict[str, Safetensors] = {}
        twice = []
        for file in self._files:
            for name in file.keys():
                if name in found:
                    twice.append(name)
                found[name] = file
        return found, [f"several files have {_list(twice)}"] if twice else []

    def _unmatched(self, strict: bool, meta: list[Entry]) -> list[str]:
        """Returns what is wrong with names that the model or the files lack."""
        wrong = []
        if strict and self.missing_keys:
            wrong.append(
                f"no file has {_list(self.missing_keys)} (strict=False leaves them unchanged)"
            )
        if strict and self.unexpected_keys:
            wrong.append(
                f"the model has no {_list(self.unexpected_keys)} (strict=False ignores them)"
            )
        named = set(self.missing_keys) if strict else set()
        stay = [entry.holders[0][2] for entry in meta if not named.intersection(entry.names)]
        if stay:
            wrong.append(
                f"{_list(stay)} would stay on the meta device: "
                "give them their numbers before the offload"
            )
        return wrong


def entries_of(model: torch.nn.Module) -> list[Entry]:
    """Returns the parameters and buffers of a model, each object once."""
    entries: dict[int, Entry] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for held in (module._parameters, module._buffers):
            for key, tensor in held.items():
                if tensor is None:
                    continue
                entry = entries.setdefault(id(tensor), Entry(tensor))
                name = f"{path}.{key}" if path else key
                entry.holders.append((held, key, name))
                entry.is_buffer = held is module._buffers
                if key not in module._non_persistent_buffers_set:
                    entry.names.append(name)
    return list(entries.values())


def _memory(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Returns a key that tensors over the same memory, in the same layout, share."""
    layout = tensor.dtype, tensor.shape, tensor.stride(), tensor.storage_offset()
    return (_storage(tensor), *layout) if tensor.numel() else (id(tensor),)


def _storage(tensor: torch.Tensor) -> int:
    """Returns a number that tensors over one storage share; their own for other tensors."""
    if is_traceable_wrapper_subclass(tensor):
        return id(tensor)
    return int(tensor.untyped_storage()._cdata)


def _difference(name: str, entry: Entry, info: SafetensorsTensorInfo) -> str:
    """Returns how a tensor in a file differs from the model's; empty if it can be read."""
    tensor = entry.tensor
    if is_traceable_wrapper_subclass(tensor):
        kind = type(tensor)
        return (
            f"{name!r} is a {kind.__module__}.{kind.__qualname__}: "
            "read its file with load_state_dict before the offload"
        )
    if not isinstance(info.dtype, Dtype):
        return f"{name!r} has an element type in the file that the library lacks: {info.dtype}"
    if info.shape != tuple(tensor.shape):
        return (
            f"{name!r} has the shape {info.shape} in the file, {tuple(tensor.shape)} in the model"
        )
    if info.dtype != dtype_of(tensor) and 1 in (info.dtype.itemsize, tensor.dtype.itemsize):
        given = info.dtype.label
        # FP8 numbers without their scales are other numbers.
        return f"{name!r} is {given} in the file, {tensor.dtype} in the model: no cast is right"
    return ""


def _shared_in_part(name: str, entry: Entry, entries: list[Entry]) -> str:
    """Returns which tensor shares memory with one to be read, but not its layout."""
    for other in entries:
        if _storage(other.tensor) == _storage(entry.tensor) and entry.tensor.numel():
            if _memory(other.tensor) != _memory(entry.tensor):
                return (
                    f"{name!r} shares memory with {other.holders[0][2]!r} in another layout: "
                    "read the file with load_state_dict before the offload"
                )
    return ""


def _read_one(
    file: Safetensors, name: str, entry: Entry, where: torch.device, planned: bool
) -> Parameter | torch.Tensor:
    """Returns a tensor of a file as the plan's parameter, or as a buffer of the model.

    Its bytes stay in the file if they are the model's type, in its order; others are copied.
    """
    tensor = entry.tensor
    same = tensor.is_contiguous() and file.tensor_info(name).dtype == dtype_of(tensor)
    if planned and same:
        return file.parameter(name)
    copy = like(tensor, torch.device("cpu") if planned else where)
    copy.copy_(tensor_in(file, name))
    return parameter_of(name, name, copy) if planned else copy


def _list(names: Sequence[str]) -> str:
    """Returns names for a message."""
    shown = ", ".join(repr(name) for name in names[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown} and {len(names) - SHOWN} more"

"""From tensors that are still in their files to the places that a plan gives them."""

from __future__ import annotations

from typing import Any

import torch

from ...plan import Parameter
from ...torch import OffloadHandle
from ...torch._checkpoint import entries_of
from ...torch._tensors import like, parameter_of
from ...torch._weight import Weight, Where
from ...torch._weights import Weights
from ._begun import Begun
from ._deferred import Deferred, Writer, names_in
from ._files import CheckpointFiles

LATE_PART = 0.05
"""Of the bytes that a commit reads: as many more may be written when it has ended."""


class Places:
    """What the parameters of a model are read from, or computed from, for an offload."""

    def __init__(self) -> None:
        self.sources: dict[int, Parameter] = {}
        """By the id of the model's tensor: the bytes in the files."""
        self.missing_keys: list[str] = []
        self.unexpected_keys: list[str] = []
        self.begun: Begun | None = None
        """The commit that has begun while the model was loaded."""
        self._later: dict[int, tuple[str, Deferred]] = {}
        """By the id of the tensor, the name and numbers of the others."""
        self._computed: dict[str, Deferred] = {}
        """By name, what has to be computed from the files."""

    def take(self, begun: Begun) -> None:
        """Takes a commit that has begun. What it does not read, such as a renamed weight, is
        written by itself, unless that is much."""
        late = {k: one for k, one in self._later.items() if one[0] not in begun.read}
        if sum(numbers.nbytes for _, numbers in late.values()) <= begun.read_bytes * LATE_PART:
            for key, (name, numbers) in late.items():
                del self.sources[key]
                self._computed[name] = numbers
            self.begun = begun
        else:
            begun.cancel()

    def load_buffers(self) -> None:
        """Does nothing: the buffers have their numbers."""

    def close(self) -> None:
        """Does nothing: the files are closed by who opened them."""

    def add(
        self, name: str, tensor: torch.Tensor, numbers: Deferred, files: CheckpointFiles
    ) -> None:
        """Adds a parameter of the model, which is on the meta device."""
        self._later[id(tensor)] = name, numbers
        whole = numbers.file_tensor()
        if whole is not None:
            self.sources[id(tensor)] = files.parameter(whole.name_in_file)
            return
        if numbers.is_view():
            found = numbers.computed()
            if found.is_contiguous() and numbers.is_contiguous():
                self.sources[id(tensor)] = parameter_of(name, "", found)
                return
        del self._later[id(tensor)]
        self._computed[name] = numbers

    def write(self, handle: OffloadHandle) -> None:
        """Computes the parameters that no file has unchanged, each into its place."""
        if not self._computed:
            return
        weights = handle._weights
        with Writer() as writer:
            for name, numbers in self._computed.items():
                try:
                    _write_one(weights, weights.named(name), numbers, writer)
                except Exception as error:
                    names = ", ".join(map(repr, names_in(numbers)[:4]))
                    raise RuntimeError(
                        f"{name!r} cannot be computed from {names}: {error}"
                    ) from error
        weights.set(weights.all)


def give_places(model: torch.nn.Module, files: CheckpointFiles) -> Places:
    """Replaces the tensors of a model that are in files by ones on the meta device.

    Buffers get their numbers, and memory of their own.
    """
    places = Places()
    for entry in entries_of(model):
        numbers = entry.tensor
        if not isinstance(numbers, Deferred):
            continue
        own: Any = numbers.computed().clone() if entry.is_buffer else _empty(numbers)
        for held, key, _ in entry.holders:
            held[key] = own
        if not entry.is_buffer:
            places.add(entry.holders[0][2], own, numbers, files)
    return places


def _empty(numbers: Deferred) -> torch.nn.Parameter:
    """Returns a parameter on the meta device like a deferred one."""
    tensor = like(numbers, torch.device("meta"))
    return torch.nn.Parameter(tensor, requires_grad=numbers.requires_grad)


def _write_one(weights: Weights, weight: Weight | None, numbers: Deferred, writer: Writer) -> None:
    if weight is None:
        raise RuntimeError("the plan has no such parameter")
    stored = None if weight.where is Where.COMPRESSED else weight.stored
    if stored is not None and stored.dtype == numbers.dtype:
        writer.write(numbers, stored)
        weights.replace(weight, stored)  # these bytes are now the weight's
        return
    # Resident memory, which the model keeps; or what is quantized or compressed into its place.
    fresh = like(
        numbers, torch.device("cpu") if weight.where is Where.COMPRESSED else weights.device
    )
    writer.write(numbers, fresh)
    if weight.home is None:
        weight.tensor = torch.nn.Parameter(fresh, requires_grad=numbers.requires_grad)
        for holder in weight.holders:
            holder.put(weight.tensor)
    weights.replace(weight, fresh)

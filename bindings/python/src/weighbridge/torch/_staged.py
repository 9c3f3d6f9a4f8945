"""Offloads the layers of a model one by one, while an engine builds and loads it.

The chosen weights of a layer get host memory of their own as soon as the layer exists, so that
loading fills it, and no more than one layer is on the device beside the weights that stay there. A
commit makes that memory the offloader's: it copies nothing again.
"""

from __future__ import annotations

import mmap
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Callable, NamedTuple, Protocol

import torch

from .._enums import AccessPattern
from ..errors import Status, WeighbridgeError
from ..memory import Buffer, Device
from ..plan import Parameter
from ._tensors import copy_bytes, parameter_of, span_of, tensor_of, view_within

ALIGNMENT = 256
"""Of weights in the host memory of a unit, by which the offloader takes it unchanged."""

Key = tuple[torch.nn.Module, str]
"""A module and the name of its parameter."""


class Candidate(NamedTuple):
    """A weight that may be offloaded."""

    name: str
    """Within its layer, behind the prefix that the engine gave."""
    bytes: int
    pattern: AccessPattern
    """Whether a step reads only a part of it, as of the weights of experts."""


class Choice(Protocol):
    """Chooses the weights that leave the device, layer by layer."""

    def choose(self, layer: int, candidates: Sequence[Candidate]) -> Sequence[int]:
        """Returns the indices of the candidates that leave, whose bytes are taken from the
        budget; called again when a layer gets other weights."""

    def grow(self, layer: int, more_bytes: int) -> bool:
        """Takes bytes from the budget for a weight that was replaced by a larger one, or returns
        some; returns False, with nothing taken, if they are not left."""


@dataclass(eq=False)
class Place:
    """Where the bytes of an offloaded weight are."""

    buffer: Buffer
    whole: torch.Tensor
    """The buffer's bytes, as the device sees them."""
    offset: int
    count: int
    sparse: bool

    @property
    def address(self) -> int:
        """What the tensor's address is while it is there."""
        return self.whole.data_ptr() + self.offset


class Preceding(NamedTuple):
    """The part of a layer whose weights are a group of their own, before that of the others."""

    named: torch.nn.Module
    """The module that the group is named after."""
    modules: frozenset[torch.nn.Module]
    """The modules that have the weights."""


class StagedLayer:
    """A layer whose chosen weights are in host memory."""

    def __init__(
        self, index: int, module: torch.nn.Module, prefix: str, preceding: Preceding | None
    ) -> None:
        self.index = index
        self.module = module
        self._preceding = preceding
        self.places: dict[Key, Place] = {}
        self.resident: set[Key] = set()
        self.expected: dict[Key, int] = {}
        """The chosen weights that have no memory yet, with the bytes that are set aside."""
        self._names = {
            inner: f"{prefix}.{name}".strip(".") for name, inner in module.named_modules()
        }

    def groups(self) -> list[torch.nn.Module]:
        """Returns the modules that the groups are named after, in the order of a step."""
        before = [] if self._preceding is None else [self._preceding.named]
        return [*before, self.module]

    def group_of(self, module: torch.nn.Module) -> torch.nn.Module:
        """Returns the module that the group of a module's weights is named after."""
        if self._preceding is not None and module in self._preceding.modules:
            return self._preceding.named
        return self.module

    def name(self, key: Key) -> str:
        """Returns the name of a weight, by which it is selected."""
        path = self._names.get(key[0], "")
        return f"{path}.{key[1]}".strip(".")


class StagedLayers:
    """The layers of a model that is being built and loaded.

    ``pattern_of`` says how much of a module's parameter a step reads, as of the weights of experts.
    """

    def __init__(
        self,
        device: Device,
        choice: Choice,
        pattern_of: Callable[[torch.nn.Module, str], AccessPattern],
    ) -> None:
        self.layers: list[StagedLayer] = []
        self._device = device
        self._choice = choice
        self._pattern_of = pattern_of
        self._layer_of: dict[torch.nn.Module, StagedLayer] = {}
        self._buffers: weakref.WeakValueDictionary[int, Buffer] = weakref.WeakValueDictionary()
        """The buffers of the weights, by the address that the device sees."""

    def take(
        self, module: torch.nn.Module, prefix: str = "", preceding: Preceding | None = None
    ) -> StagedLayer:
        """Moves the chosen weights of a new layer to host memory."""
        layer = StagedLayer(len(self.layers), module, prefix, preceding)
        self.layers.append(layer)
        found: dict[Key, torch.Tensor] = {}
        for inner in module.modules():
            if (
                self._layer_of.setdefault(inner, layer) is layer
            ):  # else an earlier layer has it, too
                found.update(self._weights_of(layer, inner, with_meta=True))
        self._choose(layer, found)
        return layer

    def relocate(self, module: torch.nn.Module) -> None:
        """Moves weights of a module to where they belong, after some were replaced or added.

        A weight in the place of an offloaded one is offloaded, if the budget allows it. One that
        has a new name, or had no bytes before, is chosen as those of a new layer are.
        """
        for inner in module.modules():
            layer = self._layer_of.get(inner)
            if layer is not None:
                self._relocate(layer, inner)

    @property
    def host_bytes(self) -> int:
        """The bytes of host memory, in whole pages."""
        buffers = {id(p.buffer): p.buffer for layer in self.layers for p in layer.places.values()}
        return sum(pages(buffer.nbytes) for buffer in buffers.values())

    def parameters(self, model: torch.nn.Module, all_weights: bool = False) -> list[Parameter]:
        """Returns the offloaded weights as parameters of a plan, which may keep their memory.

        With ``all_weights`` the others of the layers follow, each on the device.
        """
        names = {module: name for name, module in model.named_modules()}
        found = []
        for layer in self.layers:
            self.relocate(layer.module)  # what one module's processing has done to others
            for key, place in layer.places.items():
                place.sparse = self._is_sparse(key)  # processing may have changed it
            for module in layer.groups():
                group = names[module]
                for key, place in self._join(layer, module):
                    given = _parameter(names[key[0]], key, group, self._pattern_of(*key))
                    source = place.buffer.address + place.offset
                    found.append(replace(given, source=source, held=place.buffer))
                if all_weights:
                    for inner in layer.module.modules():
                        for key in self._weights_of(layer, inner, decided=True):
                            if layer.group_of(key[0]) is module:
                                pattern = self._pattern_of(*key)
                                found.append(_parameter(names[key[0]], key, group, pattern))
        return found

    def clear(self) -> None:
        """Forgets the host memory, which is the offloader's from then on."""
        self.layers.clear()
        self._layer_of.clear()

    def _relocate(self, layer: StagedLayer, module: torch.nn.Module) -> None:
        held = module._parameters
        expected = [key for key in layer.expected if key[0] is module]
        for key in [*(key for key in layer.places if key[0] is module), *expected]:
            place, tensor = layer.places.get(key), held.get(key[1])
            if tensor is not None and tensor.is_meta:
                continue
            if tensor is not None and place is not None and tensor.data_ptr() == place.address:
                continue
            before = layer.expected.pop(key) if place is None else layer.places.pop(key).count
            if tensor is None:
                self._choice.grow(layer.index, -before)
            elif self._choice.grow(layer.index, _span(tensor) - before):
                self._move(layer, {key: tensor})
            else:
                self._choice.grow(layer.index, -before)
                layer.resident.add(key)
        found = self._weights_of(layer, module)
        for added in found.values():
            self._separate(layer, added)
        self._choose(layer, found)

    def _separate(self, layer: StagedLayer, tensor: torch.Tensor) -> None:
        """Gives device memory to a view of an offloaded weight, which would be read in place."""
        if not tensor.is_meta:
            address = tensor.data_ptr()
            for place in layer.places.values():
                if 0 <= address - place.whole.data_ptr() < place.buffer.nbytes:
                    tensor.data = tensor.data.clone()
                    return

    def _weights_of(
        self,
        layer: StagedLayer,
        module: torch.nn.Module,
        with_meta: bool = False,
        decided: bool = False,
    ) -> dict[Key, torch.Tensor]:
        """Returns the weights of a module that have no place: those of which nothing has been
        decided, or also those that stay on the device. Another name of a weight is none."""
        held = module._parameters
        known = {*layer.places, *layer.resident}
        named = {id(held.get(own)) for inner, own in known if inner is module}
        return {
            (module, own): tensor
            for own, tensor in held.items()
            if tensor is not None
            and tensor.numel()
            and (with_meta or not tensor.is_meta)
            and (module, own) not in layer.places
            and (decided if (module, own) in layer.resident else id(tensor) not in named)
        }

    def _choose(self, layer: StagedLayer, found: dict[Key, torch.Tensor]) -> None:
        keys, seen = [], set()
        for key, tensor in found.items():
            if id(tensor) not in seen and (tensor.is_meta or self._may_move(tensor)):
                seen.add(id(tensor))
                keys.append(key)
        candidates = [
            Candidate(layer.name(key), _bytes(found[key]), self._pattern_of(*key)) for key in keys
        ]
        chosen = {keys[at] for at in self._choice.choose(layer.index, candidates)}
        layer.resident.update(key for key in found if key not in chosen)
        without_memory = {key: found[key] for key in keys if key in chosen and found[key].is_meta}
        layer.expected.update((key, _bytes(tensor)) for key, tensor in without_memory.items())
        self._move(
            layer, {key: found[key] for key in keys if key in chosen and key not in without_memory}
        )

    def _may_move(self, tensor: torch.Tensor) -> bool:
        """Returns whether a tensor is on the device, with no other parameter in its storage."""
        storage = tensor.untyped_storage()
        alone = storage.nbytes() <= _span(tensor) + ALIGNMENT
        return alone and storage.data_ptr() not in self._buffers

    def _move(self, layer: StagedLayer, tensors: dict[Key, torch.Tensor]) -> None:
        """Moves tensors into one new buffer for each group that they are of."""
        for group in layer.groups():
            keys = [key for key in tensors if layer.group_of(key[0]) is group]
            if keys:
                self._move_group(layer, {key: tensors[key] for key in keys})

    def _move_group(self, layer: StagedLayer, tensors: dict[Key, torch.Tensor]) -> None:
        """Moves tensors into one new buffer, in the order in which an offloader keeps them."""
        ordered = sorted(tensors, key=self._is_sparse)
        offsets, end = [], 0
        for key in ordered:
            start = -(-end // ALIGNMENT) * ALIGNMENT
            offsets.append(start)
            end = start + _span(tensors[key])
        buffer = self._device.buffer(end)
        whole = self._bytes_of(buffer)
        self._buffers[whole.data_ptr()] = buffer
        for key, offset in zip(ordered, offsets):
            tensor = tensors[key]
            home = view_within(tensor, offset, whole)
            copy_bytes(tensor, home)
            tensor.data = home
            place = Place(buffer, whole, offset, _span(tensor), self._is_sparse(key))
            layer.places[key] = place

    def _join(self, layer: StagedLayer, group: torch.nn.Module) -> list[tuple[Key, Place]]:
        """Moves the weights of a group into one buffer without gaps, where they are not.

        Returns them in the order in which an offloader keeps them.
        """
        held = self._ordered(layer, group)
        end, buffers = 0, {id(place.buffer) for _, place in held}
        for _, place in held:
            start = -(-end // ALIGNMENT) * ALIGNMENT
            if place.offset != start or len(buffers) > 1:
                break
            end = start + place.count
        else:
            return held
        tensors: dict[Key, Any] = {key: key[0]._parameters[key[1]] for key, _ in held}
        self._move_group(layer, tensors)
        return self._ordered(layer, group)

    def _ordered(self, layer: StagedLayer, group: torch.nn.Module) -> list[tuple[Key, Place]]:
        held = [item for item in layer.places.items() if layer.group_of(item[0][0]) is group]
        return sorted(held, key=lambda item: (item[1].sparse, item[1].offset))

    def _is_sparse(self, key: Key) -> bool:
        return self._pattern_of(*key) != "dense"

    def _bytes_of(self, buffer: Buffer) -> torch.Tensor:
        """Returns the bytes of a buffer: for the device, or for the host if it cannot read them."""
        try:
            return tensor_of(buffer.view("uint8", buffer.nbytes))
        except WeighbridgeError as error:
            if error.status != Status.NOT_MAPPED:
                raise
            return tensor_of(buffer.view("uint8", buffer.nbytes, accessor="host"))


def pages(count: int) -> int:
    """Returns a number of bytes rounded up to whole pages."""
    return -(-count // mmap.PAGESIZE) * mmap.PAGESIZE


def _parameter(path: str, key: Key, group: str, pattern: AccessPattern) -> Parameter:
    module, own = key
    tensor: Any = module._parameters[own]
    name = f"{path}.{own}" if path else own
    return parameter_of(name, group, tensor, access_pattern=pattern)


def _span(tensor: torch.Tensor) -> int:
    return span_of(tensor)[1]


def _bytes(tensor: torch.Tensor) -> int:
    """Returns the bytes that a weight will have; one without memory is about to be quantized to
    one byte an element."""
    return tensor.numel() if tensor.is_meta else _span(tensor)

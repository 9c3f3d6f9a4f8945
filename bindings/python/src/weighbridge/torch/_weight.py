"""The weights of a model, found by their tensors and storages rather than by their names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ._tensors import address_of, refuses, span_of


@dataclass(eq=False)
class Holder:
    """A place in a module where a weight is: ``module.own``."""

    name: str
    """The weight's name in the model, which the offloader's parameter has, too."""
    path: str
    """The module's name in the model."""
    module: torch.nn.Module
    own: str
    outer: torch.Tensor | None = None
    """The tensor subclass that the module has, if the weight is one of its inner tensors."""

    def held(self) -> torch.Tensor | None:
        """Returns the module's parameter or buffer now."""
        found = self.module._parameters.get(self.own)
        return self.module._buffers.get(self.own) if found is None else found

    def has(self, tensor: torch.Tensor) -> bool:
        """Returns whether the module still has this tensor, or the subclass around it."""
        wanted = tensor if self.outer is None else self.outer
        return self.module._parameters.get(self.own) is wanted or self.held() is wanted

    def is_buffer(self) -> bool:
        """Returns whether the module has it as a buffer."""
        return self.own in self.module._buffers

    def put(self, tensor: torch.Tensor) -> None:
        """Makes the module have another parameter or buffer."""
        held: Any = self.module._buffers if self.is_buffer() else self.module._parameters
        held[self.own] = tensor


class Where(Enum):
    """Where the bytes of a weight are outside of the forward of its layer."""

    ENGINE = "in memory that the offloader does not own"
    HOST = "in host memory, from where steps copy them, or read them in place"
    DEVICE = "at an address of their own, to which steps copy nothing"
    TWICE = "there, and in host memory, from where graphs copy them"
    COMPRESSED = "in host memory, compressed"
    ASLEEP = "where only the offloader finds them, until it is woken"


@dataclass(eq=False)
class Weight:
    """A tensor whose bytes an offloader holds.

    Outside of the forward of its layer the tensor uses ``home``, memory that always has the true
    bytes, of which a change counts; or it raises when it is used, if there is no such memory.
    Within, it uses a slot (see :class:`Window`).
    """

    tensor: torch.Tensor
    """The model's own object, which stays."""
    holders: list[Holder]
    home: torch.Tensor | None = None
    """None for a weight that is resident in the engine's own memory."""
    home_address: int = 0
    refused: Any = None
    """The storage of a home that raises when it is used, of which no address can be asked."""
    stored: torch.Tensor | None = None
    """The bytes of an offloaded weight in host memory, for the host. They are out of date if it was
    changed at its address."""
    where: Where = Where.ENGINE
    apart: bool = False
    """Whether the tensor stays in memory that it was given, since something else uses its home."""
    slot_addresses: set[int] = field(default_factory=set)
    in_slot: int = 0
    """How many layers that are running have put the tensor into a slot."""
    version: int = 0
    """PyTorch's count of changes in place, when it was last read."""
    tied_to: Weight | None = None
    """The weight with the same memory and layout, if this is another object over it."""
    part_of: Weight | None = None
    """The weight that contains this one's memory, as another layout: it has no second copy."""
    offset_in_whole: int = 0
    """Bytes from the first element of ``part_of`` to its own."""

    @property
    def name(self) -> str:
        """The first of its names."""
        return self.holders[0].name

    @property
    def closed(self) -> bool:
        """Whether only the offloader reads and changes its bytes, and ``home`` refuses."""
        return self.where in (Where.COMPRESSED, Where.TWICE)

    def place(self, home: torch.Tensor | None, stored: torch.Tensor | None, where: Where) -> None:
        """Gives the weight its home, and the memory that has its bytes for the host."""
        self.home, self.stored = _kept(self.home, home), _kept(self.stored, stored)
        self.where = where
        self.refused = home.untyped_storage() if home is not None and refuses(home) else None
        if self.refused is not None:
            self.home_address = id(self.refused)
        else:
            self.home_address = 0 if home is None else home.data_ptr()

    def move(self, home: torch.Tensor | None, stored: torch.Tensor | None, where: Where) -> None:
        """Gives the weight another home with the same bytes. A tensor that uses a slot, or memory
        that it was given since, stays there."""
        goes = not self.in_slot and self.is_at_home()
        self.home = self.stored = None  # others that use these are refused what is left
        self.place(home, stored, where)
        if goes:
            self.go_home()

    def go_home(self) -> None:
        """Makes the tensor use its home."""
        if self.home is not None and not self.apart:
            self.tensor.data = self.home
            self.version = version_of(self.tensor)

    def is_at_home(self) -> bool:
        """Returns whether the tensor uses the memory that was given to it."""
        if self.refused is not None:
            return self.tensor.untyped_storage() is self.refused
        tensor, home = self.tensor, self.home
        return home is None or (
            tensor.data_ptr() == self.home_address
            and tensor.shape == home.shape
            and tensor.stride() == home.stride()
            and tensor.dtype == home.dtype
        )

    def has_other_memory(self) -> bool:
        """Returns whether the tensor was given other memory, which the offloader has not taken."""
        return not self.in_slot and not self.is_at_home()

    def given(self, name: str) -> torch.Tensor | None:
        """Returns what the model has by a name of the weight in place of the offloader's bytes;
        None if these are the model's."""
        for holder in self.holders:
            held = holder.held() if holder.name == name and holder.outer is None else None
            if held is not None and held is not self.tensor and not is_functorch_wrapped(held):
                return held
        return self.tensor if self.has_other_memory() else None

    def is_place_of(self, tensor: torch.Tensor) -> bool:
        """Returns whether a tensor uses the weight's home or its slot."""
        if self.refused is not None and tensor.untyped_storage() is self.refused:
            return True
        return address_of(tensor) in (self.home_address, *self.slot_addresses)

    def is_replaced(self) -> bool:
        """Returns whether another object is where the weight was."""
        for holder in self.holders:  # in every layer: any() takes twice as long
            if not holder.has(self.tensor):
                return True
        return False


def _kept(old: torch.Tensor | None, new: torch.Tensor | None) -> torch.Tensor | None:
    """Returns the old tensor if the new one is over the same memory: its storage tells of others
    that use that."""
    if old is None or new is None or refuses(old) or not same_memory(old, new):
        return new
    return old if old.is_inference() == new.is_inference() else new


def is_functorch_wrapped(tensor: torch.Tensor) -> bool:
    """Returns whether a tensor stands for another in a transform, such as vmap."""
    return bool(torch._C._functorch.is_functorch_wrapped_tensor(tensor))


def same_memory(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Returns whether two tensors have the same address, shape, strides and type."""
    return (
        address_of(one) == address_of(other)
        and one.shape == other.shape
        and one.stride() == other.stride()
        and one.dtype == other.dtype
    )


def version_of(tensor: torch.Tensor) -> int:
    """Returns PyTorch's count of changes in place; 0 for a tensor of inference mode, which has
    none."""
    try:
        return tensor._version
    except RuntimeError:
        return 0


def weights_of(model: torch.nn.Module, buffers: bool) -> list[Weight]:
    """Returns the parameters of a model, with its buffers if asked, each object once.

    An object under several names, and a module under several names, is one. Of a tensor subclass
    that wraps other tensors, those are the weights. Raises ValueError for one that hides its
    memory.
    """
    weights = weights_in(model, "", buffers, set())
    _find_shared_memory(weights)
    return weights


def weights_in(module: torch.nn.Module, path: str, buffers: bool, others: set[int]) -> list[Weight]:
    """Returns the weights of a module of a model, without those in modules of these ids."""
    found: dict[int, Weight] = {}
    for inner_path, inner in _modules(module, path, others):
        own: Iterable[tuple[str, Any]] = list(inner._parameters.items())
        if buffers:
            own = [*own, *inner._buffers.items()]
        for key, tensor in own:
            if tensor is None:
                continue
            for name, part in inner_tensors(f"{inner_path}.{key}" if inner_path else key, tensor):
                outer = None if part is tensor else tensor
                holder = Holder(name, inner_path, inner, key, outer)
                found.setdefault(id(part), Weight(part, [])).holders.append(holder)
    return list(found.values())


def _modules(
    module: torch.nn.Module, path: str, others: set[int]
) -> Iterator[tuple[str, torch.nn.Module]]:
    """Returns a module and those in it, each object once, but for ``others`` and what is inside."""
    seen, queue = set(others), [(path, module)]
    while queue:
        path, module = queue.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(
                f"{path or 'the model'!r} is a ScriptModule, a program that reads its weights "
                "itself: offload the module that it was made from"
            )
        yield path, module
        children = [
            (f"{path}.{key}" if path else key, child)
            for key, child in module._modules.items()
            if child is not None
        ]
        queue += reversed(children)


def _find_shared_memory(weights: list[Weight]) -> None:
    """Finds the weights whose memory is another's, or lies within it."""
    by_storage: dict[tuple[Any, int], list[Weight]] = {}
    for weight in weights:
        tensor = weight.tensor
        if address_of(tensor):
            key = (tensor.device, tensor.untyped_storage().data_ptr())
            by_storage.setdefault(key, []).append(weight)
    for sharing in by_storage.values():
        # The largest first; of equal spans, the first in the model.
        sharing.sort(key=lambda weight: -span_of(weight.tensor)[1])
        for index, weight in enumerate(sharing):
            start, count = span_of(weight.tensor)
            for other in sharing[:index]:
                first, span = span_of(other.tensor)
                within = first <= start and start + count <= first + span
                if other.part_of is None and other.tied_to is None and within:
                    if _layout_of(weight.tensor) == _layout_of(other.tensor):
                        weight.tied_to = other
                    else:
                        weight.part_of, weight.offset_in_whole = other, start - first
                    break


def _layout_of(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.storage_offset(), tensor.dtype, tensor.shape, tensor.stride()


def inner_tensors(name: str, tensor: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    """Returns the tensors that have the bytes of a tensor, by name."""
    if is_traceable_wrapper_subclass(tensor):
        names, _ = tensor.__tensor_flatten__()
        return [
            pair for own in names for pair in inner_tensors(f"{name}.{own}", getattr(tensor, own))
        ]
    kind = type(tensor)
    if isinstance(tensor, torch.nn.parameter.UninitializedTensorMixin):
        raise ValueError(
            f"{name!r} has no shape yet, since its module is lazy: call the model once"
        )
    unlike = _unlike_memory(tensor)
    if unlike:
        raise ValueError(f"{name!r} {unlike}: it cannot be offloaded, nor can a model that has it")
    if not tensor.is_meta and tensor.numel() and not refuses(tensor) and tensor.data_ptr() == 0:
        raise ValueError(
            f"{name!r} is a {kind.__module__}.{kind.__qualname__}, which hides its memory "
            "(it has no __tensor_flatten__): offload the model before it is converted"
        )
    return [(name, tensor)]


def _unlike_memory(tensor: torch.Tensor) -> str:
    """Returns how the numbers of a tensor differ from those in its memory; "" if they do not."""
    if tensor.layout is not torch.strided:
        return f"is of the layout {tensor.layout}"
    if tensor.is_quantized:
        return "is quantized, with scales outside of its memory"
    if tensor.is_conj() or tensor.is_neg():
        return "is a conjugated or negated view (see resolve_conj() and resolve_neg() of tensors)"
    return ""

"""The forward of a module of fused experts, whose weights a cache of experts carries.

The forward runs unchanged, on the slots of the cache in place of the weights, and with the numbers
of slots in place of those of experts. A forward that takes experts one by one, in the order of
their numbers, keeps the numbers, and finds each expert in its slot. So sums have their order, and
results are those of the resident model. Where that is not possible, or a call may need more experts
than there are slots, the forward reads the weights at home, in host memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Callable

import torch

from ..errors import Status, WeighbridgeError
from ..experts import ExpertCache
from . import _operators
from ._compiled import is_exporting, is_recording
from ._expert_rows import ExpertRows, NotRowsError
from ._experts import FusedExperts, is_expert_parallel
from ._tensors import aliases_of, tensors_in, users_of
from ._weight import Weight, version_of

if TYPE_CHECKING:
    from ._weights import Weights

ID_TYPES = {torch.int32: "int32", torch.int64: "int64"}
ANY = 1 << 40
"""More ids than a call has."""


class Pool:
    """The slots of a cache as tensors, which several layers share."""

    def __init__(self, cache: ExpertCache, tensors: Sequence[torch.Tensor]) -> None:
        self.cache = cache
        self.tensors = list(tensors)
        self.slots = cache.info.most_slots
        """As many as the tensors have; with fixed addresses only the first ones have memory."""
        self.stream: Any = None
        """The stream of the last call, if it was not captured."""
        storages = {tensor.untyped_storage()._cdata for tensor in self.tensors}
        self._users = {storage: users_of(storage) for storage in storages}

    def is_kept(self) -> bool:
        """Returns whether something beside this uses the slots."""
        return any(users_of(storage) > users for storage, users in self._users.items())

    def wait_for_last(self, stream: Any, device: torch.device) -> None:
        """Makes the current stream, whose handle is given, wait for kernels that read the slots."""
        if self.stream in (None, stream):
            return
        last = (
            torch.cuda.ExternalStream(self.stream, device=device)
            if self.stream
            else torch.cuda.default_stream(device)
        )
        torch.cuda.current_stream(device).wait_stream(last)

    def versions(self) -> list[int]:
        """Returns PyTorch's counts of changes of the slots."""
        return [version_of(tensor) for tensor in self.tensors]


class ExpertWindow:
    """The forward of a module of fused experts."""

    watches = False

    def __init__(
        self,
        weights: Weights,
        number: int,
        experts: FusedExperts,
        held: Sequence[Weight],
        pool: Pool,
        layer: int,
    ) -> None:
        self.module = experts.module
        self.path = experts.path
        self.pool = pool
        self.layer = layer
        self.placed = False
        """Whether the weights are where the cache reads them."""
        self.ready = False
        """Whether the forward may run on slots."""
        self.refused = False
        self.compiled = CompiledExperts(self, weights, number, experts)
        self._weights = weights
        self._held = list(held)
        self._experts = experts
        self._count = experts.tensor(experts.tensors[0]).shape[0]
        self._layouts = [(weight.tensor.dtype, weight.tensor.shape) for weight in held]
        self._versions = [version_of(weight.tensor) for weight in held]
        self._rows = True
        """Whether the module's own forward may take experts one by one."""
        self.most_ids = 0
        """Of a call that surely has a slot for every expert that its ids name. Compilers guard it,
        so code that was made for more slots is not used with fewer."""
        self.measure()

    def set(self, known: Set[int]) -> None:
        """Takes notice of where weights are, after a change; ``known`` are ids of all of them."""
        self.placed = all(
            id(weight) in known
            and weight.stored is not None
            and weight.is_at_home()
            and not weight.is_replaced()
            and (weight.tensor.dtype, weight.tensor.shape) == layout
            for weight, layout in zip(self._held, self._layouts)
        )

    def holds(self, ids: Set[int]) -> bool:
        """Returns whether any of the weights has one of these ids."""
        return any(id(weight.tensor) in ids for weight in self._held)

    def changed(self) -> bool:
        """Returns whether PyTorch counts changes of the weights that slots may not have."""
        return [version_of(weight.tensor) for weight in self._held] != self._versions

    def follow(self) -> bool:
        """Takes notice of what was done to the weights; returns whether slots can be used."""
        self._weights.follow(self._held)
        versions = [version_of(weight.tensor) for weight in self._held]
        if versions != self._versions:
            self.pool.cache.reset(self._weights.stream())
            self._versions = versions
        return self.ready

    def measure(self) -> None:
        """Takes notice of the number of slots, which is as before while there are none."""
        slots = self.pool.cache.info.slots
        if slots > 0:
            self.most_ids = ANY if self._count <= slots else slots

    def fits(self, ids: torch.Tensor) -> bool:
        """Returns whether there is a slot for every expert that ids may name."""
        return ids.numel() <= self.most_ids

    def route(self, ids: torch.Tensor) -> torch.Tensor:
        """Brings experts into slots; returns the slot of each id."""
        weights, pool = self._weights, self.pool
        stream = weights.stream()
        captures = weights.is_capturing()
        if not captures:
            pool.wait_for_last(stream, weights.device)
        ids = ids.contiguous()
        slots = torch.empty_like(ids)
        kind: Any = ID_TYPES[ids.dtype]
        at, to = ids.data_ptr(), slots.data_ptr()
        pool.cache.route(self.layer, at, ids.numel(), to, dtype=kind, stream=stream)
        pool.stream = None if captures else stream
        weights.finish_on_host()
        return slots

    @contextmanager
    def on_slots(self) -> Iterator[None]:
        """Gives the slots to the weights' own tensors, for code that has these tensors."""
        for weight, slot in zip(self._held, self.pool.tensors):
            weight.in_slot += 1
            weight.tensor.data = slot
        try:
            yield
        finally:
            for weight in self._held:
                weight.in_slot -= 1
                weight.go_home()

    def run(self, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Calls the module's forward on slots, or with the weights at home."""
        weights = self._weights
        if not weights.turns.take():
            return forward(*args, **kwargs)
        try:
            ids = args[1] if len(args) > 1 else kwargs.get(self._experts.ids)
            if self._runs_at_home(ids, args, kwargs) or not self.follow():
                return forward(*args, **kwargs)
            try:
                return self._run(forward, ids, args, kwargs)
            except WeighbridgeError as error:
                if error.status != Status.SLOTS_BUDGET:
                    raise
                self.measure()  # a resize goes on during steps
                return forward(*args, **kwargs)
        finally:
            weights.lock.release()

    def _runs_at_home(self, ids: Any, args: Any, kwargs: Any) -> bool:
        if self._weights.paused or not self.ready:
            return True
        if is_recording():
            return True  # what records the operations would record the slots
        if type(ids) is not torch.Tensor or ids.dtype not in ID_TYPES or not ids.numel():
            return True
        if ids.device.type != self._weights.device.type or not self.fits(ids):
            return True
        if is_expert_parallel(self.module):
            return True
        if self.compiled.needs_gradient(args, kwargs):
            self._weights.check_gradients()
            return True
        return False

    def _run(self, forward: Any, ids: torch.Tensor, args: Any, kwargs: Any) -> Any:
        implementation, before = implementation_of(self.module), self.pool.versions()
        if implementation in self._experts.functions:
            slots = self.route(ids)
            args, kwargs = self.compiled.with_slots(slots, args, kwargs)
            twin = self._twin(dict(zip(self._experts.tensors, self.pool.tensors)))
            twin.__dict__["num_experts"] = self.pool.slots
            result = forward.func(twin, *args, **kwargs)
        elif implementation in (None, "eager") and self._rows:
            try:
                result = self._run_rows(forward, ids, args, kwargs)
            except NotRowsError as error:
                self._rows = False
                why = f"its forward {error}, and not one expert at a time"
                self._weights.in_place.update(dict.fromkeys(self._experts.names, why))
                return forward(*args, **kwargs)
        else:
            return forward(*args, **kwargs)
        if self._weights.verify != "off":
            if self.pool.versions() != before:
                self.refuse("changed")
            if self.pool.is_kept():
                self.refuse("kept")
        return result

    def _run_rows(self, forward: Any, ids: torch.Tensor, args: Any, kwargs: Any) -> Any:
        """Runs a forward that takes experts one by one, which waits for the device in any case."""
        slots = self.route(ids)
        table = torch.full((self._count,), -1, dtype=torch.int64, device=ids.device)
        inside = (ids >= 0) & (ids < self._count)
        table[ids[inside].long()] = slots[inside].long()
        slot_of = table.tolist()
        rows = {
            own: ExpertRows(tensor, slot_of)
            for own, tensor in zip(self._experts.tensors, self.pool.tensors)
        }
        return forward.func(self._twin(rows), *args, **kwargs)

    def _twin(self, held: dict[str, Any]) -> Any:
        """Returns an object like the module, with other tensors. The module is as it was meanwhile,
        for a thread that saves or changes it."""
        twin = object.__new__(type(self.module))
        twin.__dict__.update(self.module.__dict__)
        twin.__dict__["_parameters"] = {**self.module._parameters, **held}
        return twin

    def refuse(self, what: str) -> None:
        """Never uses slots again in this module; raises RuntimeError."""
        self.ready, self.refused = False, True
        names = ", ".join(map(repr, self._experts.names))
        self._weights.in_place.update(dict.fromkeys(self._experts.names, f"{what} by its forward"))
        raise RuntimeError(
            f"{names}: something has {what} the slots of the experts in the forward of "
            f"{self.path!r}. The result was discarded. From now on the weights are read in place: "
            "call the model again, or exclude them"
        )


class CompiledExperts:
    """The forward as compilers trace it: as :class:`CompiledWindow`, with the rewritten ids."""

    def __init__(
        self, window: ExpertWindow, weights: Weights, number: int, experts: FusedExperts
    ) -> None:
        self.window = window
        self.module = experts.module
        self.slots = window.pool.tensors
        self.addresses = [slot.data_ptr() for slot in self.slots]
        self.layout = str([(t.dtype, tuple(t.shape), t.stride()) for t in self.slots])
        self._names = experts.tensors
        self._ids = experts.ids
        self._functions = experts.functions
        self._number = number
        self._handle = weights.number
        self._order = weights.order
        self._operator = _operators.route(len(self.slots))
        self._aliases = [aliases_of(slot) for slot in self.slots]

    def kept(self) -> bool:
        """Returns whether something still uses the slots after the forward."""
        return any(aliases_of(slot) > count for slot, count in zip(self.slots, self._aliases))

    def with_slots(self, slots: torch.Tensor, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Returns the arguments with slots in place of the experts' numbers."""
        if len(args) > 1:
            return (args[0], slots, *args[2:]), kwargs
        return args, {**kwargs, self._ids: slots}

    def needs_gradient(self, args: Any, kwargs: Any) -> bool:
        """Returns whether a backward pass will read the weights again."""
        if not torch.is_grad_enabled():
            return False
        tensors = (*self.module.parameters(), *tensors_in(args, kwargs))
        return any(tensor.requires_grad for tensor in tensors)

    def run(self, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Calls the module's forward on slots; for a compiler to trace."""
        module: Any = self.module
        ids = args[1] if len(args) > 1 else kwargs.get(self._ids)
        if (
            not self.window.ready
            or ids is None
            or implementation_of(module) not in self._functions
            or is_expert_parallel(module)
            or is_exporting()
            or not self.window.fits(ids)
            or self.needs_gradient(args, kwargs)
        ):
            return forward(*args, **kwargs)
        routed = self._operator(self._order, ids, self._handle, self._number, self.layout)
        slots, pool = routed[0], list(routed[1:])
        args, kwargs = self.with_slots(slots, args, kwargs)
        held, experts = [], module.num_experts
        for own, slot in zip(self._names, pool):
            held.append(module._parameters[own])
            module._parameters[own] = slot
        module.num_experts = pool[0].shape[0]
        result = forward(*args, **kwargs)
        module.num_experts = experts
        for own, weight in zip(self._names, held):
            module._parameters[own] = weight
        arguments = list(tensors_in(args, kwargs))
        torch.ops.weighbridge.release_experts(
            self._order, pool, list(tensors_in(result)), arguments, self._handle, self._number
        )
        return result


def implementation_of(module: Any) -> str | None:
    """Returns the name of the function that a module's configuration chooses."""
    name: str | None = module.config._experts_implementation
    return name

"""The weights of a model, and the offloader that holds their bytes."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterable, Iterator, Sequence, Set
from contextlib import contextmanager
from typing import Any, Callable

import torch

from .._progress import Callback
from ..errors import Status, WeighbridgeError
from ..offloader import Offloader
from ..offloader_info import OffloaderParameterInfo
from ..plan import Plan
from . import _operators
from ._changes import follow, warn_of_others
from ._compiled import is_recording
from ._expert_caches import check_kept, make_pools, make_windows
from ._expert_window import ExpertWindow, Pool
from ._experts import FusedExperts
from ._homes import given_back, place, place_part
from ._moves import Moves
from ._optimizers import follow_optimizers
from ._steps import Steps, Verify
from ._tensors import copy_bytes, like, parameter_of, strided, typed, view_within
from ._weight import Holder, Weight, Where, weights_of
from ._window import Use, Window


class Weights(Steps):
    """The weights of a model that an offloader holds.

    The model's own tensors stay. Between the forwards of their layers they use memory that always
    has the true bytes, so reading, saving, copying and changing them works as with any model.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        plan: Plan,
        device: torch.device,
        buffers: bool,
        verify: Verify,
        overlap_steps: bool,
        progress: Callback | None,
        experts: Sequence[FusedExperts] = (),
        offloader: Offloader | None = None,
    ) -> None:
        # On the host, PyTorch runs on the calling thread, which waits for a stream of its own.
        host_stream = plan.device.stream() if device.type == "cpu" else None
        super().__init__(device, host_stream, verify, overlap_steps)
        self.model = model
        self.handle: Any = None
        """The model's handle, which lives as long as the offload."""
        self.paused = False
        """Whether weights are being changed, so that all of them stay at home."""
        self.reads_in_place = True
        """Whether the device can use every weight at home."""
        self.closed: Where | None = None
        """Where weights are that only the offloader reads, if there are some."""
        self.in_place: dict[str, str] = {}
        """Why weights that have a slot are read in place, by name."""
        self.windows: dict[int, Window] = {}
        """By group."""
        self.scales: dict[str, str] = {}
        """The names of the scales of quantized weights, by the names of the weights."""
        self.buffers = buffers
        self.plan_is_fixed = plan.fixed_addresses
        self.placed = True
        """Whether nothing has changed, or moved, since :meth:`set` gave weights their homes."""
        self._by_group: dict[int, list[Weight]] = {}
        self._offloaded: dict[int, list[Weight]] = {}
        self._without_window: list[Weight] = []
        self._held: set[int] = set()
        self._released: dict[int, Window] = {}
        """By group, what compiled code has released since it was checked."""
        self.experts: dict[int, ExpertWindow] = {}
        """The windows of fused experts, by numbers that follow those of the groups."""
        self._routed: dict[int, ExpertWindow] = {}
        """The same as ``_released`` of experts."""
        self._warned = False
        self._moves: Moves | None = None
        self.number = _operators.register(self)
        """By which the operators of compiled code find this."""
        self.order = torch.zeros(1, dtype=torch.int64, device=device)
        """Orders these operators."""
        self.modules = [model.get_submodule(group.name) for group in plan.groups]
        found = weights_of(model, buffers)
        offloaded = {p.name for p in plan.parameters if p.placement == "offloaded"}
        warn_of_others([weight for weight in found if weight.name in offloaded], found)
        self.offloader = offloader or Offloader(plan, self.stream(), progress=progress)
        # Before the model changes: the memory may not suffice.
        pools = list(make_pools(self.offloader, plan, experts))
        self.all: list[Weight] = []
        with given_back(found, self.offloader):
            found += self._scales(plan, found)
            self.set(found)
            self.experts = make_windows(self, plan, pools)
            self._set_experts()
        if plan.fixed_addresses:
            self._moves = Moves(self, plan.keep_host_copy)
            self.offloader.around_moves = self._moves.around
        _offloaded.add(self)
        follow_optimizers(self)

    def _scales(self, plan: Plan, found: list[Weight]) -> Iterator[Weight]:
        """Adds the scales of the plan to the model, which has none, as parameters."""
        known = {holder.name for weight in found for holder in weight.holders}
        for planned in plan.parameters:
            if planned.name not in known:
                self.scales[planned.name.removesuffix("_inv").removesuffix("_scale")] = planned.name
                path, _, own = planned.name.rpartition(".")
                module = self.model.get_submodule(path)
                scale = torch.nn.Parameter(torch.empty(0, device="meta"), requires_grad=False)
                module.register_parameter(own, scale)
                yield Weight(scale, [Holder(planned.name, path, module, own)])

    # Slots of compiled code.

    def slots(self, group: int) -> list[torch.Tensor]:
        """Returns the slots of a group's weights for compiled code."""
        if group in self.experts:
            return self.experts[group].compiled.slots
        return self.windows[group].compiled.slots

    def acquire_slots(self, group: int, layout: str) -> list[torch.Tensor]:
        """Acquires a group for compiled code; returns tensors over its slots."""
        if group in self._released:  # the next step: code of the last one has ended
            self._check_released()
        self.follow(self.offloaded(group))
        if self.windows[group].compiled.layout != layout:
            raise _unknown_layout()
        self.acquire_group(group)
        return [slot.detach() for slot in self.slots(group)]

    def route_slots(self, group: int, layout: str, ids: torch.Tensor) -> list[torch.Tensor]:
        """Brings experts into slots for compiled code; returns the slot of each id, and tensors
        over the slots."""
        if group in self._routed:  # the next step
            routed, self._routed = self._routed, {}
            if self.verify != "off":
                check_kept(list(routed.values()))
        window = self.experts[group]
        if not window.follow() or window.compiled.layout != layout:
            raise _unknown_layout()
        try:
            return [window.route(ids), *(slot.detach() for slot in window.compiled.slots)]
        except WeighbridgeError as error:
            if error.status != Status.SLOTS_BUDGET:
                raise
            self.measure_experts()
            raise RuntimeError(
                "a resize has left fewer slots for experts than the compiled code needs: call the "
                "model again, which compiles new code"
            ) from error

    def release_slots(self, group: int) -> list[int]:
        """Releases a group for compiled code; returns the addresses of its slots."""
        if group in self.experts:
            self._routed[group] = self.experts[group]
            return self._routed[group].compiled.addresses
        self.release_group(group)
        self._released[group] = self.windows[group]
        return self._released[group].compiled.addresses

    def _check_released(self) -> None:
        """Raises RuntimeError if something still uses slots that compiled code has released.

        Not before the code has ended, which may keep tensors for longer than it uses them.
        """
        released, self._released = self._released, {}
        if self.verify != "off":
            for window in released.values():
                window.refuse_kept(window.compiled.kept(), "What used it since then may be wrong")

    def check_gradients(self) -> None:
        """Warns, once, that layers run on weights at home since gradients are recorded."""
        if not self.reads_in_place:
            raise RuntimeError(
                "asked for gradients through offloaded weights, which the device cannot read in "
                "place when the backward pass needs them: call remove() first, or torch.no_grad()"
            )
        if not self._warned:
            self._warned = True
            warnings.warn(
                "gradients are recorded, so offloaded weights are read in place over the link: for "
                "inference, call the model under torch.no_grad() or torch.inference_mode()",
                stacklevel=4,
            )

    # Where each weight is.

    def infos(self) -> dict[str, OffloaderParameterInfo]:
        """Returns where each parameter of the offloader is, in its order."""
        return {info.name: info for info in self.offloader.parameter_infos()}

    def offloaded(self, group: int) -> list[Weight]:
        """Returns the offloaded weights of a group."""
        return self._offloaded.get(group, [])

    def of_group(self, group: int) -> list[Weight]:
        """Returns the weights of a group."""
        return self._by_group.get(group, [])

    def named(self, name: str) -> Weight | None:
        """Returns the weight that had a name when it was offloaded."""
        held = (w for w in self.all for holder in w.holders if holder.name == name)
        return next(held, None)

    def set(self, found: Iterable[Weight]) -> None:
        """Takes the weights, gives them their homes, and makes the windows of the groups. Weights
        that were given other memory, which the offloader has not taken, stay there."""
        self.placed = False
        infos = self.infos()
        placed: list[Weight] = []
        for weight in found:
            weight.apart |= weight.has_other_memory()
            placed += place(weight, self.offloader, infos, self.in_place)
        self.all = placed
        for weight in self.all:
            if weight.part_of is not None:
                place_part(weight, weight.part_of)
        self._held = {id(weight.tensor) for weight in self.all}
        self._look_at_homes()
        self._by_group = {}
        uses: dict[int, list[Use]] = {}
        for weight in self.all:
            weight.slot_addresses.clear()
            for holder in weight.holders:
                info = infos.get(holder.name)
                if info is None or weight.part_of is not None:
                    continue
                self._by_group.setdefault(info.group, []).append(weight)
                carried = info.transfer_mode in ("on-demand", "prefetch") and info.span_bytes
                kept = weight.apart or weight.name in self.in_place
                if weight.stored is not None and carried and not kept:
                    view = self.offloader.view(holder.name)
                    slot, traced = (typed(weight.tensor, view) for _ in range(2))
                    weight.slot_addresses.add(slot.data_ptr())
                    uses.setdefault(info.group, []).append(Use(weight, slot, traced))
        self._offloaded = {
            group: [weight for weight in held if weight.stored is not None]
            for group, held in self._by_group.items()
        }
        self._without_window = [
            weight
            for group, held in self._offloaded.items()
            if group not in uses
            for weight in held
        ]
        for group in {*uses, *self.windows}:
            window = self.windows.setdefault(group, Window(self, group))
            window.set(uses.get(group, []))
        self._set_experts()
        self.placed = True

    def follow_unfinished(self) -> None:
        """Gives weights their homes after a change that an error, or an interrupt, has ended."""
        for weight in self.all:
            if weight.home is None and weight.stored is not None and weight.name not in self.scales:
                weight.apart = True  # taken, and perhaps changed since: it is taken again
        if self._moves is not None:
            self._moves.follow()
        self.set(self.all)

    def _look_at_homes(self) -> None:
        self.closed = next((weight.where for weight in self.all if weight.closed), None)
        self.reads_in_place = self.closed is None and all(
            weight.home is None or weight.home.device.type == self.device.type
            for weight in self.all
        )

    def _set_experts(self) -> None:
        known = set(map(id, self.all))
        for window in self.experts.values():
            window.set(known)
        # A cache refuses all calls if the weights of one layer are not those that it was made for.
        lost = {id(window.pool) for window in self.experts.values() if not window.placed}
        for window in self.experts.values():
            window.ready = not window.refused and id(window.pool) not in lost

    @property
    def expert_pools(self) -> list[Pool]:
        """The slots of the caches of experts."""
        return list({id(window.pool): window.pool for window in self.experts.values()}.values())

    def follow_experts(self) -> None:
        """Takes notice of changes of experts before a replay, which does not look."""
        if any(window.changed() for window in self.experts.values()):
            for window in self.experts.values():
                window.follow()

    def begin_step(self) -> None:
        """Begins a step, as :meth:`Steps.begin_step`."""
        if self.plan_is_fixed:
            self.measure_experts()  # a resize that does not wait goes on during steps
        super().begin_step()

    def follow_moves(self) -> None:
        """Takes notice of what a resize, or the arbiter of several models, has done."""
        self._look_at_homes()
        self.measure_experts()

    @contextmanager
    def step(self) -> Iterator[None]:
        """Runs the model, as :meth:`Steps.step`, with what was done to its weights before it."""
        if not self.runs and not self.paused and not is_recording():
            self.follow(self._without_window)
        with super().step():
            yield

    def measure_experts(self) -> None:
        """Takes notice of the number of slots of experts, which a resize changes."""
        for window in self.experts.values():
            window.measure()

    def finish(self) -> None:
        """Waits for the work queued on the current stream, and for kernels that read slots of
        experts on others."""
        for pool in self.expert_pools:
            pool.wait_for_last(self.stream(), self.device)
        super().finish()

    def reset_experts(self) -> None:
        """Empties the caches of experts, between steps."""
        for pool in self.expert_pools:
            pool.cache.reset(self.stream())
        self.finish_on_host()

    def is_offloaded(self, weight: Weight) -> bool:
        """Whether a weight, or a part of it, is not on the device by the plan."""
        if weight.stored is not None or weight.home is None or weight.part_of is not None:
            return weight.stored is not None
        return self.offloader.parameter_info(weight.name).placement == "offloaded"

    def read(self, weight: Weight) -> torch.Tensor:
        """Returns a copy of an offloaded weight in the host's memory, decompressed."""
        if weight.where is Where.DEVICE and weight.home is not None:
            return self.copy_of(weight, torch.device("cpu"))
        if weight.where is not Where.COMPRESSED and weight.stored is not None:
            return weight.stored.clone()
        name = weight.name
        return strided(
            self.offloader.read(name), weight.tensor, self.offloader.parameter_info(name)
        )

    def shown(self, weight: Weight) -> torch.Tensor | None:
        """Returns the bytes of an offloaded weight: a copy, if only the offloader changes them."""
        if weight.closed:
            return self.read(weight)
        if weight.where is Where.DEVICE and weight.home is not None:
            return weight.home.detach()
        return None if weight.stored is None else weight.stored.detach()

    def copy_of(self, weight: Weight, device: torch.device) -> torch.Tensor:
        """Returns a copy of the bytes of a weight that is at home."""
        found = self.read(weight) if weight.closed else weight.tensor
        copied = like(found, device)
        copy_bytes(found, copied)
        return copied

    # Changes.

    def follow(self, some: Iterable[Weight]) -> None:
        """Takes notice of what was done to offloaded weights outside of their layers."""
        follow(self, some)

    def changed_by_optimizer(self, ids: Set[int]) -> None:
        """Takes notice of a step of an optimizer that has the tensors with these ids."""
        if self.offloader.closed or self.is_capturing() or ids.isdisjoint(self._held):
            return
        with self.lock:
            self._copies_are_old = True
            if any(window.holds(ids) for window in self.experts.values()):
                self.reset_experts()

    def follow_within(self, module: torch.nn.Module) -> None:
        """Takes notice of what was done to the weights in a module."""
        with self.lock:
            inside = set(module.modules())
            held = (w for w in self.all if any(holder.module in inside for holder in w.holders))
            self.follow(list(held))
            for window in self.experts.values():
                if window.module in inside:
                    window.follow()  # a replay does not look

    @property
    def closed_words(self) -> str:
        """What weights are called that only the offloader reads, in messages."""
        return "weights that graphs copy" if self.closed is Where.TWICE else "compressed weights"

    def check_moved(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Raises RuntimeError if ``Module.to`` or the like moves weights off the device, or
        converts those that keep their addresses."""
        if self.closed is not None:
            raise RuntimeError(
                f"asked to convert or to move a model with {self.closed_words}, which cannot be "
                "read outside of their layers: call remove() first"
            )
        dtypes = {weight.tensor.dtype for weight in self.all}
        for dtype in dtypes | {torch.float32}:
            moved = function(torch.empty(0, dtype=dtype, device=self.device))
            if moved.device != self.device:
                raise RuntimeError(
                    f"asked to move the model to {moved.device}; its weights are offloaded from "
                    f"{self.device}: call remove() first"
                )
            if self.plan_is_fixed and moved.dtype != dtype and dtype in dtypes:
                raise RuntimeError(
                    f"asked to convert a model with fixed addresses from {dtype} to {moved.dtype}, "
                    "which takes other memory: call remove() first, or offload it without "
                    "fixed_addresses"
                )

    def replace(self, weight: Weight, tensor: torch.Tensor) -> None:
        """Replaces a weight's bytes in the offloader by those of a tensor."""
        self.placed = False
        self.write(weight, tensor)
        weight.apart = False
        weight.place(None, weight.stored, Where.ENGINE)  # until set() gives it the new one

    def replace_closed(self, weight: Weight, tensor: torch.Tensor) -> None:
        """Replaces the bytes of a weight that is at home by as many."""
        self.write(weight, tensor)
        self.begin_step()  # copies that are in slots are out of date

    def write(self, weight: Weight, tensor: torch.Tensor) -> None:
        if tensor.device.type != self.device.type and not tensor.is_cpu:
            raise RuntimeError(
                f"{weight.name!r} is offloaded from {self.device} and was moved to "
                f"{tensor.device}: call remove() first"
            )
        if self._moves is not None and weight.stored is not None:
            groups = {self.offloader.parameter_info(h.name).group for h in weight.holders}
            beside = (w for group in groups for w in self.of_group(group) if w is not weight)
            self._moves.write_back(list(beside))
        described = parameter_of(weight.name, "", tensor)
        for holder in weight.holders:
            self.offloader.replace(
                holder.name,
                described.source,
                described.dtype,
                described.shape,
                described.strides,
                self.stream(),
            )

    def add(self, holder: Holder, group: str, tensor: torch.Tensor) -> Weight:
        """Adds a weight to a group of the offloader."""
        self.placed = False
        self.offloader.add(parameter_of(holder.name, group, tensor), self.stream())
        added = Weight(tensor, [holder])
        self.all.append(added)
        return added

    def untie(self, weight: Weight, holder: Holder) -> None:
        """Removes one of the names of a weight."""
        self.placed = False
        self.offloader.remove(holder.name, self.stream())
        weight.holders.remove(holder)

    def drop(self, weight: Weight) -> None:
        """Removes a weight from the offloader."""
        for holder in list(weight.holders):
            self.untie(weight, holder)
        self.all.remove(weight)

    def detach(self, device: torch.device) -> None:
        """Gives every weight memory of its own on a device: all, or, after an error, none."""
        if not self.placed and not self.offloader.closed:
            self.follow_unfinished()
        made: dict[int, torch.Tensor] = {}
        moved = [weight for weight in self.all if weight.home is not None and weight.is_at_home()]
        for weight in moved:
            if weight.part_of is None and weight.home is not None:
                address = weight.home_address
                if address not in made:  # weights over the same memory stay so
                    made[address] = self.copy_of(weight, device)
        for weight in moved:
            whole = weight if weight.part_of is None else weight.part_of
            if whole.home is None:
                continue
            fresh = made.get(whole.home_address)
            if fresh is None:
                continue
            if weight is not whole:
                fresh = view_within(weight.tensor, weight.offset_in_whole, fresh)
            weight.tensor.data = fresh
        _offloaded.discard(self)


def _unknown_layout() -> RuntimeError:
    return RuntimeError(
        "offloaded weights were replaced by others of another type or shape, which the compiled "
        "code does not know: call the model again, which compiles new code"
    )


_offloaded: weakref.WeakSet[Weights] = weakref.WeakSet()


def is_held(tensor: torch.Tensor) -> bool:
    """Returns whether an offloader holds the bytes of this tensor object."""
    return any(id(tensor) in weights._held for weights in _offloaded)

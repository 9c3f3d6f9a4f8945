"""The weights of a model, and the offloader that holds their bytes."""

from __future__ import annotations

import bisect
import sys
import threading
import warnings
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Callable, Literal

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .._progress import Callback
from ..dtypes import DtypeLike
from ..errors import Status, WeighbridgeError
from ..offloader import Offloader, OffloaderParameterInfo
from ..plan import Parameter, Plan
from . import _operators
from ._tensors import address_of, copy_bytes, dtype_of, like, span_of, typed, view_within
from ._weight import Holder, Weight, inner_tensors, version_of, weights_of
from ._window import Use, Window

Verify = Literal["first-step", "always", "off"]


class Weights:
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
    ) -> None:
        self.model = model
        self.handle: Any = None
        """The model's handle, which lives as long as the offload."""
        self.device = device
        self.verify = verify
        self._overlap_steps = overlap_steps
        self.lock = threading.RLock()
        """Held while a layer runs, so that threads take turns."""
        self.paused = False
        """Whether weights are being changed, so that all of them stay at home."""
        self.reads_in_place = True
        """Whether the device can use every weight at home."""
        self.in_place: dict[str, str] = {}
        """Why weights that have a slot are read in place, by name."""
        self.windows: dict[int, Window] = {}
        """By group."""
        self.scales: dict[str, str] = {}
        """The names of the scales of quantized weights, by the names of the weights."""
        self.buffers = buffers
        self._by_group: dict[int, list[Weight]] = {}
        self._offloaded: dict[int, list[Weight]] = {}
        self._held: set[int] = set()
        self._running = 0
        """How often the model's forward is running, in one another."""
        self._acquired: set[int] = set()
        """The groups that were acquired since a step began, outside of the model's forward."""
        self._captures = False
        """Whether the last of them was acquired in a capture."""
        self.watches = verify != "off"
        """Whether the next step of the model is not to be compiled, but to be watched."""
        self._released: dict[int, Window] = {}
        """By group, what compiled code has released since it was checked."""
        self._warned = False
        # On the host, PyTorch runs on the calling thread, which waits for a stream of its own.
        self._host_stream = plan.device.stream() if device.type == "cpu" else None
        self.number = _operators.register(self)
        """By which the operators of compiled code find this."""
        self.order = torch.zeros(1, dtype=torch.int64, device=device)
        """Orders these operators."""
        self.modules = [model.get_submodule(group.name) for group in plan.groups]
        found = weights_of(model, buffers)
        self.offloader = Offloader(plan, self.stream(), progress=progress)
        found += self._scales(plan, found)
        self.all: list[Weight] = []
        self.set(found)
        _offloaded.add(self)

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

    # Streams and groups.

    def stream(self) -> Any:
        """Returns the stream on which PyTorch runs the model now."""
        if self._host_stream is not None:
            return self._host_stream
        index = self.device.index
        return torch._C._cuda_getCurrentRawStream(
            torch.cuda.current_device() if index is None else index
        )

    def is_capturing(self) -> bool:
        """Returns whether the stream is being captured into a CUDA graph."""
        return self._host_stream is None and torch.cuda.is_current_stream_capturing()

    @contextmanager
    def step(self) -> Iterator[None]:
        """Runs the model: a step, unless it is called within one."""
        if not self._running:
            # Once a step was captured, what replays have left in slots is unknown.
            self._overlap_steps &= not self.is_capturing()
            if not self._overlap_steps:
                self.begin_step()
        self._running += 1
        try:
            yield
            self.watches = self.verify == "always"
        finally:
            self._running -= 1
            if not self._running and self.is_capturing():
                self.offloader.join(self.stream())

    def begin_step(self) -> None:
        """Begins a step, which reads the weights as they are now, however they were changed."""
        self._acquired.clear()
        self.offloader.begin_step(self.stream())

    def acquire_group(self, group: int) -> None:
        """Makes the current stream wait until a group is on the device."""
        if not self._running:  # layers are called by themselves, or by compiled code
            captures, self._captures = self._captures, self.is_capturing()
            # Eager calls and captured ones are of different steps.
            begins = group in self._acquired or not self._acquired or captures != self._captures
            if begins and not self._overlap_steps:
                self.begin_step()
            self._acquired.add(group)
        self.offloader.acquire_group(group, self.stream())
        if self._host_stream is not None:
            self._host_stream._finish()

    def release_group(self, group: int) -> None:
        """Declares the work queued on the current stream the last use of a group."""
        self.offloader.release_group(group, self.stream())

    def slots(self, group: int) -> list[torch.Tensor]:
        """Returns the slots of a group's weights for compiled code."""
        return self.windows[group].compiled.slots

    def acquire_slots(self, group: int, layout: str) -> list[torch.Tensor]:
        """Acquires a group for compiled code; returns tensors over its slots."""
        if group in self._released:  # the next step: code of the last one has ended
            self._check_released()
        self.follow(self.offloaded(group))
        if self.windows[group].compiled.layout != layout:
            raise RuntimeError(
                "offloaded weights were replaced by others of another type or shape, which the "
                "compiled code does not know: call the model again, which compiles new code"
            )
        self.acquire_group(group)
        return [slot.detach() for slot in self.slots(group)]

    def release_slots(self, group: int) -> list[int]:
        """Releases a group for compiled code; returns the addresses of its slots."""
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
        """Takes the weights, gives them their homes, and makes the windows of the groups."""
        infos = self.infos()
        self.all = [placed for weight in found for placed in self._place(weight, infos)]
        for weight in self.all:
            if weight.part_of is not None:
                self._place_part(weight, weight.part_of)
        self._held = {id(weight.tensor) for weight in self.all}
        self.reads_in_place = all(
            weight.home is None or weight.home.device.type == self.device.type
            for weight in self.all
        )
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
                if weight.stored is not None and carried and weight.name not in self.in_place:
                    view = self.offloader.view(holder.name)
                    slot, traced = (typed(weight.tensor, view) for _ in range(2))
                    weight.slot_addresses.add(slot.data_ptr())
                    uses.setdefault(info.group, []).append(Use(weight, slot, traced))
        self._offloaded = {
            group: [weight for weight in held if weight.stored is not None]
            for group, held in self._by_group.items()
        }
        for group in {*uses, *self.windows}:
            window = self.windows.setdefault(group, Window(self, group))
            window.set(uses.get(group, []))

    def _place(self, weight: Weight, infos: dict[str, OffloaderParameterInfo]) -> list[Weight]:
        """Gives a weight its home. Names of it that were quantized apart become weights."""
        if weight.part_of is not None:
            return [weight]
        apart: dict[torch.dtype | None, Weight] = {}
        holders, weight.holders = weight.holders, []
        for holder in holders:
            info, home, stored = infos.get(holder.name), None, None
            if info is None or info.device_address is None or info.span_bytes == 0:
                pass
            elif info.placement == "offloaded":
                stored = typed(weight.tensor, self.offloader.host_view(holder.name))
                home = self._device_view(weight.tensor, holder.name, stored)
            elif info.owned:
                home = typed(weight.tensor, self.offloader.view(holder.name))
            key = None if home is None else home.dtype
            if key not in apart:
                apart[key] = Weight(weight.tensor, []) if apart else weight
                apart[key].place(home, stored)
            apart[key].holders.append(holder)
        for made in apart.values():
            _use_home(made)
        return list(apart.values())

    def _device_view(self, tensor: torch.Tensor, name: str, stored: torch.Tensor) -> torch.Tensor:
        """Returns a tensor that the device reads in place; the host's if the device cannot."""
        try:
            return typed(tensor, self.offloader.zero_copy_view(name))
        except WeighbridgeError as error:
            if error.status != Status.NOT_MAPPED:
                raise
            return stored

    def _place_part(self, weight: Weight, whole: Weight) -> None:
        """Makes a weight a view of the weight that contains its memory."""
        if whole.home is not None:
            home = view_within(weight.tensor, weight.offset_in_whole, whole.home)
            weight.place(home, None)
            weight.go_home()

    # Changes.

    def follow(self, weights: Iterable[Weight]) -> None:
        """Takes notice of what was done to offloaded weights outside of their layers.

        A weight that uses other memory than its home, or whose place another object has taken,
        replaces the offloader's.
        """
        changed = False
        for weight in weights:
            if weight.in_slot or weight.stored is None:
                continue
            if not weight.is_at_home():
                changed = True
            else:
                version = version_of(weight.tensor)
                if version != weight.version:
                    weight.version = version
                    self.begin_step()  # copies that are in slots are out of date
            if weight.is_replaced():
                tensor = weight.tensor
                for holder in [holder for holder in weight.holders if not holder.has(tensor)]:
                    changed |= self._replaced_object(weight, holder)
        if changed:
            self._take_moved()
            self.set(self.all)

    def _take_moved(self) -> None:
        """Takes the bytes of weights that were given other memory."""
        moved = [w for w in self.all if not w.in_slot and not w.is_at_home()]
        spans = [(address_of(w.home), span_of(w.home)[1]) for w in self.all if w.home is not None]
        spans.sort()
        for weight in moved:
            address = address_of(weight.tensor)
            at = bisect.bisect(spans, (address, sys.maxsize)) - 1
            if at >= 0 and address < sum(spans[at]):
                # The home of another weight, which may get new bytes before this one is read.
                own = like(weight.tensor, self.device)
                copy_bytes(weight.tensor, own)
                weight.tensor.data = own
        for weight in moved:
            if weight.part_of is not None:
                weight.part_of, weight.home = None, None  # apart from now on, and resident
            else:
                self.replace(weight, weight.tensor)

    def _replaced_object(self, weight: Weight, holder: Holder) -> bool:
        """Follows another object in a weight's place; returns whether the offloader changed."""
        held = holder.held()
        if held is None or holder.outer is not None:
            return False  # moved elsewhere: the object is still the weight
        if is_traceable_wrapper_subclass(held):
            self._add_inner(weight, holder, held)
        elif len(weight.holders) > 1:
            group = self._group_of(holder)
            self.untie(weight, holder)
            self.add(holder, group, held)
        else:
            self._give_up(weight)
            weight.tensor = held
            self.replace(weight, held)
        return True

    def _group_of(self, holder: Holder) -> str:
        """Returns the name of a weight's group."""
        return self.offloader.plan.groups[self.infos()[holder.name].group].name

    def _give_up(self, weight: Weight) -> None:
        """Gives a weight's object memory of its own, for a caller that still has it."""
        old = weight.tensor
        old.data = like(old, self.device)
        if weight.home is not None:
            copy_bytes(weight.home, old)

    def _add_inner(self, weight: Weight, holder: Holder, outer: torch.Tensor) -> None:
        """Takes the tensors inside of a subclass that is where a weight was."""
        group = self._group_of(holder)
        for name, part in inner_tensors(holder.name, outer):
            self.add(Holder(name, holder.path, holder.module, holder.own, outer), group, part)
        if len(weight.holders) > 1:
            self.untie(weight, holder)
        else:
            self._give_up(weight)
            self.drop(weight)

    def follow_within(self, module: torch.nn.Module) -> None:
        """Takes notice of what was done to the weights in a module."""
        with self.lock:
            inside = set(module.modules())
            held = (w for w in self.all if any(holder.module in inside for holder in w.holders))
            self.follow(list(held))

    def check_moved(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Raises RuntimeError if ``Module.to`` or the like moves weights off the device."""
        moved = function(torch.empty(0, device=self.device)).device
        if moved != self.device:
            raise RuntimeError(
                f"asked to move the model to {moved}; its weights are offloaded from "
                f"{self.device}: call remove() first"
            )

    def replace(self, weight: Weight, tensor: torch.Tensor) -> None:
        """Replaces a weight's bytes in the offloader by those of a tensor."""
        if tensor.device.type != self.device.type and not tensor.is_cpu:
            raise RuntimeError(
                f"{weight.name!r} is offloaded from {self.device} and was moved to "
                f"{tensor.device}: call remove() first"
            )
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
        weight.home = None  # until set() gives it the new one

    def add(self, holder: Holder, group: str, tensor: torch.Tensor) -> Weight:
        """Adds a weight to a group of the offloader."""
        self.offloader.add(parameter_of(holder.name, group, tensor), self.stream())
        added = Weight(tensor, [holder])
        self.all.append(added)
        return added

    def untie(self, weight: Weight, holder: Holder) -> None:
        """Removes one of the names of a weight."""
        weight.holders.remove(holder)
        self.offloader.remove(holder.name, self.stream())

    def drop(self, weight: Weight) -> None:
        """Removes a weight from the offloader."""
        for holder in weight.holders:
            self.offloader.remove(holder.name, self.stream())
        self.all.remove(weight)

    def detach(self, device: torch.device) -> None:
        """Gives every weight memory of its own on a device: all, or, after an error, none."""
        made: dict[int, torch.Tensor] = {}
        moved = [weight for weight in self.all if weight.home is not None and weight.is_at_home()]
        for weight in moved:
            if weight.part_of is None and weight.home is not None:
                address = weight.home.data_ptr()
                if address not in made:  # weights over the same memory stay so
                    made[address] = like(weight.home, device)
                    copy_bytes(weight.home, made[address])
        for weight in moved:
            whole = weight if weight.part_of is None else weight.part_of
            if whole.home is None:
                continue
            fresh = made.get(whole.home.data_ptr())
            if fresh is None:
                continue
            if weight is not whole:
                fresh = view_within(weight.tensor, weight.offset_in_whole, fresh)
            weight.tensor.data = fresh
        _offloaded.discard(self)


_offloaded: weakref.WeakSet[Weights] = weakref.WeakSet()


def is_held(tensor: torch.Tensor) -> bool:
    """Returns whether an offloader holds the bytes of this tensor object."""
    return any(id(tensor) in weights._held for weights in _offloaded)


def _use_home(weight: Weight) -> None:
    """Makes a weight's tensor use its home: a new tensor if the old one cannot."""
    tensor, home = weight.tensor, weight.home
    if home is None:
        return
    if tensor.is_meta or tensor.dtype != home.dtype:
        if isinstance(tensor, torch.nn.Parameter):
            gradient = tensor.requires_grad and tensor.dtype == home.dtype
            weight.tensor = torch.nn.Parameter(home, requires_grad=gradient)
        else:
            weight.tensor = home
        for holder in weight.holders:
            holder.put(weight.tensor)
    if not weight.in_slot:
        weight.go_home()


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

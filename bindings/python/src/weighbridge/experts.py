"""Expert caches: the recently used experts of a mixture in slots on the device."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ctypes import byref, c_uint64, pointer
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ._abi import (
    wb_expert_cache_info,
    wb_expert_cache_options,
    wb_expert_cache_size,
    wb_expert_cache_stats,
    wb_expert_route_options,
    wb_expert_slots_info,
    wb_expert_tensor,
)
from ._arguments import c_layout, c_text, unsigned
from ._call import call, filled
from ._handle import Closeable, Reference, reference_of
from ._library import lib
from .dtypes import Dtype, DtypeLike, OpaqueDtype, dtype_of_info
from .info import same_fields
from .memory import Buffer, Device, View
from .stream import stream_handle

if TYPE_CHECKING:
    from .offloader import Offloader

IdType = Literal["int32", "int64"]


@dataclass(frozen=True)
class ExpertTensor:
    """One expert tensor of one layer: weights, scales or zero points, of any type."""

    layer: int
    """Layers count from 0."""
    name: str
    """Such as "w13": the same in every layer."""
    buffer: Buffer
    """The memory, mapped for the device; the cache keeps it."""
    dtype: DtypeLike | OpaqueDtype
    shape: Sequence[int]
    """The first dimension counts the experts; the others are an expert, which is contiguous."""
    strides: Sequence[int] | None = None
    offset: int = 0
    """Bytes from the start of the buffer to the first element."""


@dataclass(frozen=True)
class ExpertParameter:
    """One expert tensor of one layer, as a parameter of an offloader."""

    layer: int
    """Layers count from 0."""
    name: str
    """Such as "w13": the same in every layer."""
    parameter: str
    """The name of the parameter."""


@dataclass(frozen=True)
class ExpertCacheSize:
    """The device memory of a cache."""

    slots: int
    slot_bytes: int
    state_bytes: int


@dataclass(frozen=True)
class ExpertCacheInfo:
    """Properties of a cache."""

    lanes: int
    layers: int
    tensors: int
    experts: int
    """Of all layers."""
    expert_bytes: int
    """Of all tensors of an expert."""
    slots: int
    """In use."""
    capacity: int
    """That there is memory for."""
    slot_bytes: int
    state_bytes: int
    most_slots: int
    """That there are addresses for: more than memory with fixed addresses."""
    predicted_hit_rate: float
    """Of the slots in use, if a router picks all experts equally often: ``slots / experts``."""


@dataclass(frozen=True)
class ExpertSlotsInfo:
    """The slots of one expert tensor."""

    name: str
    dtype: Dtype | OpaqueDtype
    shape: tuple[int, ...]
    """The first dimension is ``most_slots``."""
    device_address: int
    expert_bytes: int


@dataclass(frozen=True)
class ExpertCacheStats:
    """What a cache has done, counted on the device, replays of graphs included."""

    calls: int
    hits: int
    """Experts that calls found in slots; each counts once in a call."""
    misses: int
    evictions: int
    """Experts, of any layer, that calls and hints of the layer evicted."""
    prefetched: int
    """Experts that hints copied into slots."""
    refused: int
    """Experts of hints for which no slot could be taken."""
    ignored: int
    """Ids without an expert."""
    gathered_bytes: int

    @property
    def hit_rate(self) -> float:
        """The part of experts that calls found in slots; 0 without calls."""
        return self.hits / max(self.hits + self.misses, 1)


class ExpertCache(Closeable):
    """Keeps recently used experts in slots on the device, which all layers share.

    Give one of ``slots`` and ``device_bytes``, which is a ceiling for slots and state together.
    Each of ``lanes`` is a batch in flight at a time. ``memory``, a pair of address and bytes, is
    device memory for the slots, which the caller keeps; otherwise it is allocated.
    """

    _noun = "expert cache"

    def __init__(
        self,
        device: Device,
        tensors: Iterable[ExpertTensor],
        *,
        slots: int = 0,
        device_bytes: int = 0,
        lanes: int = 1,
        memory: tuple[int, int] = (0, 0),
    ) -> None:
        self._reference = None
        self._device = device
        given, options = _Tensors(tensors), _options(slots, device_bytes, lanes, memory)
        reference = Reference(lib.wb_expert_cache_release)
        call(
            lib.wb_expert_cache_new,
            reference_of(device, "device"),
            given.array,
            len(given.array),
            byref(options),
            reference.out,
        )
        self._reference = reference

    @classmethod
    def for_offloader(
        cls,
        offloader: Offloader,
        tensors: Iterable[ExpertParameter],
        *,
        slots: int = 0,
        device_bytes: int = 0,
        lanes: int = 1,
    ) -> ExpertCache:
        """Returns a cache of experts that are offloaded parameters, such as those with the access
        pattern ``"experts"``.

        It takes its device memory from the ``expert_bytes`` of the plan: with neither ``slots``
        nor ``device_bytes`` all that is left. It follows replacements of its parameters.
        """
        given, options = _Parameters(tensors), _options(slots, device_bytes, lanes, (0, 0))
        reference = Reference(lib.wb_expert_cache_release)
        call(
            lib.wb_expert_cache_new_for_offloader,
            reference_of(offloader, "offloader"),
            given.array,
            len(given.array),
            byref(options),
            reference.out,
        )
        cache = cls.__new__(cls)
        cache._device, cache._reference = offloader.device, reference
        return cache

    @staticmethod
    def measure(
        device: Device,
        tensors: Iterable[ExpertTensor],
        *,
        slots: int = 0,
        device_bytes: int = 0,
        lanes: int = 1,
    ) -> ExpertCacheSize:
        """Returns the size of the cache that these arguments would create."""
        given, options = _Tensors(tensors), _options(slots, device_bytes, lanes, (0, 0))
        found = filled(
            wb_expert_cache_size,
            lib.wb_expert_cache_measure,
            reference_of(device, "device"),
            given.array,
            len(given.array),
            byref(options),
        )
        return ExpertCacheSize(**same_fields(ExpertCacheSize, found))

    @property
    def device(self) -> Device:
        """The device of the slots."""
        return self._device

    @property
    def info(self) -> ExpertCacheInfo:
        """Properties of the cache."""
        found = filled(wb_expert_cache_info, lib.wb_expert_cache_get_info, self._live())
        return ExpertCacheInfo(**same_fields(ExpertCacheInfo, found))

    def slots_info(self, tensor: int) -> ExpertSlotsInfo:
        """Returns the slots of a tensor; indexes follow the order in which names were described."""
        reference = self._live()
        index = unsigned(tensor, "tensor")
        found = filled(wb_expert_slots_info, lib.wb_expert_cache_get_slots_info, reference, index)
        return ExpertSlotsInfo(
            name=found.name.decode(),
            dtype=dtype_of_info(found),
            shape=tuple(found.shape[: found.ndim]),
            device_address=found.device_address or 0,
            expert_bytes=found.expert_bytes,
        )

    def view(self, tensor: int) -> View:
        """Returns the slots of a tensor as a view ``[most_slots, ...]`` for the device.

        ``torch.from_dlpack`` makes a tensor of it, which holds the memory.
        """
        reference = Reference(lib.wb_view_release)
        call(lib.wb_expert_cache_get_view, self._live(), unsigned(tensor, "tensor"), reference.out)
        return View(self._device, reference)

    def route(
        self,
        layer: int,
        ids: int,
        count: int,
        slots: int,
        *,
        dtype: IdType = "int32",
        lane: int = 0,
        pass_: int = 0,
        passes: int = 1,
        stream: Any = None,
    ) -> None:
        """Brings the experts that ids name into slots, and writes the slot of each id.

        ``ids`` is the address of ``count`` numbers on the device, and ``slots`` one for as many,
        which may be the same. Ids without an expert in the pass get -1. The kernels that read the
        slots are queued on the same stream, before the next call with this lane. Raises
        WeighbridgeError with Status.SLOTS_BUDGET, before anything is queued, if the ids may name
        more experts than a lane has slots: see :meth:`passes`.
        """
        options = wb_expert_route_options(lane=unsigned(lane, "lane", 32))
        options.passes = unsigned(passes, "passes", 32)
        setattr(options, "pass", unsigned(pass_, "pass_", 32))
        call(
            lib.wb_expert_cache_route,
            self._live(),
            unsigned(layer, "layer"),
            unsigned(ids, "ids"),
            unsigned(count, "count"),
            Dtype.of(dtype),
            unsigned(slots, "slots"),
            byref(options),
            stream_handle(stream),
        )

    def prefetch(
        self, layer: int, ids: int, count: int, *, dtype: IdType = "int32", stream: Any = None
    ) -> None:
        """Brings experts into slots ahead of their call, on another stream than the kernels."""
        call(
            lib.wb_expert_cache_prefetch,
            self._live(),
            unsigned(layer, "layer"),
            unsigned(ids, "ids"),
            unsigned(count, "count"),
            Dtype.of(dtype),
            stream_handle(stream),
        )

    def passes(self, layer: int, count: int) -> int:
        """Returns the number of passes in which a layer is computed for ``count`` ids."""
        found = c_uint64()
        layer, count = unsigned(layer, "layer"), unsigned(count, "count")
        call(lib.wb_expert_cache_get_passes, self._live(), layer, count, byref(found))
        return found.value

    def reset(self, stream: Any = None) -> None:
        """Empties all slots: after weights in host memory were written."""
        call(lib.wb_expert_cache_reset, self._live(), stream_handle(stream))

    def resize(self, slots: int, stream: Any = None) -> None:
        """Uses the first ``slots`` slots from now on; graphs stay valid."""
        number = unsigned(slots, "slots")
        call(lib.wb_expert_cache_resize, self._live(), number, stream_handle(stream))

    def stats(self, layer: int | None = None) -> ExpertCacheStats:
        """Returns the counters of a layer, or of all; the engine's streams are not waited for."""
        reference = self._live()
        if layer is None:
            found = filled(wb_expert_cache_stats, lib.wb_expert_cache_get_stats, reference)
        else:
            function, index = lib.wb_expert_cache_get_layer_stats, unsigned(layer, "layer")
            found = filled(wb_expert_cache_stats, function, reference, index)
        return ExpertCacheStats(**same_fields(ExpertCacheStats, found))

    def __repr__(self) -> str:
        if self.closed:
            return "<weighbridge.ExpertCache closed>"
        info = self.info
        return f"<weighbridge.ExpertCache {info.slots} slots, {info.experts} experts>"


class _Tensors:
    """An array of expert tensors for C, with everything that it points to."""

    def __init__(self, tensors: Iterable[ExpertTensor]) -> None:
        self._given = list(tensors)
        self._references = [reference_of(tensor.buffer, "buffer") for tensor in self._given]
        self.array = (wb_expert_tensor * len(self._given))(
            *(
                wb_expert_tensor(
                    layer=unsigned(tensor.layer, "layer"),
                    name=c_text(tensor.name, "name"),
                    layout=pointer(
                        c_layout(tensor.dtype, tensor.shape, tensor.strides, tensor.offset)
                    ),
                    buffer=reference.handle,
                )
                for tensor, reference in zip(self._given, self._references)
            )
        )


class _Parameters:
    """The same of tensors that are parameters."""

    def __init__(self, tensors: Iterable[ExpertParameter]) -> None:
        given = list(tensors)
        self.array = (wb_expert_tensor * len(given))(
            *(
                wb_expert_tensor(
                    layer=unsigned(tensor.layer, "layer"),
                    name=c_text(tensor.name, "name"),
                    parameter=c_text(tensor.parameter, "parameter"),
                )
                for tensor in given
            )
        )


def _options(
    slots: int, device_bytes: int, lanes: int, memory: tuple[int, int]
) -> wb_expert_cache_options:
    address, nbytes = memory
    return wb_expert_cache_options(
        lanes=unsigned(lanes, "lanes", 32),
        slots=unsigned(slots, "slots"),
        device_bytes=unsigned(device_bytes, "device_bytes"),
        memory=unsigned(address, "memory"),
        memory_bytes=unsigned(nbytes, "memory"),
    )

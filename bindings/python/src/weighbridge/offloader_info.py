"""What offloaders say of themselves: results of calls of :class:`weighbridge.Offloader`."""

from __future__ import annotations

from dataclasses import dataclass

from ._abi import wb_offloader_parameter_info
from ._enums import ADDRESS_STATE, HOST_STORE, PLACEMENT, TRANSFER_MODE
from .dtypes import Dtype, OpaqueDtype, dtype_of_info


@dataclass(frozen=True)
class OffloaderParameterInfo:
    """Where a parameter is."""

    name: str
    group: int
    placement: str
    """"resident" or "offloaded"."""
    transfer_mode: str
    """How an offloaded parameter reaches the device; "auto" for a resident one."""
    owned: bool
    """Whether the memory at ``device_address`` belongs to the offloader."""
    device_address: int | None
    """Of the first element; a copied parameter is there while its group is acquired. None if the
    parameter has no bytes yet."""
    host_address: int | None
    """Of the first element in host memory; None for a resident parameter, and for one that is
    compressed there."""
    span_bytes: int
    dtype: Dtype | OpaqueDtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """In elements."""
    host_store: str
    """"source" if its host memory is the buffer of its source, else "copy"."""
    host_store_reason: str
    """Why it is not, though the plan has ``host_store="source"``; otherwise empty."""
    encoded_bytes: int
    """That it is compressed to in host memory; 0 if it is not."""
    resident_bytes: int
    """On the device now, in memory of its own or of the engine, and not in a slot."""
    device_encoded_bytes: int
    """Of device memory in which the device keeps it compressed; 0 if it does not."""
    device_encoded_reason: str
    """Why it does not, though the plan has it so; otherwise empty."""
    at_address: bool
    """Whether its bytes are at ``device_address`` at all times: steps copy nothing there, and a
    change there counts."""
    copied_by_graphs: bool
    """Whether a graph may exist that copies its bytes in host memory there: if they are at that
    address, too, only a replacement changes both."""
    moving: bool
    """Whether a resize that is not done moves it by a copy that is being made or exists already:
    what is changed in place meanwhile is not where it is afterwards."""


@dataclass(frozen=True)
class OffloaderStats:
    """Memory and transfers of an offloader. Copies of a replayed graph are not counted."""

    parameters: int
    offloaded_bytes: int
    asked_bytes: int
    mapped_bytes: int
    pinned_bytes: int
    resident_bytes: int
    slot_bytes: int
    view_bytes: int
    unfilled_bytes: int
    """Of ``offloaded_bytes``, those of parameters that were given no source yet: zeros, or what was
    written through a host view, until they are replaced."""
    staging_bytes: int
    """Of staging memory: the pinned buffer through which pageable memory is staged, and what
    replacements of quantized parameters use."""
    peak_mapped_bytes: int
    peak_slot_bytes: int
    moved_bytes: int
    copies: int
    acquires: int
    late_copies: int
    """Prefetches that had not started when their group was acquired."""
    waited_seconds: float
    generation: int
    """As :attr:`Offloader.generation`."""
    decoded_bytes: int
    """Of ``offloaded_bytes``, those of parameters that are compressed in host memory."""
    encoded_bytes: int
    """What these are compressed to."""
    moved_encoded_bytes: int
    """Of ``moved_bytes``, those that were compressed."""
    moved_decoded_bytes: int
    """What these were decoded to."""
    expert_bytes: int
    """Of device memory of the expert caches that were made for it and are alive."""
    device_parameter_bytes: int
    """Of parameters that are on the device now: the sum of their infos' ``resident_bytes``."""
    device_encoded_bytes: int
    """Of device memory for what the device keeps compressed, held as long as the offloader."""
    device_decoded_bytes: int
    """Of ``decoded_bytes``, those that are decoded from there and cross no link."""
    encoded_by_device_bytes: int
    """That the commit compressed by kernels of the device, before that."""
    encoded_by_host_bytes: int
    """That it compressed by the host's cores."""


@dataclass(frozen=True)
class OffloadedGroupStats:
    """Transfers of a group. Copies of a replayed graph are not counted."""

    acquires: int
    moved_bytes: int
    copies: int
    late_copies: int
    """Prefetches that had not started when the group was acquired."""
    waits: int
    """Times that the engine's stream waited for copies."""
    waited_seconds: float
    moved_encoded_bytes: int
    """Of ``moved_bytes``, those that were compressed."""
    moved_decoded_bytes: int
    """What these were decoded to."""


@dataclass(frozen=True)
class ReconcileResult:
    """What :meth:`Offloader.reconcile` did, in numbers of parameters."""

    replaced: int
    added: int
    removed: int
    kept: int


@dataclass(frozen=True)
class ResizeProgress:
    """The progress of a resize, and the bytes that the offloader holds."""

    pending_units: int
    """Units that are not where they are to be; 0 once the resize is done."""
    pending_bytes: int
    """What they take on the device."""
    device_bytes: int
    """Device memory of resident parameters and of slots, in whole pieces."""
    host_bytes: int
    """Host memory of parameters that are read in place, and of copies that are kept."""


@dataclass(frozen=True)
class RebalanceProgress:
    """What a rebalance has done, and what is left to do."""

    moved_bytes: int
    """Whose copies the call has queued, in both directions."""
    pending_bytes: int
    """Of pieces that are not where they are to be; 0 once the hottest are on the device."""
    device_bytes: int
    """Device memory of resident parameters and of slots, in whole pieces."""
    host_bytes: int
    """Host memory of parameters that are read in place, and of copies that are kept."""


def parameter_info_of(found: wb_offloader_parameter_info) -> OffloaderParameterInfo:
    state = ADDRESS_STATE.words_in(found.address_state)
    return OffloaderParameterInfo(
        name=found.name.decode(),
        group=found.group,
        placement=PLACEMENT.word(found.placement),
        transfer_mode=TRANSFER_MODE.word(found.transfer_mode),
        owned=bool(found.owned),
        device_address=found.device_address,
        host_address=found.host_address,
        span_bytes=found.span_bytes,
        dtype=dtype_of_info(found),
        shape=tuple(found.shape[: found.ndim]),
        strides=tuple(found.strides[: found.ndim]),
        host_store=HOST_STORE.word(found.host_store),
        host_store_reason=found.host_store_reason.decode(),
        encoded_bytes=found.encoded_bytes,
        resident_bytes=found.resident_bytes,
        device_encoded_bytes=found.device_encoded_bytes,
        device_encoded_reason=found.device_encoded_reason.decode(),
        at_address="own" in state,
        copied_by_graphs="copied-by-graphs" in state,
        moving="moving" in state,
    )

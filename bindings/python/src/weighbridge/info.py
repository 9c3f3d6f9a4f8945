"""The properties and counters of devices, buffers and views."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ._abi import (
    wb_buffer_info,
    wb_buffer_stats,
    wb_device_info,
    wb_device_stats,
    wb_view_info,
)
from ._call import filled
from ._enums import ACCESSOR, DEVICE_KIND, ORIGIN, PINNING
from ._handle import Reference
from ._library import lib
from .dtypes import Dtype

_NO_LIMIT = 2**64 - 1


@dataclass(frozen=True)
class DeviceInfo:
    """Device capabilities and effective policy."""

    kind: str
    """"host" or "cuda"."""
    ordinal: int
    name: str
    driver_version: int
    """13000 for CUDA 13.0; 0 for the host."""
    compute_capability: int
    """Times ten, 90 for 9.0; 0 for the host."""
    unified_addressing: bool
    host_register: bool
    """Existing host memory can be registered."""
    read_only_register: bool
    """Registering a read-only page worked when it was tried."""
    read_only_register_attribute: bool
    """What the driver's attribute reports for it."""
    pageable_access: bool
    """Any pointer of the process is a device pointer."""
    integrated: bool
    numa_node: int | None
    """None if it is unknown."""
    memlock_limit: int | None
    """Bytes that this process may lock; None without a limit."""
    total_bytes: int
    free_bytes: int
    pin: bool
    """The policy pins host memory."""
    pin_reason: str
    views: bool
    """The policy lets the device read host memory in place."""
    views_reason: str
    address_granularity: int
    """Bytes of which fixed addresses are multiples; 0 if the device has none."""
    address_reason: str
    """Why it has none; empty otherwise."""


@dataclass(frozen=True)
class DeviceStats:
    """Counters of a device's live objects. All but ``errors_logged`` return to 0."""

    buffers: int
    views: int
    deferred: int
    """References that wait for a stream or for the thread that frees memory."""
    asked_bytes: int
    mapped_bytes: int
    pinned_bytes: int
    device_bytes: int
    errors_logged: int


@dataclass(frozen=True)
class BufferInfo:
    """The properties of a buffer."""

    origin: str
    """"allocated", "registered", "file-mapped" or "file-read"."""
    pinning: str
    """"none", "registered" or "driver"."""
    read_only: bool
    address: int
    """The host address of the first byte; 0 in an empty buffer."""
    device_address: int | None
    """The device address of the first byte; None if it is not device-mapped."""
    asked_bytes: int
    mapped_bytes: int
    pinned_bytes: int
    chunks: int
    """Registrations that pin the buffer."""
    fallback_reason: str
    """Reason for the fallback; empty if there is none."""


@dataclass(frozen=True)
class BufferStats:
    """The kernel's counters of a buffer's pages at the time of the call."""

    resident_bytes: int
    huge_bytes: int
    anonymous_bytes: int
    """In private pages: for a mapped file, the pages that were silently copied."""
    locked_bytes: int


@dataclass(frozen=True)
class ViewInfo:
    """The properties of a view."""

    dtype: Dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """In elements."""
    accessor: str
    """"device" or "host"."""
    read_only: bool
    address: int
    """The host address of the first element; 0 in an empty buffer, and in memory that only a CUDA
    device can access."""
    device_address: int | None
    """The device address of the first element; None in a view for the host."""
    elements: int
    nbytes: int
    """Bytes of the elements, without gaps."""
    span_bytes: int
    """Bytes from the start of the lowest to the end of the highest element, with gaps."""


def device_info(device: Reference, switched_off: dict[str, str | None]) -> DeviceInfo:
    """Returns a device's properties; ``switched_off`` replaces reasons that it names."""
    found = filled(wb_device_info, lib.wb_device_get_info, device)
    reasons = {
        key: switched_off.get(key) or getattr(found, key).decode(errors="replace")
        for key in ("pin_reason", "views_reason")
    }
    return DeviceInfo(
        kind=DEVICE_KIND.word(found.kind),
        ordinal=found.ordinal,
        name=found.name.decode(errors="replace"),
        driver_version=found.driver_version,
        compute_capability=found.compute_capability,
        unified_addressing=bool(found.unified_addressing),
        host_register=bool(found.host_register),
        read_only_register=bool(found.read_only_register),
        read_only_register_attribute=bool(found.read_only_register_attribute),
        pageable_access=bool(found.pageable_access),
        integrated=bool(found.integrated),
        numa_node=None if found.numa_node < 0 else found.numa_node,
        memlock_limit=None if found.memlock_limit == _NO_LIMIT else found.memlock_limit,
        total_bytes=found.total_bytes,
        free_bytes=found.free_bytes,
        pin=bool(found.pin),
        views=bool(found.views),
        address_granularity=found.address_granularity,
        address_reason=found.address_reason.decode(errors="replace"),
        **reasons,
    )


def device_stats(device: Reference) -> DeviceStats:
    """Returns a device's counters."""
    found = filled(wb_device_stats, lib.wb_device_get_stats, device)
    return DeviceStats(**same_fields(DeviceStats, found))


def buffer_info(buffer: Reference) -> BufferInfo:
    """Returns a buffer's properties."""
    found = filled(wb_buffer_info, lib.wb_buffer_get_info, buffer)
    return BufferInfo(
        origin=ORIGIN.word(found.origin),
        pinning=PINNING.word(found.pinning),
        read_only=bool(found.read_only),
        address=found.data or 0,
        device_address=found.device_address,
        asked_bytes=found.asked_bytes,
        mapped_bytes=found.mapped_bytes,
        pinned_bytes=found.pinned_bytes,
        chunks=found.chunks,
        fallback_reason=found.fallback_reason.decode(errors="replace"),
    )


def buffer_stats(buffer: Reference) -> BufferStats:
    """Returns a buffer's counters."""
    found = filled(wb_buffer_stats, lib.wb_buffer_get_stats, buffer)
    return BufferStats(**same_fields(BufferStats, found))


def view_info(view: Reference) -> ViewInfo:
    """Returns a view's properties."""
    found = filled(wb_view_info, lib.wb_view_get_info, view)
    dtype = Dtype(found.dtype)
    return ViewInfo(
        dtype=dtype,
        shape=tuple(found.shape[: found.ndim]),
        strides=tuple(found.strides[: found.ndim]),
        accessor=ACCESSOR.word(found.accessor),
        read_only=bool(found.read_only),
        address=found.data or 0,
        device_address=found.device_address,
        elements=found.elements,
        nbytes=found.elements * dtype.itemsize,
        span_bytes=found.span_bytes,
    )


def same_fields(dataclass: Any, struct: Any) -> dict[str, Any]:
    """Returns the values of a struct's fields by the names that a dataclass has for them."""
    return {name: getattr(struct, name) for name in dataclass.__dataclass_fields__}

"""Devices: places to compute, their memory and their streams."""

from __future__ import annotations

import math
import time
import weakref
from ctypes import byref, c_double, c_int32, c_uint64, c_void_p
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import _abi, _keepalive, _streams, _vllm
from ._handle import Handle, Reference
from ._library import lib
from ._options import c_text, unsigned
from .errors import ClosedError, Status, WaitTimeoutError, check

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._options import BufferOptions
    from .buffer import Buffer
    from .view import View

# A native wait cannot be interrupted; several short ones can, in between.
_WAIT_SECONDS = 0.1
_NO_LIMIT = 2**64 - 1


def cuda_device_count() -> int:
    """How many CUDA devices there are; ``Status.NO_DRIVER`` where there is no NVIDIA driver."""
    count, error = c_int32(), _abi.wb_error()
    check(lib.wb_device_get_cuda_count(byref(count), byref(error)), error)
    return count.value


@dataclass(frozen=True)
class DeviceInfo:
    """The platform's truth, and the policy decided from it."""

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
    read_only_register: bool
    """Registering a read-only page worked."""
    read_only_register_attribute: bool
    """What the driver's attribute says of it."""
    pageable_access: bool
    """Any pointer of the process is a device pointer."""
    integrated: bool
    numa_node: int | None
    """None when unknown."""
    memlock_limit: int | None
    """Bytes that this process may lock; None without a limit."""
    total_bytes: int
    free_bytes: int
    pin: bool
    """The policy is to pin host memory."""
    pin_reason: str
    views: bool
    """The policy is to let the device read host memory in place."""
    views_reason: str


@dataclass(frozen=True)
class DeviceUsage:
    """What lives on a device now. All but ``errors_logged`` return to 0."""

    buffers: int
    views: int
    deferred: int
    """References that wait for a stream or for the thread that gives memory back."""
    asked_bytes: int
    mapped_bytes: int
    pinned_bytes: int
    device_bytes: int
    errors_logged: int


class Device(Handle):
    """A place to compute: "cuda:N", or "host", which is always there.

    ``pin`` and ``views`` are True, False, or None for what environment and platform decide;
    ``context`` is the caller's own CUcontext, which must outlive the device; ``capacity_bytes``
    is the memory that the host device has, 0 for as much as the machine.
    """

    _noun = "device"

    def __init__(
        self,
        name: str,
        *,
        pin: bool | None = None,
        views: bool | None = None,
        capacity_bytes: int = 0,
        context: int | None = None,
    ) -> None:
        self._reference = None
        self._switched_off = {}
        if pin is None:
            self._switched_off["pin_reason"] = _vllm.disabled(_vllm.PIN)
        if views is None:
            self._switched_off["views_reason"] = _vllm.disabled(_vllm.VIEWS)
        if self._switched_off.get("pin_reason"):
            pin = False
        if self._switched_off.get("views_reason"):
            views = False
        options = _abi.wb_device_options(
            pin=_abi.choice(pin),
            views=_abi.choice(views),
            context=None if context is None else unsigned(context, "context"),
            capacity_bytes=unsigned(capacity_bytes, "capacity_bytes"),
        )
        reference, error = Reference(lib.wb_device_release), _abi.wb_error()
        status = lib.wb_device_open(
            c_text(name, "device name"), byref(options), reference.out, byref(error)
        )
        check(status, error)
        self._reference = reference
        info = self.info
        self.kind = info.kind
        """"host" or "cuda"."""
        self.ordinal = info.ordinal

    @property
    def name(self) -> str:
        """The name that opens it: "host" or "cuda:N"."""
        return "host" if self.kind == "host" else f"cuda:{self.ordinal}"

    @property
    def info(self) -> DeviceInfo:
        """The platform's truth, and the policy decided from it."""
        found, error = _abi.wb_device_info(), _abi.wb_error()
        check(lib.wb_device_get_info(self._live(), byref(found), byref(error)), error)
        reasons = {
            key: self._switched_off.get(key) or getattr(found, key).decode(errors="replace")
            for key in ("pin_reason", "views_reason")
        }
        return DeviceInfo(
            kind=_abi.DEVICE_KIND.word(found.kind),
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
            **reasons,
        )

    @property
    def usage(self) -> DeviceUsage:
        """What was made through this device and lives now."""
        _keepalive.collect()
        found, error = _abi.wb_device_stats(), _abi.wb_error()
        check(lib.wb_device_get_stats(self._live(), byref(found), byref(error)), error)
        fields = DeviceUsage.__dataclass_fields__
        return DeviceUsage(**{name: getattr(found, name) for name in fields})

    def measure_link(self) -> float:
        """Bytes a second from pinned host memory to the device; plans made later count on it."""
        found, error = c_double(), _abi.wb_error()
        check(lib.wb_device_measure_link(self._live(), byref(found), byref(error)), error)
        return found.value

    def drain(self, timeout: float | None = None) -> None:
        """Wait until every reference that goes after a stream, or was a consumer's, is gone.

        ``timeout`` is in seconds; TimeoutError after it. None waits for ever. Ctrl-C interrupts.
        """
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        while True:
            seconds = min(max(deadline - time.monotonic(), 0), _WAIT_SECONDS)
            error = _abi.wb_error()
            milliseconds = math.ceil(seconds * 1000)
            status = lib.wb_device_drain(self._live(), milliseconds, byref(error))
            if status != Status.TIMEOUT:
                check(status, error)
                _keepalive.collect()
                return
            if time.monotonic() >= deadline:
                left = self.usage.deferred
                raise WaitTimeoutError(
                    status,
                    f"after {timeout} s, {left} references still wait for their streams: is one "
                    "of them stuck, or the time too short?",
                )

    def buffer(self, nbytes: int, **options: Unpack[BufferOptions]) -> Buffer:
        """Host memory of exactly ``nbytes`` bytes; see :meth:`Buffer.alloc`."""
        from .buffer import Buffer

        return Buffer.alloc(self, nbytes, **options)

    def alloc(self, nbytes: int) -> int:
        """The address of exactly ``nbytes`` bytes of device memory, to be given to :meth:`free`."""
        address, error = c_uint64(), _abi.wb_error()
        nbytes = unsigned(nbytes, "nbytes")
        check(lib.wb_device_alloc(self._live(), nbytes, byref(address), byref(error)), error)
        return address.value

    def free(self, address: int) -> None:
        """Give device memory back; waits for the device as the driver does."""
        error = _abi.wb_error()
        address = unsigned(address, "address")
        check(lib.wb_device_free(self._live(), address, byref(error)), error)

    def copy(
        self,
        to: int | Buffer | View,
        source: int | Buffer | View,
        nbytes: int | None = None,
        stream: Any = None,
    ) -> None:
        """Queue a copy between any two places: addresses, buffers or views without gaps.

        ``nbytes`` may be left out where a buffer or a view says it. Both places must stay until
        the stream has run the copy: close them with ``release_after``. ValueError for a buffer or a
        view to copy into that is read-only.
        """
        if isinstance(to, Handle) and to.read_only:
            raise ValueError(f"asked to copy into {to!r}: copy into a buffer of Device.buffer")
        (to_address, to_nbytes), (from_address, from_nbytes) = _place(to), _place(source)
        known = [count for count in (to_nbytes, from_nbytes) if count is not None]
        if nbytes is None:
            if not known:
                raise TypeError("nbytes is needed to copy from one address to another")
            nbytes = from_nbytes if from_nbytes is not None else known[0]
        if any(nbytes > count for count in known):
            raise ValueError(f"asked to copy {nbytes} bytes; there are {min(known)}")
        error = _abi.wb_error()
        status = lib.wb_device_copy(
            self._live(),
            to_address,
            from_address,
            unsigned(nbytes, "nbytes"),
            _streams.handle(stream),
            byref(error),
        )
        check(status, error)

    def stream(self) -> Stream:
        """A new stream of the device. Engines pass their own streams instead."""
        return Stream(self)

    def __repr__(self) -> str:
        state = " closed" if self.closed else ""
        return f"<weighbridge.Device {self.name}{state}>" if hasattr(self, "kind") else "<Device>"


def _place(place: int | Buffer | View) -> tuple[int, int | None]:
    """Address and bytes of one end of a copy."""
    if isinstance(place, Handle):
        info: Any = place.info
        if hasattr(info, "span_bytes"):
            if info.span_bytes != info.nbytes:
                raise ValueError("a view with gaps is not copied as bytes: copy its buffer")
            if any(stride < 0 for stride, size in zip(info.strides, info.shape) if size > 1):
                raise ValueError("a view with negative strides is not copied as bytes")
        return info.address or info.device_address or 0, info.nbytes
    return unsigned(place, "address"), None


class Stream:
    """A stream of a device: in order in itself, independent of others."""

    def __init__(self, device: Device) -> None:
        self._device: Reference | None = device._live()
        handle, error = c_void_p(), _abi.wb_error()
        # As for other handles, the call writes into memory that the finalizer already watches.
        self._finalizer = weakref.finalize(self, _release_stream, self._device, handle)
        self._finalizer.atexit = False
        check(lib.wb_device_stream_new(self._device, byref(handle), byref(error)), error)
        self._handle = handle

    @property
    def handle(self) -> int:
        """The stream as C has it: a CUstream on a CUDA device."""
        self._live()
        return self._handle.value or 0

    def __cuda_stream__(self) -> tuple[int, int]:
        """The protocol of CUDA's Python packages."""
        return 0, self.handle

    def synchronize(self) -> None:
        """Wait for what is queued."""
        error = _abi.wb_error()
        check(lib.wb_device_stream_synchronize(self._live(), self._handle, byref(error)), error)

    def call(self, function: int, user: int = 0) -> None:
        """Queue a native ``void function(void *user)``, given by its address.

        No Python function: it would run on a thread that can outlive the interpreter.
        """
        error = _abi.wb_error()
        status = lib.wb_device_stream_call(
            self._live(),
            self._handle,
            unsigned(function, "function"),
            unsigned(user, "user"),
            byref(error),
        )
        check(status, error)

    def _live(self) -> Reference:
        if self._device is None:
            raise ClosedError(Status.HANDLE, "this stream is closed: it cannot be used")
        return self._device

    def close(self) -> None:
        """Give the stream back; what is queued on it still runs. A second time does nothing."""
        self._device = None
        self._finalizer()

    def release(self) -> None:
        """Close it, by C's name."""
        self.close()

    def __enter__(self) -> Stream:
        self._live()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _release_stream(device: Reference, handle: c_void_p) -> None:
    if handle:
        lib.wb_device_stream_release(device, handle, None)

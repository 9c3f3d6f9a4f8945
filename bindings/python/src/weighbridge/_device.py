"""Devices: their properties, memory, copies and streams."""

from __future__ import annotations

from ctypes import byref, c_double, c_int32, c_void_p
from typing import Any

from . import _keepalive, _vllm
from ._abi import wb_device_options
from ._arguments import c_text, unsigned
from ._call import call
from ._enums import tristate
from ._handle import Closeable, Reference
from ._library import lib
from ._wait import wait_for
from .errors import WaitTimeoutError
from .info import DeviceInfo, DeviceStats, device_info, device_stats
from .stream import Stream, release_after, stream_handle


class Memory(Closeable):
    """One end of a copy: a buffer or a view."""

    @property
    def read_only(self) -> bool:
        """Whether the memory must not be written."""
        raise NotImplementedError

    def _range(self) -> tuple[int, int]:
        """Returns the address and the bytes of the memory as one end of a copy."""
        raise NotImplementedError

    def release_after(self, stream: Any) -> None:
        """Closes the object; its memory stays until the work queued on ``stream`` has run."""
        release_after(self._live(), stream, self._noun)
        self.close()


class DeviceBase(Closeable):
    """All of a device but :meth:`Device.buffer`, which needs the modules above."""

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
        self._switched_off: dict[str, str | None] = {}
        if pin is None:
            self._switched_off["pin_reason"] = _vllm.disabled(_vllm.PIN)
        if views is None:
            self._switched_off["views_reason"] = _vllm.disabled(_vllm.VIEWS)
        if self._switched_off.get("pin_reason"):
            pin = False
        if self._switched_off.get("views_reason"):
            views = False
        options = wb_device_options(
            pin=tristate(pin, "pin"),
            views=tristate(views, "views"),
            context=None if context is None else unsigned(context, "context"),
            capacity_bytes=unsigned(capacity_bytes, "capacity_bytes"),
        )
        reference = Reference(lib.wb_device_release)
        call(lib.wb_device_open, c_text(name, "name"), byref(options), reference.out)
        self._reference = reference
        info = self.info
        self.kind = info.kind
        """"host" or "cuda"."""
        self.ordinal = info.ordinal

    @staticmethod
    def cuda_count() -> int:
        """Returns the number of CUDA devices; ``Status.NO_DRIVER`` without an NVIDIA driver."""
        count = c_int32()
        call(lib.wb_device_get_cuda_count, byref(count))
        return count.value

    @property
    def name(self) -> str:
        """The name that opens the device: "host" or "cuda:N"."""
        return "host" if self.kind == "host" else f"cuda:{self.ordinal}"

    @property
    def info(self) -> DeviceInfo:
        """Device capabilities and effective policy."""
        return device_info(self._live(), self._switched_off)

    @property
    def stats(self) -> DeviceStats:
        """Counters of the live objects that were made through this device."""
        _keepalive.collect()
        return device_stats(self._live())

    def measure_link(self) -> float:
        """Measures the bytes per second from pinned host memory to the device.

        Plans that are made later use the result.
        """
        found = c_double()
        call(lib.wb_device_measure_link, self._live(), byref(found))
        return found.value

    def drain(self, timeout: float | None = None) -> None:
        """Waits until every deferred reference and every reference of a consumer is released.

        ``timeout`` is in seconds, None to wait without one; raises TimeoutError when it expires.
        Ctrl-C interrupts the wait.
        """
        try:
            wait_for(timeout, lambda ms: call(lib.wb_device_drain, self._live(), ms))
        except WaitTimeoutError as error:
            raise WaitTimeoutError(
                error.status,
                f"after {timeout} s, {self.stats.deferred} references still wait for their "
                "streams: is a stream blocked, or the timeout too short?",
            ) from None
        _keepalive.collect()

    def alloc(self, nbytes: int) -> int:
        """Allocates exactly ``nbytes`` bytes of device memory; returns their address.

        The caller frees them with :meth:`free`.
        """
        address = c_void_p()
        call(lib.wb_device_alloc, self._live(), unsigned(nbytes, "nbytes"), byref(address))
        return address.value or 0

    def free(self, address: int) -> None:
        """Frees device memory; waits for the device as the driver does."""
        call(lib.wb_device_free, self._live(), unsigned(address, "address"))

    def copy(
        self,
        to: int | Memory,
        source: int | Memory,
        nbytes: int | None = None,
        stream: Any = None,
    ) -> None:
        """Queues a copy between host or device addresses, buffers or views without gaps.

        ``nbytes`` is needed only between two addresses. The memory must stay valid until the stream
        has run the copy: close buffers and views with ``release_after``. Raises ValueError if
        ``to`` is read-only.
        """
        if isinstance(to, Memory) and to.read_only:
            raise ValueError(f"asked to copy into {to!r}: copy into a buffer of Device.buffer")
        (to_address, to_nbytes), (from_address, from_nbytes) = _range(to), _range(source)
        known = [count for count in (to_nbytes, from_nbytes) if count is not None]
        if nbytes is None:
            if not known:
                raise TypeError("nbytes is needed to copy from one address to another")
            nbytes = from_nbytes if from_nbytes is not None else known[0]
        if any(nbytes > count for count in known):
            raise ValueError(f"asked to copy {nbytes} bytes; there are {min(known)}")
        call(
            lib.wb_device_copy,
            self._live(),
            to_address,
            from_address,
            unsigned(nbytes, "nbytes"),
            stream_handle(stream),
        )

    def stream(self) -> Stream:
        """Makes a stream of the device. Engines pass their own streams instead."""
        return Stream(self)

    def __repr__(self) -> str:
        state = " closed" if self.closed else ""
        return f"<weighbridge.Device {self.name}{state}>" if hasattr(self, "kind") else "<Device>"


def _range(place: int | Memory) -> tuple[int, int | None]:
    return place._range() if isinstance(place, Memory) else (unsigned(place, "address"), None)

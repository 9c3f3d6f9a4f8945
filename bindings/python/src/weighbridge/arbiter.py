"""Arbiters: offloaders that share the memory of a device."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ctypes import byref
from dataclasses import dataclass
from typing import Any

from ._abi import wb_arbiter_member_info, wb_arbiter_options, wb_arbiter_progress
from ._arguments import unsigned
from ._call import call, filled
from ._handle import Closeable, Reference, reference_of
from ._library import lib
from ._wait import wait_for
from .info import same_fields
from .memory import Device
from .offloader import Offloader
from .stream import stream_handle


@dataclass(frozen=True)
class ArbiterProgress:
    """How far the change is that was asked for last, and what all offloaders hold."""

    ready: bool
    """Whether the offloader that was used last may run steps; it may still be getting memory."""
    pending_offloaders: int
    """Those that do not hold yet what they are to hold; 0 once the change is done."""
    device_bytes: int
    """Device memory, in whole pieces."""
    host_bytes: int
    """Host memory beside their own: see :class:`ResizeProgress`."""


@dataclass(frozen=True)
class ArbiterMemberInfo:
    """What an offloader holds, and is to hold."""

    priority: int
    min_bytes: int
    slot_bytes: int
    """Without as many it sleeps."""
    whole_bytes: int
    """With all of its parameters on the device."""
    target_bytes: int
    """What it is to hold, at most."""
    device_bytes: int
    asleep: bool
    """Whether steps are refused."""


class Arbiter(Closeable):
    """Shares ``device_bytes`` of a device's memory among offloaders with fixed addresses.

    What is used next gets memory, and what is idle gives it: first what has the least priority, and
    of those what was used longest ago. It acts in its calls only.
    """

    _noun = "arbiter"

    def __init__(self, device: Device, device_bytes: int) -> None:
        self._reference = None
        self._device = device
        self._offloaders: weakref.WeakSet[Offloader] = weakref.WeakSet()
        reference = Reference(lib.wb_arbiter_release)
        bytes_ = unsigned(device_bytes, "device_bytes")
        call(lib.wb_arbiter_new, reference_of(device, "device"), bytes_, reference.out)
        self._reference = reference

    @property
    def device(self) -> Device:
        """The device of the memory."""
        return self._device

    def add(
        self, offloader: Offloader, *, priority: int = 0, min_bytes: int = 0, stream: Any = None
    ) -> None:
        """Adds an offloader with the memory that it holds, which it no longer resizes itself.

        Others leave it ``min_bytes`` once it has them, at least its slots; with 0 it may sleep.
        ``stream`` is the one of its steps and graphs.
        """
        options = wb_arbiter_options(
            priority=priority,
            min_bytes=unsigned(min_bytes, "min_bytes"),
            stream=stream_handle(stream),
        )
        call(lib.wb_arbiter_add, self._live(), reference_of(offloader, "offloader"), byref(options))
        self._offloaders.add(offloader)

    def remove(self, offloader: Offloader) -> None:
        """Removes an offloader, which keeps what it holds."""
        call(lib.wb_arbiter_remove, self._live(), reference_of(offloader, "offloader"))
        self._offloaders.discard(offloader)

    def use(
        self, offloader: Offloader, *, wait: bool = True, timeout: float | None = None
    ) -> ArbiterProgress:
        """Gives the offloader that is used next as much memory as it can use.

        With ``wait`` the call waits until all hold what they are to hold, up to ``timeout``
        seconds; without, :meth:`advance` goes on between steps.
        """
        with self._moving():
            found = self._filled(lib.wb_arbiter_use, reference_of(offloader, "offloader"))
            return self._wait(timeout) if wait else found

    def resize(
        self, device_bytes: int, *, wait: bool = True, timeout: float | None = None
    ) -> ArbiterProgress:
        """Changes the budget. Offloaders keep what fits, and get more when they are used."""
        with self._moving():
            found = self._filled(lib.wb_arbiter_resize, unsigned(device_bytes, "device_bytes"))
            return self._wait(timeout) if wait else found

    def advance(self) -> ArbiterProgress:
        """Goes on as far as possible at once."""
        with self._moving():
            return self._filled(lib.wb_arbiter_advance)

    def wait(self, timeout: float | None = None) -> ArbiterProgress:
        """Goes on until every offloader holds what it is to hold; else raises TimeoutError."""
        with self._moving():
            return self._wait(timeout)

    @contextmanager
    def _moving(self) -> Iterator[None]:
        """The context in which a call runs that may move parameters of any offloader."""
        with ExitStack() as contexts:
            for offloader in list(self._offloaders):
                contexts.enter_context(offloader.moving("begin"))
            yield

    def _wait(self, timeout: float | None) -> ArbiterProgress:
        return wait_for(timeout, lambda ms: self._filled(lib.wb_arbiter_wait, ms))

    def member_info(self, offloader: Offloader) -> ArbiterMemberInfo:
        """Returns what an offloader holds, and is to hold."""
        function = lib.wb_arbiter_get_member_info
        found = filled(
            wb_arbiter_member_info, function, self._live(), reference_of(offloader, "offloader")
        )
        fields = same_fields(ArbiterMemberInfo, found)
        return ArbiterMemberInfo(**{**fields, "asleep": bool(found.asleep)})

    def _filled(self, function: Any, *arguments: Any) -> ArbiterProgress:
        found = filled(wb_arbiter_progress, function, self._live(), *arguments)
        fields = same_fields(ArbiterProgress, found)
        return ArbiterProgress(**{**fields, "ready": bool(found.ready)})

"""Offloaders: commit a plan and transfer its groups, step by step."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from ctypes import addressof, byref, c_char, c_uint64, sizeof
from typing import TYPE_CHECKING, Any, Callable, Literal

from ._abi import (
    wb_offloader_group_stats,
    wb_offloader_parameter_info,
    wb_offloader_rebalance_progress,
    wb_offloader_reconcile_result,
    wb_offloader_resize_options,
    wb_offloader_resize_progress,
    wb_offloader_stats,
)
from ._arguments import c_layout, c_text, unsigned
from ._budget import set_budget
from ._call import call, filled
from ._handle import Closeable, Reference, reference_of
from ._library import lib
from ._options import Options
from ._wait import wait_for
from .dtypes import DtypeLike, OpaqueDtype
from .errors import WaitTimeoutError
from .info import same_fields
from .memory import Device, View
from .offloader_info import (
    OffloadedGroupStats,
    OffloaderParameterInfo,
    OffloaderStats,
    RebalanceProgress,
    ReconcileResult,
    ResizeProgress,
    parameter_info_of,
)
from .plan import CParameters, Parameter, Plan
from .stream import stream_handle

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._options import BufferOptions

Move = Literal["begin", "advance", "rebalance"]
"""A call that moves parameters: it begins to, goes on, or exchanges pieces."""


class Offloader(Closeable):
    """Holds the parameters of a plan, and transfers groups to the device when they are acquired.

    Sources are read after the work queued on ``stream``, and are no longer needed when the
    constructor returns, except those of resident parameters. ``options`` are those of
    :meth:`Device.buffer`, for the host memory. Methods take a ``parameter`` by index or by name; an
    index is valid until a parameter is removed.
    """

    _noun = "offloader"

    def __init__(self, plan: Plan, stream: Any = None, **options: Unpack[BufferOptions]) -> None:
        self._reference = None
        self._changes = (os.getpid(), threading.RLock())
        planned = reference_of(plan, "plan")
        self._plan = plan
        self._awake_bytes = 0
        self._sleeps = False
        """Whether the last resize was that of :meth:`sleep`, which may not be done."""
        self.around_moves: Callable[[Move], AbstractContextManager[None]] | None = None
        """What a framework does around calls that move parameters."""
        given = Options(plan.info.arena_bytes, **options)
        reference = Reference(lib.wb_offloader_release)
        given.call(lib.wb_offloader_new, planned, stream_handle(stream), given.c, reference.out)
        self._reference = reference
        plan.forget_sources()

    @property
    def plan(self) -> Plan:
        """The committed plan."""
        return self._plan

    @property
    def device(self) -> Device:
        """The device of the plan."""
        return self._plan.device

    def find_group(self, name: str) -> int:
        """Returns the index of a group; raises KeyError for an unknown name."""
        index = c_uint64()
        call(lib.wb_offloader_find_group, self._live(), c_text(name, "group"), byref(index))
        return index.value

    def acquire_group(self, group: int, stream: Any = None, *, timeout: float | None = 0.0) -> None:
        """Makes the stream wait until the group's parameters are at their addresses.

        While a group of another thread occupies the slot, the call waits for up to ``timeout``
        seconds, None to wait without one, and then raises TimeoutError; Ctrl-C interrupts the wait.
        Without a timeout, and for a slot that this thread or stream occupies, it raises
        WeighbridgeError with Status.BUSY at once.
        """
        index, stream = unsigned(group, "group"), stream_handle(stream)
        if timeout is not None and timeout <= 0:
            call(lib.wb_offloader_acquire_group, self._live(), index, stream)
            return
        acquire = lib.wb_offloader_acquire_group_within
        try:
            wait_for(timeout, lambda ms: call(acquire, self._live(), index, stream, ms))
        except WaitTimeoutError as error:
            _, _, found = error.message.partition(": ")
            raise WaitTimeoutError(error.status, f"after {timeout} s: {found}") from None

    def expect(self, groups: Iterable[int]) -> None:
        """Tells which groups the coming steps acquire, in their order, so that prefetching follows.

        Each is named once. Holds until the next call; without groups, steps acquire all groups in
        the order of the plan again.
        """
        indexes = [unsigned(group, "group") for group in groups]
        array = (c_uint64 * len(indexes))(*indexes)
        call(lib.wb_offloader_expect, self._live(), array, len(indexes))

    def release_group(self, group: int, stream: Any = None) -> None:
        """Declares the work queued on the stream the last use of the group."""
        index = unsigned(group, "group")
        call(lib.wb_offloader_release_group, self._live(), index, stream_handle(stream))

    @contextmanager
    def acquired(
        self, group: int, stream: Any = None, *, timeout: float | None = 0.0
    ) -> Iterator[None]:
        """Acquires the group at the start of the block and releases it at the end."""
        self.acquire_group(group, stream, timeout=timeout)
        try:
            yield
        finally:
            self.release_group(group, stream)

    def begin_step(self, stream: Any = None) -> None:
        """Begins a step of the stream that relies on no copy that was queued before.

        What was written to host memory in the meantime is read. From the first call on, every step
        must begin with it, and the end of a step prefetches nothing for the next. Once a step was
        captured, eager steps that do not begin with it prefetch nothing. A step that is captured in
        several parts begins with it before or in the first, and each part ends with :meth:`join`.
        """
        call(lib.wb_offloader_begin_step, self._live(), stream_handle(stream))

    def join(self, stream: Any = None) -> None:
        """Makes the stream wait for every queued copy: the end of a capture of part of a step."""
        call(lib.wb_offloader_join, self._live(), stream_handle(stream))

    def reset(self, stream: Any = None) -> None:
        """Ends an abandoned step: releases every group that was acquired on the stream."""
        call(lib.wb_offloader_reset, self._live(), stream_handle(stream))

    def reset_all(self, stream: Any = None) -> None:
        """Ends the steps of all streams: releases every group on this stream."""
        call(lib.wb_offloader_reset_all, self._live(), stream_handle(stream))

    def resize(
        self,
        device_bytes: int | None = None,
        stream: Any = None,
        *,
        offload_bytes: int | None = None,
        graphs_dropped: bool = False,
        wait: bool = True,
        timeout: float | None = None,
    ) -> ResizeProgress:
        """Changes the device memory that the offloader may hold; 0 puts it to sleep.

        With ``offload_bytes`` in its place, at most that many bytes of parameters are not resident,
        counted in whole pieces.

        Needs a plan with ``fixed_addresses``: no address changes, and captured graphs stay right.
        With ``graphs_dropped`` none of those is launched again: units that leave use slots.
        Groups that are acquired move when they are released: with ``wait`` the call waits for that,
        up to ``timeout`` seconds; without, :meth:`resize_advance` goes on between steps.
        """
        with self.moving("begin"):
            return self._resize(device_bytes, stream, offload_bytes, graphs_dropped, wait, timeout)

    def moving(self, what: Move) -> AbstractContextManager[None]:
        """Returns the context in which a call runs that moves parameters."""
        return nullcontext() if self.around_moves is None else self.around_moves(what)

    def _resize(
        self,
        device_bytes: int | None,
        stream: Any,
        offload_bytes: int | None,
        graphs_dropped: bool,
        waits: bool,
        timeout: float | None,
    ) -> ResizeProgress:
        self._sleeps &= device_bytes == 0
        options = wb_offloader_resize_options(graphs_dropped=int(graphs_dropped))
        set_budget(options, "a resize", offload_bytes=offload_bytes, device_bytes=device_bytes)
        found = filled(
            wb_offloader_resize_progress,
            lib.wb_offloader_resize,
            self._live(),
            byref(options),
            stream_handle(stream),
        )
        if waits and found.pending_units:
            found = wait_for(timeout, lambda ms: self._resize_wait(stream, ms))
        return ResizeProgress(**same_fields(ResizeProgress, found))

    def _resize_wait(self, stream: Any, milliseconds: int) -> wb_offloader_resize_progress:
        function, handle = lib.wb_offloader_resize_wait, stream_handle(stream)
        return filled(wb_offloader_resize_progress, function, self._live(), handle, milliseconds)

    def resize_advance(self, stream: Any = None) -> ResizeProgress:
        """Goes on with a resize as far as possible at once, and returns its progress."""
        function = lib.wb_offloader_resize_advance
        with self.moving("advance"):
            found = filled(
                wb_offloader_resize_progress, function, self._live(), stream_handle(stream)
            )
        return ResizeProgress(**same_fields(ResizeProgress, found))

    def prefer(
        self, parameter: int | str, weight: float, *, offset: int = 0, nbytes: int | None = None
    ) -> None:
        """Notes how often a step reads bytes of a parameter: ``nbytes`` from ``offset`` on, or all
        that follow.

        ``weight`` is that number: 0.1 for an expert that a tenth of the steps use, 0 for bytes that
        are not read any more. The last call for a byte counts; before any, bytes of dense
        parameters count once and others not at all. :meth:`rebalance` and :meth:`resize` keep the
        hottest pieces. Needs a plan with ``fixed_addresses``, and a parameter that is read in
        place: see ``wb_offloader_prefer``.
        """
        offset = unsigned(offset, "offset")
        with self._no_removal():
            index = self._index(parameter)
            if nbytes is None:
                nbytes = max(self.parameter_info(index).span_bytes - offset, 0)
            size = unsigned(nbytes, "nbytes")
            call(lib.wb_offloader_prefer, self._live(), index, offset, size, float(weight))

    def rebalance(self, max_bytes: int, stream: Any = None) -> RebalanceProgress:
        """Moves the hottest pieces to the device and the coldest to host memory, between steps.

        As much device memory is held as before. A call copies at most ``max_bytes``, in both
        directions together, and does not wait: call it again until ``pending_bytes`` is 0.
        Addresses, views and graphs stay valid.
        """
        with self.moving("rebalance"):
            found = filled(
                wb_offloader_rebalance_progress,
                lib.wb_offloader_rebalance,
                self._live(),
                unsigned(max_bytes, "max_bytes"),
                stream_handle(stream),
            )
        return RebalanceProgress(**same_fields(RebalanceProgress, found))

    def sleep(self, stream: Any = None) -> None:
        """Frees all device memory until :meth:`wake`. Addresses stay."""
        held = self.resize_advance(stream).device_bytes
        if not self._sleeps:  # else an error has ended the call that has freed a part
            # With 0 it would sleep: one of which all is read in place holds nothing.
            self._awake_bytes = held or self._awake_bytes or 1
        self._sleeps = True
        self.resize(0, stream)

    def wake(self, stream: Any = None) -> None:
        """Takes the device memory again that :meth:`sleep` freed."""
        if self._awake_bytes:
            self.resize(self._awake_bytes, stream)

    def find_parameter(self, name: str) -> int:
        """Returns the index of a parameter; raises KeyError for an unknown name."""
        index = c_uint64()
        call(lib.wb_offloader_find_parameter, self._live(), c_text(name, "name"), byref(index))
        return index.value

    def parameter_info(self, parameter: int | str) -> OffloaderParameterInfo:
        """Returns where a parameter is."""
        reference, function = self._live(), lib.wb_offloader_get_parameter_info
        with self._no_removal():
            index = self._index(parameter)
            return parameter_info_of(
                filled(wb_offloader_parameter_info, function, reference, index)
            )

    def parameter_infos(self) -> list[OffloaderParameterInfo]:
        """Returns where all parameters are, in the order of their indices, in one call."""
        reference = self._live()
        with self._no_removal():
            count = self.stats.parameters
            infos = (wb_offloader_parameter_info * count)()
            for info in infos:
                info.struct_size = sizeof(wb_offloader_parameter_info)
            call(lib.wb_offloader_get_parameter_infos, reference, 0, count, infos)
            return [parameter_info_of(info) for info in infos]

    def view(self, parameter: int | str) -> View:
        """Returns a view of a parameter for the device.

        A view of a slot is valid while its group is acquired.
        """
        return self._view(lib.wb_offloader_get_view, parameter)

    def host_view(self, parameter: int | str) -> View:
        """Returns a view of an offloaded parameter's bytes in host memory, for the host."""
        return self._view(lib.wb_offloader_get_host_view, parameter)

    def read(self, parameter: int | str) -> bytearray:
        """Returns a copy of an offloaded parameter's bytes, from the lowest element to the end of
        the highest, decompressed if they are compressed in host memory."""
        with self._no_removal():
            index = self._index(parameter)
            found = bytearray(self.parameter_info(index).span_bytes)
            target = (c_char * len(found)).from_buffer(found)
            call(
                lib.wb_offloader_read_parameter,
                self._live(),
                index,
                addressof(target),
                len(found),
            )
        return found

    def zero_copy_view(self, parameter: int | str) -> View:
        """Returns a view of an offloaded parameter's bytes in host memory, for the device.

        Kernels read the parameter over the link, whether or not its group is acquired. Raises
        :class:`NotMappedError` if the device cannot access the memory.
        """
        return self._view(lib.wb_offloader_get_zero_copy_view, parameter)

    def _view(self, function: Any, parameter: int | str) -> View:
        reference = Reference(lib.wb_view_release)
        with self._no_removal():
            call(function, self._live(), self._index(parameter), reference.out)
        return View(self.device, reference)

    def _no_removal(self) -> threading.RLock:
        """Returns a lock: while it is held, no other thread removes parameters, so that indices
        stay valid and C's names can be read."""
        process, lock = self._changes
        if process != os.getpid():  # a forked child: a thread of the parent may have held it
            lock = threading.RLock()
            self._changes = (os.getpid(), lock)
        return lock

    def _index(self, parameter: int | str) -> int:
        if isinstance(parameter, str):
            return self.find_parameter(parameter)
        return unsigned(parameter, "index")

    def replace(
        self,
        name: str,
        source: int,
        dtype: DtypeLike | OpaqueDtype,
        shape: tuple[int, ...],
        strides: tuple[int, ...] | None = None,
        stream: Any = None,
    ) -> None:
        """Replaces the bytes of a parameter, of any type and shape; its placement stays.

        ``source`` is the address of the first element in host or device memory.
        """
        call(
            lib.wb_offloader_replace,
            self._live(),
            c_text(name, "name"),
            unsigned(source, "source"),
            byref(c_layout(dtype, shape, strides)),
            stream_handle(stream),
        )

    def add(self, parameter: Parameter, stream: Any = None) -> None:
        """Adds a parameter to a group, offloaded if the plan and the budget allow it."""
        given = CParameters([parameter])
        call(lib.wb_offloader_add, self._live(), given.array, stream_handle(stream))

    def remove(self, name: str, stream: Any = None) -> None:
        """Removes a parameter; others may use its memory."""
        with self._no_removal():
            call(lib.wb_offloader_remove, self._live(), c_text(name, "name"), stream_handle(stream))

    def reconcile(self, parameters: Iterable[Parameter], stream: Any = None) -> ReconcileResult:
        """Replaces, adds and removes parameters until they are the engine's, which are given.

        A parameter with the layout and the address of the offloader's is kept; one without a
        source keeps its bytes, and takes a layout of as many. No other change comes between.
        """
        given = CParameters(parameters)
        with self._no_removal():
            found = filled(
                wb_offloader_reconcile_result,
                lib.wb_offloader_reconcile,
                self._live(),
                given.array,
                len(given.array),
                stream_handle(stream),
            )
        return ReconcileResult(**same_fields(ReconcileResult, found))

    def compact(self, stream: Any = None) -> None:
        """Closes the gaps that replaced and removed parameters left.

        Addresses change, unless there are no gaps.
        """
        call(lib.wb_offloader_compact, self._live(), stream_handle(stream))

    @property
    def generation(self) -> int:
        """Increases whenever an address of a parameter changes, or is no longer its own.

        While it is the same, every address that was given is valid, and so is every captured
        graph. It is cheap enough to be read in every step.
        """
        found = c_uint64()
        call(lib.wb_offloader_get_generation, self._live(), byref(found))
        return found.value

    @property
    def stats(self) -> OffloaderStats:
        """Memory and transfers of the offloader."""
        found = filled(wb_offloader_stats, lib.wb_offloader_get_stats, self._live())
        return OffloaderStats(**same_fields(OffloaderStats, found))

    def group_stats(self, group: int) -> OffloadedGroupStats:
        """Transfers of a group."""
        index, function = unsigned(group, "group"), lib.wb_offloader_get_group_stats
        found = filled(wb_offloader_group_stats, function, self._live(), index)
        return OffloadedGroupStats(**same_fields(OffloadedGroupStats, found))

    def __repr__(self) -> str:
        if self.closed:
            return "<weighbridge.Offloader closed>"
        return f"<weighbridge.Offloader {self.stats.offloaded_bytes} bytes offloaded>"

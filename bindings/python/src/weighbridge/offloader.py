"""A committed plan: parameters where they are kept, and the machinery that carries them."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import contextmanager
from ctypes import byref, c_uint64
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import _abi, _streams
from ._handle import Handle, Reference
from ._library import lib
from ._options import Options, c_text, unsigned
from .dtypes import Dtype
from .errors import check
from .plan import Parameter, Parameters, Plan
from .view import View, _layout

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Unpack

    from ._options import BufferOptions
    from .device import Device
    from .dtypes import DtypeLike


@dataclass(frozen=True)
class OffloadedInfo:
    """What a parameter is and where."""

    carrier: str
    """``"resident"`` for what stays on the device."""
    group: int
    device_address: int | None
    """Of the first element: always, or while the group is acquired."""
    host_address: int | None
    """Of the first element of what is offloaded."""
    nbytes: int


@dataclass(frozen=True)
class OffloaderStats:
    """What an offloader holds and has done. What a replayed graph copies is not counted."""

    offloaded_bytes: int
    asked_bytes: int
    mapped_bytes: int
    pinned_bytes: int
    resident_bytes: int
    slot_bytes: int
    view_bytes: int
    staging_bytes: int
    """Of the pinned buffer that pageable memory is staged through."""
    peak_mapped_bytes: int
    peak_slot_bytes: int
    moved_bytes: int
    copies: int
    acquires: int
    late: int
    waited_seconds: float
    generation: int


@dataclass(frozen=True)
class Reconciled:
    """What :meth:`Offloader.reconcile` did, in numbers of parameters."""

    replaced: int
    added: int
    removed: int
    kept: int


class Offloader(Handle):
    """Commits a plan, and carries its groups.

    ``stream`` is a handle as everywhere: what is queued on it comes before the sources are read.
    ``options`` say how the host memory is made, as for :meth:`Device.buffer`. On return the sources
    of offloaded parameters are not needed any more.
    """

    _noun = "offloader"

    def __init__(self, plan: Plan, stream: Any = None, **options: Unpack[BufferOptions]) -> None:
        self._reference = None
        self._plan = plan
        given = Options(plan.totals.arena_bytes, **options)
        reference, error = Reference(lib.wb_offloader_release), _abi.wb_error()
        status = lib.wb_offloader_new(
            plan._live(), _streams.handle(stream), given.c, reference.out, byref(error)
        )
        given.check(status, error)
        self._reference = reference
        plan.forget_sources()

    @property
    def plan(self) -> Plan:
        """The plan that was committed."""
        return self._plan

    @property
    def device(self) -> Device:
        """The device that it is for."""
        return self._plan.device

    def group(self, name: str) -> int:
        """The number of a group; KeyError for a name that is none."""
        number, error = c_uint64(), _abi.wb_error()
        text = c_text(name, "group")
        check(lib.wb_offloader_find_group(self._live(), text, byref(number), byref(error)), error)
        return number.value

    def acquire(self, group: int, stream: Any = None) -> None:
        """Make the stream wait until the group's parameters are where their addresses say."""
        number, error = unsigned(group, "group"), _abi.wb_error()
        check(
            lib.wb_offloader_acquire_group(
                self._live(), number, _streams.handle(stream), byref(error)
            ),
            error,
        )

    def release_group(self, group: int, stream: Any = None) -> None:
        """Say that what is queued on the stream is the last use of the group."""
        number, error = unsigned(group, "group"), _abi.wb_error()
        check(
            lib.wb_offloader_release_group(
                self._live(), number, _streams.handle(stream), byref(error)
            ),
            error,
        )

    @contextmanager
    def acquired(self, group: int, stream: Any = None) -> Iterator[None]:
        """The group is acquired inside of the block."""
        self.acquire(group, stream)
        try:
            yield
        finally:
            self.release_group(group, stream)

    def join(self, stream: Any = None) -> None:
        """Make the stream wait for every copy that was queued."""
        error = _abi.wb_error()
        check(lib.wb_offloader_join(self._live(), _streams.handle(stream), byref(error)), error)

    def reset(self, stream: Any = None) -> None:
        """End a step that was abandoned: no group is acquired any more."""
        error = _abi.wb_error()
        check(lib.wb_offloader_reset(self._live(), _streams.handle(stream), byref(error)), error)

    def info(self, name: str) -> OffloadedInfo:
        """What a parameter is and where; KeyError for a name that is none."""
        found, error = _abi.wb_offloader_parameter_info(), _abi.wb_error()
        text = c_text(name, "name")
        check(lib.wb_offloader_get_parameter_info(self._live(), text, byref(found), byref(error)), error)
        return OffloadedInfo(
            carrier=_abi.CARRIER.word(found.carrier),
            group=found.group,
            device_address=found.device_address or None,
            host_address=found.host_address or None,
            nbytes=found.span_bytes,
        )

    def view(self, name: str) -> View:
        """A view of a parameter from the device; a slot's while its group is acquired."""
        return self._view(lib.wb_offloader_get_view, name)

    def host_view(self, name: str) -> View:
        """A view of the host's bytes of an offloaded parameter."""
        return self._view(lib.wb_offloader_get_host_view, name)

    def _view(self, function: Any, name: str) -> View:
        reference, error = Reference(lib.wb_view_release), _abi.wb_error()
        text = c_text(name, "name")
        check(function(self._live(), text, reference.out, byref(error)), error)
        return View(self.device, reference)

    def replace(
        self,
        name: str,
        source: int,
        dtype: DtypeLike,
        shape: tuple[int, ...],
        strides: tuple[int, ...] | None = None,
        stream: Any = None,
    ) -> None:
        """Give a parameter new bytes, of whatever type and shape; where it is kept stays.

        ``source`` is the address of the first element in host or device memory.
        """
        layout, error = _layout(Dtype.of(dtype), shape, strides), _abi.wb_error()
        status = lib.wb_offloader_replace(
            self._live(),
            c_text(name, "name"),
            unsigned(source, "source"),
            byref(layout),
            _streams.handle(stream),
            byref(error),
        )
        check(status, error)

    def add(self, parameter: Parameter, stream: Any = None) -> None:
        """Add a parameter, offloaded beside its group's where the plan and the budget allow it."""
        given, error = Parameters([parameter]), _abi.wb_error()
        check(
            lib.wb_offloader_add(self._live(), given.array, _streams.handle(stream), byref(error)),
            error,
        )

    def remove(self, name: str, stream: Any = None) -> None:
        """Remove a parameter; its room is free for others."""
        error = _abi.wb_error()
        status = lib.wb_offloader_remove(
            self._live(), c_text(name, "name"), _streams.handle(stream), byref(error)
        )
        check(status, error)

    def reconcile(self, parameters: Iterable[Parameter], stream: Any = None) -> Reconciled:
        """Hold what the engine's parameters are now, judged by where their bytes lie."""
        given = Parameters(parameters)
        found, error = _abi.wb_offloader_reconcile_result(), _abi.wb_error()
        status = lib.wb_offloader_reconcile(
            self._live(),
            given.array,
            len(given.given),
            _streams.handle(stream),
            byref(found),
            byref(error),
        )
        check(status, error)
        return Reconciled(found.replaced, found.added, found.removed, found.kept)

    def compact(self, stream: Any = None) -> None:
        """Close up the room that replaced and removed parameters have left."""
        error = _abi.wb_error()
        check(lib.wb_offloader_compact(self._live(), _streams.handle(stream), byref(error)), error)

    @property
    def stats(self) -> OffloaderStats:
        """What it holds and has done."""
        found, error = _abi.wb_offloader_stats(), _abi.wb_error()
        check(lib.wb_offloader_get_stats(self._live(), byref(found), byref(error)), error)
        names = OffloaderStats.__dataclass_fields__
        return OffloaderStats(**{name: getattr(found, name) for name in names})

    def __repr__(self) -> str:
        if self.closed:
            return "<weighbridge.Offloader closed>"
        stats = self.stats
        return f"<weighbridge.Offloader {stats.offloaded_bytes} bytes offloaded>"

"""Which parameter goes where and why, before anything is allocated."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from ctypes import POINTER, byref, c_char_p, cast, pointer, sizeof
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from . import _abi
from ._handle import Handle, Reference
from ._library import lib
from ._options import c_text, unsigned
from .dtypes import Dtype
from .errors import check
from .scheme import scheme_options
from .view import _layout

if TYPE_CHECKING:
    from typing_extensions import Literal

    from .device import Device
    from .dtypes import DtypeLike
    from .scheme import Scheme


@dataclass(frozen=True)
class Parameter:
    """A parameter of a model."""

    name: str
    """Unique in the model."""
    group: str
    """What is acquired together with it: a layer."""
    dtype: DtypeLike
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None = None
    """In elements; None for contiguous."""
    source: int = 0
    """Address of the first element in host or device memory; 0 while there are no bytes."""
    storage: int = 0
    """Ties parameters that have no source: those of the same number, other than 0."""
    access: Literal["dense", "sparse"] = "dense"
    """Whether a step reads all of it, or few rows."""
    carrier: Literal["auto", "view", "on-demand", "prefetch", "resident"] = "auto"
    """``"resident"`` for what is not to leave the device."""
    held: Any = field(default=None, repr=False, compare=False)
    """Keeps the source's memory alive."""


def group_of(name: str) -> str:
    """The group that a parameter's name speaks of: up to its first number, or its module's name.

    ``model.layers.3.mlp.weight`` is of ``model.layers.3``, ``model.norm.weight`` of ``model.norm``.
    """
    segments = name.split(".")
    number = next((at for at, segment in enumerate(segments) if segment.isdigit()), None)
    return ".".join(segments[: -1 if number is None else number + 1])


class Parameters:
    """An array of C's parameters, with everything that it points to."""

    def __init__(self, parameters: Iterable[Parameter]) -> None:
        self.given = list(parameters)
        self.array = (_abi.wb_parameter * len(self.given))()
        self._held: list[Any] = []
        for place, parameter in zip(self.array, self.given):
            self._write(place, parameter)

    def _write(self, place: Any, parameter: Parameter) -> None:
        layout = _layout(Dtype.of(parameter.dtype), parameter.shape, parameter.strides)
        self._held.append(layout)
        place.struct_size = sizeof(_abi.wb_parameter)
        place.access = _abi.PARAMETER_ACCESS.code(parameter.access)
        place.name = c_text(parameter.name, "name")
        place.group = c_text(parameter.group, "group")
        place.layout = pointer(layout)
        place.source = unsigned(parameter.source, "source")
        place.storage = unsigned(parameter.storage, "storage")
        place.carrier = _abi.CARRIER.code(parameter.carrier)


@dataclass(frozen=True)
class PlannedParameter:
    """What becomes of a parameter."""

    name: str
    group: int
    carrier: str
    """``"resident"`` for what stays on the device."""
    reason: str
    nbytes: int
    tied_to: int
    """The first parameter that it shares its bytes with, itself if with none."""


@dataclass(frozen=True)
class PlannedGroup:
    """A group of a plan. What is tied across groups counts in the first."""

    name: str
    turn: int
    """Among the groups that are copied ahead; -1 when it is none of them."""
    offloaded_bytes: int
    resident_bytes: int


@dataclass(frozen=True)
class PlanTotals:
    """A plan in numbers, all in bytes but ``depth``, ``step_seconds`` and ``wrap_stalls``."""

    payload_bytes: int
    offloaded_bytes: int
    arena_bytes: int
    resident_bytes: int
    slot_bytes: int
    ring_bytes: int
    step_bytes: int
    view_bytes: int
    depth: int
    step_seconds: float
    wrap_stalls: bool


def _texts(texts: str | Sequence[str], what: str) -> Any:
    given = [texts] if isinstance(texts, str) else list(texts)
    array = (c_char_p * len(given))(*[c_text(text, what) for text in given])
    return array, len(given)


def _budget(value: int | None, what: str) -> int:
    return _abi.WB_UNSET if value is None else unsigned(value, what)


class Plan(Handle):
    """Which of the parameters leave the device under a budget, and how they are carried.

    One of ``offload_bytes`` (at most so much host memory is taken) and ``device_bytes`` (what stays
    and the slots take at most so much) is given. ``select`` and ``exclude`` are selectors: a text
    means names that contain it as whole segments between dots, a glob whole names. ``allow`` names
    the errors that are warnings: ``"nothing"``, ``"unmatched"``, ``"everything_fits"``. With
    ``quantize``, matrices (of ``quantize_select``) are planned and kept in 8 bits, each with its
    scales beside it, under its name and ``_scale``, or ``_scale_inv`` for blocks of a matrix.
    """

    _noun = "plan"

    def __init__(
        self,
        device: Device,
        parameters: Iterable[Parameter],
        *,
        offload_bytes: int | None = None,
        device_bytes: int | None = None,
        slot_bytes: int | None = None,
        depth: int = 0,
        select: str | Sequence[str] = (),
        exclude: str | Sequence[str] = (),
        carrier: Literal["auto", "view", "on-demand", "prefetch"] = "auto",
        order: Literal["spread", "declared", "largest"] = "spread",
        allow: Sequence[str] = (),
        quantize: Scheme | None = None,
        quantize_select: str | Sequence[str] = (),
        link_bytes_per_second: float = 0.0,
    ) -> None:
        self._reference = None
        self._device = device
        given = Parameters(parameters)
        selected, select_count = _texts(select, "select")
        excluded, exclude_count = _texts(exclude, "exclude")
        options = _abi.wb_plan_options(
            depth=unsigned(depth, "depth", 32),
            offload_bytes=_budget(offload_bytes, "offload_bytes"),
            device_bytes=_budget(device_bytes, "device_bytes"),
            slot_bytes=_budget(slot_bytes, "slot_bytes"),
            select=cast(selected, POINTER(c_char_p)),
            exclude=cast(excluded, POINTER(c_char_p)),
            select_count=select_count,
            exclude_count=exclude_count,
            carrier=_abi.CARRIER.code(carrier),
            order=_abi.ORDER.code(order),
            allow=sum(_abi.ALLOW.code(what) for what in set(allow)),
            link_bytes_per_second=link_bytes_per_second,
        )
        if quantize is not None:
            meant, meant_count = _texts(quantize_select, "quantize_select")
            options.quantize = pointer(scheme_options(quantize))
            options.quantize_select = cast(meant, POINTER(c_char_p))
            options.quantize_count = meant_count
        reference, error = Reference(lib.wb_plan_release), _abi.wb_error()
        status = lib.wb_plan_new(
            device._live(),
            given.array,
            len(given.given),
            byref(options),
            reference.out,
            byref(error),
        )
        check(status, error)
        self._reference = reference
        self._sources = given.given

    def forget_sources(self) -> None:
        """Let go of what the parameters hold: a commit has taken their bytes."""
        self._sources.clear()

    @property
    def device(self) -> Device:
        """The device that it is for."""
        return self._device

    @cached_property
    def totals(self) -> PlanTotals:
        """The plan in numbers."""
        found = self._info()
        names = PlanTotals.__dataclass_fields__
        numbers = {name: getattr(found, name) for name in names}
        return PlanTotals(**{**numbers, "wrap_stalls": bool(found.wrap_stalls)})

    @cached_property
    def parameters(self) -> list[PlannedParameter]:
        """What becomes of each parameter, in the order in which they were given."""
        return [self._parameter(index) for index in range(self._info().parameters)]

    @cached_property
    def groups(self) -> list[PlannedGroup]:
        """The groups, in the order in which they were first named."""
        return [self._group(index) for index in range(self._info().groups)]

    @cached_property
    def warnings(self) -> list[str]:
        """What was allowed."""
        return [self._warning(index) for index in range(self._info().warnings)]

    def to_json(self) -> str:
        """The whole plan as JSON."""
        reference: Any = self._live()
        text, error = c_char_p(), _abi.wb_error()
        check(lib.wb_plan_to_json(reference, byref(text), byref(error)), error)
        return (text.value or b"").decode()

    def to_dict(self) -> dict[str, Any]:
        """The whole plan as what its JSON says."""
        found: dict[str, Any] = json.loads(self.to_json())
        return found

    def __repr__(self) -> str:
        if self.closed:
            return "<weighbridge.Plan closed>"
        totals = self.totals
        return (
            f"<weighbridge.Plan {totals.offloaded_bytes} of {totals.payload_bytes} bytes offloaded>"
        )

    def _info(self) -> Any:
        found, error = _abi.wb_plan_info(), _abi.wb_error()
        check(lib.wb_plan_get_info(self._live(), byref(found), byref(error)), error)
        return found

    def _parameter(self, index: int) -> PlannedParameter:
        found, error = _abi.wb_plan_parameter_info(), _abi.wb_error()
        reference: Any = self._live()  # holds what the struct points to
        check(lib.wb_plan_get_parameter_info(reference, index, byref(found), byref(error)), error)
        return PlannedParameter(
            name=found.name.decode(),
            group=found.group,
            carrier=_abi.CARRIER.word(found.carrier),
            reason=found.reason.decode(),
            nbytes=found.span_bytes,
            tied_to=found.tied_to,
        )

    def _group(self, index: int) -> PlannedGroup:
        found, error = _abi.wb_plan_group_info(), _abi.wb_error()
        reference: Any = self._live()
        check(lib.wb_plan_get_group_info(reference, index, byref(found), byref(error)), error)
        return PlannedGroup(
            name=found.name.decode(),
            turn=found.turn,
            offloaded_bytes=found.offloaded_bytes,
            resident_bytes=found.resident_bytes,
        )

    def _warning(self, index: int) -> str:
        text, error = c_char_p(), _abi.wb_error()
        reference: Any = self._live()
        check(lib.wb_plan_get_warning(reference, index, byref(text), byref(error)), error)
        return (text.value or b"").decode()

"""Plans: where each parameter is placed, how it is transferred, and why. Nothing is allocated."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from ctypes import POINTER, byref, c_char_p, c_double, c_uint64, cast, pointer
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from ._abi import (
    wb_parameter,
    wb_plan_group_info,
    wb_plan_info,
    wb_plan_options,
    wb_plan_parameter_info,
)
from ._arguments import c_layout, c_text, c_texts, flag, unsigned
from ._budget import set_budget
from ._call import call, filled
from ._enums import (
    ACCESS_PATTERN,
    ALLOW,
    COMPRESS,
    HOST_STORE,
    ORDER,
    PLACEMENT,
    TRANSFER_MODE,
    AccessPattern,
    Allow,
    HostStore,
    Order,
    TransferMode,
    tristate,
)
from ._handle import Closeable, Reference, reference_of
from ._library import lib
from .dtypes import Dtype, DtypeLike, OpaqueDtype, dtype_of_info
from .info import same_fields
from .memory import Buffer, Device
from .quantizer import QuantizeOptions, c_options


@dataclass(frozen=True)
class Parameter:
    """One parameter of a model."""

    name: str
    """Unique in the model."""
    group: str
    """The parameters of a group, such as a layer, are acquired together."""
    dtype: DtypeLike | OpaqueDtype
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None = None
    """In elements; None for contiguous."""
    source: int = 0
    """Address of the first element in host or device memory; 0 if there are no bytes yet."""
    storage_id: int = 0
    """Ties parameters without a source: those with the same number, other than 0."""
    access_pattern: AccessPattern = "dense"
    """Whether a step reads all of the parameter, or only a few rows, which may be experts of an
    :class:`ExpertCache`."""
    transfer_mode: TransferMode = "auto"
    placement: Literal["auto", "resident"] = "auto"
    """``"resident"`` keeps the parameter on the device."""
    encoded_bytes: int = 0
    """If not 0, ``source`` has the values compressed, as :class:`Codec` does, to this many bytes at
    a multiple of 16 in host memory: a plan that carries them compressed takes these unchanged."""
    held: Any = field(default=None, repr=False, compare=False)
    """Keeps the source's memory alive; a :class:`Buffer` may stay the host memory of the parameter,
    if the plan allows it."""


def group_of(name: str) -> str:
    """Returns the group that a parameter's name implies: up to its first number, or its module.

    ``model.layers.3.mlp.weight`` is in ``model.layers.3``, ``model.norm.weight`` in ``model.norm``.
    """
    segments = name.split(".")
    digits = (at for at, one in enumerate(segments) if one.isascii() and one.isdigit())
    number = next(digits, None)
    return ".".join(segments[: -1 if number is None else number + 1])


class CParameters:
    """An array of parameters for C, with everything that it points to."""

    def __init__(self, parameters: Iterable[Parameter], *, with_buffers: bool = False) -> None:
        self.given = list(parameters)
        self._with_buffers = with_buffers
        self._references: list[Reference] = []
        self.array = (wb_parameter * len(self.given))(*map(self._c_parameter, self.given))

    def _c_parameter(self, parameter: Parameter) -> wb_parameter:
        if not isinstance(parameter, Parameter):
            raise TypeError(f"a parameter is {parameter!r}; it must be a weighbridge.Parameter")
        buffer = None
        if self._with_buffers and isinstance(parameter.held, Buffer):
            self._references.append(parameter.held._live())
            buffer = self._references[-1].handle
        return wb_parameter(
            buffer=buffer,
            access_pattern=ACCESS_PATTERN.code(parameter.access_pattern),
            name=c_text(parameter.name, "name"),
            group=c_text(parameter.group, "group"),
            layout=pointer(c_layout(parameter.dtype, parameter.shape, parameter.strides)),
            source=unsigned(parameter.source, "source"),
            storage_id=unsigned(parameter.storage_id, "storage_id"),
            transfer_mode=TRANSFER_MODE.code(parameter.transfer_mode),
            placement=PLACEMENT.code(parameter.placement),
            encoded_bytes=unsigned(parameter.encoded_bytes, "encoded_bytes"),
        )


@dataclass(frozen=True)
class PlanParameterInfo:
    """The planned placement of a parameter."""

    name: str
    group: int
    placement: str
    """"resident" or "offloaded"."""
    transfer_mode: str
    """How an offloaded parameter reaches the device; "auto" for a resident one."""
    reason: str
    span_bytes: int
    tied_to: int
    """The first parameter that shares its bytes, itself if none does."""
    dtype: Dtype | OpaqueDtype
    """Of the values that are kept, not of their source."""
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """In elements."""
    encoded_bytes: int
    """That it is expected to be compressed to; 0 if it is not, for which ``reason`` says why."""
    resident_bytes: int
    """On the device in memory of their own: all, none, or of a parameter in pieces any number."""
    device_encoded_bytes: int
    """Of device memory in which the device is to keep it compressed; 0 if it does not."""


@dataclass(frozen=True)
class PlanGroupInfo:
    """A group of a plan. A parameter that is tied across groups counts in the first of them."""

    name: str
    turn: int
    """The position among the prefetched groups; -1 if the group is not prefetched."""
    offloaded_bytes: int
    resident_bytes: int


@dataclass(frozen=True)
class PlanInfo:
    """The totals of a plan. Tied parameters count once."""

    depth: int
    """Groups that have their slots at the same time."""
    parameters: int
    groups: int
    warnings: int
    payload_bytes: int
    """Of all parameters."""
    offloaded_bytes: int
    """Of offloaded parameters."""
    arena_bytes: int
    """Of host memory for offloaded parameters, in whole pages."""
    resident_bytes: int
    """Of device memory for resident parameters, each rounded up to 256."""
    slot_bytes: int
    """Of device memory for slots, and for the windows through which compressed bytes pass."""
    ring_bytes: int
    """Of slots for prefetched parameters."""
    expert_bytes: int
    """Of device memory for expert caches."""
    step_bytes: int
    """That cross the link to slots in every step; compressed ones as they are expected to be."""
    view_bytes: int
    """Read in place in every step, if it reads all of every dense parameter."""
    step_seconds: float
    """Predicted for a step; only those of the link if the time of kernels is not given, and 0 if
    the link's bandwidth is unknown."""
    link_seconds: float
    """Predicted for the time in which the link is busy; 0 if its bandwidth is unknown."""
    kernel_seconds: float
    """Of the step's kernels with all parameters on the device; 0 if it is not given."""
    wrap_stalls: bool
    """The first groups of a step wait for the last groups of the step before."""
    decoded_bytes: int
    """Of offloaded parameters that are compressed."""
    encoded_bytes: int
    """What these are expected to become."""
    decode_seconds: float
    """Of ``link_seconds``, in which kernels read compressed bytes over the link and decode them."""
    device_encoded_bytes: int
    """Of device memory for parameters that the device keeps compressed."""
    device_decoded_bytes: int
    """Of ``decoded_bytes``, those that are decoded from there and cross no link."""
    expert_hit_rate: float
    """Predicted for caches of ``expert_bytes``: the part of the offloaded experts that have slots,
    as with a router that picks all equally often. Real ones repeat themselves: compare
    :attr:`ExpertCacheStats.hit_rate`. 0 if it is not known."""


class Plan(Closeable):
    """Which parameters are offloaded under a budget, and how they are transferred.

    Exactly one budget is given: ``offload_bytes`` limits the host memory, ``device_bytes`` the
    device memory of resident parameters and slots. ``slot_bytes`` limits the slots of prefetched
    parameters; with 0 only ``device_bytes`` does, and with ``offload_bytes`` the slots are those
    that ``depth`` groups need, or two if ``depth`` is 0 too. ``select`` and ``exclude`` are
    selectors: a text matches names that contain it as whole segments between dots, a glob matches
    whole names. ``allow`` downgrades errors to warnings: ``"nothing-offloaded"``,
    ``"unmatched-selector"``, ``"everything-fits"``. With ``quantize``, matrices (those of
    ``quantize_select``) are planned and kept in FP8, each with its scales in the same group, named
    like the matrix with ``_scale``, or with ``_scale_inv`` for blocks of a matrix. With the
    ``host_store`` ``"source"``, offloaded parameters stay in the pinned buffer that they hold, such
    as that of a :class:`Safetensors` file, where its layout allows it: nothing is copied, and
    :attr:`OffloaderParameterInfo.host_store_reason` says why for the others. With ``"compressed"``
    only those stay there that are carried as a compressed file has them.

    A step's time is predicted from ``link_bytes_per_second``, 0 for the bandwidth that the device
    has measured, and from the time of its kernels: ``compute_bytes_per_second``, the bytes of all
    parameters over the seconds of a step without offloading, or ``group_seconds`` of each group, in
    the order in which parameters first name the groups. ``rows`` are the rows (tokens) that a step
    multiplies with each dense parameter: one that is read in place is read again for every 128.

    Parameters with the access pattern ``"experts"`` leave for expert caches, which get
    ``expert_bytes`` of device memory, a part of ``device_bytes``; 0 is what that leaves beside all
    other parameters.

    With ``fixed_addresses``, parameters keep their addresses while :meth:`Offloader.resize` changes
    the budget; None leaves it off. ``keep_host_copy`` keeps a host copy of resident parameters, so
    that their memory is freed without a copy.

    With ``compress``, offloaded parameters are compressed in host memory, without loss, and cross
    the link so: ``"auto"`` chooses those that reach the device faster for it, of which samples of
    the sources tell, among those of ``compress_select`` if that is given; selectors name them, and
    ``"off"`` takes none. Under ``device_bytes`` the device keeps as many of them as are needed
    compressed in its own memory before any cross the link, if a step is faster for it; not with
    ``fixed_addresses``, where those that become resident are decoded. :meth:`Offloader.read` reads
    them, and host views of them are refused. Those of a compressed :class:`Safetensors` file are
    taken as the file has them, in as many bytes of host memory. The commit compresses the others by
    kernels of a CUDA device that has the memory for it, or by the host's cores;
    ``encode_on_device`` False leaves all to the host, and True fails where the device cannot. With
    ``verify_compressed`` it compares the checksums of the parameters that it takes compressed, on
    all cores, and raises if the file is damaged.
    """

    _noun = "plan"

    def __init__(
        self,
        device: Device,
        parameters: Iterable[Parameter] | CParameters,
        *,
        offload_bytes: int | None = None,
        device_bytes: int | None = None,
        slot_bytes: int = 0,
        depth: int = 0,
        select: str | Sequence[str] = (),
        exclude: str | Sequence[str] = (),
        transfer_mode: TransferMode = "auto",
        order: Order = "spread",
        host_store: HostStore = "copy",
        allow: Sequence[Allow] = (),
        quantize: QuantizeOptions | None = None,
        quantize_select: str | Sequence[str] = (),
        link_bytes_per_second: float = 0.0,
        compute_bytes_per_second: float = 0.0,
        group_seconds: Sequence[float] = (),
        rows: int = 0,
        expert_bytes: int = 0,
        fixed_addresses: bool | None = None,
        keep_host_copy: bool = False,
        compress: bool | str | Sequence[str] = False,
        compress_select: str | Sequence[str] = (),
        encode_on_device: bool | None = None,
        verify_compressed: bool = False,
    ) -> None:
        self._reference = None
        self._device = device
        code = HOST_STORE.code(host_store)
        # C's plan keeps the buffers that it is given as long as it lives.
        given = (
            parameters  # of several plans
            if isinstance(parameters, CParameters)
            else CParameters(parameters, with_buffers=host_store != "copy")
        )
        options = wb_plan_options(
            host_store=code,
            depth=unsigned(depth, "depth", 32),
            transfer_mode=TRANSFER_MODE.code(transfer_mode),
            slot_bytes=unsigned(slot_bytes, "slot_bytes"),
            order=ORDER.code(order),
            allow=sum(ALLOW.code(what) for what in set(allow)),
            link_bytes_per_second=link_bytes_per_second,
            compute_bytes_per_second=compute_bytes_per_second,
            rows=unsigned(rows, "rows"),
            expert_bytes=unsigned(expert_bytes, "expert_bytes"),
            fixed_addresses=tristate(fixed_addresses, "fixed_addresses"),
            keep_host_copy=flag(keep_host_copy, "keep_host_copy"),
            encode_on_device=tristate(encode_on_device, "encode_on_device"),
            verify_compressed=flag(verify_compressed, "verify_compressed"),
        )
        if len(group_seconds) > 0:
            options.group_seconds = (c_double * len(group_seconds))(*group_seconds)
            options.group_seconds_count = len(group_seconds)
        set_budget(options, "a plan", offload_bytes=offload_bytes, device_bytes=device_bytes)
        for name, texts in (("select", select), ("exclude", exclude)):
            _set_texts(options, name, texts)
        if quantize is not None:
            options.quantize = pointer(c_options(quantize))
            _set_texts(options, "quantize_select", quantize_select)
        _set_compress(options, compress, compress_select)
        reference = Reference(lib.wb_plan_release)
        call(
            lib.wb_plan_new,
            reference_of(device, "device"),
            given.array,
            len(given.array),
            byref(options),
            reference.out,
        )
        self._reference = reference
        self._sources = given.given
        self._fixed_addresses = fixed_addresses is True
        self._keep_host_copy = keep_host_copy

    def forget_sources(self) -> None:
        """Drops the memory that the parameters hold, which a commit has copied."""
        self._sources.clear()

    @property
    def device(self) -> Device:
        """The device of the plan."""
        return self._device

    @property
    def fixed_addresses(self) -> bool:
        """Whether an offloader of the plan can be resized."""
        return self._fixed_addresses

    @property
    def keep_host_copy(self) -> bool:
        """Whether resident parameters have a host copy, too, if they can be evicted."""
        return self._keep_host_copy

    @cached_property
    def info(self) -> PlanInfo:
        """The totals of the plan."""
        found = filled(wb_plan_info, lib.wb_plan_get_info, self._live())
        fields = same_fields(PlanInfo, found)
        return PlanInfo(**{**fields, "wrap_stalls": bool(found.wrap_stalls)})

    @cached_property
    def parameters(self) -> list[PlanParameterInfo]:
        """The planned placement of each parameter, in the order in which they were given.

        The scales of a quantized matrix follow it.
        """
        return [self._parameter_info(index) for index in range(self.info.parameters)]

    @cached_property
    def groups(self) -> list[PlanGroupInfo]:
        """The groups, in the order in which the parameters name them."""
        return [self.group_info(index) for index in range(self.info.groups)]

    @cached_property
    def warnings(self) -> list[str]:
        """The errors that ``allow`` downgraded, and what could not be done as well as asked."""
        return [self._text(lib.wb_plan_get_warning, index) for index in range(self.info.warnings)]

    def find_parameter(self, name: str) -> int:
        """Returns the index of a parameter; raises KeyError for an unknown name."""
        index = c_uint64()
        call(lib.wb_plan_find_parameter, self._live(), c_text(name, "name"), byref(index))
        return index.value

    def parameter_info(self, parameter: int | str) -> PlanParameterInfo:
        """Returns the planned placement of a parameter, given by index or name."""
        index = self.find_parameter(parameter) if isinstance(parameter, str) else parameter
        return self._parameter_info(unsigned(index, "index"))

    def group_info(self, group: int) -> PlanGroupInfo:
        """Returns the group of an index."""
        reference = self._live()  # keeps alive what the struct points to
        index = unsigned(group, "group")
        found = filled(wb_plan_group_info, lib.wb_plan_get_group_info, reference, index)
        fields = same_fields(PlanGroupInfo, found)
        return PlanGroupInfo(**{**fields, "name": found.name.decode()})

    def to_json(self) -> str:
        """Returns the whole plan as JSON."""
        return self._text(lib.wb_plan_to_json)

    def to_dict(self) -> dict[str, Any]:
        """Returns the whole plan as the dictionary that its JSON contains."""
        found: dict[str, Any] = json.loads(self.to_json())
        return found

    def __repr__(self) -> str:
        if self.closed:
            return "<weighbridge.Plan closed>"
        info = self.info
        return f"<weighbridge.Plan {info.offloaded_bytes} of {info.payload_bytes} bytes offloaded>"

    def _parameter_info(self, index: int) -> PlanParameterInfo:
        reference = self._live()  # keeps alive what the struct points to
        found = filled(wb_plan_parameter_info, lib.wb_plan_get_parameter_info, reference, index)
        return PlanParameterInfo(
            name=found.name.decode(),
            group=found.group,
            placement=PLACEMENT.word(found.placement),
            transfer_mode=TRANSFER_MODE.word(found.transfer_mode),
            reason=found.reason.decode(),
            span_bytes=found.span_bytes,
            tied_to=found.tied_to,
            dtype=dtype_of_info(found),
            shape=tuple(found.shape[: found.ndim]),
            strides=tuple(found.strides[: found.ndim]),
            encoded_bytes=found.encoded_bytes,
            resident_bytes=found.resident_bytes,
            device_encoded_bytes=found.device_encoded_bytes,
        )

    def _text(self, function: Any, *arguments: int) -> str:
        reference, text = self._live(), c_char_p()
        call(function, reference, *arguments, byref(text))
        return (text.value or b"").decode()


def _set_compress(
    options: wb_plan_options, compress: bool | str | Sequence[str], among: str | Sequence[str]
) -> None:
    if isinstance(compress, bool):
        compress = "auto" if compress else "off"
    if isinstance(compress, str) and compress in ("auto", "off"):
        options.compress = COMPRESS.code(compress)
        _set_texts(options, "compress_select", among)
        return
    if among:
        raise ValueError(
            f"compress names selectors and compress_select is {among!r}: give one of them"
        )
    options.compress = COMPRESS.code("selected")
    _set_texts(options, "compress_select", compress)


def _set_texts(options: wb_plan_options, name: str, texts: str | Sequence[str]) -> None:
    array, count = c_texts(texts, name)
    setattr(options, name, cast(array, POINTER(c_char_p)))
    setattr(options, f"{name}_count", count)

"""Views: typed, shaped, strided windows into buffers."""

from __future__ import annotations

import ctypes
from ctypes import byref, c_int64
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import _abi, _dlpack, _keepalive, _source
from ._handle import Handle, Reference
from ._library import lib
from ._options import Options, unsigned
from .buffer import Buffer, exported, release_after
from .dtypes import Dtype, DtypeLike
from .errors import NotFoundError, Status, check, make

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from typing_extensions import Literal, Unpack

    from ._options import BufferOptions
    from .device import Device


@dataclass(frozen=True)
class ViewInfo:
    """What a view is."""

    dtype: Dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """In elements."""
    access: str
    """"device" or "host"."""
    read_only: bool
    address: int
    """The host's address of the first element; 0 in a buffer of no bytes, and in memory that only a
    CUDA device sees."""
    device_address: int | None
    """The device's address of the first element; None for a view of the host only."""
    elements: int
    nbytes: int
    """Bytes of the elements, without gaps."""
    span_bytes: int
    """Bytes from the lowest to the end of the highest element, gaps included."""


class View(Handle):
    """A window into a buffer, which it holds alive. Exported without a copy through DLPack.

    Made by :meth:`Buffer.view`, :meth:`copy_from`, :meth:`from_dlpack` or a safetensors file.
    """

    _noun = "view"

    def __init__(self, device: Device, reference: Reference) -> None:
        self._reference = reference
        self._device = device
        self._lent: Reference | None = None

    @classmethod
    def of(
        cls,
        buffer: Buffer,
        dtype: DtypeLike,
        shape: int | Sequence[int],
        strides: Sequence[int] | None = None,
        offset: int = 0,
        access: Literal["device", "host"] = "device",
    ) -> View:
        """A view of a buffer; see :meth:`Buffer.view`."""
        layout = _layout(Dtype.of(dtype), shape, strides, unsigned(offset, "offset"))
        reference, error = Reference(lib.wb_view_release), _abi.wb_error()
        code = _abi.ACCESS.code(access)
        status = lib.wb_view_new(buffer._live(), byref(layout), code, reference.out, byref(error))
        check(status, error)
        return cls(buffer.device, reference)

    @classmethod
    def copy_from(
        cls,
        device: Device,
        array: Any,
        access: Literal["device", "host"] = "device",
        **options: Unpack[BufferOptions],
    ) -> View:
        """Copy an array, its strides and gaps included, into a new buffer, and view that.

        ``array`` is anything in host memory with NumPy's array interface (ml_dtypes' types
        included), the buffer protocol or DLPack, or a view of it. The copy is done on return.
        """
        source = _source.of(array, device)
        layout = _layout(source.dtype, source.shape, source.strides)
        given = Options(None, **options)
        reference, error = Reference(lib.wb_view_release), _abi.wb_error()
        status = lib.wb_view_copy_from(
            device._live(),
            source.address,
            byref(layout),
            _abi.ACCESS.code(access),
            given.c,
            reference.out,
            byref(error),
        )
        given.check(status, error)
        return cls(device, reference)

    @classmethod
    def from_dlpack(
        cls,
        device: Device,
        array: Any,
        access: Literal["device", "host"] = "device",
        **options: Unpack[BufferOptions],
    ) -> View:
        """Register the host memory of a tensor where it lies, and view it.

        ``array`` has ``__dlpack__``, or is a DLPack capsule. The tensor belongs to the view's
        buffer, which lets it go once nothing uses the memory any more. Its read-only flag is kept.
        """
        given = Options(None, **options)
        code = _abi.ACCESS.code(access)
        error = _abi.wb_error()
        _keepalive.collect()
        live = device._live()
        with _dlpack.Taken(array) as taken:
            reference = Reference(lib.wb_view_release)
            status = lib.wb_view_from_dlpack_versioned(
                live, taken.tensor, code, given.c, reference.out, byref(error)
            )
            taken.finish(status == 0)
        given.check(status, error)
        return cls(device, reference)

    @property
    def device(self) -> Device:
        """The device that it is for."""
        return self._device

    @property
    def info(self) -> ViewInfo:
        """What it is."""
        return _describe(self._live())

    @property
    def buffer(self) -> Buffer:
        """The buffer that it looks into, as a further reference."""
        reference, error = Reference(lib.wb_buffer_release), _abi.wb_error()
        check(lib.wb_view_get_buffer(self._live(), reference.out, byref(error)), error)
        return Buffer(self._device, reference)

    @property
    def dtype(self) -> Dtype:
        """The element type."""
        return self.info.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes in elements."""
        return self.info.shape

    @property
    def strides(self) -> tuple[int, ...]:
        """Strides in elements."""
        return self.info.strides

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.info.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the elements, without gaps."""
        return self.info.nbytes

    @property
    def access(self) -> str:
        """Who looks through it: "device" or "host"."""
        return self.info.access

    @property
    def read_only(self) -> bool:
        """Whether the elements must not be written."""
        return self.info.read_only

    @property
    def address(self) -> int:
        """The host's address of the first element; 0 in a buffer of no bytes, and in memory that
        only a CUDA device sees."""
        return self.info.address

    @property
    def device_address(self) -> int | None:
        """The device's address of the first element; None for a view of the host only."""
        return self.info.device_address

    def release_after(self, stream: Any) -> None:
        """Close this view; its memory stays until what is queued on ``stream`` has run."""
        release_after(self._live(), stream, "view")
        self.close()

    def numpy(self, *, bits: bool = False) -> np.ndarray[Any, Any]:
        """The elements as a NumPy array without a copy, which keeps the memory alive.

        Read-only where the memory is. bfloat16 and the 8-bit floats need ml_dtypes; with ``bits``
        elements are given as unsigned integers of their width. ``Status.NOT_MAPPED`` for memory
        that only a CUDA device sees.
        """
        import numpy as np

        reference = self._live()
        info = _describe(reference)
        dtype = info.dtype.bits() if bits else info.dtype.numpy()
        if info.elements == 0:
            empty = np.empty(info.shape, dtype)
            empty.flags.writeable = not info.read_only
            return empty
        if info.address == 0:
            raise make(
                Status.NOT_MAPPED,
                f"asked for elements in host memory; the view's {info.nbytes} bytes lie in device "
                "memory: copy them into a buffer with Device.copy",
            )
        size = info.dtype.itemsize
        below = sum(
            (count - 1) * -stride * size
            for count, stride in zip(info.shape, info.strides)
            if stride < 0
        )
        memory = exported(reference, info.address - below, info.span_bytes, info.read_only)
        # NumPy would look behind the memoryview, where memory can be written that must not be.
        base = np.frombuffer(memory, np.uint8)
        array: np.ndarray[Any, Any] = np.ndarray(
            info.shape, dtype, base, below, _byte_strides(info)
        )
        return array

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        """NumPy's protocol: ``numpy.asarray(view)``."""
        array = self.numpy()
        if dtype is not None and array.dtype != dtype:
            if copy is False:
                raise ValueError(f"{array.dtype} is no {dtype} without a copy")
            converted: np.ndarray[Any, Any] = array.astype(dtype)
            return converted
        if copy:
            array = array.copy()
        return array

    def __dlpack_device__(self) -> tuple[int, int]:
        """DLPack's device: kDLCUDA for a view from a CUDA device, else kDLCPU."""
        return self._dlpack_device(self.info)

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """A DLPack capsule over this memory: without a copy, or a BufferError.

        The library queues no work on the memory itself, so no stream has to wait. Without
        ``max_version`` of at least 1 the capsule cannot say that memory is read-only.
        """
        reference = self._live()
        info = _describe(reference)
        device = self._dlpack_device(info)
        _dlpack.check_stream(stream, device)
        if copy:
            raise BufferError("a view is never a copy: make one with View.copy_from")
        if dl_device is not None and tuple(dl_device) != device:
            if tuple(dl_device) != (_dlpack.CPU, 0):
                raise BufferError(f"this memory is on DLPack device {device}, not {dl_device}")
            reference = self._for_host(info)._live()
        return _dlpack.capsule(reference, max_version is not None and max_version[0] >= 1)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Version 3 of the interface, for views from a CUDA device."""
        reference = self._live()
        info = _describe(reference)
        if self._dlpack_device(info)[0] != _dlpack.CUDA:
            raise AttributeError("only a view from a CUDA device has __cuda_array_interface__")
        if not info.dtype.is_numpy:
            raise TypeError(
                f"__cuda_array_interface__ has no {info.dtype.label}: use DLPack, such as "
                "torch.from_dlpack(view)"
            )
        # Consumers keep this object, and not its reference: which therefore stays as long.
        self._lent = reference
        return {
            "version": 3,
            "shape": info.shape,
            "typestr": info.dtype.typestr,
            "data": (info.device_address or 0, info.read_only),
            "strides": _byte_strides(info),
            "stream": None,
        }

    def _dlpack_device(self, info: ViewInfo) -> tuple[int, int]:
        if info.access == "device" and self._device.kind == "cuda":
            return _dlpack.CUDA, self._device.ordinal
        return _dlpack.CPU, 0

    def _for_host(self, info: ViewInfo) -> View:
        """The same elements, looked at by the host."""
        try:
            buffer = self.buffer
        except NotFoundError:
            raise BufferError(
                "asked for host memory; the view is of device memory: copy it into a buffer with "
                "Device.copy"
            ) from None
        with buffer:
            offset = info.address - buffer.address
            return buffer.view(info.dtype, info.shape, info.strides, offset, "host")

    def __repr__(self) -> str:
        if self.closed:
            return "<weighbridge.View closed>"
        info = self.info
        words = [info.dtype.label, str(list(info.shape)), f"access {info.access}"]
        return f"<weighbridge.View {', '.join(words)}{', read-only' * info.read_only}>"


DeviceView = View


def _layout(
    dtype: Dtype,
    shape: int | Sequence[int],
    strides: Sequence[int] | None,
    offset: int = 0,
) -> _abi.wb_layout:
    sizes = [shape] if isinstance(shape, int) else list(shape)
    if strides is not None and len(strides) != len(sizes):
        raise ValueError(f"{len(sizes)} dimensions have {len(strides)} strides")
    return _abi.wb_layout(
        dtype=dtype,
        ndim=len(sizes),
        shape=_numbers(sizes, "shape"),
        strides=None if strides is None else _numbers(list(strides), "strides"),
        offset_bytes=offset,
    )


def _numbers(numbers: list[int], what: str) -> Any:
    values = [number.__index__() for number in numbers]
    if any(not -(1 << 63) <= value < 1 << 63 for value in values):
        raise ValueError(f"{what} {numbers} does not fit in 64 bits")
    return ctypes.cast((c_int64 * len(values))(*values), ctypes.POINTER(c_int64))


def _byte_strides(info: ViewInfo) -> tuple[int, ...]:
    """Strides in bytes. One that does not fit in 64 bits is of a dimension in which no step is
    taken: 0 does as well."""
    steps = (stride * info.dtype.itemsize for stride in info.strides)
    return tuple(step if -(1 << 63) <= step < 1 << 63 else 0 for step in steps)


def _describe(reference: Reference) -> ViewInfo:
    found, error = _abi.wb_view_info(), _abi.wb_error()
    check(lib.wb_view_get_info(reference, byref(found), byref(error)), error)
    dtype = Dtype(found.dtype)
    return ViewInfo(
        dtype=dtype,
        shape=tuple(found.shape[: found.ndim]),
        strides=tuple(found.strides[: found.ndim]),
        access=_abi.ACCESS.word(found.access),
        read_only=bool(found.read_only),
        address=found.data or 0,
        device_address=found.device_address or None,
        elements=found.elements,
        nbytes=found.elements * dtype.itemsize,
        span_bytes=found.span_bytes,
    )

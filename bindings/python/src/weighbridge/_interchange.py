"""The protocols through which other packages use a view: NumPy, DLPack, CUDA array interface."""

from __future__ import annotations

from ctypes import byref
from typing import TYPE_CHECKING, Any

from . import _dlpack
from ._arguments import c_layout
from ._call import call
from ._device import DeviceBase
from ._enums import ACCESSOR
from ._export import array_of, byte_strides
from ._handle import Closeable, Reference
from ._library import lib
from .errors import NotFoundError
from .info import ViewInfo, buffer_info, view_info

if TYPE_CHECKING:
    import numpy as np


class Interchange(Closeable):
    """The protocols through which other packages use a view's memory."""

    _device: DeviceBase
    _exported: Reference | None = None

    def numpy(self, *, bits: bool = False) -> np.ndarray[Any, Any]:
        """Returns the elements as a NumPy array without a copy, which keeps the memory alive.

        The array is read-only if the memory is. bfloat16 and the 8-bit floats need ml_dtypes; with
        ``bits`` the elements are unsigned integers of their width. Fails with
        ``Status.NOT_MAPPED`` for memory that only a CUDA device can access.
        """
        reference = self._live()
        return array_of(reference, view_info(reference), bits)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        """NumPy's protocol: ``numpy.asarray(view)``."""
        array = self.numpy()
        if dtype is not None and array.dtype != dtype:
            if copy is False:
                raise ValueError(f"{array.dtype} cannot become {dtype} without a copy")
            converted: np.ndarray[Any, Any] = array.astype(dtype)
            return converted
        if copy:
            array = array.copy()
        return array

    def __dlpack_device__(self) -> tuple[int, int]:
        """DLPack's device: kDLCUDA for a view for a CUDA device, else kDLCPU."""
        return self._dlpack_device(view_info(self._live()))

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """Returns a DLPack capsule over this memory, without a copy; else raises BufferError.

        The library queues no work on the memory itself, so no stream has to wait. Read-only memory
        is refused, because most consumers ignore DLPack's flag for it, and a write would end the
        process: see :meth:`for_reading`.
        """
        reference = self._live()
        info = view_info(reference)
        if info.read_only:
            raise BufferError(
                "this memory is read-only, and most consumers of DLPack ignore its flag for that: "
                "give them view.for_reading() if they only read, use view.numpy(), which is "
                "read-only, or copy with View.copy_from"
            )
        return self._capsule(reference, info, stream, max_version, dl_device, copy)

    def for_reading(self) -> Reading:
        """Returns this view for a consumer of DLPack that does not write into the memory.

        The caller promises that, and needs to only for read-only memory: NumPy keeps the flag that
        says so, torch and CuPy ignore it, and JAX, which never writes, takes no flag.
        ``torch.from_dlpack(view.for_reading())`` is a tensor that must not be written.
        """
        return Reading(self)

    def _capsule(
        self,
        reference: Reference,
        info: ViewInfo,
        stream: int | None,
        max_version: tuple[int, int] | None,
        dl_device: tuple[int, int] | None,
        copy: bool | None,
    ) -> Any:
        device = self._dlpack_device(info)
        _dlpack.check_stream(stream, device)
        if copy:
            raise BufferError("exporting a view never copies: copy with View.copy_from")
        if dl_device is not None and tuple(dl_device) != device:
            if tuple(dl_device) != (_dlpack.CPU, 0):
                raise BufferError(f"this memory is on DLPack device {device}, not {dl_device}")
            reference = _for_host(reference, info)
        versioned = max_version is not None and max_version[0] >= 1
        return _dlpack.capsule(reference, versioned)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Version 3 of the interface, in views for a CUDA device."""
        reference = self._live()
        info = view_info(reference)
        if self._dlpack_device(info)[0] != _dlpack.CUDA:
            raise AttributeError("only a view for a CUDA device has __cuda_array_interface__")
        if not info.dtype.is_numpy:
            raise TypeError(
                f"__cuda_array_interface__ has no {info.dtype.label}: use DLPack, such as "
                "torch.from_dlpack(view)"
            )
        # Consumers keep this object alive, not its reference; so the object keeps the reference,
        # even when it is closed.
        self._exported = reference
        return {
            "version": 3,
            "shape": info.shape,
            "typestr": info.dtype.typestr,
            "data": (info.device_address or 0, info.read_only),
            "strides": byte_strides(info),
            "stream": None,
        }

    def _dlpack_device(self, info: ViewInfo) -> tuple[int, int]:
        if info.accessor == "device" and self._device.kind == "cuda":
            return _dlpack.CUDA, self._device.ordinal
        return _dlpack.CPU, 0


class Reading:
    """A view for consumers of DLPack that do not write; made by ``for_reading``."""

    def __init__(self, view: Interchange) -> None:
        self._view = view
        self._info = view_info(view._live())  # consumers ask for the device, and then the memory

    def __dlpack_device__(self) -> tuple[int, int]:
        """The view's device."""
        self._view._live()
        return self._view._dlpack_device(self._info)

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """As the view's, also for read-only memory, with its flag where the version has one."""
        reference = self._view._live()
        return self._view._capsule(reference, self._info, stream, max_version, dl_device, copy)


def _for_host(view: Reference, info: ViewInfo) -> Reference:
    """Returns a view of the same elements for the host."""
    buffer, made = Reference(lib.wb_buffer_release), Reference(lib.wb_view_release)
    try:
        call(lib.wb_view_get_buffer, view, buffer.out)
    except NotFoundError:
        raise BufferError(
            "asked for host memory; the view is of device memory: copy it into a buffer with "
            "Device.copy"
        ) from None
    offset = info.address - buffer_info(buffer).address
    layout = c_layout(info.dtype, info.shape, info.strides, offset)
    call(lib.wb_view_new, buffer, byref(layout), ACCESSOR.code("host"), made.out)
    return made

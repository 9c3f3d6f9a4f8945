"""Devices, buffers of host memory, and views of buffers.

The three classes make one another, so they share a module.
"""

from __future__ import annotations

import builtins
import os
from collections.abc import Sequence
from ctypes import byref
from typing import TYPE_CHECKING, Any

from . import _dlpack, _host_array, _keepalive
from ._abi import wb_error
from ._arguments import c_layout, c_text, unsigned
from ._call import call
from ._device import DeviceBase, Memory
from ._enums import ACCESSOR, Accessor
from ._export import memoryview_of
from ._handle import Closeable, Reference, reference_of
from ._interchange import Interchange
from ._library import lib
from ._options import Options
from .dtypes import Dtype, DtypeLike
from .info import BufferInfo, BufferStats, ViewInfo, buffer_info, buffer_stats, view_info

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._options import BufferOptions


class Device(DeviceBase):
    """A compute device: "cuda:N", or "host", which always exists.

    ``pin`` and ``views`` are True, False, or None to decide by environment and platform;
    ``context`` is the caller's own CUcontext, which must outlive the device; ``capacity_bytes``
    is the memory of the host device, 0 for all of the machine's.
    """

    def buffer(self, nbytes: int, **options: Unpack[BufferOptions]) -> Buffer:
        """Allocates host memory of exactly ``nbytes`` bytes; see :meth:`Buffer.alloc`."""
        return Buffer.alloc(self, nbytes, **options)


class _Mapped(Memory):
    """What buffers and views have in common."""

    _device: Device

    def __init__(self, device: Device, reference: Reference) -> None:
        self._reference = reference
        self._device = device

    @property
    def device(self) -> Device:
        """The device that the memory is pinned and mapped for."""
        return self._device

    @property
    def info(self) -> BufferInfo | ViewInfo:
        """The properties of the memory."""
        raise NotImplementedError

    @property
    def address(self) -> int:
        """The host address of the first element; 0 if the host has none."""
        return self.info.address

    @property
    def device_address(self) -> int | None:
        """The device address of the first element; None if the memory is not device-mapped."""
        return self.info.device_address

    @property
    def read_only(self) -> bool:
        """Whether the memory must not be written."""
        return self.info.read_only


class Buffer(_Mapped):
    """A range of host memory, made by :meth:`alloc`, :meth:`register` or :meth:`map_file`."""

    _noun = "buffer"

    @classmethod
    def alloc(cls, device: Device, nbytes: int, **options: Unpack[BufferOptions]) -> Buffer:
        """Allocates exactly ``nbytes`` zeroed bytes, pinned by the device's policy."""
        nbytes = unsigned(nbytes, "nbytes")
        reference, given = Reference(lib.wb_buffer_release), Options(nbytes, **options)
        given.call(
            lib.wb_buffer_alloc, reference_of(device, "device"), nbytes, given.c, reference.out
        )
        return cls(device, reference)

    @classmethod
    def register(cls, device: Device, memory: Any, **options: Unpack[BufferOptions]) -> Buffer:
        """Registers existing memory, without moving it.

        ``memory`` is an object with the buffer protocol, contiguous and writable, or over pages
        that are themselves read-only, such as an ``mmap`` with ACCESS_READ. It is kept alive, and
        locked against resizing, until the last use of the memory by this buffer, its views, streams
        of ``release_after`` and DLPack consumers. Or it is a pair of address and bytes, which the
        caller keeps valid that long.
        """
        live = reference_of(device, "device")
        held: builtins.memoryview | None = None
        if isinstance(memory, tuple):
            address, nbytes = memory
            address, nbytes = unsigned(address, "address"), unsigned(nbytes, "nbytes")
        else:
            held = builtins.memoryview(memory)
            if not held.c_contiguous:
                raise ValueError("the memory has gaps or another order: register the whole of it")
            address, nbytes = _host_array.address_of(held), held.nbytes
        given = Options(nbytes, **options)
        reference, error = Reference(lib.wb_buffer_release), wb_error()
        _keepalive.collect()
        owner = None if held is None else _keepalive.keep(held)
        status = lib.wb_buffer_register(
            live,
            address,
            nbytes,
            given.c,
            None if owner is None else _keepalive.DELETER,
            owner,
            reference.out,
            byref(error),
        )
        if status != 0 and held is not None and owner is not None:
            _keepalive.discard(owner)
            held.release()
        given.check(status, error)
        made = cls(device, reference)
        if held is not None and held.readonly and not made.read_only:
            # The exception's traceback holds these variables, and so would keep the memory alive.
            del made, reference, held
            raise ValueError(
                f"{type(memory).__name__} is read-only for Python and its pages are not: a buffer "
                "over it could be written; use View.from_dlpack, or View.copy_from"
            )
        return made

    @classmethod
    def map_file(
        cls,
        device: Device,
        path: str | os.PathLike[str],
        offset: int = 0,
        nbytes: int = 0,
        **options: Unpack[BufferOptions],
    ) -> Buffer:
        """Maps ``nbytes`` bytes of a file from ``offset``, read-only; 0 bytes map the rest of it.

        The file is not copied if the platform can register the mapping, else it is read into pinned
        memory: ``info.origin`` and ``info.fallback_reason`` say which, and why.
        """
        reference, given = Reference(lib.wb_buffer_release), Options(None, **options)
        given.call(
            lib.wb_buffer_map_file,
            reference_of(device, "device"),
            c_text(os.fsencode(path), "path"),
            unsigned(offset, "offset"),
            unsigned(nbytes, "nbytes"),
            given.c,
            reference.out,
        )
        return cls(device, reference)

    @property
    def info(self) -> BufferInfo:
        """The buffer's properties."""
        return buffer_info(self._live())

    @property
    def stats(self) -> BufferStats:
        """The kernel's counters of the buffer's pages; slower than ``info``."""
        return buffer_stats(self._live())

    @property
    def nbytes(self) -> int:
        """The bytes that were asked for."""
        return self.info.asked_bytes

    def view(
        self,
        dtype: DtypeLike,
        shape: int | Sequence[int],
        strides: Sequence[int] | None = None,
        offset: int = 0,
        accessor: Accessor = "device",
    ) -> View:
        """Returns a typed view that aliases this memory. It never copies: it fails instead.

        ``strides`` are in elements, None for contiguous; ``offset`` is in bytes. ``accessor`` is
        the side that accesses the elements.
        """
        layout = c_layout(dtype, shape, strides, offset)
        reference, code = Reference(lib.wb_view_release), ACCESSOR.code(accessor)
        call(lib.wb_view_new, self._live(), byref(layout), code, reference.out)
        return View(self._device, reference)

    def memoryview(self) -> builtins.memoryview:
        """Returns the bytes as a memoryview without a copy, which keeps the memory alive."""
        reference = self._live()
        info = buffer_info(reference)
        return memoryview_of(reference, info.address, info.asked_bytes, info.read_only)

    @property
    def __array_interface__(self) -> dict[str, Any]:
        """NumPy's protocol: ``numpy.asarray(buffer)`` has the bytes, without a copy."""
        view = self.memoryview()
        return {"version": 3, "typestr": "|u1", "shape": (view.nbytes,), "data": view}

    def __buffer__(self, flags: int) -> builtins.memoryview:
        """The buffer protocol, on Python 3.12 and later."""
        return self.memoryview()

    def _range(self) -> tuple[int, int]:
        info = self.info
        return info.address or info.device_address or 0, info.asked_bytes

    def __repr__(self) -> str:
        if self.closed:
            return "<weighbridge.Buffer closed>"
        info = self.info
        words = [f"{info.asked_bytes} bytes", info.origin, f"pinning {info.pinning}"]
        return f"<weighbridge.Buffer {', '.join(words)}{', read-only' * info.read_only}>"


class View(_Mapped, Interchange):
    """A typed, shaped, strided window into a buffer, which it keeps alive.

    Made by :meth:`Buffer.view`, :meth:`copy_from`, :meth:`from_dlpack`, a safetensors file or an
    offloader. Exported without a copy through DLPack.
    """

    _noun = "view"
    _device: Device

    @classmethod
    def copy_from(
        cls,
        device: Device,
        array: Any,
        accessor: Accessor = "device",
        **options: Unpack[BufferOptions],
    ) -> View:
        """Copies an array, with its strides and gaps, into a new buffer, and returns a view of it.

        ``array`` is in host memory and has NumPy's array interface (ml_dtypes' types included), the
        buffer protocol or DLPack, or is a view. The copy is complete on return.
        """
        if isinstance(array, View):
            source = _host_array.of_view(array._live())
        elif isinstance(array, Closeable):
            raise TypeError(f"{array!r} has no element type: pass its view, or its memoryview()")
        else:
            source = _host_array.of_array(array, reference_of(device, "device"))
        layout = c_layout(source.dtype, source.shape, source.strides)
        reference, given = Reference(lib.wb_view_release), Options(None, **options)
        given.call(
            lib.wb_view_copy_from,
            reference_of(device, "device"),
            source.address,
            byref(layout),
            ACCESSOR.code(accessor),
            given.c,
            reference.out,
        )
        return cls(device, reference)

    @classmethod
    def from_dlpack(
        cls,
        device: Device,
        array: Any,
        accessor: Accessor = "device",
        **options: Unpack[BufferOptions],
    ) -> View:
        """Registers the host memory of a tensor, without moving it, and returns a view of it.

        ``array`` has ``__dlpack__``, or is a DLPack capsule. The view's buffer owns the tensor and
        deletes it after the last use of the memory. The tensor's read-only flag is kept.
        """
        given = Options(None, **options)
        return cls(
            device, _dlpack.import_tensor(reference_of(device, "device"), array, accessor, given)
        )

    @property
    def info(self) -> ViewInfo:
        """The view's properties."""
        return view_info(self._live())

    @property
    def buffer(self) -> Buffer:
        """The buffer that the view is in, as one more reference."""
        reference = Reference(lib.wb_buffer_release)
        call(lib.wb_view_get_buffer, self._live(), reference.out)
        return Buffer(self._device, reference)

    @property
    def dtype(self) -> Dtype:
        """The element type."""
        return self.info.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes in elements."""
        return self.info.shape

    @property
    def strides(self) -> tuple[int, ...]:
        """The strides in elements."""
        return self.info.strides

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return len(self.info.shape)

    @property
    def nbytes(self) -> int:
        """The bytes of the elements, without gaps."""
        return self.info.nbytes

    @property
    def accessor(self) -> str:
        """The side that accesses the elements: "device" or "host"."""
        return self.info.accessor

    def _range(self) -> tuple[int, int]:
        info = self.info
        if info.span_bytes != info.nbytes:
            raise ValueError("a view with gaps cannot be copied as bytes: copy its buffer")
        if any(stride < 0 for stride, size in zip(info.strides, info.shape) if size > 1):
            raise ValueError("a view with negative strides cannot be copied as bytes")
        return info.address or info.device_address or 0, info.nbytes

    def __repr__(self) -> str:
        if self.closed:
            return "<weighbridge.View closed>"
        info = self.info
        words = [info.dtype.label, str(list(info.shape)), f"accessor {info.accessor}"]
        return f"<weighbridge.View {', '.join(words)}{', read-only' * info.read_only}>"


PinnedBuffer = Buffer
DeviceView = View

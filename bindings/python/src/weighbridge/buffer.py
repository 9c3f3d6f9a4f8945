"""Buffers: ranges of host memory, allocated, registered, or mapped from a file."""

from __future__ import annotations

import builtins
import ctypes
import os
from ctypes import byref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import _abi, _keepalive, _streams
from ._handle import Handle, Reference
from ._library import lib
from ._options import Options, c_text, unsigned
from .errors import check

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Literal, Unpack

    from ._options import BufferOptions
    from .device import Device
    from .dtypes import DtypeLike
    from .view import View


@dataclass(frozen=True)
class BufferInfo:
    """What a buffer is."""

    origin: str
    """"allocated", "registered", "file_mapped" or "file_read"."""
    pinning: str
    """"none", "registered" or "driver"."""
    read_only: bool
    address: int
    """The first byte; 0 in a buffer of no bytes."""
    device_address: int | None
    """Where the device sees the first byte; None where it does not."""
    nbytes: int
    """Bytes asked for."""
    mapped_bytes: int
    pinned_bytes: int
    chunks: int
    """Registrations that pin it."""
    note: str
    """Why it is not as it would be at best; empty when it is."""


@dataclass(frozen=True)
class BufferUsage:
    """What the kernel counts for a buffer's pages now."""

    resident_bytes: int
    huge_bytes: int
    anonymous_bytes: int
    """In private pages: of a mapped file, what was silently copied."""
    locked_bytes: int


class Buffer(Handle):
    """A range of host memory, made by :meth:`alloc`, :meth:`register` or :meth:`map`."""

    _noun = "buffer"

    def __init__(self, device: Device, reference: Reference) -> None:
        self._reference = reference
        self._device = device

    @classmethod
    def alloc(cls, device: Device, nbytes: int, **options: Unpack[BufferOptions]) -> Buffer:
        """Zeroed host memory of exactly ``nbytes`` bytes, pinned by the device's policy."""
        nbytes = unsigned(nbytes, "nbytes")
        reference, error = Reference(lib.wb_buffer_release), _abi.wb_error()
        given = Options(nbytes, **options)
        status = lib.wb_buffer_alloc(device._live(), nbytes, given.c, reference.out, byref(error))
        given.check(status, error)
        return cls(device, reference)

    @classmethod
    def register(cls, device: Device, memory: Any, **options: Unpack[BufferOptions]) -> Buffer:
        """Register memory that exists already, where it lies.

        ``memory`` is an object with the buffer protocol, contiguous and writable (or over pages
        that are themselves read-only, such as an ``mmap`` with ACCESS_READ). It is kept alive, and
        locked against resizing, until nothing uses the memory any more: this buffer, its views,
        work on streams behind ``release_after``, DLPack consumers. Or it is a pair of address and
        bytes, which the caller keeps alive as long.
        """
        live = device._live()
        held: memoryview | None = None
        if isinstance(memory, tuple):
            address, nbytes = memory
            address, nbytes = unsigned(address, "address"), unsigned(nbytes, "nbytes")
        else:
            held = memoryview(memory)
            address, nbytes = address_of(held), held.nbytes
        given = Options(nbytes, **options)
        reference, error = Reference(lib.wb_buffer_release), _abi.wb_error()
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
        if held is not None and held.readonly and not made.info.read_only:
            # The exception holds these variables, and so would hold the memory.
            del made, reference, held
            raise ValueError(
                f"{type(memory).__name__} is read-only for Python and its pages are not: a buffer "
                "over it could be written; use View.from_dlpack, or View.copy_from"
            )
        return made

    @classmethod
    def map(
        cls,
        device: Device,
        path: str | os.PathLike[str],
        offset: int = 0,
        nbytes: int = 0,
        **options: Unpack[BufferOptions],
    ) -> Buffer:
        """Map ``nbytes`` bytes of a file from ``offset``, read-only; 0 bytes mean all that follow.

        Without a copy where the platform can register a mapping, else read into pinned memory:
        ``info.origin`` says which, and ``info.note`` why.
        """
        reference, error = Reference(lib.wb_buffer_release), _abi.wb_error()
        given = Options(None, **options)
        status = lib.wb_buffer_map_file(
            device._live(),
            c_text(os.fsencode(path), "path"),
            unsigned(offset, "offset"),
            unsigned(nbytes, "nbytes"),
            given.c,
            reference.out,
            byref(error),
        )
        given.check(status, error)
        return cls(device, reference)

    @property
    def device(self) -> Device:
        """The device that it is for."""
        return self._device

    @property
    def info(self) -> BufferInfo:
        """What it is."""
        return _describe(self._live())

    @property
    def usage(self) -> BufferUsage:
        """What the kernel counts for its pages now; slower than ``info``."""
        found, error = _abi.wb_buffer_stats(), _abi.wb_error()
        check(lib.wb_buffer_get_stats(self._live(), byref(found), byref(error)), error)
        fields = BufferUsage.__dataclass_fields__
        return BufferUsage(**{name: getattr(found, name) for name in fields})

    @property
    def nbytes(self) -> int:
        """Bytes asked for."""
        return self.info.nbytes

    @property
    def address(self) -> int:
        """The host's address of the first byte; 0 in a buffer of no bytes."""
        return self.info.address

    @property
    def device_address(self) -> int | None:
        """The device's address of the first byte; None where it does not see it."""
        return self.info.device_address

    @property
    def read_only(self) -> bool:
        """Whether its bytes must not be written."""
        return self.info.read_only

    def view(
        self,
        dtype: DtypeLike,
        shape: int | Sequence[int],
        strides: Sequence[int] | None = None,
        offset: int = 0,
        access: Literal["device", "host"] = "device",
    ) -> View:
        """A typed window: it aliases this memory, or fails; it never copies.

        ``strides`` are in elements, None for contiguous; ``offset`` is in bytes.
        """
        from .view import View

        return View.of(self, dtype, shape, strides, offset, access)

    def release_after(self, stream: Any) -> None:
        """Close this buffer; the memory stays until what is queued on ``stream`` has run."""
        release_after(self._live(), stream, "buffer")
        self.close()

    def memoryview(self) -> builtins.memoryview:
        """The bytes as a memoryview without a copy, which keeps the memory alive."""
        reference = self._live()
        info = _describe(reference)
        return exported(reference, info.address, info.nbytes, info.read_only)

    @property
    def __array_interface__(self) -> dict[str, Any]:
        """NumPy's protocol: ``numpy.asarray(buffer)`` has its bytes, without a copy."""
        view = self.memoryview()
        return {"version": 3, "typestr": "|u1", "shape": (view.nbytes,), "data": view}

    def __buffer__(self, flags: int) -> builtins.memoryview:
        """The buffer protocol, on Python 3.12 and later."""
        return self.memoryview()

    def __repr__(self) -> str:
        if self.closed:
            return "<weighbridge.Buffer closed>"
        info = self.info
        words = [f"{info.nbytes} bytes", info.origin, f"pinning {info.pinning}"]
        return f"<weighbridge.Buffer {', '.join(words)}{', read-only' * info.read_only}>"


PinnedBuffer = Buffer


def _describe(reference: Reference) -> BufferInfo:
    found, error = _abi.wb_buffer_info(), _abi.wb_error()
    check(lib.wb_buffer_get_info(reference, byref(found), byref(error)), error)
    return BufferInfo(
        origin=_abi.ORIGIN.word(found.origin),
        pinning=_abi.PINNING.word(found.pinning),
        read_only=bool(found.read_only),
        address=found.data or 0,
        device_address=found.device_address or None,
        nbytes=found.asked_bytes,
        mapped_bytes=found.mapped_bytes,
        pinned_bytes=found.pinned_bytes,
        chunks=found.chunks,
        note=found.note.decode(errors="replace"),
    )


def exported(reference: Reference, address: int, nbytes: int, read_only: bool) -> memoryview:
    """A memoryview of memory that ``reference`` keeps alive, and that keeps it so."""
    if nbytes == 0 or address == 0:
        return memoryview(b"" if read_only else bytearray())
    array = (ctypes.c_ubyte * nbytes).from_address(address)
    array.keeps_alive = reference  # type: ignore[attr-defined]
    view = memoryview(array).cast("B")
    return view.toreadonly() if read_only else view


def release_after(reference: Reference, stream: Any, noun: str) -> None:
    """Let a further reference to a buffer or a view go after a stream.

    A further one, since calls and arrays may still hold the one of the object.
    """
    handle, error = _streams.handle(stream), _abi.wb_error()
    getattr(lib, f"wb_{noun}_retain")(reference)
    status = getattr(lib, f"wb_{noun}_release_after")(reference, handle, byref(error))
    if status != 0:
        getattr(lib, f"wb_{noun}_release")(reference)
    check(status, error)


class _PyBuffer(ctypes.Structure):
    _fields_ = [
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.c_void_p),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_void_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    ]


_PYBUF_FULL_RO = 0x11C

# Not ctypes.pythonapi, whose functions every package of the process gives its own prototypes.
_python = ctypes.PyDLL(None)
_get_buffer = _python.PyObject_GetBuffer
_get_buffer.restype = ctypes.c_int
_get_buffer.argtypes = (ctypes.py_object, ctypes.POINTER(_PyBuffer), ctypes.c_int)
_release_buffer = _python.PyBuffer_Release
_release_buffer.restype = None
_release_buffer.argtypes = (ctypes.POINTER(_PyBuffer),)


def address_of(view: memoryview, contiguous: bool = True) -> int:
    """Where a memoryview's first element lies, while the view is alive."""
    if contiguous and not view.c_contiguous:
        raise ValueError("the memory has gaps or another order: register what it is a part of")
    found = _PyBuffer()
    _get_buffer(view, byref(found), _PYBUF_FULL_RO)
    address: int = found.buf or 0
    _release_buffer(byref(found))
    return address

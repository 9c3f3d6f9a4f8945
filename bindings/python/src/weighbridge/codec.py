"""Compresses weights without loss, in host memory and on devices."""

from __future__ import annotations

from ctypes import byref, c_uint64
from dataclasses import dataclass
from typing import Any

from ._abi import wb_codec_info
from ._arguments import flag, unsigned
from ._call import call, filled
from ._handle import reference_of
from ._host_array import address_of
from ._library import lib
from .dtypes import Dtype, DtypeLike
from .memory import Device
from .stream import stream_handle

TILE_BYTES = 8192
"""Bytes of values that are compressed together: ranges are decoded in multiples of it."""

Bytes = Any
"""An object with the buffer protocol: bytes, a memoryview, a NumPy array."""


@dataclass(frozen=True)
class CodecInfo:
    """What compressed bytes hold."""

    dtype: Dtype
    decoded_bytes: int
    encoded_bytes: int
    """Estimated by :meth:`Codec.measure` if it looks at a part of the tiles."""
    tiles: int
    raw_tiles: int
    """Tiles that are stored unchanged, since compressed they would be larger."""
    constant_tiles: int
    """Tiles of one value, which take no bytes."""

    @property
    def ratio(self) -> float:
        """Compressed bytes for each byte of values; 1 for no values."""
        return self.encoded_bytes / self.decoded_bytes if self.decoded_bytes else 1.0


class Codec:
    """Compresses values of bfloat16, float16, float32, float8_e4m3fn or float8_e5m2.

    :meth:`encode`, :meth:`decode` and :meth:`measure` work in host memory on ``threads`` threads;
    0 is as many as there are processors, at most 32. The ``queue`` methods take addresses that a
    device can access, at multiples of 16, and queue kernels on a stream, which may be captured.
    """

    def __init__(self, dtype: DtypeLike, threads: int = 0) -> None:
        self._dtype = Dtype.of(dtype)
        self._threads = unsigned(threads, "threads", 32)
        self.max_bytes(0)

    @property
    def dtype(self) -> Dtype:
        """The type of the values."""
        return self._dtype

    def max_bytes(self, decoded_bytes: int) -> int:
        """Returns the largest size that values are compressed to; a target must have as many."""
        most = c_uint64()
        call(
            lib.wb_codec_get_max_bytes,
            self._dtype,
            unsigned(decoded_bytes, "decoded_bytes"),
            byref(most),
        )
        return most.value

    @staticmethod
    def info(encoded: Bytes) -> CodecInfo:
        """Returns what compressed bytes hold, of which there may be more than that."""
        memory = _memory(encoded, "encoded")
        found = filled(wb_codec_info, lib.wb_codec_get_info, address_of(memory), memory.nbytes)
        return _info(found)

    def measure(self, source: Bytes, most_tiles: int = 0) -> CodecInfo:
        """Returns what values would be compressed to; 0 tiles looks at all, and is exact."""
        memory, most = _memory(source, "source"), unsigned(most_tiles, "most_tiles")
        arguments = (self._dtype, address_of(memory), memory.nbytes, most)
        return _info(filled(wb_codec_info, lib.wb_codec_measure, *arguments))

    def encode(self, source: Bytes) -> bytes:
        """Returns the compressed bytes of values."""
        memory = _memory(source, "source")
        target = bytearray(self.max_bytes(memory.nbytes))
        return bytes(memoryview(target)[: self.encode_into(source, target).encoded_bytes])

    def encode_into(self, source: Bytes, target: Bytes) -> CodecInfo:
        """Compresses values into writable memory of at least :meth:`max_bytes` bytes."""
        memory, to = _memory(source, "source"), _writable(target)
        found = filled(
            wb_codec_info,
            lib.wb_codec_encode,
            self._dtype,
            address_of(memory),
            memory.nbytes,
            address_of(to),
            to.nbytes,
            self._threads,
        )
        return _info(found)

    def decode(self, encoded: Bytes, *, verify: bool = False) -> bytearray:
        """Returns the values of compressed bytes; ``verify`` compares checksums."""
        target = bytearray(self.info(encoded).decoded_bytes)
        self.decode_into(encoded, target, verify=verify)
        return target

    def decode_into(
        self, encoded: Bytes, target: Bytes, *, offset: int = 0, verify: bool = False
    ) -> CodecInfo:
        """Decompresses the bytes from ``offset`` on into writable memory, as many as it has.

        A range begins at a multiple of ``TILE_BYTES`` and ends at one or with the values.
        """
        memory, to = _memory(encoded, "encoded"), _writable(target)
        found = self.info(encoded)
        if found.dtype != self._dtype:
            raise ValueError(f"the compressed values are {found.dtype!r}, not {self._dtype!r}")
        found_c = filled(
            wb_codec_info,
            lib.wb_codec_decode,
            address_of(memory),
            memory.nbytes,
            unsigned(offset, "offset"),
            address_of(to),
            to.nbytes,
            flag(verify, "verify"),
            self._threads,
        )
        return _info(found_c)

    def queue_encode(
        self,
        device: Device,
        source: int,
        nbytes: int,
        target: int,
        target_bytes: int,
        stream: Any = None,
    ) -> None:
        """Queues compressing values. The header says how many bytes they took: :meth:`info`."""
        call(
            lib.wb_codec_queue_encode,
            reference_of(device, "device"),
            self._dtype,
            unsigned(source, "source"),
            unsigned(nbytes, "nbytes"),
            unsigned(target, "target"),
            unsigned(target_bytes, "target_bytes"),
            stream_handle(stream),
        )

    def queue_decode(
        self,
        device: Device,
        encoded: int,
        available_bytes: int,
        decoded_bytes: int,
        target: int,
        nbytes: int | None = None,
        *,
        offset: int = 0,
        stream: Any = None,
    ) -> None:
        """Queues decompressing ``nbytes`` bytes from ``offset`` on; None for all ``decoded_bytes``.

        ``available_bytes`` is the memory at ``encoded``, outside of which nothing is read.
        """
        call(
            lib.wb_codec_queue_decode,
            reference_of(device, "device"),
            self._dtype,
            unsigned(encoded, "encoded"),
            unsigned(available_bytes, "available_bytes"),
            unsigned(decoded_bytes, "decoded_bytes"),
            unsigned(offset, "offset"),
            unsigned(target, "target"),
            unsigned(decoded_bytes - offset if nbytes is None else nbytes, "nbytes"),
            stream_handle(stream),
        )

    def queue_verify(
        self,
        device: Device,
        encoded: int,
        available_bytes: int,
        decoded_bytes: int,
        decoded: int,
        mismatches: int,
        nbytes: int | None = None,
        *,
        offset: int = 0,
        stream: Any = None,
    ) -> None:
        """Queues comparing checksums; adds the tiles that differ to a 64-bit integer."""
        call(
            lib.wb_codec_queue_verify,
            reference_of(device, "device"),
            unsigned(encoded, "encoded"),
            unsigned(available_bytes, "available_bytes"),
            unsigned(decoded_bytes, "decoded_bytes"),
            unsigned(offset, "offset"),
            unsigned(decoded, "decoded"),
            unsigned(decoded_bytes - offset if nbytes is None else nbytes, "nbytes"),
            unsigned(mismatches, "mismatches"),
            stream_handle(stream),
        )

    def __repr__(self) -> str:
        return f"<weighbridge.Codec {self._dtype.label}>"


def _info(found: wb_codec_info) -> CodecInfo:
    return CodecInfo(
        Dtype(found.dtype),
        found.decoded_bytes,
        found.encoded_bytes,
        found.tiles,
        found.raw_tiles,
        found.constant_tiles,
    )


def _memory(source: Bytes, what: str) -> memoryview:
    memory = memoryview(source)
    if not memory.c_contiguous:
        raise ValueError(f"{what} has gaps: make it contiguous")
    return memory


def _writable(target: Bytes) -> memoryview:
    memory = _memory(target, "target")
    if memory.readonly:
        raise TypeError("target is read-only")
    return memory

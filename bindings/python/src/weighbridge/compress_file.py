"""Compresses safetensors files without loss, and decompresses them bit for bit.

A compressed file is a safetensors file, too. A compressed tensor keeps its name and is one of U8,
with the bytes that :class:`Codec` makes at a multiple of 16; others are as they were. The metadata
have the header of the original file, so that all of its bytes come back.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ._library import VERSION
from ._new_file import check_apart, new_file
from ._progress import Callback
from .codec import TILE_BYTES, Codec
from .dtypes import Dtype
from .errors import Status, make
from .memory import Device
from .safetensors import Safetensors, SafetensorsTensorInfo

_CODED = (Dtype.BF16, Dtype.F16, Dtype.F32, Dtype.F8_E4M3FN, Dtype.F8_E5M2)
_NAMES = {dtype.safetensors: dtype for dtype in _CODED}
_WORTH_IT = 0.98
"""A tensor that takes more of its bytes is stored unchanged."""
_ALIGNMENT = 64
"""Of the data in the file."""
_PIECE = 16 << 20
INDEX = ".index.json"
"""How the name of the index of a sharded checkpoint ends."""


@dataclass(frozen=True)
class CompressFileResult:
    """What :func:`compress_file` or :func:`decompress_file` did."""

    tensors: int
    """Tensors that are compressed."""
    kept: int
    """Tensors that are not."""
    bytes_before: int
    bytes_after: int
    """Of the files, headers included."""


def compress_file(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    threads: int = 0,
    verify: bool = False,
    progress: Callback | None = None,
) -> CompressFileResult:
    """Writes a safetensors file, or all files of an index, with its tensors compressed.

    ``source`` may be the index of a sharded checkpoint, ``model.safetensors.index.json``; then
    ``target`` is one, too, and the files get their names beside it. ``verify`` decompresses each
    tensor, and compares it with the source's. Files get their names when they are complete.
    """
    return _each(_compress, source, target, threads, verify, progress)


def decompress_file(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    threads: int = 0,
    verify: bool = True,
    progress: Callback | None = None,
) -> CompressFileResult:
    """Writes the file that :func:`compress_file` compressed, bit for bit, or all files of an index.

    ``verify`` compares checksums, which the new file does not have.
    """
    return _each(_decompress, source, target, threads, verify, progress)


@dataclass
class _Work:
    """What is done to each file."""

    threads: int
    verify: bool
    progress: Callback | None
    total: int
    done: int = 0

    def report(self, nbytes: int) -> None:
        """Reports that so many more bytes of the sources are done."""
        self.done += nbytes
        if self.progress is not None and self.progress("read", self.done, self.total) is False:
            raise make(Status.CANCELLED, "cancelled by the progress callback")


def _each(
    one: Any,
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    threads: int,
    verify: bool,
    progress: Callback | None,
) -> CompressFileResult:
    """Does the same to a file, or to all files of an index, whose own file is written last."""
    source, target = Path(source), Path(target)
    if (source.name.endswith(INDEX)) != (target.name.endswith(INDEX)):
        raise ValueError(
            f"{source.name!r} and {target.name!r}: name two files, or two indexes that end in "
            f"{INDEX!r}"
        )
    if not source.name.endswith(INDEX):
        pairs, index = [(source, target)], None
    else:
        index = source.read_bytes()
        pairs = [(source.parent / name, target.parent / name) for name in _shards(index, source)]
        target.parent.mkdir(parents=True, exist_ok=True)
    for given, made in pairs:
        check_apart(given, made)
    work = _Work(threads, verify, progress, sum(given.stat().st_size for given, _ in pairs))
    with Device("host", pin=False) as device:
        results: Sequence[CompressFileResult] = [one(device, *pair, work) for pair in pairs]
    if index is not None:
        with new_file(target, len(index)) as file:
            file.memory[:] = index
    return CompressFileResult(
        *(sum(getattr(result, name) for result in results) for name in _FIELDS)
    )


_FIELDS = ("tensors", "kept", "bytes_before", "bytes_after")


def _shards(index: bytes, path: Path) -> list[str]:
    """Returns the names of an index's files, which must lie beside it."""
    try:
        names = sorted(set(json.loads(index)["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError(f"{str(path)!r} is not the index of a sharded checkpoint") from None
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or name in (".", ".."):
            raise ValueError(f"the index names {name!r}, which is not a file beside it")
    return names


@contextmanager
def _opened(
    device: Device, path: Path
) -> Iterator[tuple[memoryview, bytes, dict[str, SafetensorsTensorInfo]]]:
    """Opens a file: its bytes, its header, and its tensors in the order of their bytes."""
    with ExitStack() as stack:
        file = stack.enter_context(Safetensors(device, path, file_mode="source"))
        infos = sorted(
            (file.tensor_info(name) for name in file.keys()), key=lambda info: info.offset_bytes
        )
        memory = stack.enter_context(file.buffer).memoryview()
        stack.callback(memory.release)
        length = int.from_bytes(memory[:8], "little")
        yield memory, bytes(memory[8 : 8 + length]), {info.name: info for info in infos}


def _compress(device: Device, source: Path, target: Path, work: _Work) -> CompressFileResult:
    with ExitStack() as stack:
        memory, header, infos = stack.enter_context(_opened(device, source))
        if _original(header) is not None:
            raise ValueError(f"{str(source)!r} is compressed already")
        codecs = {dtype: Codec(dtype, work.threads) for dtype in _CODED}
        shapes = {
            name: entry["shape"]
            for name, entry in json.loads(header).items()
            if name != "__metadata__"
        }
        chosen = [
            info for info in infos.values() if info.dtype in _CODED and info.nbytes >= TILE_BYTES
        ]
        # The header that is written in the end has at most as many digits, and the shapes of
        # tensors that are kept.
        limit = len(memory) + sum(info.nbytes // 500 + 256 for info in chosen)
        longest = {name: (limit, 2 * limit) for name in infos}
        head = _header(header, infos, {info.name for info in chosen}, longest, shapes)
        more = sum(8 + len(json.dumps(shapes[info.name])) for info in chosen)
        head += b" " * (-(-more // _ALIGNMENT) * _ALIGNMENT)
        file = stack.enter_context(new_file(target, len(head) + limit))
        written = stack.enter_context(memoryview(file.memory))
        at, places, compressed = 0, {}, set()
        work.report(len(header) + 8)
        for info in chosen:
            assert isinstance(info.dtype, Dtype)
            codec = codecs[info.dtype]
            values = memory[info.offset_bytes : info.offset_bytes + info.nbytes]
            start = len(head) + at
            with written[start : start + codec.max_bytes(info.nbytes)] as body:
                used = codec.encode_into(values, body).encoded_bytes
                if work.verify and codec.decode(body[:used], verify=True) != values:
                    raise RuntimeError(f"{info.name!r} does not come back: please report this")
            if used < _WORTH_IT * info.nbytes:
                places[info.name] = (at, at + used)
                compressed.add(info.name)
                at += used
                work.report(info.nbytes)
        # By what their size is a multiple of, so that each is aligned to it.
        others = [info for info in infos.values() if info.name not in compressed]
        for info in sorted(others, key=lambda info: -math.gcd(info.nbytes, _ALIGNMENT)):
            values = memory[info.offset_bytes : info.offset_bytes + info.nbytes]
            for begin in range(0, info.nbytes, _PIECE):
                part = values[begin : begin + _PIECE]
                start = len(head) + at + begin
                written[start : start + len(part)] = part
                work.report(len(part))
            places[info.name] = (at, at + info.nbytes)
            at += info.nbytes
        final = _header(header, infos, compressed, places, shapes, len(head))
        written[: len(head)] = final
        file.size = len(head) + at
        return CompressFileResult(len(compressed), len(others), len(memory), file.size)


def _decompress(device: Device, source: Path, target: Path, work: _Work) -> CompressFileResult:
    with ExitStack() as stack:
        memory, header, infos = stack.enter_context(_opened(device, source))
        original = _original(header)
        if original is None:
            raise ValueError(f"{str(source)!r} is not a compressed file")
        text, compressed = original
        entries = {
            name: entry for name, entry in json.loads(text).items() if name != "__metadata__"
        }
        if entries.keys() != infos.keys() or not compressed <= entries.keys():
            raise ValueError(f"{str(source)!r} has other tensors than its metadata say")
        start = 8 + len(text)
        size = start + max((entry["data_offsets"][1] for entry in entries.values()), default=0)
        file = stack.enter_context(new_file(target, size))
        written = stack.enter_context(memoryview(file.memory))
        written[:start] = len(text).to_bytes(8, "little") + text
        work.report(len(header) + 8)
        for name, info in infos.items():
            begin, end = (start + offset for offset in entries[name]["data_offsets"])
            values = memory[info.offset_bytes : info.offset_bytes + info.nbytes]
            if name in compressed:
                dtype = _NAMES[entries[name]["dtype"]]
                with written[begin:end] as to:
                    found = Codec(dtype, work.threads).decode_into(values, to, verify=work.verify)
                if found.decoded_bytes != end - begin:
                    raise ValueError(f"{name!r} has {found.decoded_bytes} bytes, not {end - begin}")
            elif info.nbytes != end - begin:
                raise ValueError(f"{name!r} has {info.nbytes} bytes, not {end - begin}")
            else:
                written[begin:end] = values
            work.report(info.nbytes)
        return CompressFileResult(len(compressed), len(infos) - len(compressed), len(memory), size)


_METADATA = "weighbridge_codec"


def _original(header: bytes) -> tuple[bytes, set[str]] | None:
    """Returns the original header of a compressed file, and the names of compressed tensors."""
    metadata = json.loads(header).get("__metadata__") or {}
    if _METADATA not in metadata:
        return None
    found = json.loads(metadata[_METADATA])
    if found["format"] != 1:
        raise ValueError(f"format {found['format']} of compressed files: this library reads 1")
    return found["header"].encode(), set(found["compressed"])


def _header(
    original: bytes,
    infos: dict[str, SafetensorsTensorInfo],
    compressed: set[str],
    places: dict[str, tuple[int, int]],
    shapes: dict[str, Any],
    size: int = 0,
) -> bytes:
    """Returns the beginning of a compressed file, of at least ``size`` bytes."""
    old = json.loads(original)
    metadata = dict(old.get("__metadata__") or {})
    metadata[_METADATA] = json.dumps(
        {
            "format": 1,
            "version": VERSION,
            "compressed": [name for name in infos if name in compressed],
            "header": original.decode(),
        }
    )
    entries: dict[str, Any] = {"__metadata__": metadata}
    for name in sorted(infos, key=lambda name: places[name]):
        begin, end = places[name]
        is_compressed = name in compressed
        entries[name] = {
            "dtype": "U8" if is_compressed else old[name]["dtype"],
            "shape": [end - begin] if is_compressed else shapes[name],
            "data_offsets": [begin, end],
        }
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * max(-(8 + len(text)) % _ALIGNMENT, size - 8 - len(text))
    return len(text).to_bytes(8, "little") + text

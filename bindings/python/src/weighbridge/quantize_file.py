"""Writes a copy of a safetensors file with its matrices in FP8."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ._library import VERSION
from ._progress import Callback
from .dtypes import Dtype
from .errors import Status, make
from .memory import Device
from .plan import Parameter, Plan
from .quantizer import QuantizeOptions, Quantizer
from .safetensors import Safetensors, SafetensorsTensorInfo

_WIDE = (Dtype.F32, Dtype.F16, Dtype.BF16)
_PIECE = 16 << 20


@dataclass(frozen=True)
class QuantizeFileResult:
    """What :func:`quantize_file` did."""

    quantized: tuple[str, ...]
    """The names of the quantized tensors."""
    bytes_before: int
    bytes_after: int
    nonfinite: int
    staging_bytes: int


@dataclass(frozen=True)
class _Tensor:
    """A tensor of the new file."""

    name: str
    dtype: Dtype
    shape: list[int]
    """As in the file's header."""
    nbytes: int
    start: int = 0
    """From the end of the header."""


def quantize_file(
    device: Device,
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    options: QuantizeOptions,
    *,
    select: Sequence[str] = (),
    exclude: Sequence[str] = (),
    staging_bytes: int = 0,
    progress: Callback | None = None,
) -> QuantizeFileResult:
    """Writes a safetensors file with its matrices in FP8, and the scales of each.

    Selected float32, float16 and bfloat16 tensors of two dimensions or more are quantized; all
    others are copied. The new file gets its name when it is complete; after an error there is none.
    """
    with ExitStack() as stack:
        file = stack.enter_context(Safetensors(device, source, pin=False))
        infos = [file.tensor_info(name) for name in file.keys()]
        chosen = _selected(device, infos, select, exclude)
        scale_names, quantized = _quantized(device, chosen, options)
        tensors = _placed(infos, quantized)
        metadata = dict(file.metadata)
        metadata["weighbridge"] = json.dumps(
            {
                "version": VERSION,
                "format": options.format,
                "scale_dtype": options.scale_dtype,
                "block": [options.block_rows, options.block_cols],
                "quantized": len(chosen),
            }
        )
        header = _header(tensors, metadata)
        size = len(header) + sum(tensor.nbytes for tensor in tensors.values())
        memory = stack.enter_context(_new_file(Path(target), size))
        memory[: len(header)] = header
        start = ctypes.addressof(ctypes.c_char.from_buffer(memory)) + len(header)
        quantizer = stack.enter_context(Quantizer(device, staging_bytes))
        total, done, nonfinite, staging = sum(info.nbytes for info in infos), 0, 0, 0

        def report(phase: str, part: int, _: int) -> bool | None:
            return None if progress is None else progress(phase, done + part, total)

        for info in infos:
            with file.view(info.name, accessor="host", alignment=0) as view:
                address = start + tensors[info.name].start
                if info.name in scale_names:
                    result = quantizer.quantize(
                        view.address,
                        view.dtype,
                        view.shape,
                        address,
                        start + tensors[scale_names[info.name]].start,
                        options,
                        progress=report,
                    )
                    nonfinite += result.nonfinite
                    staging = max(staging, result.staging_bytes)
                else:
                    for at in range(0, info.nbytes, _PIECE):
                        count = min(_PIECE, info.nbytes - at)
                        ctypes.memmove(address + at, view.address + at, count)
                        if report("quantize", at + count, total) is False:
                            raise make(Status.CANCELLED, "cancelled by the progress callback")
            done += info.nbytes
        names = tuple(sorted(scale_names))
        return QuantizeFileResult(names, total, size - len(header), nonfinite, staging)


def _selected(
    device: Device,
    infos: Sequence[SafetensorsTensorInfo],
    select: Sequence[str],
    exclude: Sequence[str],
) -> list[Parameter]:
    """Returns the tensors to quantize: those that a plan with these selectors would offload."""
    parameters = [
        Parameter(info.name, "", info.dtype, info.shape)
        for info in infos
        if info.dtype in _WIDE and info.shape is not None and len(info.shape) > 1 and info.nbytes
    ]
    if not parameters:
        raise ValueError("the file has no float32, float16 or bfloat16 tensor of two dimensions")
    with _plan(device, parameters, select=select, exclude=exclude) as plan:
        return [
            parameter
            for parameter, planned in zip(parameters, plan.parameters)
            if planned.placement == "offloaded"
        ]


def _quantized(
    device: Device, chosen: Sequence[Parameter], options: QuantizeOptions
) -> tuple[dict[str, str], list[_Tensor]]:
    """Returns the names of each tensor's scales, and the tensors and scales as a plan has them."""
    scale_names, tensors, name = {}, [], ""
    with _plan(device, chosen, quantize=options) as plan:
        for entry in plan.to_dict()["parameters"]:
            shape = entry["shape"]
            if entry["quantized_from"] is not None:
                name = entry["name"]
            else:  # the scales follow their tensor
                scale_names[name] = entry["name"]
                if options.block_rows == options.block_cols == 0 and len(shape) == 2:
                    shape = [1]
            dtype = Dtype.of(entry["dtype"])
            tensors.append(_Tensor(entry["name"], dtype, shape, entry["bytes"]))
    return scale_names, tensors


def _plan(device: Device, parameters: Sequence[Parameter], **options: Any) -> Plan:
    # On demand, so that the plan does not depend on the device's policy on views.
    return Plan(device, parameters, offload_bytes=1 << 62, transfer_mode="on-demand", **options)


def _placed(
    infos: Sequence[SafetensorsTensorInfo], quantized: Sequence[_Tensor]
) -> dict[str, _Tensor]:
    """Returns the tensors of the new file by name, the widest elements first to align all."""
    names = {info.name for info in infos}
    for scales in quantized[1::2]:
        if scales.name in names:
            raise ValueError(f"the file has {scales.name!r} already: is it quantized?")
    replaced = {tensor.name for tensor in quantized}
    tensors = list(quantized)
    for info in infos:
        if info.dtype is None or info.shape is None:
            raise ValueError(f"the element type of {info.name!r} is unknown to this library")
        if info.name not in replaced:
            shape = list(info.shape)
            if info.dtype is Dtype.F4_E2M1X2:  # one element here is two numbers in a file
                shape[-1] *= 2
            tensors.append(_Tensor(info.name, info.dtype, shape, info.nbytes))
    placed, start = {}, 0
    for tensor in sorted(tensors, key=lambda tensor: (-tensor.dtype.itemsize, tensor.name)):
        placed[tensor.name] = replace(tensor, start=start)
        start += tensor.nbytes
    return placed


def _header(tensors: dict[str, _Tensor], metadata: dict[str, str]) -> bytes:
    """Returns the beginning of the file, up to the first tensor."""
    entries: dict[str, Any] = {"__metadata__": metadata}
    for tensor in tensors.values():
        entries[tensor.name] = {
            "dtype": tensor.dtype.safetensors,
            "shape": tensor.shape,
            "data_offsets": [tensor.start, tensor.start + tensor.nbytes],
        }
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 64)
    return len(text).to_bytes(8, "little") + text


@contextmanager
def _new_file(path: Path, size: int) -> Iterator[mmap.mmap]:
    """Maps a file of that size, which gets its name at the end and is deleted after an error."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        # Allocated in advance: a full disk would otherwise kill the process at a write.
        os.posix_fallocate(descriptor, 0, size)
        memory = mmap.mmap(descriptor, size)
        yield memory
        memory.flush()
        os.fsync(descriptor)
        os.replace(partial, path)
    except BaseException:
        os.unlink(partial)
        raise
    finally:
        os.close(descriptor)

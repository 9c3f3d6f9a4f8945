"""A checkpoint in 8 bits, from file to file: ``python -m weighbridge quantize IN OUT``."""

from __future__ import annotations

import argparse
import ctypes
import json
import mmap
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._library import VERSION
from ._text import in_words
from .device import Device
from .dtypes import Dtype
from .errors import WeighbridgeError
from .plan import Plan
from .planning import bytes_argument
from .quantizer import Quantizer, scales_of
from .safetensors import Safetensors
from .scheme import Scheme

if TYPE_CHECKING:
    from ._progress import Callback
    from .safetensors import TensorInfo

_WIDE = (Dtype.F32, Dtype.F16, Dtype.BF16)
_BLOCKS = {"tensor": (0, 0), "row": (1, 0), "column": (0, 1)}
_PIECE = 16 << 20


@dataclass
class _Output:
    """A tensor of the new file."""

    name: str
    dtype: str
    """As safetensors calls it."""
    shape: list[int]
    nbytes: int
    start: int = 0


@dataclass(frozen=True)
class Outcome:
    """What became of a checkpoint."""

    quantized: tuple[str, ...]
    bytes_before: int
    bytes_after: int
    nonfinite: int
    staging_bytes: int


def scale_name(name: str, scheme: Scheme) -> str:
    """The name of a weight's scales, as engines know it: ``_scale_inv`` for blocks of a matrix."""
    return f"{name}_scale_inv" if min(scheme.block) > 1 else f"{name}_scale"


def quantize_file(
    device: Device,
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    scheme: Scheme,
    *,
    select: Sequence[str] = (),
    exclude: Sequence[str] = (),
    staging_bytes: int = 128 << 20,
    progress: Callback | None = None,
) -> Outcome:
    """Write a safetensors file with its matrices in 8 bits, each with its scales beside it.

    Weights of two dimensions or more are quantized, of those that ``select`` and ``exclude`` mean;
    everything else is copied. The new file appears under its name when it is whole, or not at all.
    """
    with ExitStack() as stack:
        file = stack.enter_context(Safetensors(device, source, pin=False))
        infos = [file.info(name) for name in file.keys()]
        chosen = _chosen(device, infos, select, exclude)
        outputs = _layout(infos, chosen, scheme)
        metadata = dict(file.metadata)
        metadata["weighbridge"] = json.dumps(
            {
                "version": VERSION,
                "format": scheme.format,
                "scale": scheme.scale,
                "block": list(scheme.block),
                "quantized": len(chosen),
            }
        )
        header = _header(outputs, metadata)
        size = len(header) + sum(output.nbytes for output in outputs.values())
        memory = stack.enter_context(_new_file(Path(target), size))
        memory[: len(header)] = header
        start = ctypes.addressof(ctypes.c_char.from_buffer(memory)) + len(header)
        quantizer = stack.enter_context(Quantizer(device, staging_bytes))
        total, done, odd, staging = sum(info.nbytes for info in infos), 0, 0, 0

        def tell(phase: str, part: int, _: int) -> bool | None:
            return None if progress is None else progress(phase, done + part, total)

        for info in infos:
            with file.view(info.name, access="host", alignment=0) as view:
                output = outputs[info.name]
                if info.name in chosen:
                    scales = outputs[scale_name(info.name, scheme)]
                    found = quantizer.quantize(
                        view.address,
                        info.dtype,
                        info.shape,  # type: ignore[arg-type]
                        start + output.start,
                        start + scales.start,
                        scheme,
                        progress=tell,
                    )
                    odd += found.nonfinite
                    staging = max(staging, found.staging_bytes)
                else:
                    for at in range(0, info.nbytes, _PIECE):
                        count = min(_PIECE, info.nbytes - at)
                        ctypes.memmove(start + output.start + at, view.address + at, count)
                        if tell("quantize", at + count, total) is False:
                            raise KeyboardInterrupt("cancelled by the progress callback")
            done += info.nbytes
        return Outcome(tuple(sorted(chosen)), total, size - len(header), odd, staging)


def _chosen(
    device: Device, infos: Sequence[TensorInfo], select: Sequence[str], exclude: Sequence[str]
) -> set[str]:
    """The names of the tensors that are quantized: a plan that would offload them knows."""
    from .plan import Parameter

    wide = [
        info for info in infos if info.dtype in _WIDE and len(info.shape or ()) > 1 and info.nbytes
    ]
    if not wide:
        raise ValueError("the file has no float32, float16 or bfloat16 tensor of two dimensions")
    parameters = [Parameter(info.name, "", info.dtype, info.shape or ()) for info in wide]
    with Plan(
        device,
        parameters,
        offload_bytes=(1 << 62),
        select=select,
        exclude=exclude,
        carrier="on-demand",
    ) as plan:
        return {p.name for p in plan.parameters if p.carrier != "resident"}


def _layout(infos: Sequence[TensorInfo], chosen: set[str], scheme: Scheme) -> dict[str, _Output]:
    """The tensors of the new file where they lie: the widest elements first, so that all are
    aligned."""
    outputs: dict[str, _Output] = {}
    names = {info.name for info in infos}
    raw = {info.name: info for info in infos}
    for info in infos:
        if info.dtype is None or info.shape is None:
            raise ValueError(f"{info.name!r} is of a type that is not known here")
        shape = list(info.shape)
        if info.name not in chosen:
            kind = _SAFETENSORS[info.dtype]
            if info.dtype is Dtype.F4_E2M1X2:  # an element here, two numbers in a file
                shape[-1] *= 2
            outputs[info.name] = _Output(info.name, kind, shape, info.nbytes)
            continue
        beside = scale_name(info.name, scheme)
        if beside in names:
            raise ValueError(f"the file has {beside!r} already: is it quantized?")
        scales = scales_of(info.dtype, info.shape, scheme)
        of_scales = [1] if scheme.block == (0, 0) else [*shape[:-2], *scales.shape[1:]]
        if scheme.block == (0, 0) and len(shape) > 2:
            of_scales = [*shape[:-2], 1, 1]
        kinds = [_SAFETENSORS[Dtype.of(name)] for name in (scheme.format, scheme.scale)]
        elements = info.nbytes // info.dtype.itemsize
        outputs[info.name] = _Output(info.name, kinds[0], shape, elements)
        outputs[beside] = _Output(beside, kinds[1], of_scales, scales.nbytes)
    width = {name: 1 for name in outputs}
    for name, output in outputs.items():
        found = raw.get(name)
        wide = name not in chosen and found is not None and found.dtype is not None
        width[name] = found.dtype.itemsize if wide else 4 if output.dtype == "F32" else 1  # type: ignore[union-attr]
    start = 0
    for name in sorted(outputs, key=lambda name: (-width[name], name)):
        outputs[name] = replace(outputs[name], start=start)
        start += outputs[name].nbytes
    return outputs


def _header(outputs: dict[str, _Output], metadata: dict[str, str]) -> bytes:
    """The file's beginning, up to the first tensor."""
    entries: dict[str, Any] = {"__metadata__": metadata}
    for output in sorted(outputs.values(), key=lambda output: output.start):
        entries[output.name] = {
            "dtype": output.dtype,
            "shape": output.shape,
            "data_offsets": [output.start, output.start + output.nbytes],
        }
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 64)
    return len(text).to_bytes(8, "little") + text


@contextmanager
def _new_file(path: Path, size: int) -> Iterator[mmap.mmap]:
    """A mapped file of that size that gets its name at the end, and is gone after an exception."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        # Taken now: a mapping that finds the disk full later would end the process.
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


_SAFETENSORS = {
    Dtype.BOOL: "BOOL",
    Dtype.I8: "I8",
    Dtype.I16: "I16",
    Dtype.I32: "I32",
    Dtype.I64: "I64",
    Dtype.U8: "U8",
    Dtype.U16: "U16",
    Dtype.U32: "U32",
    Dtype.U64: "U64",
    Dtype.F16: "F16",
    Dtype.BF16: "BF16",
    Dtype.F32: "F32",
    Dtype.F64: "F64",
    Dtype.C64: "C64",
    Dtype.F8_E4M3FN: "F8_E4M3",
    Dtype.F8_E5M2: "F8_E5M2",
    Dtype.F8_E8M0: "F8_E8M0",
    Dtype.F4_E2M1X2: "F4",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.add_argument("source", metavar="IN", help="a safetensors file")
    parser.add_argument("target", metavar="OUT", help="the file that is written")
    parser.add_argument("--format", choices=("e4m3fn", "e5m2"), default="e4m3fn")
    parser.add_argument(
        "--block",
        type=_block,
        default=(128, 128),
        metavar="B",
        help='what shares a scale: "tensor", "row", "column", or ROWSxCOLS (default 128x128)',
    )
    parser.add_argument("--scale", choices=("float32", "e8m0"), default="float32")
    for name, what in (
        ("--select", "what is quantized: whole segments of a name, or a glob"),
        ("--exclude", "what is not"),
    ):
        parser.add_argument(name, action="append", default=[], metavar="SELECTOR", help=what)
    parser.add_argument("--device", default="host", metavar="NAME", help='"host" or "cuda:N"')
    parser.add_argument(
        "--staging-bytes", type=bytes_argument, default=128 << 20, metavar="N", help="on the device"
    )


def _block(text: str) -> tuple[int, int]:
    if text in _BLOCKS:
        return _BLOCKS[text]
    rows, x, cols = text.partition("x")
    if not x or not rows.isdigit() or not cols.isdigit():
        known = ", ".join(_BLOCKS)
        raise argparse.ArgumentTypeError(f"{text!r} is no block: write {known} or 128x128")
    return int(rows), int(cols)


def run(arguments: argparse.Namespace) -> int:
    """Quantize, and say what was done; 1 where that cannot be."""
    scale = "float8_e8m0fnu" if arguments.scale == "e8m0" else "float32"
    scheme = Scheme(f"float8_{arguments.format}", scale, arguments.block)  # type: ignore[arg-type]
    try:
        with Device(arguments.device) as device, _bar() as progress:
            done = quantize_file(
                device,
                arguments.source,
                arguments.target,
                scheme,
                select=arguments.select,
                exclude=arguments.exclude,
                staging_bytes=arguments.staging_bytes,
                progress=progress,
            )
    except KeyboardInterrupt:
        print("weighbridge quantize: cancelled, nothing was written", file=sys.stderr)
        return 130
    except (WeighbridgeError, OSError, ValueError) as error:
        print(f"weighbridge quantize: {error}", file=sys.stderr)
        return 1
    before, after = in_words(done.bytes_before), in_words(done.bytes_after)
    print(f"{arguments.target}: {len(done.quantized)} tensors quantized, {before} became {after}")
    if done.nonfinite:
        print(f"{done.nonfinite} numbers were NaN or infinite", file=sys.stderr)
    return 0


@contextmanager
def _bar() -> Iterator[Callback]:
    """A progress bar, where people look."""
    try:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn
    except ImportError:
        yield lambda *_: None
        return
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("quantizing", total=None)

        def show(_phase: str, done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield show

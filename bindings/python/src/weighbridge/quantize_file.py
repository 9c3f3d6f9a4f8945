"""Writes a copy of a safetensors file with its matrices in FP8."""

from __future__ import annotations

import ctypes
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ._library import VERSION
from ._new_file import check_apart, new_file
from ._progress import Callback
from .dtypes import Dtype
from .errors import Status, make
from .memory import Device
from .plan import Parameter, Plan
from .quantizer import QuantizeOptions, Quantizer
from .safetensors import Safetensors, SafetensorsTensorInfo

_WIDE = (Dtype.F32, Dtype.F16, Dtype.BF16)
_PIECE = 16 << 20
_ALIGNMENT = 64
"""Of the data in the file, and of every tensor whose size is a multiple of it."""

_KEPT = re.compile(
    r"embed"  # of tokens, positions, patches: read by row, or too small to matter
    r"|(^|\.)(wte|wpe|lm_head|score|classifier|relative_attention_bias)(\.|$)|^output\.weight$"
    r"|router|(^|\.)(gate|shared_expert_gate)(\.|$)"  # which expert a token gets; not gate_proj
)
_SCALES = re.compile(
    r"(^|[._])(scale|scales|scale_inv|scale_2|scaling_factor|zero_point|qzeros|absmax|amax)$"
)


@dataclass(frozen=True)
class QuantizeFileResult:
    """What :func:`quantize_file` did."""

    quantized: tuple[str, ...]
    """The names of the quantized tensors."""
    kept: tuple[str, ...]
    """The names of the selected tensors that were copied by ``default_exclude``."""
    bytes_before: int
    bytes_after: int
    nonfinite: int
    staging_bytes: int


@dataclass(frozen=True)
class _Tensor:
    """A tensor of the new file."""

    name: str
    dtype: str
    """As in the file's header, and so is the shape."""
    shape: list[int]
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
    default_exclude: bool = True,
    staging_bytes: int = 0,
    progress: Callback | None = None,
) -> QuantizeFileResult:
    """Writes a safetensors file with its matrices in FP8, and the scales of each.

    Selected float32, float16 and bfloat16 tensors of two dimensions or more are quantized; all
    others are copied. With ``default_exclude``, embeddings, output heads, routers and gates of
    experts are copied too, as by vLLM and transformers; scales of tensors that are quantized
    already always are. A tensor of four or more dimensions is a convolution, whose rows are its
    output channels. The new file gets its name when it is complete; after an error there is none.
    """
    check_apart(Path(source), Path(target))
    with ExitStack() as stack:
        file = stack.enter_context(Safetensors(device, source, file_mode="source"))
        infos = [file.tensor_info(name) for name in file.keys()]
        if any(info.encoded_bytes for info in infos):
            raise ValueError(f"{os.fspath(source)!r} is compressed: decompress it first")
        selected = _selected(device, infos, select, exclude)
        chosen = [one for one in selected if not (default_exclude and _kept(one.name))]
        if not chosen:
            fp8 = sum(info.dtype in (Dtype.F8_E4M3FN, Dtype.F8_E5M2) for info in infos)
            raise ValueError(
                f"of {len(infos)} tensors {fp8} are in FP8 already, and every other that is "
                f"selected, such as {selected[0].name!r}, is an embedding, an output head, "
                "a router or a gate, which are kept in full precision: select others, or set "
                "default_exclude=False (--no-default-exclude)"
            )
        scale_names, quantized = _quantized(device, chosen, options)
        header = json.loads(file.header)
        metadata = dict(header.pop("__metadata__", None) or {})
        tensors = _placed(infos, quantized, scale_names, header)
        metadata["weighbridge"] = json.dumps(
            {
                "version": VERSION,
                "format": options.format,
                "scale_dtype": options.scale_dtype,
                "block": [options.block_rows, options.block_cols],
                "quantized": len(chosen),
            }
        )
        head = _header(tensors, metadata)
        size = len(head) + sum(tensor.nbytes for tensor in tensors.values())
        memory = stack.enter_context(new_file(Path(target), size)).memory
        memory[: len(head)] = head
        start = ctypes.addressof(ctypes.c_char.from_buffer(memory)) + len(head)
        quantizer = stack.enter_context(Quantizer(device, staging_bytes))
        given = stack.enter_context(file.buffer).address
        total, done, nonfinite, staging = sum(info.nbytes for info in infos), 0, 0, 0

        def report(phase: str, part: int, _: int) -> bool | None:
            return None if progress is None else progress(phase, done + part, total)

        for info in infos:
            begin = given + info.offset_bytes
            address = start + tensors[info.name].start
            if info.name in scale_names:
                assert isinstance(info.dtype, Dtype) and info.shape is not None
                result = quantizer.quantize(
                    begin,
                    info.dtype,
                    _matrix(info.shape),
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
                    ctypes.memmove(address + at, begin + at, count)
                    if report("quantize", at + count, total) is False:
                        raise make(Status.CANCELLED, "cancelled by the progress callback")
            done += info.nbytes
        kept = {one.name for one in selected} - scale_names.keys()
        return QuantizeFileResult(
            tuple(sorted(scale_names)),
            tuple(sorted(kept)),
            total,
            size - len(head),
            nonfinite,
            staging,
        )


def _kept(name: str) -> bool:
    """Whether a tensor is kept in full precision unless the caller decides otherwise."""
    return _KEPT.search(name) is not None or _SCALES.search(name) is not None


def _matrix(shape: Sequence[int]) -> tuple[int, ...]:
    """Returns the shape in which a tensor is quantized: of a convolution, a row for each output
    channel."""
    return (shape[0], math.prod(shape[1:])) if len(shape) > 3 else tuple(shape)


def _selected(
    device: Device,
    infos: Sequence[SafetensorsTensorInfo],
    select: Sequence[str],
    exclude: Sequence[str],
) -> list[Parameter]:
    """Returns the tensors to quantize: those that a plan with these selectors would offload."""
    narrow = {info.name for info in infos if info.dtype not in _WIDE}
    wide = [
        Parameter(info.name, "", info.dtype, _matrix(info.shape))
        for info in infos
        if info.dtype in _WIDE and info.shape is not None and len(info.shape) > 1 and info.nbytes
    ]
    parameters = [one for one in wide if not _is_scale_of(one.name, narrow)]
    if not parameters:
        found = f": it is quantized already, {wide[0].name!r} are scales" if wide else ""
        raise ValueError(
            f"the file has no float32, float16 or bfloat16 tensor of two dimensions{found}"
        )
    allow = ("nothing-offloaded",)
    with _plan(device, parameters, select=select, exclude=exclude, allow=allow) as plan:
        selected = [
            parameter
            for parameter, planned in zip(parameters, plan.parameters)
            if planned.placement == "offloaded"
        ]
    if not selected:
        raise ValueError(
            f"every tensor that could be quantized, such as {parameters[0].name!r}, is excluded"
        )
    return selected


def _is_scale_of(name: str, narrow: Iterable[str]) -> bool:
    """Whether a tensor holds the scales of a tensor of the file that is quantized already."""
    found = _SCALES.search(name)
    if found is None:
        return False
    base = name[: found.start()]
    # w_scale and w.scale are of w, and weight_scale may be of a packed weight_packed.
    return any(
        one in narrow for one in (base, f"{base}.weight", f"{base}_packed", f"{base}.qweight")
    )


def _quantized(
    device: Device, chosen: Sequence[Parameter], options: QuantizeOptions
) -> tuple[dict[str, str], list[_Tensor]]:
    """Returns the names of each tensor's scales, and the tensors and scales as a plan has them."""
    names = {parameter.name for parameter in chosen}
    scale_names, tensors = {}, []
    with _plan(device, chosen, quantize=options) as plan:
        for planned in plan.parameters:
            shape = list(planned.shape)
            if planned.name not in names:
                scale_names[planned.name.rpartition("_scale")[0]] = planned.name
                if options.block_rows == options.block_cols == 0 and len(shape) == 2:
                    shape = [1]
            assert isinstance(planned.dtype, Dtype)
            label = planned.dtype.safetensors
            tensors.append(_Tensor(planned.name, label, shape, planned.span_bytes))
    return scale_names, tensors


def _plan(device: Device, parameters: Sequence[Parameter], **options: Any) -> Plan:
    # On demand, so that the plan does not depend on the device's policy on views.
    return Plan(device, parameters, offload_bytes=1 << 62, transfer_mode="on-demand", **options)


def _placed(
    infos: Sequence[SafetensorsTensorInfo],
    quantized: Sequence[_Tensor],
    scale_names: Mapping[str, str],
    header: Mapping[str, Any],
) -> dict[str, _Tensor]:
    """Returns the tensors of the new file by name, in an order that aligns them all.

    A file has no gaps: those whose size is a multiple of 64 come first, then those of 32, of 16.
    So each is aligned to the largest power of two, up to 64, that divides its size.
    """
    for scales in scale_names.values():
        if scales in header:
            raise ValueError(f"the file has {scales!r} already: is it quantized?")
    made = {tensor.name: tensor for tensor in quantized}
    tensors = []
    for info in infos:
        shape = header[info.name]["shape"]
        one = made.pop(info.name, None)
        if one is None:
            one = _Tensor(info.name, header[info.name]["dtype"], shape, info.nbytes)
        # A convolution was planned as a matrix.
        tensors.append(replace(one, shape=shape))
    for matrix, name in scale_names.items():
        shape, ndim = made[name].shape, len(header[matrix]["shape"])
        if ndim > 3 and len(shape) == 2 and shape[1] == 1:
            shape = [shape[0]] + [1] * (ndim - 1)  # the dimensions of the convolution
        tensors.append(replace(made[name], shape=shape))
    placed, start = {}, 0
    for tensor in sorted(tensors, key=lambda tensor: -math.gcd(tensor.nbytes, _ALIGNMENT)):
        placed[tensor.name] = replace(tensor, start=start)
        start += tensor.nbytes
    return placed


def _header(tensors: dict[str, _Tensor], metadata: dict[str, str]) -> bytes:
    """Returns the beginning of the file, up to the first tensor."""
    entries: dict[str, Any] = {"__metadata__": metadata}
    for tensor in tensors.values():
        entries[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": tensor.shape,
            "data_offsets": [tensor.start, tensor.start + tensor.nbytes],
        }
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text

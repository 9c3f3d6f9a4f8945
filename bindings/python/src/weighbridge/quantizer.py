"""Quantizes tensors to FP8 and dequantizes them, in staging memory of bounded size."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import byref
from dataclasses import dataclass
from typing import Any, Literal

from ._abi import (
    wb_error,
    wb_quantize_options,
    wb_quantizer_result,
    wb_quantizer_scales_info,
)
from ._arguments import c_layout, flag, unsigned
from ._call import call, check, filled
from ._handle import Closeable, Reference, reference_of
from ._library import lib
from ._progress import Callback, Progress
from .dtypes import Dtype, DtypeLike
from .info import same_fields
from .memory import Device


@dataclass(frozen=True)
class QuantizeOptions:
    """How a tensor is quantized."""

    format: Literal["float8_e4m3fn", "float8_e5m2"] = "float8_e4m3fn"
    scale_dtype: Literal["float32", "float8_e8m0fnu"] = "float32"
    """The type of the scales; float8_e8m0fnu holds powers of two."""
    block_rows: int = 0
    """Rows that share a scale, in the last two dimensions; 0 for all of them."""
    block_cols: int = 0
    """Columns that share a scale; 0 for all of them."""
    use_given_scales: bool = False
    """The caller provides the scales."""
    reject_nonfinite: bool = False
    """NaN and infinite elements are an error."""
    scale_bytes: int = 0
    """The size of the memory for the scales, checked if it is not 0."""


PER_TENSOR = QuantizeOptions()
"""float8_e4m3fn with one scale for each tensor."""


@dataclass(frozen=True)
class QuantizerScalesInfo:
    """The scales of a tensor."""

    matrices: int
    rows: int
    """Rows of scales of each matrix."""
    cols: int
    nbytes: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Matrices, and the rows and columns of scales of each."""
        return self.matrices, self.rows, self.cols


@dataclass(frozen=True)
class QuantizerResult:
    """What a call of a quantizer did."""

    passes: int
    """2 if a block is larger than the staging memory, so that the source is read twice."""
    nonfinite: int
    """Elements that were NaN or infinite; not counted with given scales."""
    staging_bytes: int
    """Bytes of device memory that the call used, at most the quantizer's limit."""


class Quantizer(Closeable):
    """Quantizes tensors one at a time, in at most ``staging_bytes`` of device memory.

    Sources, targets and scales are addresses in host memory, preferably pinned, or in device
    memory. Elements that are too large, infinite ones included, become the largest number of the
    format; NaN stays NaN. ``staging_bytes`` 0 is the library's default.
    """

    _noun = "quantizer"

    def __init__(self, device: Device, staging_bytes: int = 0) -> None:
        self._reference = None
        self._device = device
        reference = Reference(lib.wb_quantizer_release)
        limit = unsigned(staging_bytes, "staging_bytes")
        call(lib.wb_quantizer_new, reference_of(device, "device"), limit, reference.out)
        self._reference = reference

    @property
    def device(self) -> Device:
        """The device that quantizes."""
        return self._device

    @staticmethod
    def scales_info(
        dtype: DtypeLike, shape: Sequence[int], options: QuantizeOptions = PER_TENSOR
    ) -> QuantizerScalesInfo:
        """Returns the number and the bytes of a tensor's scales."""
        found = filled(
            wb_quantizer_scales_info,
            lib.wb_quantizer_get_scales_info,
            byref(c_layout(dtype, tuple(shape))),
            byref(c_options(options)),
        )
        return QuantizerScalesInfo(found.matrices, found.rows, found.cols, found.bytes)

    def quantize(
        self,
        source: int,
        dtype: DtypeLike,
        shape: Sequence[int],
        target: int,
        scales: int,
        options: QuantizeOptions = PER_TENSOR,
        *,
        strides: Sequence[int] | None = None,
        progress: Callback | None = None,
    ) -> QuantizerResult:
        """Quantizes float32, float16 or bfloat16 elements; complete on return.

        ``strides`` are the source's, in elements, None for contiguous. ``target`` receives one byte
        for each element. ``scales`` receives the scales (see :meth:`scales_info`), or provides them
        with ``use_given_scales``.
        """
        arguments = (
            unsigned(source, "source"),
            byref(c_layout(dtype, tuple(shape), strides)),
            unsigned(target, "target"),
            unsigned(scales, "scales"),
        )
        return self._run(lib.wb_quantizer_quantize, arguments, options, progress)

    def dequantize(
        self,
        source: int,
        scales: int,
        target: int,
        dtype: DtypeLike,
        shape: Sequence[int],
        options: QuantizeOptions = PER_TENSOR,
        *,
        strides: Sequence[int] | None = None,
        progress: Callback | None = None,
    ) -> QuantizerResult:
        """Dequantizes to elements of ``dtype``; a target in host memory must be contiguous."""
        arguments = (
            unsigned(source, "source"),
            unsigned(scales, "scales"),
            unsigned(target, "target"),
            byref(c_layout(dtype, tuple(shape), strides)),
        )
        return self._run(lib.wb_quantizer_dequantize, arguments, options, progress)

    def _run(
        self, function: Any, arguments: Any, options: QuantizeOptions, progress: Callback | None
    ) -> QuantizerResult:
        # Progress also without a callback, so that Ctrl-C interrupts.
        native, given = Progress(progress), c_options(options)
        given.progress = native.native
        result, error = wb_quantizer_result(), wb_error()
        status = function(self._live(), *arguments, byref(given), byref(result), byref(error))
        native.check()
        check(status, error)
        return QuantizerResult(**same_fields(QuantizerResult, result))

    def __repr__(self) -> str:
        return "<weighbridge.Quantizer closed>" if self.closed else "<weighbridge.Quantizer>"


_FORMATS = (Dtype.F8_E4M3FN, Dtype.F8_E5M2)
_SCALE_DTYPES = (Dtype.F32, Dtype.F8_E8M0)


def _one_of(allowed: tuple[Dtype, ...], given: DtypeLike, option: str) -> Dtype:
    try:
        found = Dtype.of(given)
        if found in allowed:
            return found
    except ValueError:
        pass
    words = " or ".join(repr(dtype.label) for dtype in allowed)
    raise ValueError(f"{option} is {given!r}: use {words}")


def c_options(options: QuantizeOptions) -> wb_quantize_options:
    """Returns the options as C takes them."""
    if not isinstance(options, QuantizeOptions):
        raise TypeError(f"options are {options!r}; they must be weighbridge.QuantizeOptions")
    return wb_quantize_options(
        format=_one_of(_FORMATS, options.format, "format"),
        scale_dtype=_one_of(_SCALE_DTYPES, options.scale_dtype, "scale_dtype"),
        use_given_scales=flag(options.use_given_scales, "use_given_scales"),
        block_rows=unsigned(options.block_rows, "block_rows"),
        block_cols=unsigned(options.block_cols, "block_cols"),
        reject_nonfinite=flag(options.reject_nonfinite, "reject_nonfinite"),
        scale_bytes=unsigned(options.scale_bytes, "scale_bytes"),
    )

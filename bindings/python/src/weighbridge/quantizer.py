"""Numbers to 8 bits and back, in staging memory of bounded size."""

from __future__ import annotations

from ctypes import byref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import _abi
from ._handle import Handle, Reference
from ._library import lib
from ._options import unsigned
from ._progress import Progress
from .dtypes import Dtype
from .errors import check
from .scheme import PER_TENSOR, Scheme, scheme_options
from .view import _layout

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._progress import Callback
    from .device import Device
    from .dtypes import DtypeLike


@dataclass(frozen=True)
class Scales:
    """The scales of a tensor."""

    shape: tuple[int, int, int]
    """Matrices, and rows and columns of scales of each."""
    nbytes: int


@dataclass(frozen=True)
class Quantized:
    """What was done."""

    passes: int
    """2 where blocks reach over more than the staging memory, so that the source is read twice."""
    nonfinite: int
    """Numbers that were NaN or infinite."""
    staging_bytes: int
    """Of device memory that were taken, never more than the limit."""


class Quantizer(Handle):
    """Quantizes tensors one at a time, in at most ``staging_bytes`` of device memory.

    Sources, targets and scales are addresses in host memory, best pinned, or device memory. Numbers
    that are too large, infinite ones too, become the largest; NaN stays NaN.
    """

    _noun = "quantizer"

    def __init__(self, device: Device, staging_bytes: int = 128 << 20) -> None:
        self._reference = None
        self._device = device
        reference, error = Reference(lib.wb_quantizer_release), _abi.wb_error()
        limit = unsigned(staging_bytes, "staging_bytes")
        check(lib.wb_quantizer_new(device._live(), limit, reference.out, byref(error)), error)
        self._reference = reference

    @property
    def device(self) -> Device:
        """The device that it is for."""
        return self._device

    def quantize(
        self,
        source: int,
        dtype: DtypeLike,
        shape: Sequence[int],
        target: int,
        scales: int,
        scheme: Scheme = PER_TENSOR,
        *,
        strides: Sequence[int] | None = None,
        given_scales: bool = False,
        scales_nbytes: int = 0,
        refuse_nonfinite: bool = False,
        progress: Callback | None = None,
    ) -> Quantized:
        """Quantize float32, float16 or bfloat16 numbers of any strides; done on return.

        ``target`` takes a byte for each element, ``scales`` what :func:`scales_of` says, or has
        them if ``given_scales``; ``scales_nbytes``, if it is given, is checked.
        """
        options = scheme_options(scheme, given_scales, refuse_nonfinite)
        options.scale_bytes = unsigned(scales_nbytes, "scales_nbytes")
        layout = _layout(Dtype.of(dtype), tuple(shape), strides)
        arguments = (
            unsigned(source, "source"),
            byref(layout),
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
        scheme: Scheme = PER_TENSOR,
        *,
        strides: Sequence[int] | None = None,
        progress: Callback | None = None,
    ) -> Quantized:
        """The way back, to numbers of ``dtype``; in host memory without gaps only."""
        layout = _layout(Dtype.of(dtype), tuple(shape), strides)
        arguments = (
            unsigned(source, "source"),
            unsigned(scales, "scales"),
            unsigned(target, "target"),
            byref(layout),
        )
        options = scheme_options(scheme)
        return self._run(lib.wb_quantizer_dequantize, arguments, options, progress)

    def _run(
        self, function: Any, arguments: Any, options: Any, progress: Callback | None
    ) -> Quantized:
        # Always one, so that Ctrl-C gets through.
        told, done, error = Progress(progress), _abi.wb_quantizer_result(), _abi.wb_error()
        options.progress = told.native
        status = function(self._live(), *arguments, byref(options), byref(done), byref(error))
        told.check()
        check(status, error)
        return Quantized(done.passes, done.nonfinite, done.staging_bytes)

    def __repr__(self) -> str:
        return "<weighbridge.Quantizer closed>" if self.closed else "<weighbridge.Quantizer>"


def scales_of(dtype: DtypeLike, shape: Sequence[int], scheme: Scheme = PER_TENSOR) -> Scales:
    """How many scales a tensor has."""
    layout, options = _layout(Dtype.of(dtype), tuple(shape), None), scheme_options(scheme)
    found, error = _abi.wb_quantizer_scales_info(), _abi.wb_error()
    check(lib.wb_quantizer_get_scales_info(byref(layout), byref(options), byref(found), byref(error)), error)
    return Scales((found.matrices, found.rows, found.cols), found.bytes)

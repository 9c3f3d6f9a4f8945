"""How numbers become 8 bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import _abi
from ._options import unsigned
from .dtypes import Dtype

if TYPE_CHECKING:
    from typing_extensions import Literal


@dataclass(frozen=True)
class Scheme:
    """How numbers become 8 bits."""

    format: Literal["float8_e4m3fn", "float8_e5m2"] = "float8_e4m3fn"
    scale: Literal["float32", "float8_e8m0fnu"] = "float32"
    """Type of the scales; the second is powers of two."""
    block: tuple[int, int] = (0, 0)
    """Rows and columns that share a scale, of the last two dimensions; 0 for all of them."""


PER_TENSOR = Scheme()
"""e4m3 with one scale."""


def scheme_options(
    scheme: Scheme, given_scales: bool = False, refuse_nonfinite: bool = False
) -> Any:
    """As C takes it."""
    rows, cols = scheme.block
    return _abi.wb_quantize_options(
        format=Dtype.of(scheme.format),
        scale_type=Dtype.of(scheme.scale),
        given_scales=bool(given_scales),
        block_rows=unsigned(rows, "block rows"),
        block_cols=unsigned(cols, "block columns"),
        refuse_nonfinite=bool(refuse_nonfinite),
    )

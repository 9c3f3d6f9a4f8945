"""Converts arguments for C, and checks those that ctypes would truncate silently."""

from __future__ import annotations

import ctypes
import operator
from collections.abc import Sequence
from typing import Any

from ._abi import wb_layout
from .dtypes import OPAQUE, Dtype, DtypeLike, OpaqueDtype


def unsigned(value: int, what: str, bits: int = 64) -> int:
    """Returns the value if C's unsigned integer of ``bits`` bits holds it."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{what} is {value!r}; it must be an integer") from None
    if not 0 <= number < 1 << bits:
        raise ValueError(f"{what} is {value}; it must be 0 or more, and below 2**{bits}")
    return number


def flag(value: bool, what: str) -> bool:
    """Returns True or False; raises TypeError for anything else, such as "no", which is true."""
    if value is not True and value is not False:
        raise TypeError(f"{what} is {value!r}: use True or False")
    return value


def c_text(text: str | bytes, what: str) -> bytes:
    """Returns the bytes of a text; raises ValueError for a NUL, at which C would stop reading."""
    if not isinstance(text, (str, bytes)):
        raise TypeError(f"{what} is {text!r}; it must be a string")
    encoded = text.encode() if isinstance(text, str) else text
    if b"\0" in encoded:
        raise ValueError(f"{what} {text!r} holds a NUL character")
    return encoded


def c_texts(texts: str | Sequence[str], what: str) -> tuple[Any, int]:
    """Returns an array of texts and its length; one text is an array of one."""
    given = [texts] if isinstance(texts, str) else list(texts)
    array = (ctypes.c_char_p * len(given))(*[c_text(text, what) for text in given])
    return array, len(given)


def c_layout(
    dtype: DtypeLike | OpaqueDtype,
    shape: int | Sequence[int],
    strides: Sequence[int] | None = None,
    offset_bytes: int = 0,
) -> wb_layout:
    """Returns a layout; ``strides`` are in elements, None for contiguous."""
    sizes = [shape] if isinstance(shape, int) else list(shape)
    if strides is not None and len(strides) != len(sizes):
        raise ValueError(
            f"shape {sizes} has {len(sizes)} dimensions, strides {list(strides)} {len(strides)}: "
            "give one stride for each dimension, or None"
        )
    opaque: dict[str, Any] = {}
    if isinstance(dtype, OpaqueDtype):
        opaque = {
            "dtype_name": c_text(dtype.name, "dtype"),
            "block_elements": unsigned(dtype.block_elements, "block_elements", 32),
            "block_bytes": unsigned(dtype.block_bytes, "block_bytes", 32),
        }
    return wb_layout(
        dtype=OPAQUE if isinstance(dtype, OpaqueDtype) else Dtype.of(dtype),
        **opaque,
        ndim=len(sizes),
        shape=_c_numbers(sizes, "shape"),
        strides=None if strides is None else _c_numbers(list(strides), "strides"),
        offset_bytes=unsigned(offset_bytes, "offset"),
    )


def _c_numbers(numbers: list[int], what: str) -> Any:
    try:
        values = [operator.index(number) for number in numbers]
    except TypeError:
        raise TypeError(f"{what} is {numbers!r}; it must be integers") from None
    if any(not -(1 << 63) <= value < 1 << 63 for value in values):
        raise ValueError(f"{what} {numbers} does not fit in 64 bits")
    return ctypes.cast((ctypes.c_int64 * len(values))(*values), ctypes.POINTER(ctypes.c_int64))

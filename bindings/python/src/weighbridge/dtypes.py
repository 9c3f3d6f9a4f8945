"""Element types: C's codes, and their names in NumPy, PyTorch and safetensors files."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Union

from ._extras import need

if TYPE_CHECKING:
    import numpy as np

DtypeLike = Union["Dtype", str, Any]
"""A :class:`Dtype`, its name or NumPy's ("F32", "float32"), or a dtype of NumPy or PyTorch."""


class Dtype(IntEnum):
    """An element type: one of ``WB_DTYPE_*``."""

    BOOL = 1
    I8 = 2
    I16 = 3
    I32 = 4
    I64 = 5
    U8 = 6
    U16 = 7
    U32 = 8
    U64 = 9
    F16 = 10
    BF16 = 11
    F32 = 12
    F64 = 13
    C64 = 14
    F8_E4M3FN = 15
    F8_E5M2 = 16
    F8_E8M0 = 17
    F4_E2M1X2 = 18

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return _TABLE[self][1]

    @property
    def label(self) -> str:
        """The name that NumPy and PyTorch use, such as "bfloat16"."""
        return _TABLE[self][0]

    @property
    def safetensors(self) -> str:
        """The name in a safetensors file, such as "BF16"."""
        return _TABLE[self][2]

    @property
    def typestr(self) -> str:
        """NumPy's type string, such as "<f4"; ValueError for a type that NumPy lacks."""
        if not self.is_numpy:
            raise ValueError(f"NumPy has no {self.label}")
        kind = "b" if self is Dtype.BOOL else self.label[0]
        order = "|" if self.itemsize == 1 else "<" if sys.byteorder == "little" else ">"
        return f"{order}{kind}{self.itemsize}"

    @property
    def is_numpy(self) -> bool:
        """Whether NumPy has the type without ml_dtypes."""
        return not self.label.startswith(("bfloat", "float8", "float4"))

    @classmethod
    def of(cls, given: DtypeLike) -> Dtype:
        """Returns the type of a name or of another package's dtype; ValueError if there is none."""
        if isinstance(given, cls):
            return given
        if isinstance(given, OpaqueDtype):
            raise ValueError(
                f"{given.name!r} is an opaque type, of which only the size of its blocks is known: "
                "parameters may have it, and views, arrays and quantization need a Dtype"
            )
        if isinstance(given, int):
            raise TypeError(f"{given!r} is not a dtype: use a Dtype or a name such as 'float32'")
        if getattr(given, "isnative", True) is False:
            raise ValueError(f"{given!r} is not in native byte order: convert it first")
        # np.dtype has `name`, np.float32 and ml_dtypes' types `__name__`; PyTorch's have neither.
        name = given if isinstance(given, str) else getattr(given, "name", None)
        if not isinstance(name, str):
            name = getattr(given, "__name__", None) or str(given).rpartition(".")[2]
        found = _BY_NAME.get(name.rstrip("_").lower())
        if found is None:
            names = ", ".join(dtype.label for dtype in cls)
            raise ValueError(f"{given!r} is not an element type of weighbridge; use one of {names}")
        return found

    @classmethod
    def of_format(cls, code: str, itemsize: int) -> Dtype:
        """Returns the type of an item of the buffer protocol."""
        letter = code.lstrip("@=") or "B"
        if letter[0] in "<>!":
            if (letter[0] == "<") != (sys.byteorder == "little"):
                raise ValueError(f"items {code!r} are not in native byte order: convert them first")
            letter = letter[1:]
        kind = "i" if letter in "bhilqn" else "u" if letter in "BHILQNc" else letter
        found = _BY_KIND.get((kind, itemsize))
        if found is None:
            raise ValueError(
                f"items {code!r} of {itemsize} bytes have no element type in weighbridge"
            )
        return found

    def numpy(self) -> np.dtype[Any]:
        """Returns NumPy's dtype, or the one of ml_dtypes if NumPy has none."""
        need("numpy", "numpy", "Dtype.numpy()")
        import numpy as np

        if self.is_numpy:
            return np.dtype(self.label)
        try:
            import ml_dtypes

            found: np.dtype[Any] = np.dtype(getattr(ml_dtypes, self.label))
            return found
        except (ImportError, AttributeError):
            raise TypeError(
                f"NumPy has no {self.label}"
                + ("" if self is Dtype.F4_E2M1X2 else "; install ml_dtypes, which adds it")
                + f": numpy(bits=True) gives the bits as {self.bits().name}"
            ) from None

    def bits(self) -> np.dtype[Any]:
        """Returns the unsigned integer of the same width, for types that NumPy lacks."""
        need("numpy", "numpy", "Dtype.bits()")
        import numpy as np

        return np.dtype(f"uint{8 * self.itemsize}")


@dataclass(frozen=True)
class OpaqueDtype:
    """A type of parameters that the library does not know, such as one of block-quantized weights.

    Their bytes are copied bit for bit; they have no views, arrays or quantization. The last
    dimension of a shape is a multiple of ``block_elements``.
    """

    name: str
    """Such as "q4_K"; not one of a :class:`Dtype`."""
    block_bytes: int
    """Bytes of a block, such as 144."""
    block_elements: int = 1
    """Elements of the last dimension in a block, such as 256."""

    @property
    def label(self) -> str:
        """The name."""
        return self.name


# The code of C for all opaque types.
OPAQUE = 255


def dtype_of_info(found: Any) -> Dtype | OpaqueDtype:
    """Returns the type in an info of C, which has its name and blocks, too."""
    if found.dtype == OPAQUE:
        return OpaqueDtype(found.dtype_name.decode(), found.block_bytes, found.block_elements)
    return Dtype(found.dtype)


# Label, bytes, and name in safetensors files.
_TABLE: dict[Dtype, tuple[str, int, str]] = {
    Dtype.BOOL: ("bool", 1, "BOOL"),
    Dtype.I8: ("int8", 1, "I8"),
    Dtype.I16: ("int16", 2, "I16"),
    Dtype.I32: ("int32", 4, "I32"),
    Dtype.I64: ("int64", 8, "I64"),
    Dtype.U8: ("uint8", 1, "U8"),
    Dtype.U16: ("uint16", 2, "U16"),
    Dtype.U32: ("uint32", 4, "U32"),
    Dtype.U64: ("uint64", 8, "U64"),
    Dtype.F16: ("float16", 2, "F16"),
    Dtype.BF16: ("bfloat16", 2, "BF16"),
    Dtype.F32: ("float32", 4, "F32"),
    Dtype.F64: ("float64", 8, "F64"),
    Dtype.C64: ("complex64", 8, "C64"),
    Dtype.F8_E4M3FN: ("float8_e4m3fn", 1, "F8_E4M3"),
    Dtype.F8_E5M2: ("float8_e5m2", 1, "F8_E5M2"),
    Dtype.F8_E8M0: ("float8_e8m0fnu", 1, "F8_E8M0"),
    Dtype.F4_E2M1X2: ("float4_e2m1fn_x2", 1, "F4"),
}

_BY_NAME = {dtype.label: dtype for dtype in Dtype}
_BY_NAME.update({dtype.name.lower(): dtype for dtype in Dtype})

# By the kind and the bytes of the buffer protocol.
_BY_KIND = {
    ("?", 1): Dtype.BOOL,
    ("e", 2): Dtype.F16,
    ("f", 4): Dtype.F32,
    ("d", 8): Dtype.F64,
    ("Zf", 8): Dtype.C64,
}
_BY_KIND.update({("i", size): Dtype.of(f"int{8 * size}") for size in (1, 2, 4, 8)})
_BY_KIND.update({("u", size): Dtype.of(f"uint{8 * size}") for size in (1, 2, 4, 8)})

"""safetensors files: mapped once, each tensor a view by name."""

from __future__ import annotations

import os
from ctypes import byref, c_int32, c_uint64
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, NamedTuple

from . import _abi
from ._handle import Handle, Reference
from ._library import lib
from ._options import Options, c_text, unsigned
from .buffer import Buffer
from .dtypes import Dtype
from .errors import NotFoundError, Status, check
from .plan import Parameter, group_of
from .view import View

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from typing_extensions import Literal, Unpack

    from ._options import BufferOptions
    from .device import Device

DEFAULT_ALIGNMENT = 16
"""What kernels that load 16 bytes at a time need."""


def _access(name: str, sparse: Sequence[str]) -> Literal["dense", "sparse"]:
    return "sparse" if any(fnmatchcase(name, glob) for glob in sparse) else "dense"


@dataclass(frozen=True)
class TensorInfo:
    """A tensor of a file."""

    name: str
    dtype: Dtype | None
    """None for a type of the file that this library has no name for."""
    shape: tuple[int, ...] | None
    offset: int
    """Bytes from the beginning of the file, and so of its buffer."""
    nbytes: int


class Loaded(NamedTuple):
    """What :meth:`Safetensors.load` gives."""

    view: View
    copied: bool
    """The tensor was not aligned and lies in memory of its own."""


class Safetensors(Handle):
    """An open safetensors file. Its views keep the file's buffer, and so outlive it.

    ``options`` are those of :meth:`Buffer.map`. Names are in the order of the tensors' data.
    """

    _noun = "file"

    def __init__(
        self,
        device: Device,
        path: str | os.PathLike[str],
        **options: Unpack[BufferOptions],
    ) -> None:
        self._reference = None
        self._device = device
        reference, error = Reference(lib.wb_safetensors_release), _abi.wb_error()
        given = Options(None, **options)
        status = lib.wb_safetensors_open(
            device._live(),
            c_text(os.fsencode(path), "path"),
            given.c,
            reference.out,
            byref(error),
        )
        given.check(status, error)
        self._reference = reference

    @property
    def device(self) -> Device:
        """The device that it is for."""
        return self._device

    @property
    def header(self) -> str:
        """The header's JSON text."""
        text: bytes = lib.wb_safetensors_get_header(self._live()) or b""
        return text.decode()

    @property
    def metadata(self) -> dict[str, str]:
        """The file's own metadata."""
        import json

        found: dict[str, str] = json.loads(self.header).get("__metadata__") or {}
        return found

    @property
    def buffer(self) -> Buffer:
        """The buffer over the whole file, as a further reference."""
        reference, error = Reference(lib.wb_buffer_release), _abi.wb_error()
        check(lib.wb_safetensors_get_buffer(self._live(), reference.out, byref(error)), error)
        return Buffer(self._device, reference)

    def __len__(self) -> int:
        count: int = lib.wb_safetensors_get_tensor_count(self._live())
        return count

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __contains__(self, name: object) -> bool:
        try:
            return isinstance(name, str) and self._find(name) is not None
        except KeyError:
            return False

    def keys(self) -> list[str]:
        """The tensors' names."""
        return [self._at(index).name for index in range(len(self))]

    def info(self, name: str) -> TensorInfo:
        """What a tensor is; KeyError for a name that is none."""
        return self._at(self._find(name))

    def view(
        self,
        name: str,
        access: Literal["device", "host"] = "device",
        alignment: int = DEFAULT_ALIGNMENT,
    ) -> View:
        """A view of a tensor where it lies; ``Status.UNALIGNED`` if that is not aligned.

        ``alignment`` is in bytes, 0 or 1 for any.
        """
        index, code = self._find(name), _abi.ACCESS.code(access)
        reference, error = Reference(lib.wb_view_release), _abi.wb_error()
        alignment = unsigned(alignment, "alignment")
        status = lib.wb_safetensors_get_view(
            self._live(), index, code, alignment, reference.out, byref(error)
        )
        check(status, error)
        return View(self._device, reference)

    def load(
        self,
        name: str,
        access: Literal["device", "host"] = "device",
        alignment: int = DEFAULT_ALIGNMENT,
        **options: Unpack[BufferOptions],
    ) -> Loaded:
        """A view of a tensor where it lies if it is aligned, else of a copy; and which it was."""
        index, code = self._find(name), _abi.ACCESS.code(access)
        given = Options(self._at(index).nbytes, **options)
        reference, error = Reference(lib.wb_view_release), _abi.wb_error()
        copied = c_int32()
        status = lib.wb_safetensors_load_view(
            self._live(),
            index,
            code,
            unsigned(alignment, "alignment"),
            given.c,
            reference.out,
            byref(copied),
            byref(error),
        )
        given.check(status, error)
        return Loaded(View(self._device, reference), bool(copied.value))

    def parameter(
        self, name: str, group: str | None = None, access: Literal["dense", "sparse"] = "dense"
    ) -> Parameter:
        """A tensor as a plan takes it, its bytes where they lie in the file.

        Its group is what its name speaks of, if none is given.
        """
        view = self.view(name, access="host", alignment=0)
        info = view.info
        return Parameter(
            name,
            group_of(name) if group is None else group,
            info.dtype,
            info.shape,
            source=info.address,
            access=access,
            held=view,
        )

    def parameters(self, sparse: Sequence[str] = ()) -> list[Parameter]:
        """All tensors as a plan takes them; those of the globs ``sparse`` are read by few rows."""
        return [self.parameter(name, access=_access(name, sparse)) for name in self.keys()]

    def __repr__(self) -> str:
        if self.closed:
            return "<weighbridge.Safetensors closed>"
        return f"<weighbridge.Safetensors {len(self)} tensors>"

    def _find(self, name: str) -> int:
        try:
            encoded = c_text(name, "name")
        except ValueError:  # no tensor of a file has such a name
            raise NotFoundError(Status.NOT_FOUND, f"the file has no tensor {name!r}") from None
        index, error = c_uint64(), _abi.wb_error()
        check(lib.wb_safetensors_find_tensor(self._live(), encoded, byref(index), byref(error)), error)
        return index.value

    def _at(self, index: int) -> TensorInfo:
        found, error = _abi.wb_safetensors_tensor_info(), _abi.wb_error()
        reference: Any = self._live()  # holds what the struct points to
        check(lib.wb_safetensors_get_tensor_info(reference, index, byref(found), byref(error)), error)
        known = found.dtype != 0
        return TensorInfo(
            name=found.name.decode(),
            dtype=Dtype(found.dtype) if known else None,
            shape=tuple(found.shape[: found.ndim]) if known else None,
            offset=found.offset_bytes,
            nbytes=found.bytes,
        )

"""safetensors files: mapped once, with a view of each tensor."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from ctypes import byref, c_char_p, c_int32, c_uint64, sizeof
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, NamedTuple

from ._abi import wb_parameter, wb_safetensors_tensor_info
from ._arguments import c_text, unsigned
from ._call import call, filled
from ._enums import ACCESSOR, GROUPING, Accessor, AccessPattern, Grouping
from ._handle import Closeable, Reference, reference_of
from ._library import lib
from ._options import Options
from .codec import Codec
from .dtypes import Dtype, OpaqueDtype, dtype_of_info
from .errors import NotFoundError, Status
from .memory import Buffer, Device, View
from .plan import Parameter

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._options import BufferOptions

DEFAULT_ALIGNMENT = 16
"""The alignment that kernels with 16-byte loads need, of tensors that are whole such loads."""


@dataclass(frozen=True)
class SafetensorsTensorInfo:
    """A tensor of a file."""

    name: str
    dtype: Dtype | OpaqueDtype | None
    """Opaque for an element type that the library does not have; None if the tensor's rows are not
    whole bytes."""
    shape: tuple[int, ...] | None
    offset_bytes: int
    """From the beginning of the file, and so of its buffer."""
    nbytes: int
    encoded_bytes: int
    """``nbytes`` if they are the values compressed, of which dtype and shape are; otherwise 0."""


class LoadedView(NamedTuple):
    """The result of :meth:`Safetensors.load_view`."""

    view: View
    copied: bool
    """The tensor was not aligned, so the view is of a copy in a buffer of its own."""


class Safetensors(Closeable):
    """An open safetensors file. Its views keep the file's buffer alive, and so outlive it.

    ``options`` are those of :meth:`Buffer.map_file`. Names are in the order of the tensors' data.
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
        reference, given = Reference(lib.wb_safetensors_release), Options(None, **options)
        name = c_text(os.fsencode(path), "path")
        given.call(
            lib.wb_safetensors_open, reference_of(device, "device"), name, given.c, reference.out
        )
        self._reference = reference

    @property
    def device(self) -> Device:
        """The device that the file is mapped for."""
        return self._device

    @property
    def header(self) -> str:
        """The header's JSON text."""
        text: bytes = lib.wb_safetensors_get_header(self._live()) or b""
        return text.decode()

    @property
    def metadata(self) -> dict[str, str]:
        """The metadata in the header."""
        found: dict[str, str] = json.loads(self.header).get("__metadata__") or {}
        return found

    @property
    def buffer(self) -> Buffer:
        """The buffer over the whole file, as one more reference."""
        reference = Reference(lib.wb_buffer_release)
        call(lib.wb_safetensors_get_buffer, self._live(), reference.out)
        return Buffer(self._device, reference)

    def __len__(self) -> int:
        count: int = lib.wb_safetensors_get_tensor_count(self._live())
        return count

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __contains__(self, name: object) -> bool:
        try:
            return isinstance(name, str) and self.find_tensor(name) is not None
        except KeyError:
            return False

    def keys(self) -> list[str]:
        """Returns the tensors' names."""
        count = len(self)
        names = (c_char_p * count)()
        call(lib.wb_safetensors_get_names, self._live(), 0, count, names)
        return [name.decode() for name in names if name is not None]

    def find_tensor(self, name: str) -> int:
        """Returns the index of a tensor; raises KeyError for an unknown name."""
        try:
            encoded = c_text(name, "name")
        except ValueError:  # no tensor of a file has such a name
            raise NotFoundError(Status.NOT_FOUND, f"the file has no tensor {name!r}") from None
        index = c_uint64()
        call(lib.wb_safetensors_find_tensor, self._live(), encoded, byref(index))
        return index.value

    def tensor_info(self, name: str) -> SafetensorsTensorInfo:
        """Returns the properties of a tensor; raises KeyError for an unknown name."""
        return self._tensor_info(self.find_tensor(name))

    def view(self, name: str, accessor: Accessor = "device", alignment: int | None = None) -> View:
        """Returns a view of a tensor in the file's buffer.

        Fails with ``Status.UNALIGNED`` if the tensor's address is not a multiple of ``alignment``
        bytes; 0 and 1 allow any address. The default is 16, or for a tensor whose size is not a
        multiple of that the largest power of two of which it is one. A compressed tensor has no
        values to view, which fails with ``Status.NOT_SUPPORTED``: :meth:`read` decodes them.
        """
        reference = Reference(lib.wb_view_release)
        index, code = self.find_tensor(name), ACCESSOR.code(accessor)
        call(
            lib.wb_safetensors_get_view,
            self._live(),
            index,
            code,
            self._alignment(index, alignment),
            reference.out,
        )
        return View(self._device, reference)

    def load_view(
        self,
        name: str,
        accessor: Accessor = "device",
        alignment: int | None = None,
        **options: Unpack[BufferOptions],
    ) -> LoadedView:
        """Returns a view of a tensor in the file's buffer if it is aligned, else of a copy."""
        index, code, copied = self.find_tensor(name), ACCESSOR.code(accessor), c_int32()
        given = Options(self._tensor_info(index).nbytes, **options)
        reference = Reference(lib.wb_view_release)
        given.call(
            lib.wb_safetensors_load_view,
            self._live(),
            index,
            code,
            self._alignment(index, alignment),
            given.c,
            reference.out,
            byref(copied),
        )
        return LoadedView(View(self._device, reference), bool(copied.value))

    def read(self, name: str) -> bytearray:
        """Returns the bytes of a tensor, decoded if they are compressed in the file."""
        info = self.tensor_info(name)
        with self.buffer as buffer, buffer.memoryview() as memory:
            with memory[info.offset_bytes : info.offset_bytes + info.nbytes] as found:
                if info.encoded_bytes == 0:
                    return bytearray(found)
                assert isinstance(info.dtype, Dtype)
                return Codec(info.dtype).decode(found, verify=True)

    def parameter(
        self, name: str, group: str | None = None, access_pattern: AccessPattern = "dense"
    ) -> Parameter:
        """Returns a tensor as a parameter of a plan, with its bytes in the file's buffer.

        Without ``group``, its name implies the group.
        """
        (found,) = self._parameters(self.find_tensor(name), 1, "layer")
        return replace(
            found, group=found.group if group is None else group, access_pattern=access_pattern
        )

    def parameters(
        self, sparse: Sequence[str] = (), grouping: Grouping = "layer"
    ) -> list[Parameter]:
        """Returns all tensors as parameters of a plan, with their bytes in the file's buffer.

        Those that match the globs ``sparse`` are sparse. With the grouping ``"layer"`` a group is a
        name up to its first number, as ``model.layers.3``, or without one its module; with
        ``"module"`` it is always the module. A file that is only a source need not be pinned beside
        the offloader's memory: open it with ``file_mode="source"``.
        """
        found = self._parameters(0, len(self), grouping)
        if not sparse:
            return found
        return [
            replace(one, access_pattern="sparse")
            if any(fnmatchcase(one.name, glob) for glob in sparse)
            else one
            for one in found
        ]

    def _parameters(self, first: int, count: int, grouping: Grouping) -> list[Parameter]:
        reference, buffer = self._live(), self.buffer
        array = (wb_parameter * count)()
        for one in array:
            one.struct_size = sizeof(wb_parameter)
        code = GROUPING.code(grouping)
        call(lib.wb_safetensors_get_parameters, reference, code, first, count, array)
        return [
            Parameter(
                one.name.decode(),
                one.group.decode(),
                dtype_of_info(one.layout.contents),
                tuple(one.layout.contents.shape[: one.layout.contents.ndim]),
                source=one.source or 0,
                encoded_bytes=one.encoded_bytes,
                held=buffer,
            )
            for one in array
        ]

    def __repr__(self) -> str:
        if self.closed:
            return "<weighbridge.Safetensors closed>"
        return f"<weighbridge.Safetensors {len(self)} tensors>"

    def _alignment(self, index: int, asked: int | None) -> int:
        if asked is not None:
            return unsigned(asked, "alignment")
        return math.gcd(self._tensor_info(index).nbytes or 1, DEFAULT_ALIGNMENT)

    def _tensor_info(self, index: int) -> SafetensorsTensorInfo:
        reference = self._live()  # keeps alive what the struct points to
        function = lib.wb_safetensors_get_tensor_info
        found = filled(wb_safetensors_tensor_info, function, reference, index)
        known = found.dtype != 0
        return SafetensorsTensorInfo(
            name=found.name.decode(),
            dtype=dtype_of_info(found) if known else None,
            shape=tuple(found.shape[: found.ndim]) if known else None,
            offset_bytes=found.offset_bytes,
            nbytes=found.bytes,
            encoded_bytes=found.encoded_bytes,
        )

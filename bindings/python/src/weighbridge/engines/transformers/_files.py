"""The files of a checkpoint, as tensors that are still in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...dtypes import Dtype
from ...memory import Device
from ...plan import Parameter
from ...safetensors import Safetensors
from ...torch._tensors import tensor_of
from ._deferred import Deferred, deferred


class CheckpointFiles:
    """The safetensors files of a checkpoint, which are closed at the end of a ``with``."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._files: list[Safetensors] = []
        self._file_of: dict[str, Safetensors] = {}

    def __enter__(self) -> CheckpointFiles:
        return self

    def __exit__(self, *_: Any) -> None:
        for file in self._files:
            file.close()

    def read(self, paths: Sequence[str]) -> dict[str, Deferred]:
        """Returns the tensors of files, by name."""
        found = {}
        for path in paths:
            if not str(path).endswith(".safetensors"):
                raise ValueError(
                    f"{path} is not a safetensors file, and weights are read from them"
                )
            file = Safetensors(self._device, path, file_mode="source")
            self._files.append(file)
            for name in file.keys():
                dtype = file.tensor_info(name).dtype
                if not isinstance(dtype, Dtype):
                    raise ValueError(
                        f"{name!r} in {path} has an element type that the library lacks: {dtype}"
                    )
                view = file.view(name, accessor="host", alignment=0)
                found[name] = deferred(tensor_of(view), name)
                self._file_of[name] = file
        return found

    def parameter(self, name: str) -> Parameter:
        """Returns a tensor of a file as a parameter of a plan."""
        return self._file_of[name].parameter(name)

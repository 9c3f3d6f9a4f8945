"""The model's weights in an offloader, as the encoders read them."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from weighbridge import Offloader, Parameter, Plan, Safetensors

# A sentence needs a few rows of this table of 30,522 words.
SPARSE = ("embeddings.word_embeddings.weight",)


def parameters_of(file: Safetensors, groups: Mapping[str, Sequence[str]]) -> list[Parameter]:
    """Describes the weights of the groups for a plan; their sources are in the mapped file."""
    return [
        file.parameter(name, group, "sparse" if name in SPARSE else "dense")
        for group, names in groups.items()
        for name in names
    ]


class OffloadedWeights:
    """A committed plan. A weight's address is stable; its bytes are there in ``visit``."""

    def __init__(self, plan: Plan, cuda: bool) -> None:
        self._cuda = cuda
        self._own_stream = None if cuda else plan.device.stream()
        self.offloader = Offloader(plan, self._stream())
        tensor = self._tensor if cuda else self._array
        self.weights = {parameter.name: tensor(parameter.name) for parameter in plan.parameters}

    @contextmanager
    def visit(self, group: str) -> Iterator[None]:
        """Acquires a group: its weights may be read inside the block."""
        with self.offloader.acquired(self.offloader.find_group(group), self._stream()):
            if self._own_stream is not None:
                # NumPy computes on this thread, so this thread waits for the copies.
                self._own_stream.synchronize()
            yield

    def close(self) -> None:
        """Releases the weights and frees all memory."""
        self.weights.clear()
        self.offloader.close()
        if self._own_stream is not None:
            self._own_stream.close()

    def _stream(self) -> Any:
        if self._own_stream is not None:
            return self._own_stream
        import torch

        return torch.cuda.current_stream().cuda_stream

    def _tensor(self, name: str) -> Any:
        import torch

        return torch.from_dlpack(self.offloader.view(name))

    def _array(self, name: str) -> np.ndarray:
        # Memory of the host device is memory of this process, so NumPy can read it.
        info = self.offloader.view(name).info
        memory = (ctypes.c_char * info.nbytes).from_address(info.device_address)
        return np.frombuffer(memory, info.dtype.numpy()).reshape(info.shape)

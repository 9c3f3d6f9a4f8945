"""The files of a checkpoint, as tensors that are still in them."""

from __future__ import annotations

import ctypes
import os
import queue
import threading
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from ..._enums import FileMode
from ...dtypes import Dtype
from ...memory import Device
from ...plan import Parameter
from ...safetensors import Safetensors
from ...torch._tensors import tensor_in
from ._deferred import Deferred, deferred

_POPULATE_READ = 22
"""MADV_POPULATE_READ of Linux 5.14; older kernels refuse it."""
_PIECE = 64 << 20
_THREADS = 4
NAME = "weighbridge-populate"
"""Of the threads."""


class Populate:
    """Maps the pages of files in the background, in order, until it is ended.

    Later reads then find them, where each first read of a page would enter the kernel; pages that
    are not in memory are read from the disk meanwhile.
    """

    def __init__(self) -> None:
        self._pieces: queue.SimpleQueue[tuple[int, int]] = queue.SimpleQueue()
        self._ended = False
        self._threads: list[threading.Thread] = []

    def add(self, address: int, nbytes: int) -> None:
        """Adds a mapped file, which stays mapped until the end."""
        for start in range(address, address + nbytes, _PIECE):
            self._pieces.put((start, min(_PIECE, address + nbytes - start)))

    def start(self) -> None:
        """Starts to map the files that were added."""
        for _ in range(min(_THREADS, len(os.sched_getaffinity(0)))):
            self._threads.append(threading.Thread(target=self._run, name=NAME, daemon=True))
            self._threads[-1].start()

    def end(self) -> None:
        """Returns when no page is being mapped any more."""
        self._ended = True
        self.wait()

    def wait(self) -> None:
        """Returns when the pages of everything that was added are mapped."""
        for thread in self._threads:
            thread.join()
        self._threads = []

    def _run(self) -> None:
        madvise = ctypes.CDLL(None).madvise
        madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        try:
            while not self._ended and not madvise(*self._pieces.get_nowait(), _POPULATE_READ):
                pass
        except queue.Empty:
            pass


class CheckpointFiles:
    """The safetensors files of a checkpoint, which are closed at the end of a ``with``."""

    def __init__(self, device: Device, mode: FileMode = "source") -> None:
        self._device, self._mode = device, mode
        self._files: list[Safetensors] = []
        self._parameters: dict[str, Parameter] = {}
        self._populate = Populate()
        self._last: tuple[str, torch.Tensor] | None = None

    def __enter__(self) -> CheckpointFiles:
        return self

    def __exit__(self, *_: Any) -> None:
        self.end_populate()
        self._last = None
        for file in self._files:
            file.close()

    def read(self, paths: Sequence[str]) -> dict[str, Deferred]:
        """Returns the tensors of files, by name."""
        found, opened = {}, []
        for path in paths:
            if not str(path).endswith(".safetensors"):
                raise ValueError(
                    f"{path} is not a safetensors file, and weights are read from them"
                )
            file = Safetensors(self._device, path, file_mode=self._mode)
            self._files.append(file)
            opened.append(file)
            with file.buffer as buffer:
                self._populate.add(buffer.address, buffer.nbytes)
        self._populate.start()
        for file, path in zip(opened, paths):
            for one in file.parameters():
                if not isinstance(one.dtype, Dtype):
                    raise ValueError(
                        f"{one.name!r} in {path} has an element type that the library lacks: "
                        f"{file.tensor_info(one.name).dtype}"
                    )
                dtype: torch.dtype = getattr(torch, one.dtype.label)
                compressed = one.encoded_bytes > 0
                read = partial(self._decoded if compressed else tensor_in, file, one.name)
                found[one.name] = deferred(one.shape, dtype, one.name, read, compressed)
                self._parameters[one.name] = one
        return found

    def _decoded(self, file: Safetensors, name: str) -> torch.Tensor:
        """Returns a tensor that is compressed in a file. The last one is kept, since parts of it
        may follow one another."""
        if self._last is None or self._last[0] != name:
            self._last = None  # before another one has memory
            self._last = (name, tensor_in(file, name))
        return self._last[1]

    def end_populate(self) -> None:
        """Ends what is done in the background: the threads are wanted for the copies."""
        self._populate.end()

    def parameter(self, name: str) -> Parameter:
        """Returns a tensor of a file as a parameter of a plan."""
        return self._parameters[name]

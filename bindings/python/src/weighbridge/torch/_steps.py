"""The steps of an offloaded model: its streams, and the groups that are acquired in turn."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch

from ..errors import WeighbridgeError, make
from ..offloader import Offloader
from ._turns import Turns

Verify = Literal["first-step", "always", "off"]


class Steps:
    """When steps begin and end, and which groups of the offloader they acquire."""

    offloader: Offloader

    def __init__(
        self, device: torch.device, host_stream: Any, verify: Verify, overlap_steps: bool
    ) -> None:
        self.device = device
        self.verify = verify
        self._host_stream = host_stream
        self._overlap_steps = overlap_steps
        self._copies_are_old = False
        """Whether slots may have copies of weights that were changed since."""
        self.turns = Turns()
        self.lock = self.turns.lock
        """Held while a layer runs, so that threads take turns."""
        self._running = 0
        """How often the model's forward is running, in one another."""
        self._acquired: set[int] = set()
        """The groups that were acquired since a step began, outside of the model's forward."""
        self._captures = False
        """Whether the last of them was acquired in a capture."""
        self.watches = verify != "off"
        """Whether the next step of the model is not to be compiled, but to be watched."""

    def stream(self) -> Any:
        """Returns the stream on which PyTorch runs the model now."""
        if self._host_stream is not None:
            return self._host_stream
        index = self.device.index
        return torch._C._cuda_getCurrentRawStream(
            torch.cuda.current_device() if index is None else index
        )

    def is_capturing(self) -> bool:
        """Returns whether the stream is being captured into a CUDA graph."""
        return self._host_stream is None and torch.cuda.is_current_stream_capturing()

    @property
    def runs(self) -> bool:
        """Whether the model's forward runs."""
        return bool(self._running)

    @contextmanager
    def step(self) -> Iterator[None]:
        """Runs the model: a step, unless it is called within one."""
        if not self._running:
            # Once a step was captured, what replays have left in slots is unknown.
            self._overlap_steps &= not self.is_capturing()
            if not self._overlap_steps or self._copies_are_old:
                self.begin_step()
        self._running += 1
        self.turns.runs = threading.get_ident()
        try:
            yield
            self.watches = self.verify == "always"
        finally:
            self._running -= 1
            if not self._running:
                self.turns.runs = None
                if self.is_capturing():
                    self.offloader.join(self.stream())

    @contextmanager
    def overlapping(self) -> Iterator[None]:
        """Lets the end of each step copy for the next one, of steps between which nothing changes
        weights in ways that PyTorch does not count. The first one reads them as they are now."""
        before, self._overlap_steps = self._overlap_steps, True
        try:
            self.begin_step()
            yield
        finally:
            self._overlap_steps &= before

    def begin_step(self) -> None:
        """Begins a step, which reads the weights as they are now, however they were changed."""
        self._acquired.clear()
        self.offloader.begin_step(self.stream())
        self._copies_are_old = False

    def acquire_group(self, group: int) -> None:
        """Makes the current stream wait until a group is on the device."""
        if not self._running:  # layers are called by themselves, or by compiled code
            captures, self._captures = self._captures, self.is_capturing()
            # Eager calls and captured ones are of different steps.
            begins = group in self._acquired or not self._acquired or captures != self._captures
            if (begins and not self._overlap_steps) or self._copies_are_old:
                self.begin_step()
            self._acquired.add(group)
        try:
            self.offloader.acquire_group(group, self.stream())
        except WeighbridgeError as error:
            message = error.message.replace("Offloader.reset", "the handle's reset()")
            raise make(error.status, message, error.code, error.code_domain) from error
        self.finish_on_host()

    def finish(self) -> None:
        """Waits for the work queued on the current stream."""
        if self._host_stream is None:
            torch.cuda.current_stream(self.device).synchronize()

    def finish_on_host(self) -> None:
        """Waits for the queued work if PyTorch runs on the host, which waits for no stream."""
        if self._host_stream is not None:
            self._host_stream._finish()

    def release_group(self, group: int) -> None:
        """Declares the work queued on the current stream the last use of a group."""
        self.offloader.release_group(group, self.stream())

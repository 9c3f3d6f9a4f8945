"""Offloaded models that share the memory of a device."""

from __future__ import annotations

from .. import arbiter
from .._arguments import unsigned
from ..arbiter import ArbiterMemberInfo, ArbiterProgress
from ..offloader import Offloader
from ._handle import OffloadHandle


class Arbiter:
    """Shares ``device_bytes`` among models that :func:`offload` has given fixed addresses.

    The first model that is added determines the device::

        shared = weighbridge.torch.Arbiter(20 << 30)
        for handle in (encoder, transformer, decoder):
            shared.add(handle)
        shared.use(encoder)      # before the model is called
        prompt = text_encoder(tokens)
        shared.use(transformer)  # the encoder gives the memory that this needs

    A model that has given all of its memory sleeps: calls of it fail until it is used again.
    """

    def __init__(self, device_bytes: int) -> None:
        self._device_bytes = unsigned(device_bytes, "device_bytes")
        self._arbiter: arbiter.Arbiter | None = None

    def add(self, handle: OffloadHandle, *, priority: int = 0, min_bytes: int = 0) -> None:
        """Adds a model with the memory that it holds; its steps use the current stream.

        What has a higher priority gives memory later. Others leave it ``min_bytes``, at least its
        slots; with 0 it may sleep.
        """
        offloader = _offloader_of(handle)
        if self._arbiter is None:
            self._arbiter = arbiter.Arbiter(handle.plan.device, self._device_bytes)
        stream = handle._weights.stream()
        self._arbiter.add(offloader, priority=priority, min_bytes=min_bytes, stream=stream)

    def remove(self, handle: OffloadHandle) -> None:
        """Removes a model, which keeps what it holds."""
        self._of_models.remove(_offloader_of(handle))

    def use(
        self, handle: OffloadHandle, *, wait: bool = True, timeout: float | None = None
    ) -> ArbiterProgress:
        """Gives the model that is called next as much memory as it can use.

        Waits for that, up to ``timeout`` seconds; with ``wait=False`` :meth:`advance` goes on
        between calls of any model.
        """
        return self._of_models.use(_offloader_of(handle), wait=wait, timeout=timeout)

    def resize(
        self, *, device_bytes: int, wait: bool = True, timeout: float | None = None
    ) -> ArbiterProgress:
        """Changes the budget. Models keep what fits, and get more when they are used."""
        return self._of_models.resize(device_bytes, wait=wait, timeout=timeout)

    def advance(self) -> ArbiterProgress:
        """Goes on as far as possible at once."""
        return self._of_models.advance()

    def wait(self, timeout: float | None = None) -> ArbiterProgress:
        """Goes on until every model holds what it is to hold; else raises TimeoutError."""
        return self._of_models.wait(timeout)

    def member_info(self, handle: OffloadHandle) -> ArbiterMemberInfo:
        """Returns what a model holds, and is to hold."""
        return self._of_models.member_info(_offloader_of(handle))

    @property
    def _of_models(self) -> arbiter.Arbiter:
        if self._arbiter is None:
            raise LookupError("the arbiter has no model: add one first")
        return self._arbiter


def _offloader_of(handle: OffloadHandle) -> Offloader:
    if not isinstance(handle, OffloadHandle):
        raise TypeError(f"handle is {handle!r}; it must be what weighbridge.torch.offload returned")
    return handle.offloader

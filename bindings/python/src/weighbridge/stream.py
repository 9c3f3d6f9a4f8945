"""Streams: the library's own, and the handles of streams of any framework."""

from __future__ import annotations

from ctypes import byref, c_void_p
from typing import Any

from ._arguments import unsigned
from ._call import call, interruptible
from ._handle import Closeable, Reference, at_end, reference_of
from ._library import lib
from .errors import WeighbridgeError


class Stream(Closeable):
    """A stream of a device: its work runs in order, and independently of other streams."""

    _noun = "stream"

    def __init__(self, device: Closeable) -> None:
        # The reference is the device's, which the stream keeps open.
        self._reference = reference_of(device, "device")
        handle = c_void_p()
        # As for other handles, the call writes into memory that the finalizer already watches.
        self._end = at_end(self, _release, self._reference, handle)
        call(lib.wb_device_stream_new, self._reference, byref(handle))
        self._handle = handle

    @property
    def handle(self) -> int:
        """The stream's handle in C: a CUstream on a CUDA device."""
        self._live()
        return self._handle.value or 0

    def __cuda_stream__(self) -> tuple[int, int]:
        """The protocol of CUDA's Python packages."""
        return 0, self.handle

    def synchronize(self) -> None:
        """Waits until all work queued on the stream has completed.

        Ctrl-C interrupts the wait, not the work.
        """
        interruptible(lib.wb_device_stream_synchronize, self._live(), self._handle)

    def _finish(self) -> None:
        """As :meth:`synchronize`, for work that ends soon, such as copies in host memory.

        It starts no thread, which takes a hundred times as long: Ctrl-C is raised after the wait.
        """
        call(lib.wb_device_stream_synchronize, self._live(), self._handle)

    def call(self, function: int, user: int = 0) -> None:
        """Queues a native ``void function(void *user)``, given by its address.

        It must not be a Python function: it runs on a thread that can outlive the interpreter.
        """
        call(
            lib.wb_device_stream_call,
            self._live(),
            self._handle,
            unsigned(function, "function"),
            unsigned(user, "user"),
        )

    def close(self) -> None:
        """Releases the stream; work queued on it still runs. Closing it again is a no-op."""
        super().close()
        self._end()


def _release(device: Reference, handle: c_void_p) -> None:
    if handle:
        lib.wb_device_stream_release(device, handle, None)


def stream_handle(stream: Any) -> int:
    """Returns the handle of a stream; 0 is the device's default stream.

    ``stream`` is None, an integer handle, an object with ``__cuda_stream__``, ``cuda_stream``
    (PyTorch) or ``ptr`` (CuPy), or a :class:`Stream`.
    """
    if stream is None:
        return 0
    if isinstance(stream, bool):
        raise TypeError("a stream cannot be a bool")
    protocol = getattr(stream, "__cuda_stream__", None)
    if protocol is not None:
        version, found = protocol() if callable(protocol) else protocol
        if version != 0:
            raise TypeError(f"{stream!r} has version {version} of __cuda_stream__, not 0")
    else:
        found = stream
        for attribute in ("cuda_stream", "ptr"):
            if hasattr(stream, attribute):
                found = getattr(stream, attribute)
                break
    try:
        number = int(found.__index__())
    except AttributeError:
        raise TypeError(
            f"{stream!r} is not a stream: pass a handle, None, or an object with cuda_stream, ptr "
            "or __cuda_stream__"
        ) from None
    if not 0 <= number < 1 << 64:
        raise ValueError(f"{number} is not a stream handle")
    return number


def release_after(reference: Reference, stream: Any, noun: str) -> None:
    """Releases one more reference to a buffer or a view after the work queued on a stream.

    One more, because calls and arrays may still hold the object's own reference.
    """
    handle = stream_handle(stream)
    getattr(lib, f"wb_{noun}_retain")(reference)
    try:
        call(getattr(lib, f"wb_{noun}_release_after"), reference, handle)
    except WeighbridgeError:
        getattr(lib, f"wb_{noun}_release")(reference)
        raise

"""Streams of any framework, as the handle that C takes."""

from __future__ import annotations

from typing import Any


def handle(stream: Any) -> int:
    """The handle of a stream; 0 is the device's default stream.

    Takes None, an integer handle, an object with ``__cuda_stream__``, with ``cuda_stream``
    (PyTorch) or with ``ptr`` (CuPy), and this package's own ``Stream``.
    """
    if stream is None:
        return 0
    if isinstance(stream, bool):
        raise TypeError("a stream cannot be a bool")
    protocol = getattr(stream, "__cuda_stream__", None)
    if protocol is not None:
        version, found = protocol() if callable(protocol) else protocol
        if version != 0:
            raise TypeError(f"{stream!r} speaks version {version} of __cuda_stream__, not 0")
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
            f"{stream!r} is no stream: pass a handle, None, or an object with cuda_stream, ptr or "
            "__cuda_stream__"
        ) from None
    if not 0 <= number < 1 << 64:
        raise ValueError(f"{number} is no stream handle")
    return number

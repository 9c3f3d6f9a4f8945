"""The options with which buffers are made."""

from __future__ import annotations

import ctypes
import operator
from typing import TYPE_CHECKING, Any

from . import _abi
from ._progress import Callback, Progress
from .errors import check

if TYPE_CHECKING:
    from typing_extensions import Literal, TypedDict

    class BufferOptions(TypedDict, total=False):
        """Options of everything that makes a buffer; see :func:`made`."""

        huge_pages: Literal["try", "off", "require"]
        threads: int
        numa_node: int | Literal["device", "any"]
        pin: bool | None
        write_combined: bool
        portable: bool
        file_mode: Literal["auto", "map", "read"]
        chunk_bytes: int
        progress: Callback | None


# Work on less than this is over before anybody gets to press Ctrl-C.
_INTERRUPTIBLE_BYTES = 256 << 20

_NODES = {"device": _abi.WB_NUMA_DEVICE, "any": _abi.WB_NUMA_ANY}


class Options:
    """Options as C takes them, with the progress of one call.

    ``huge_pages``: "try", "off" or "require". ``threads``: that fault, read and copy; 0 for as
    many as help. ``numa_node``: a node, "device" or "any". ``pin``: True, False, or None for the
    device's policy. ``write_combined``: fast to write, very slow to read. ``portable``: pinned for
    every context of the process. ``file_mode``: "auto", "map" or "read". ``chunk_bytes``:
    registered at a time; 0 for all at once. ``progress``: called on this thread with phase, bytes
    done and bytes in all; ``False`` cancels, and so does an exception, which the call raises.
    """

    def __init__(
        self,
        nbytes: int | None = None,
        *,
        huge_pages: str = "try",
        threads: int = 0,
        numa_node: int | str = "device",
        pin: bool | None = None,
        write_combined: bool = False,
        portable: bool = True,
        file_mode: str = "auto",
        chunk_bytes: int = 0,
        progress: Callback | None = None,
    ) -> None:
        """``nbytes`` is how much work the call will be, None where that is not known."""
        if progress is not None and not callable(progress):
            raise TypeError(f"progress is {progress!r}: it must be callable")
        if isinstance(numa_node, str):
            if numa_node not in _NODES:
                raise ValueError(f"numa_node is {numa_node!r}; use a number, 'device' or 'any'")
            numa_node = _NODES[numa_node]
        else:
            numa_node = unsigned(numa_node, "numa_node", 31)
        self._c = _abi.wb_buffer_options(
            huge_pages=_abi.HUGE_PAGES.code(huge_pages),
            threads=unsigned(threads, "threads", 32),
            numa_node=numa_node,
            pin=_abi.choice(pin),
            write_combined=_abi.choice(write_combined),
            portable=_abi.choice(portable),
            file_mode=_abi.FILE_MODE.code(file_mode),
            chunk_bytes=unsigned(chunk_bytes, "chunk_bytes"),
        )
        self._progress: Progress | None = None
        if progress is not None or nbytes is None or nbytes >= _INTERRUPTIBLE_BYTES:
            self._progress = Progress(progress)
            self._c.progress = self._progress.native

    @property
    def c(self) -> Any:
        """What the call takes."""
        return ctypes.byref(self._c)

    def check(self, status: int, error: _abi.wb_error) -> None:
        """As ``errors.check``; what a callback or a signal raised comes first."""
        if self._progress is not None:
            self._progress.check()
        check(status, error)


def unsigned(value: int, what: str, bits: int = 64) -> int:
    """The value, if C's unsigned integer holds it; ctypes would cut it off silently."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{what} is {value!r}; it must be an integer") from None
    if not 0 <= number < 1 << bits:
        raise ValueError(f"{what} is {value}; it must be 0 or more, and below 2**{bits}")
    return number


def c_text(text: str | bytes, what: str) -> bytes:
    """The bytes of a text for C, which would stop silently at a NUL."""
    encoded = text.encode() if isinstance(text, str) else text
    if b"\0" in encoded:
        raise ValueError(f"{what} {text!r} holds a NUL character")
    return encoded

"""The options of everything that makes a buffer."""

from __future__ import annotations

import ctypes
from ctypes import byref
from typing import Any, Literal, TypedDict

from ._abi import wb_buffer_options, wb_error
from ._arguments import unsigned
from ._call import check
from ._enums import FILE_MODE, HUGE_PAGES, NUMA_POLICY, FileMode, HugePages, tristate
from ._progress import Callback, Cancel, Progress


class BufferOptions(TypedDict, total=False):
    """Options of everything that makes a buffer; see :class:`Options`."""

    huge_pages: HugePages
    threads: int
    numa_node: int | Literal["device", "any"]
    pin: bool | None
    write_combined: bool | None
    portable: bool | None
    file_mode: FileMode
    chunk_bytes: int
    progress: Callback | Cancel | None


# A call on fewer bytes returns before a user can press Ctrl-C.
_INTERRUPTIBLE_BYTES = 256 << 20


class Options:
    """Options as C takes them, with the progress of one call.

    ``huge_pages``: "try", "off" or "require". ``threads``: that fault, read and copy; 0 chooses.
    ``numa_node``: a number, "device" or "any". ``pin``: True, False, or None for the device's
    policy. ``write_combined``: fast to write, very slow to read. ``portable``: pinned for every
    context of the process, the default. ``file_mode``: "auto", "map", "read", or "source": mapped
    and never pinned, for a file that is only copied from. ``chunk_bytes``:
    registered at a time; 0 for all at once. ``progress``: called on this thread with the phase, the
    bytes done and the total bytes; ``False`` cancels, and so does an exception, which is raised.
    """

    def __init__(
        self,
        nbytes: int | None = None,
        *,
        huge_pages: str = "try",
        threads: int = 0,
        numa_node: int | str = "device",
        pin: bool | None = None,
        write_combined: bool | None = None,
        portable: bool | None = None,
        file_mode: str = "auto",
        chunk_bytes: int = 0,
        progress: Callback | Cancel | None = None,
    ) -> None:
        """``nbytes`` is how many bytes the call works on, None if that is unknown."""
        if not (progress is None or isinstance(progress, Cancel) or callable(progress)):
            raise TypeError(f"progress is {progress!r}: it must be callable")
        self._c = wb_buffer_options(
            huge_pages=HUGE_PAGES.code(huge_pages),
            threads=unsigned(threads, "threads", 32),
            pin=tristate(pin, "pin"),
            write_combined=tristate(write_combined, "write_combined"),
            portable=tristate(portable, "portable"),
            file_mode=FILE_MODE.code(file_mode),
            chunk_bytes=unsigned(chunk_bytes, "chunk_bytes"),
        )
        if isinstance(numa_node, str):
            if numa_node not in ("device", "any"):
                raise ValueError(f"numa_node is {numa_node!r}; use a number, 'device' or 'any'")
            self._c.numa_policy = NUMA_POLICY.code(numa_node)
        else:
            self._c.numa_policy = NUMA_POLICY.code("node")
            self._c.numa_node = unsigned(numa_node, "numa_node", 32)
        self._progress: Cancel | Progress | None = None
        if isinstance(progress, Cancel):
            self._progress = progress
        elif progress is not None or nbytes is None or nbytes >= _INTERRUPTIBLE_BYTES:
            self._progress = Progress(progress)
        if self._progress is not None:
            self._c.progress = self._progress.native
            self._c.progress_user = self._progress.user

    @property
    def c(self) -> Any:
        """The options as an argument of a call."""
        return ctypes.byref(self._c)

    def call(self, function: Any, *arguments: Any) -> None:
        """Calls a function; raises what a callback or a signal raised, else what C reports."""
        error = wb_error()
        self.check(function(*arguments, byref(error)), error)

    def check(self, status: int, error: wb_error) -> None:
        """Raises what a callback or a signal raised, else the error of a call that failed."""
        if self._progress is not None:
            self._progress.check()
        check(status, error)

"""What went wrong, as exceptions that carry the library's status, code and message."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

from . import _abi


class Status(IntEnum):
    """The outcome of a call: ``WB_OK`` or one of ``WB_ERR_*``."""

    OK = 0
    INTERNAL = 1
    NULL = 2
    HANDLE = 3
    STRUCT_SIZE = 4
    RESERVED = 5
    ENUM = 6
    INVALID_ARGUMENT = 7
    OVERFLOW = 8
    OUT_OF_RANGE = 9
    ZERO_BYTES = 10
    NOT_MAPPED = 11
    UNALIGNED = 12
    ALREADY_REGISTERED = 13
    UNMAPPED_RANGE = 14
    WOULD_COPY = 15
    NO_DEVICE = 16
    NO_DRIVER = 17
    DRIVER_TOO_OLD = 18
    DRIVER = 19
    NOT_SUPPORTED = 20
    MEMLOCK = 21
    CGROUP = 22
    OUT_OF_MEMORY = 23
    DEVICE_MEMORY = 24
    HUGE_PAGES = 25
    FILE_MISSING = 26
    FILE_ACCESS = 27
    FILE_EMPTY = 28
    FILE_TRUNCATED = 29
    FILE_IO = 30
    FORMAT = 31
    NOT_FOUND = 32
    CANCELLED = 33
    TIMEOUT = 34
    CAPTURING = 35
    FORKED = 36
    DLPACK = 37
    NOTHING_OFFLOADED = 38
    SELECTOR = 39
    EVERYTHING_FITS = 40
    BUDGET = 41
    SLOTS_BUDGET = 42
    BUSY = 43
    STAGING = 44
    NOT_FINITE = 45


class WeighbridgeError(Exception):
    """A call of the library failed.

    ``status`` says how (a :class:`Status`, or a plain number from a newer library),
    ``driver_code`` is the CUDA driver's code or the errno, 0 where there is none, and ``message``
    says what was asked, what was found and what to do.
    """

    def __init__(self, status: int, message: str, driver_code: int = 0) -> None:
        super().__init__(message)
        try:
            self.status: int = Status(status)
        except ValueError:
            self.status = status
        self.message = message
        self.driver_code = driver_code

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (int(self.status), self.message, self.driver_code)


class InvalidValueError(WeighbridgeError, ValueError):
    """A value that cannot be: a shape past its buffer, a misaligned address, a bad file format."""


class ClosedError(InvalidValueError):
    """The object was closed before this use of it."""

    def __init__(self, status: int, message: str, driver_code: int = 0) -> None:
        super().__init__(status, message, driver_code)


class OutOfMemoryError(WeighbridgeError, MemoryError):
    """Host or device memory, or a limit on it, does not suffice."""


class WeighbridgeOSError(WeighbridgeError, OSError):
    """A file cannot be read; ``errno`` is the system's."""

    def __init__(self, status: int, message: str, driver_code: int = 0) -> None:
        super().__init__(status, message, driver_code)
        self.errno = driver_code or None


class FileMissingError(WeighbridgeOSError, FileNotFoundError):
    """The file does not exist."""


class FileAccessError(WeighbridgeOSError, PermissionError):
    """The file may not be read, or is not a regular file."""


class NotFoundError(WeighbridgeError, KeyError):
    """There is nothing of that name."""


class WaitTimeoutError(WeighbridgeError, TimeoutError):
    """The wait ended before the work did."""


class DLPackError(WeighbridgeError, BufferError):
    """The DLPack tensor is of a version, device or type that is not taken here."""


_CLASSES: dict[int, type[WeighbridgeError]] = {
    Status.ENUM: InvalidValueError,
    Status.INVALID_ARGUMENT: InvalidValueError,
    Status.OVERFLOW: InvalidValueError,
    Status.OUT_OF_RANGE: InvalidValueError,
    Status.ZERO_BYTES: InvalidValueError,
    Status.UNALIGNED: InvalidValueError,
    Status.FORMAT: InvalidValueError,
    Status.MEMLOCK: OutOfMemoryError,
    Status.CGROUP: OutOfMemoryError,
    Status.OUT_OF_MEMORY: OutOfMemoryError,
    Status.DEVICE_MEMORY: OutOfMemoryError,
    Status.FILE_MISSING: FileMissingError,
    Status.FILE_ACCESS: FileAccessError,
    Status.FILE_EMPTY: WeighbridgeOSError,
    Status.FILE_TRUNCATED: WeighbridgeOSError,
    Status.FILE_IO: WeighbridgeOSError,
    Status.NOT_FOUND: NotFoundError,
    Status.TIMEOUT: WaitTimeoutError,
    Status.DLPACK: DLPackError,
}


def make(status: int, message: str, driver_code: int = 0) -> WeighbridgeError:
    """The exception of a status."""
    return _CLASSES.get(status, WeighbridgeError)(status, message, driver_code)


def check(status: int, error: _abi.wb_error) -> None:
    """Raise what a call reported, if it failed."""
    if status != 0:
        raise make(status, error.message.decode(errors="replace"), error.driver_code)

"""The exceptions of failed calls, which carry the library's status, code and message."""

from __future__ import annotations

from enum import IntEnum
from typing import Any


class Status(IntEnum):
    """The outcome of a call: ``WB_OK`` or one of ``WB_ERR_*``."""

    OK = 0
    INTERNAL = 1
    INVALID_ARGUMENT = 2
    HANDLE = 3
    STRUCT_SIZE = 4
    OVERFLOW = 5
    OUT_OF_RANGE = 6
    NOT_MAPPED = 7
    UNALIGNED = 8
    ALREADY_REGISTERED = 9
    UNMAPPED_RANGE = 10
    WOULD_COPY = 11
    NO_DEVICE = 12
    NO_DRIVER = 13
    DRIVER_TOO_OLD = 14
    DRIVER = 15
    NOT_SUPPORTED = 16
    MEMLOCK = 17
    CGROUP = 18
    OUT_OF_MEMORY = 19
    DEVICE_MEMORY = 20
    HUGE_PAGES = 21
    FILE_MISSING = 22
    FILE_ACCESS = 23
    FILE_EMPTY = 24
    FILE_TRUNCATED = 25
    FILE_IO = 26
    FORMAT = 27
    NOT_FOUND = 28
    CANCELLED = 29
    TIMEOUT = 30
    CAPTURING = 31
    FORKED = 32
    DLPACK = 33
    NOTHING_OFFLOADED = 34
    SELECTOR = 35
    EVERYTHING_FITS = 36
    BUDGET = 37
    SLOTS_BUDGET = 38
    BUSY = 39
    STAGING = 40
    NOT_FINITE = 41
    DAMAGED = 42


class WeighbridgeError(Exception):
    """A call of the library failed.

    ``status`` is a :class:`Status`, or a plain number from a newer library. ``code`` is the number
    that the operating system or the CUDA driver reported, and ``code_domain`` says which of them:
    "errno", "cuda", or None if there is no such number (``code`` is 0 then). ``message`` says what
    was asked, what was found and what to do.
    """

    def __init__(
        self, status: int, message: str, code: int = 0, code_domain: str | None = None
    ) -> None:
        super().__init__(message)
        try:
            self.status: int = Status(status)
        except ValueError:
            self.status = status
        self.message = message
        self.code = code
        self.code_domain = code_domain

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (int(self.status), self.message, self.code, self.code_domain)


class InvalidValueError(WeighbridgeError, ValueError):
    """An argument or a file is invalid: a shape larger than its buffer, a misaligned address."""


class ClosedError(InvalidValueError):
    """The object is closed."""


class OutOfMemoryError(WeighbridgeError, MemoryError):
    """There is not enough host or device memory, or a limit forbids the allocation."""


class WeighbridgeOSError(WeighbridgeError, OSError):
    """A file cannot be read; ``errno`` is the system's error number."""

    def __init__(
        self, status: int, message: str, code: int = 0, code_domain: str | None = None
    ) -> None:
        super().__init__(status, message, code, code_domain)
        self.errno = code if code_domain == "errno" else None


class FileMissingError(WeighbridgeOSError, FileNotFoundError):
    """The file does not exist."""


class FileAccessError(WeighbridgeOSError, PermissionError):
    """The file is not readable, or is not a regular file."""


class NotFoundError(WeighbridgeError, KeyError):
    """No object has the given name."""


class WaitTimeoutError(WeighbridgeError, TimeoutError):
    """The timeout expired before the work completed."""


class DLPackError(WeighbridgeError, BufferError):
    """The DLPack tensor has an unsupported version, device or type."""


_CLASSES: dict[int, type[WeighbridgeError]] = {
    Status.INVALID_ARGUMENT: InvalidValueError,
    Status.OVERFLOW: InvalidValueError,
    Status.OUT_OF_RANGE: InvalidValueError,
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


def make(
    status: int, message: str, code: int = 0, code_domain: str | None = None
) -> WeighbridgeError:
    """Returns the exception of a status."""
    return _CLASSES.get(status, WeighbridgeError)(status, message, code, code_domain)

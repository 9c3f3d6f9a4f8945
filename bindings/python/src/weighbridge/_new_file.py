"""Files that get their name when they are complete."""

from __future__ import annotations

import errno
import mmap
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass
class NewFile:
    """A file that is being written."""

    memory: mmap.mmap
    """The file, mapped."""
    size: int
    """Bytes that the file will have: at most those that are mapped."""


def check_apart(source: Path, target: Path) -> None:
    """Raises ValueError if the new file would replace the one that it is made of."""
    if target.exists() and source.samefile(target):
        raise ValueError(f"{str(target)!r} is the source itself: write it elsewhere")


@contextmanager
def new_file(path: Path, size: int) -> Iterator[NewFile]:
    """Maps a file of that size, which gets its name at the end and is deleted after an error.

    A file, or a symbolic link to one, that has the name already is replaced; nothing else is.
    """
    if path.exists() and not path.is_file():
        raise FileExistsError(f"{str(path)!r} is not a regular file, and only those are replaced")
    partial = path.with_name(f".weighbridge.{secrets.token_hex(8)}.partial")
    descriptor, named = _anonymous_file(path), False
    try:
        if descriptor is None:
            descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
            named = True
        # Allocated in advance: a full disk would otherwise kill the process at a write.
        os.posix_fallocate(descriptor, 0, size)
        memory = mmap.mmap(descriptor, size)
        made = NewFile(memory, size)
        yield made
        memory.flush()
        if made.size < size:
            os.ftruncate(descriptor, made.size)
        os.fsync(descriptor)
        if not named:
            # With a descriptor, which an absolute path does not use, Python follows the link.
            os.link(f"/proc/self/fd/{descriptor}", partial, src_dir_fd=descriptor)
            named = True
        os.replace(partial, path)
        named = False
    finally:
        if named:
            os.unlink(partial)
        if descriptor is not None:
            os.close(descriptor)


def _anonymous_file(path: Path) -> int | None:
    """Opens a file without a name beside ``path``, which the system deletes also if the process is
    killed; None if the file system has none."""
    try:
        descriptor = os.open(path.parent, os.O_TMPFILE | os.O_RDWR, 0o666)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            return None
        raise OSError(error.errno, error.strerror, str(path)) from None
    if os.path.exists(f"/proc/self/fd/{descriptor}"):  # by which it gets its name
        return descriptor
    os.close(descriptor)
    return None

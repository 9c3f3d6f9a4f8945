"""Mapped files: without a copy, read-only, and with clear errors."""

from __future__ import annotations

import os

import numpy as np
import pytest

from weighbridge import Buffer, Status, WeighbridgeError


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(bytes(range(256)) * 1000)
    return path


def test_a_file_is_mapped_without_a_copy(device, path):
    with Buffer.map_file(device, path) as buffer:
        info = buffer.info
        assert (info.origin, info.asked_bytes, info.read_only) == ("file-mapped", 256_000, True)
        assert np.asarray(buffer).tobytes() == path.read_bytes()
        assert buffer.stats.anonymous_bytes == 0
        with open(path, "r+b") as file:
            file.write(b"new")
        assert bytes(buffer.memoryview()[:3]) == b"new"


def test_a_mapping_cannot_be_written(device, path):
    with Buffer.map_file(device, path) as buffer, buffer.view("uint8", (10,)) as view:
        for array in (np.asarray(buffer), view.numpy(), np.frombuffer(buffer.memoryview(), "u1")):
            assert not array.flags.writeable
            with pytest.raises(ValueError):
                array.flags.writeable = True
        with pytest.raises(TypeError):
            buffer.memoryview()[0] = 1


@pytest.mark.parametrize(("offset", "nbytes"), [(0, 10), (3, 0), (4096, 4096), (5000, 1), (1, 255)])
def test_a_range_of_a_file_can_be_mapped(device, path, offset, nbytes):
    expected = path.read_bytes()[offset:][: nbytes or None]
    with Buffer.map_file(device, path, offset, nbytes) as buffer:
        assert buffer.nbytes == len(expected)
        assert bytes(buffer.memoryview()) == expected


def test_a_file_can_be_read_instead_of_mapped(device, path):
    seen = []
    progress = lambda *step: seen.append(step)  # noqa: E731
    with Buffer.map_file(device, str(path), file_mode="read", progress=progress) as buffer:
        assert buffer.info.origin == "file-read"
        assert bytes(buffer.memoryview()) == path.read_bytes()
        with open(path, "r+b") as file:
            file.write(b"new")
        assert bytes(buffer.memoryview()[:3]) == b"\0\1\2"
    assert ("read", 256_000, 256_000) in seen


def test_a_view_of_a_truncated_file_raises(device, path):
    with Buffer.map_file(device, path) as buffer:
        os.truncate(path, 100)
        with pytest.raises(OSError) as caught:
            buffer.view("uint8", (10,))
        assert caught.value.status == Status.FILE_TRUNCATED


def test_unmappable_files_raise(device, path, tmp_path):
    empty = tmp_path / "empty"
    empty.touch()
    for arguments, kind, status in [
        ((tmp_path / "missing",), FileNotFoundError, Status.FILE_MISSING),
        ((tmp_path,), PermissionError, Status.FILE_ACCESS),
        ((empty,), OSError, Status.FILE_EMPTY),
        ((path, 256_001), WeighbridgeError, Status.OUT_OF_RANGE),
        ((path, 0, 256_001), WeighbridgeError, Status.OUT_OF_RANGE),
    ]:
        with pytest.raises(kind) as caught:
            Buffer.map_file(device, *arguments)
        assert caught.value.status == status
    with pytest.raises(ValueError, match="NUL"):
        Buffer.map_file(device, f"{path}\0more")


def test_file_names_need_not_be_utf_8(device, tmp_path):
    path = os.fsencode(tmp_path) + b"/\xff\xfe"
    with open(path, "wb") as file:
        file.write(b"xyz")
    with Buffer.map_file(device, os.fsdecode(path)) as buffer:
        assert bytes(buffer.memoryview()) == b"xyz"

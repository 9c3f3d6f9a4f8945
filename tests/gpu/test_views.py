"""A view aliases: kernels and the host see the same memory, whatever its origin."""

from __future__ import annotations

import mmap
from pathlib import Path

import cupy
import numpy as np
import pytest
import torch

import weighbridge
from weighbridge import Buffer, Device


def test_the_host_and_a_kernel_see_each_others_writes(device: Device, stream, kernels) -> None:
    with Buffer.alloc(device, 400) as buffer, buffer.view("int32", (10, 10)) as view:
        array = view.numpy()
        array[:] = np.arange(100).reshape(10, 10)
        kernels.add_one(stream, view.device_address, 100)
        stream.synchronize()
        assert (array == np.arange(1, 101).reshape(10, 10)).all()
        array[3, 4] = -7
        assert int(torch.from_dlpack(view)[3, 4]) == -7
        del array


def test_a_kernel_reads_a_mapped_file_without_a_copy(
    device: Device, stream, kernels, tmp_path: Path
) -> None:
    words = np.random.default_rng(1).integers(0, 1 << 32, 1 << 22, dtype=np.uint32)
    path = tmp_path / "words"
    words.tofile(path)
    with Buffer.map_file(device, path) as buffer:
        assert buffer.info.origin == "file-mapped", buffer.info.fallback_reason
        assert buffer.info.read_only
        total = kernels.slow_sum(stream, buffer.info.device_address, words.size, cycles=0)
        stream.synchronize()
        assert int(total[0]) == int(words.sum(dtype=np.uint64))
        assert buffer.stats.anonymous_bytes == 0


def test_a_file_that_was_read_has_the_same_bytes(device: Device, tmp_path: Path) -> None:
    content = np.random.default_rng(2).integers(0, 256, (3 << 20) + 17, dtype=np.uint8)
    path = tmp_path / "bytes"
    content.tofile(path)
    with Buffer.map_file(device, path, file_mode="read") as buffer:
        assert buffer.info.origin == "file-read"
        with buffer.view("uint8", (content.size,)) as view:
            assert (torch.from_dlpack(view).cpu().numpy() == content).all()


def test_a_shared_writable_file_mapping_can_be_registered(
    device: Device, stream, kernels, tmp_path: Path
) -> None:
    words = np.arange(1 << 18, dtype=np.uint32)
    path = tmp_path / "words"
    words.tofile(path)
    with path.open("r+b") as file:
        mapping = mmap.mmap(file.fileno(), 0)
    array = np.frombuffer(mapping, np.uint32)
    with Buffer.register(device, (array.ctypes.data, array.nbytes)) as buffer:
        total = kernels.slow_sum(stream, buffer.info.device_address, words.size, cycles=0)
        stream.synchronize()
        assert int(total[0]) == int(words.sum(dtype=np.uint64))
    del array
    mapping.close()


def test_a_private_file_mapping_is_rejected_before_it_is_copied(
    device: Device, tmp_path: Path
) -> None:
    path = tmp_path / "words"
    path.write_bytes(bytes(1 << 20))
    with path.open("r+b") as file:
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    array = np.frombuffer(mapping, np.uint8)
    with pytest.raises(weighbridge.WeighbridgeError) as failure:
        Buffer.register(device, (array.ctypes.data, array.nbytes))
    assert failure.value.status == weighbridge.Status.WOULD_COPY
    del array
    mapping.close()


def test_memory_that_torch_pinned_counts_as_registered(device: Device) -> None:
    pinned = torch.ones(1 << 20, dtype=torch.uint8, pin_memory=True)
    with pytest.raises(weighbridge.WeighbridgeError) as failure:
        Buffer.register(device, (pinned.data_ptr(), pinned.numel()))
    assert failure.value.status == weighbridge.Status.ALREADY_REGISTERED, failure.value


@pytest.mark.parametrize("chunk", [0, 1 << 20])
def test_a_copy_across_registrations_is_complete(device: Device, chunk: int) -> None:
    nbytes = (8 << 20) + 12345
    content = np.random.default_rng(3).integers(0, 256, nbytes, dtype=np.uint8)
    target = torch.zeros(nbytes, dtype=torch.uint8, device="cuda")
    with Buffer.alloc(device, nbytes, chunk_bytes=chunk) as buffer:
        assert buffer.info.chunks == (9 if chunk else 1)
        np.asarray(buffer)[:] = content
        device.copy(target.data_ptr(), buffer.address, nbytes, torch.cuda.current_stream())
        torch.cuda.synchronize()
        assert (target.cpu().numpy() == content).all()


@pytest.mark.parametrize("options", [{"write_combined": True}, {"portable": False}])
def test_memory_of_the_driver_has_views(device: Device, stream, kernels, options) -> None:
    with Buffer.alloc(device, 4 << 20, **options) as buffer:
        np.asarray(buffer).view(np.uint32)[:] = 3
        total = kernels.slow_sum(stream, buffer.info.device_address, 1 << 20, cycles=0)
        stream.synchronize()
        assert int(total[0]) == 3 << 20


def test_without_views_a_buffer_has_no_device_view() -> None:
    with Device("cuda:0", views=False) as device, Buffer.alloc(device, 4096) as buffer:
        assert buffer.info.pinned_bytes == 4096
        with pytest.raises(weighbridge.WeighbridgeError) as failure:
            buffer.view("uint8", (4096,))
        assert failure.value.status == weighbridge.Status.NOT_MAPPED


def test_without_pinning_memory_is_pageable() -> None:
    with Device("cuda:0", pin=False) as device, Buffer.alloc(device, 1 << 20) as buffer:
        assert buffer.info.pinned_bytes == 0
        target = torch.zeros(1 << 20, dtype=torch.uint8, device="cuda")
        np.asarray(buffer)[:] = 5
        device.copy(target.data_ptr(), buffer.address, 1 << 20, torch.cuda.current_stream())
        torch.cuda.synchronize()
        assert bool((target == 5).all())


def test_pinned_bytes_are_the_asked_bytes_in_whole_pages(device: Device) -> None:
    for nbytes in (1, 4096, 4097, (5 << 20) + 1, (1 << 30) + 1):
        with Buffer.alloc(device, nbytes) as buffer:
            info = buffer.info
            assert info.pinned_bytes == info.mapped_bytes == (nbytes + 4095) // 4096 * 4096
            assert buffer.stats.resident_bytes == info.mapped_bytes


def test_cupy_reads_a_view(device: Device) -> None:
    with Buffer.alloc(device, 4000) as buffer, buffer.view("float32", (10, 100)) as view:
        view.numpy()[:] = 2.5
        assert float(cupy.from_dlpack(view).sum()) == 2500.0
        assert float(cupy.asarray(view).sum()) == 2500.0  # by __cuda_array_interface__

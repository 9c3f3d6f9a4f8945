"""Buffers: exact bytes, NumPy without a copy, registered memory that stays as long as it must."""

from __future__ import annotations

import array
import ctypes
import gc
import mmap
import sys
import weakref

import numpy as np
import pytest

import weighbridge
from native import Gate
from weighbridge import Buffer, ClosedError, Status, View, WeighbridgeError

PAGE = mmap.PAGESIZE


@pytest.mark.parametrize("nbytes", [1, PAGE - 1, PAGE, PAGE + 1, (9 << 20) + 3])
def test_bytes_are_exact(device, nbytes):
    with weighbridge.Device(device.name, pin=True) as pinning, pinning.buffer(nbytes) as buffer:
        pages = -(-nbytes // PAGE) * PAGE
        info = buffer.info
        assert (info.nbytes, buffer.nbytes) == (nbytes, nbytes)
        assert info.pinned_bytes == pages
        assert info.mapped_bytes == pages
        assert info.pinning == "registered" and info.origin == "allocated" and info.note == ""
        assert pinning.usage.pinned_bytes == pages
        assert buffer.usage.resident_bytes == pages
        assert not np.asarray(buffer).any()


def test_a_buffer_of_no_bytes(device):
    with device.buffer(0) as buffer:
        assert (buffer.nbytes, buffer.address, buffer.device_address) == (0, 0, None)
        assert buffer.memoryview().nbytes == 0
        assert np.asarray(buffer).shape == (0,)
        with buffer.view("float32", (3, 0)) as view:
            assert view.numpy().shape == (3, 0)
            with buffer.view("float32", (3, 0), access="host") as host_view:
                assert np.from_dlpack(host_view).shape == (3, 0)


def test_options_reach_the_library(device):
    with device.buffer(1 << 20, pin=False) as buffer:
        assert buffer.info.pinning == "none"
        assert "options" in buffer.info.note
    with device.buffer(1 << 20, pin=True, chunk_bytes=1 << 18, threads=2) as buffer:
        assert buffer.info.chunks == 4
    with pytest.raises(WeighbridgeError):
        device.buffer(1 << 20, numa_node=1000).close()
    for node in (2**32, 2**32 - 1, 2**32 - 2, 2**31, 2**64, -1):
        with pytest.raises(ValueError, match=f"numa_node is {node}"):
            device.buffer(1 << 20, numa_node=node).close()


def test_numpy_has_the_bytes_without_a_copy(device):
    buffer = Buffer.alloc(device, 16)
    bytes_ = np.asarray(buffer)
    again = np.frombuffer(buffer.memoryview(), np.uint32)
    bytes_[4:8] = 255
    assert again.tolist() == [0, 0xFFFFFFFF, 0, 0]
    assert bytes_.ctypes.data == buffer.address
    assert bytes_.flags.writeable


def test_an_array_outlives_its_buffer(device):
    for make in (np.asarray, lambda buffer: buffer.memoryview()):
        buffer = device.buffer(1 << 16)
        outlives = make(buffer)
        buffer.close()
        del buffer
        gc.collect()
        assert device.usage.buffers == 1
        outlives[0] = 7
        assert outlives[0] == 7 and outlives[65535] == 0
        part = outlives[100:200]
        del outlives
        assert device.usage.buffers == 1
        assert part[0] == 0
        del part
        assert device.usage.buffers == 0


@pytest.mark.skipif(sys.version_info < (3, 12), reason="__buffer__ needs Python 3.12")
def test_the_buffer_protocol_of_python_3_12(device):
    buffer = device.buffer(8)
    view = memoryview(buffer)
    view[0] = 3
    buffer.close()
    assert bytes(view)[0] == 3


def test_the_last_reference_gives_the_memory_back(device):
    buffer = device.buffer(64)
    del buffer
    gc.collect()
    assert device.usage.buffers == 0


def test_pinned_buffer_is_the_same_class():
    assert weighbridge.PinnedBuffer is Buffer and weighbridge.DeviceView is View


def memories():
    shared = mmap.mmap(-1, 1 << 16)
    return {
        "bytearray": bytearray(1 << 16),
        "array": array.array("i", [0] * 1000),
        "ctypes": (ctypes.c_float * 100)(),
        "numpy": np.zeros((100, 10)),
        "mmap": shared,
    }


@pytest.mark.parametrize("kind", list(memories()))
def test_registered_memory_is_the_same_memory(device, kind):
    memory = memories()[kind]
    with Buffer.register(device, memory) as buffer:
        assert buffer.info.origin == "registered"
        assert buffer.nbytes == memoryview(memory).nbytes
        np.asarray(buffer)[5] = 77
        assert memoryview(memory).cast("B")[5] == 77
        assert not buffer.read_only


def test_registered_memory_stays_until_nothing_uses_it(device):
    class Memory(np.ndarray):
        pass

    memory = np.arange(1 << 14, dtype=np.uint8).view(Memory)
    gone = []
    weakref.finalize(memory, gone.append, True)
    buffer = Buffer.register(device, memory)
    del memory
    view = buffer.view("uint8", (1 << 14,), access="host")
    consumer = np.from_dlpack(view)
    buffer.close()
    view.close()
    gc.collect()
    assert not gone
    assert consumer[300] == 300 % 256
    del consumer
    device.drain(10)
    assert gone


def test_registered_memory_stays_for_work_in_flight(device):
    memory = bytearray(b"\1" * (1 << 20))
    with device.buffer(1 << 20) as back:
        stream, target = device.stream(), device.alloc(1 << 20)
        buffer = Buffer.register(device, memory)
        gate = Gate(stream)
        device.copy(target, buffer, stream=stream)
        buffer.release_after(stream)
        with pytest.raises(BufferError):
            memory.append(1)
        gate.open()
        device.copy(back, target, stream=stream)
        stream.synchronize()
        device.drain(10)
        memory.append(1)
        assert (np.asarray(back) == 1).all()
        device.free(target)


def goes_with_garbage(memory):
    """Whether a bytearray is let go by some garbage collection: it can be resized again."""
    for _ in range(1000):
        gc.collect()
        try:
            memory.append(1)
            return True
        except BufferError:
            pass
    return False


def test_registered_memory_goes_without_a_call_of_this_package(device):
    """A DLPack consumer that goes last is noticed by the next garbage collection."""
    memory = bytearray(4096)
    buffer = Buffer.register(device, memory)
    consumer = np.from_dlpack(buffer.view("uint8", (4096,), access="host"))
    buffer.close()
    del buffer, consumer
    assert goes_with_garbage(memory)


def test_garbage_collections_are_told_to_everybody(device):
    """What is let go after a collection does not take the callback of another package's away."""
    memory, told = bytearray(4096), []
    buffer = Buffer.register(device, memory)
    capsule = buffer.view("uint8", (4096,), access="host").__dlpack__()
    buffer.close()
    del buffer

    def tell(phase, _):
        told.append(phase)

    gc.callbacks.append(tell)
    try:
        del capsule
        assert goes_with_garbage(memory)
    finally:
        gc.callbacks.remove(tell)
    assert told and told == ["start", "stop"] * (len(told) // 2)


def test_a_refused_registration_lets_the_object_go(device):
    memory = bytearray(1 << 16)
    with weighbridge.Device(device.name, pin=True) as pinning:
        with Buffer.register(pinning, memory):
            with pytest.raises(WeighbridgeError) as caught:
                Buffer.register(pinning, memory)
            assert caught.value.status == Status.ALREADY_REGISTERED
    memory.append(1)
    empty = bytearray()
    with pytest.raises(ValueError) as caught:
        Buffer.register(device, empty)
    assert caught.value.status == Status.ZERO_BYTES
    empty.append(1)


def test_a_closed_device_locks_nothing(device):
    memory = bytearray(1 << 16)
    with weighbridge.Device(device.name) as closed:
        pass
    with pytest.raises(ClosedError):
        Buffer.register(closed, memory)
    gc.collect()
    memory.append(1)


def test_memory_that_is_read_only_for_python_is_refused(device):
    memory = np.zeros(1 << 14, np.uint8)
    memory.flags.writeable = False
    for wrong in (bytes(5000), memory):
        with pytest.raises(ValueError, match="read-only for Python") as caught:
            Buffer.register(device, wrong)
        # Also while the exception lives, whose traceback holds the call's variables.
        assert device.usage.buffers == device.usage.pinned_bytes == 0
        assert caught.value.__traceback__ is not None
    assert device.usage.buffers == 0


def test_memory_with_gaps_is_refused(device):
    with pytest.raises(ValueError, match="gaps"):
        Buffer.register(device, np.zeros((10, 10))[:, ::2])
    with pytest.raises(TypeError):
        Buffer.register(device, 17)


def test_an_address_is_registered_as_it_is(device):
    memory = np.zeros(1 << 14, np.uint8)
    with Buffer.register(device, (memory.ctypes.data, memory.nbytes)) as buffer:
        np.asarray(buffer)[3] = 9
        assert memory[3] == 9
    with pytest.raises(WeighbridgeError) as caught:
        Buffer.register(device, (1 << 12, 1 << 12))
    assert caught.value.status == Status.UNMAPPED_RANGE


def test_a_read_only_mapping_is_registered_read_only(device, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"abc" * 5000)
    with open(path, "rb") as file:
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    with Buffer.register(device, mapping) as buffer:
        assert buffer.read_only
        assert not np.asarray(buffer).flags.writeable
        assert bytes(buffer.memoryview()[:3]) == b"abc"


def test_a_private_mapping_of_a_file_is_refused(device, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"abc" * 5000)
    with open(path, "rb") as file:
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    with pytest.raises(WeighbridgeError) as caught:
        Buffer.register(device, mapping, pin=True)
    assert caught.value.status == Status.WOULD_COPY
    mapping.close()


def test_release_after_waits_for_the_stream_and_nobody_waits_for_it(device):
    stream = device.stream()
    buffer = device.buffer(1 << 16)
    address = buffer.address
    gate = Gate(stream)
    buffer.release_after(stream)
    assert buffer.closed
    usage = device.usage
    assert (usage.buffers, usage.deferred) == (1, 1)
    assert ctypes.string_at(address, 4) == bytes(4)
    gate.open()
    device.drain(10)
    assert device.usage.buffers == 0


def test_release_after_leaves_arrays_as_they_are(device):
    with device.stream() as stream:
        buffer = device.buffer(64)
        outlives = np.asarray(buffer)
        buffer.release_after(stream)
        device.drain(10)
        outlives[:] = 3
        assert device.usage.buffers == 1


def test_progress_counts_up_to_all_bytes(device):
    seen = []
    nbytes = 80 << 20
    with device.buffer(nbytes, progress=lambda *step: seen.append(step), pin=True):
        pass
    phases = [phase for phase, _, _ in seen]
    assert set(phases) == {"fault", "pin"}
    assert {total for _, _, total in seen} == {nbytes}
    faults = [done for phase, done, _ in seen if phase == "fault"]
    assert faults == sorted(faults) and faults[-1] == nbytes and len(faults) > 1
    assert seen[-1] == ("pin", nbytes, nbytes)


@pytest.mark.parametrize("nbytes", [80 << 20, 1 << 32])
def test_progress_cancels_with_false_only(device, nbytes):
    """2**32 bytes in all are 0 in the 32 bits of the callback's result."""
    with pytest.raises(WeighbridgeError) as caught:
        device.buffer(nbytes, progress=lambda *step: False, pin=False)
    assert caught.value.status == Status.CANCELLED
    assert device.usage.buffers == 0
    for result in (None, True, 0, 1):
        device.buffer(1 << 20, progress=lambda *step, result=result: result).close()


def test_an_exception_in_progress_cancels_and_is_raised(device):
    calls = []

    def progress(phase, done, total):
        calls.append(done)
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        device.buffer(80 << 20, progress=progress)
    assert len(calls) == 1
    gc.collect()
    assert device.usage.buffers == 0


def test_a_cancel_at_the_very_end_leaves_nothing(device):
    with pytest.raises(WeighbridgeError) as caught:
        device.buffer(1 << 20, progress=lambda phase, done, total: done < total)
    assert caught.value.status == Status.CANCELLED
    assert device.usage.buffers == 0

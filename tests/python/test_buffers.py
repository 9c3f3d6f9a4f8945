"""Buffers: exact sizes, NumPy arrays without a copy, and the lifetime of registered memory."""

from __future__ import annotations

import array
import ctypes
import gc
import mmap
import sys
import time
import weakref

import numpy as np
import pytest

import weighbridge
from native import SLEEP, Gate
from weighbridge import Buffer, ClosedError, Status, View, WeighbridgeError

PAGE = mmap.PAGESIZE


@pytest.mark.parametrize("nbytes", [1, PAGE - 1, PAGE, PAGE + 1, (9 << 20) + 3])
def test_mapped_and_pinned_bytes_are_exact(device, nbytes):
    with weighbridge.Device(device.name, pin=True) as pinning, pinning.buffer(nbytes) as buffer:
        pages = -(-nbytes // PAGE) * PAGE
        info = buffer.info
        assert (info.asked_bytes, buffer.nbytes) == (nbytes, nbytes)
        assert info.pinned_bytes == pages
        assert info.mapped_bytes == pages
        assert (
            info.pinning == "registered"
            and info.origin == "allocated"
            and info.fallback_reason == ""
        )
        assert pinning.stats.pinned_bytes == pages
        assert buffer.stats.resident_bytes == pages
        assert not np.asarray(buffer).any()


def test_an_empty_buffer_has_no_addresses(device):
    with device.buffer(0) as buffer:
        assert (buffer.nbytes, buffer.address, buffer.device_address) == (0, 0, None)
        assert buffer.memoryview().nbytes == 0
        assert np.asarray(buffer).shape == (0,)
        with buffer.view("float32", (3, 0)) as view:
            assert view.numpy().shape == (3, 0)
            with buffer.view("float32", (3, 0), accessor="host") as host_view:
                assert np.from_dlpack(host_view).shape == (3, 0)


def test_options_reach_the_library(device):
    with device.buffer(1 << 20, pin=False) as buffer:
        assert buffer.info.pinning == "none"
        assert "options" in buffer.info.fallback_reason
    with device.buffer(1 << 20, pin=True, chunk_bytes=1 << 18, threads=2) as buffer:
        assert buffer.info.chunks == 4
    with pytest.raises(WeighbridgeError):
        device.buffer(1 << 20, numa_node=1000).close()
    with pytest.raises(WeighbridgeError):
        device.buffer(1 << 20, numa_node=2**31).close()
    for node in (2**32, 2**64, -1, "node"):
        with pytest.raises(ValueError, match=f"numa_node is {node!r}"):
            device.buffer(1 << 20, numa_node=node).close()


def test_numpy_arrays_alias_the_buffer(device):
    buffer = Buffer.alloc(device, 16)
    bytes_ = np.asarray(buffer)
    again = np.frombuffer(buffer.memoryview(), np.uint32)
    bytes_[4:8] = 255
    assert again.tolist() == [0, 0xFFFFFFFF, 0, 0]
    assert bytes_.ctypes.data == buffer.address
    assert bytes_.flags.writeable


def test_an_array_keeps_the_memory_of_a_closed_buffer(device):
    for make in (np.asarray, lambda buffer: buffer.memoryview()):
        buffer = device.buffer(1 << 16)
        outlives = make(buffer)
        buffer.close()
        del buffer
        gc.collect()
        assert device.stats.buffers == 1
        outlives[0] = 7
        assert outlives[0] == 7 and outlives[65535] == 0
        part = outlives[100:200]
        del outlives
        assert device.stats.buffers == 1
        assert part[0] == 0
        del part
        assert device.stats.buffers == 0


@pytest.mark.skipif(sys.version_info < (3, 12), reason="__buffer__ needs Python 3.12")
def test_the_buffer_protocol_of_python_3_12(device):
    buffer = device.buffer(8)
    view = memoryview(buffer)
    view[0] = 3
    buffer.close()
    assert bytes(view)[0] == 3


def test_dropping_the_last_reference_frees_the_memory(device):
    buffer = device.buffer(64)
    del buffer
    gc.collect()
    assert device.stats.buffers == 0


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
def test_a_registered_buffer_aliases_the_memory(device, kind):
    memory = memories()[kind]
    with Buffer.register(device, memory) as buffer:
        assert buffer.info.origin == "registered"
        assert buffer.nbytes == memoryview(memory).nbytes
        np.asarray(buffer)[5] = 77
        assert memoryview(memory).cast("B")[5] == 77
        assert not buffer.read_only


def test_registered_memory_lives_until_its_last_use(device):
    class Memory(np.ndarray):
        pass

    memory = np.arange(1 << 14, dtype=np.uint8).view(Memory)
    gone = []
    weakref.finalize(memory, gone.append, True)
    buffer = Buffer.register(device, memory)
    del memory
    view = buffer.view("uint8", (1 << 14,), accessor="host")
    consumer = np.from_dlpack(view)
    buffer.close()
    view.close()
    gc.collect()
    assert not gone
    assert consumer[300] == 300 % 256
    del consumer
    device.drain(10)
    assert gone


def test_registered_memory_lives_while_work_is_in_flight(device):
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


def test_a_source_that_goes_out_of_scope_is_copied(device):
    stream, back = device.stream(), device.buffer(1 << 20)
    stream.call(SLEEP, 100_000)

    def send():
        source = device.buffer(1 << 20)
        source.memoryview()[:] = b"\7" * (1 << 20)
        device.copy(back, source, stream=stream)

    send()
    stream.synchronize()
    assert (np.asarray(back) == 7).all()


def test_a_release_costs_the_same_however_many_arrays_are_registered(device):
    def seconds(count):
        arrays = [np.zeros(16, np.uint8) for _ in range(count)]
        begin = time.perf_counter()
        views = [View.from_dlpack(device, a, accessor="host", pin=False) for a in arrays]
        del views
        return time.perf_counter() - begin

    few, many = (min(seconds(count) for _ in range(2)) for count in (250, 4000))
    assert many < 16 * few * 4, (few, many)


def released_by_collection(memory):
    """Returns whether a garbage collection releases a bytearray, so that it can be resized."""
    for _ in range(1000):
        gc.collect()
        try:
            memory.append(1)
            return True
        except BufferError:
            pass
    return False


def test_a_garbage_collection_releases_registered_memory(device):
    """Also after the last use by a DLPack consumer, which calls nothing of this package."""
    memory = bytearray(4096)
    buffer = Buffer.register(device, memory)
    consumer = np.from_dlpack(buffer.view("uint8", (4096,), accessor="host"))
    buffer.close()
    del buffer, consumer
    assert released_by_collection(memory)


def test_other_packages_callbacks_see_every_garbage_collection(device):
    """Releasing memory after a collection does not make CPython skip the next callback."""
    memory, phases = bytearray(4096), []
    buffer = Buffer.register(device, memory)
    capsule = buffer.view("uint8", (4096,), accessor="host").__dlpack__()
    buffer.close()
    del buffer

    def record(phase, _):
        phases.append(phase)

    gc.callbacks.append(record)
    try:
        del capsule
        assert released_by_collection(memory)
    finally:
        gc.callbacks.remove(record)
    assert phases and phases == ["start", "stop"] * (len(phases) // 2)


def test_a_failed_registration_releases_the_object(device):
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
    assert caught.value.status == Status.INVALID_ARGUMENT
    empty.append(1)


def test_registering_on_a_closed_device_does_not_lock_the_memory(device):
    memory = bytearray(1 << 16)
    with weighbridge.Device(device.name) as closed:
        pass
    with pytest.raises(ClosedError):
        Buffer.register(closed, memory)
    gc.collect()
    memory.append(1)


def test_memory_that_python_must_not_write_is_rejected(device):
    memory = np.zeros(1 << 14, np.uint8)
    memory.flags.writeable = False
    for wrong in (bytes(5000), memory):
        with pytest.raises(ValueError, match="read-only for Python") as caught:
            Buffer.register(device, wrong)
        # Although the exception is alive, whose traceback holds the call's variables.
        assert device.stats.buffers == device.stats.pinned_bytes == 0
        assert caught.value.__traceback__ is not None
    assert device.stats.buffers == 0


def test_memory_with_gaps_is_rejected(device):
    with pytest.raises(ValueError, match="gaps"):
        Buffer.register(device, np.zeros((10, 10))[:, ::2])
    with pytest.raises(TypeError):
        Buffer.register(device, 17)


def test_an_address_range_can_be_registered(device):
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


def test_a_private_mapping_of_a_file_is_rejected(device, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"abc" * 5000)
    with open(path, "rb") as file:
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    with pytest.raises(WeighbridgeError) as caught:
        Buffer.register(device, mapping, pin=True)
    assert caught.value.status == Status.WOULD_COPY
    mapping.close()


def test_release_after_defers_the_release_and_returns_at_once(device):
    stream = device.stream()
    buffer = device.buffer(1 << 16)
    address = buffer.address
    gate = Gate(stream)
    buffer.release_after(stream)
    assert buffer.closed
    stats = device.stats
    assert (stats.buffers, stats.deferred) == (1, 1)
    assert ctypes.string_at(address, 4) == bytes(4)
    gate.open()
    device.drain(10)
    assert device.stats.buffers == 0


def test_release_after_keeps_memory_that_arrays_use(device):
    with device.stream() as stream:
        buffer = device.buffer(64)
        outlives = np.asarray(buffer)
        buffer.release_after(stream)
        device.drain(10)
        outlives[:] = 3
        assert device.stats.buffers == 1


def test_progress_reaches_all_bytes_in_every_phase(device):
    seen = []
    nbytes = 80 << 20
    # The calling thread reports what it does itself, which with others may be little.
    with device.buffer(nbytes, progress=lambda *step: seen.append(step), pin=True, threads=1):
        pass
    phases = [phase for phase, _, _ in seen]
    assert set(phases) == {"fault", "pin"}
    assert {total for _, _, total in seen} == {nbytes}
    faults = [done for phase, done, _ in seen if phase == "fault"]
    assert faults == sorted(faults) and faults[-1] == nbytes and len(faults) > 1
    assert seen[-1] == ("pin", nbytes, nbytes)


@pytest.mark.parametrize("nbytes", [80 << 20, 1 << 32])
def test_only_false_cancels(device, nbytes):
    """Also for 2**32 bytes, which are 0 in the 32 bits of the callback's result."""
    with pytest.raises(WeighbridgeError) as caught:
        device.buffer(nbytes, progress=lambda *step: False, pin=False)
    assert caught.value.status == Status.CANCELLED
    assert device.stats.buffers == 0
    for result in (None, True, 0, 1):
        device.buffer(1 << 20, progress=lambda *step, result=result: result).close()


@pytest.mark.parametrize(
    "kind", [LookupError, KeyboardInterrupt, SystemExit, GeneratorExit, StopIteration]
)
def test_an_exception_in_progress_cancels_and_is_raised(device, kind):
    calls = []

    def progress(phase, done, total):
        calls.append(done)
        raise kind("mine")

    with pytest.raises(kind, match="mine"):
        device.buffer(80 << 20, progress=progress)
    assert len(calls) == 1
    gc.collect()
    assert device.stats.buffers == 0


def test_cancelling_at_the_end_frees_the_memory(device):
    with pytest.raises(WeighbridgeError) as caught:
        device.buffer(1 << 20, progress=lambda phase, done, total: done < total)
    assert caught.value.status == Status.CANCELLED
    assert device.stats.buffers == 0

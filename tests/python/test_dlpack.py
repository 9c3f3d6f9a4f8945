"""DLPack: both kinds of capsule, deleters that work at any time, and the stream protocol."""

from __future__ import annotations

import ctypes
import gc
import threading
import weakref

import numpy as np
import pytest

import weighbridge
from native import Gate, Managed, ManagedVersioned, capsule_name, look, take
from weighbridge import Buffer, Dtype, Status, View, WeighbridgeError

CPU, CUDA = 1, 2
NUMPY_2_1 = pytest.mark.skipif(
    tuple(map(int, np.__version__.split(".")[:2])) < (2, 1),
    reason="NumPy before 2.1 imports DLPack read-only, and without keywords",
)
BOTH = pytest.mark.parametrize("version", [None, (1, 0)], ids=["unversioned", "versioned"])


@pytest.fixture
def view(device):
    with device.buffer(400) as buffer, buffer.view("int32", (3, 4), (8, 2), offset=4) as view:
        yield view


@BOTH
def test_a_capsule_describes_the_view(view, version):
    capsule = view.__dlpack__(max_version=version)
    managed = look(capsule)
    assert isinstance(managed, ManagedVersioned if version else Managed)
    if version:
        assert managed.major == 1 and managed.flags == 0
    tensor = managed.tensor
    on_device = view.device.kind == "cuda"
    assert (tensor.device.type, tensor.device.id) == view.__dlpack_device__()
    assert view.__dlpack_device__() == ((CUDA if on_device else CPU), 0)
    assert tensor.data == (view.device_address if on_device else view.address)
    assert (tensor.code, tensor.bits, tensor.lanes) == (0, 32, 1)
    assert tensor.byte_offset == 0
    assert tensor.shape[: tensor.ndim] == [3, 4]
    assert tensor.strides[: tensor.ndim] == [8, 2]


@pytest.mark.parametrize(
    ("max_version", "name"),
    [
        (None, b"dltensor"),
        ((0, 8), b"dltensor"),
        ((1, 0), b"dltensor_versioned"),
        ((1, 3), b"dltensor_versioned"),
        ((2, 0), b"dltensor_versioned"),
    ],
)
def test_the_kind_of_capsule_follows_max_version(view, max_version, name):
    assert capsule_name(view.__dlpack__(max_version=max_version)) == name


@BOTH
def test_dropping_an_unused_capsule_releases_the_view(device, version):
    with device.buffer(64) as buffer:
        view = buffer.view("uint8", (64,))
        capsule = view.__dlpack__(max_version=version)
        view.close()
        assert device.stats.views == 1
        del capsule
        device.drain(10)
        assert device.stats.views == 0


@BOTH
def test_a_used_capsule_belongs_to_its_consumer(device, version):
    capsule = device.buffer(64).view("uint8", (64,)).__dlpack__(max_version=version)
    managed = take(capsule)
    address = ctypes.addressof(managed)
    del capsule
    gc.collect()
    assert device.stats.views == 1
    managed.deleter(address)
    device.drain(10)
    assert device.stats.views == device.stats.buffers == 0


@BOTH
def test_the_deleter_works_on_another_thread_after_the_python_objects_are_gone(device, version):
    managed = take(device.buffer(64).view("uint8", (64,)).__dlpack__(max_version=version))
    gc.collect()
    assert device.stats.views == 1
    thread = threading.Thread(target=managed.deleter, args=(ctypes.addressof(managed),))
    thread.start()
    thread.join()
    device.drain(10)
    assert device.stats.views == device.stats.buffers == 0


@pytest.mark.parametrize("dtype", list(Dtype), ids=lambda dtype: dtype.label)
def test_every_type_is_exported_and_imported(device, dtype):
    with device.buffer(64) as buffer:
        with buffer.view(dtype, (4,), accessor="host") as view:
            with View.from_dlpack(device, view, accessor="host", pin=False) as back:
                assert back.dtype == dtype and back.shape == (4,)
                assert back.address == buffer.address


@NUMPY_2_1
def test_numpy_imports_without_a_copy(view):
    taken = np.from_dlpack(view, device="cpu")
    assert taken.__array_interface__["data"][0] == view.address
    taken[2, 3] = 77
    assert view.numpy()[2, 3] == 77
    assert taken.strides == (32, 8)


@NUMPY_2_1
def test_a_consumer_keeps_the_memory_of_a_closed_device():
    device = weighbridge.Device("host")
    taken = np.from_dlpack(device.buffer(400).view("float32", (10, 10)))
    device.close()
    del device
    gc.collect()
    taken[:] = 2
    assert taken.sum() == 200


@NUMPY_2_1
def test_read_only_memory_stays_read_only(device, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(range(200)))
    view = Buffer.map_file(device, path).view("uint8", (200,), accessor="host")
    # Consumers that ignore the flag ask for the same version as those that heed it.
    for version in (None, (0, 8), (1, 0)):
        with pytest.raises(BufferError, match=r"read-only.*for_reading\(\).*numpy\(\).*copy_from"):
            view.__dlpack__(max_version=version)
    taken = np.from_dlpack(view.for_reading())
    assert taken.__array_interface__["data"][0] == view.address
    assert not taken.flags.writeable and not view.numpy().flags.writeable
    assert look(view.for_reading().__dlpack__(max_version=(1, 0))).flags == 1
    with pytest.raises(ValueError):
        taken[0] = 1
    for source in (taken, view):
        again = View.from_dlpack(device, source, accessor="host", pin=False)
        assert again.read_only and not again.numpy().flags.writeable


@BOTH
def test_a_consumer_that_only_reads_gets_read_only_memory(device, version, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(range(200)))
    view = Buffer.map_file(device, path).view("uint8", (200,), accessor="host")
    reading = view.for_reading()
    assert reading.__dlpack_device__() == view.__dlpack_device__()
    capsule = reading.__dlpack__(max_version=version)
    managed = take(capsule)
    assert managed.tensor.data == view.address
    managed.deleter(ctypes.addressof(managed))
    with device.buffer(16) as buffer, buffer.view("uint8", (16,), accessor="host") as writable:
        assert look(writable.for_reading().__dlpack__(max_version=(1, 0))).flags == 0
    view.close()
    for call in (view.for_reading, reading.__dlpack__, reading.__dlpack_device__):
        with pytest.raises(ValueError, match="closed"):
            call()


def test_streams_follow_the_protocol(view):
    on_device = view.device.kind == "cuda"
    for stream in (None, -1):
        view.__dlpack__(stream=stream)
    for stream in (1, 2, 0x7F00DEAD):
        if on_device:
            view.__dlpack__(stream=stream)
        else:
            with pytest.raises(ValueError, match="no streams"):
                view.__dlpack__(stream=stream)
    for stream in (0, -2):
        with pytest.raises(ValueError):
            view.__dlpack__(stream=stream)
    for stream in ("1", 1.0, True):
        with pytest.raises(TypeError):
            view.__dlpack__(stream=stream)
    with pytest.raises(TypeError):
        view.__dlpack__(None)


def test_a_copy_or_another_device_is_an_error(view):
    with pytest.raises(BufferError, match="copy_from"):
        view.__dlpack__(copy=True)
    view.__dlpack__(copy=False, dl_device=view.__dlpack_device__())
    with pytest.raises(BufferError, match="DLPack device"):
        view.__dlpack__(dl_device=(CUDA, 5))


def test_host_memory_can_be_exported_to_the_host(view):
    capsule = view.__dlpack__(dl_device=(CPU, 0))
    tensor = look(capsule).tensor
    assert tensor.device.type == CPU and tensor.data == view.address
    assert tensor.strides[:2] == [8, 2]


def test_only_views_for_cuda_have_the_cuda_array_interface(device):
    view = device.buffer(400).view("int32", (3, 4), (8, 2), offset=4)
    if device.kind != "cuda":
        assert not hasattr(view, "__cuda_array_interface__")
        return
    interface = view.__cuda_array_interface__
    assert interface == {
        "version": 3,
        "shape": (3, 4),
        "typestr": "<i4",
        "data": (view.device_address, False),
        "strides": (32, 8),
        "stream": None,
    }
    with view.buffer as buffer:
        assert not hasattr(buffer.view("int32", (1,), accessor="host"), "__cuda_array_interface__")
        for dtype in ("bfloat16", "float8_e4m3fn"):
            with pytest.raises(TypeError, match="DLPack"):
                _ = buffer.view(dtype, (1,)).__cuda_array_interface__


def test_memory_exported_by_the_cuda_array_interface_lives_as_long_as_the_view_object(device):
    if device.kind != "cuda":
        pytest.skip("only views for CUDA have the interface")
    view = device.buffer(64).view("uint8", (64,))
    _ = view.__cuda_array_interface__
    view.close()
    assert device.stats.views == 1
    del view
    assert device.stats.views == 0


def test_from_dlpack_aliases_the_tensor(device):
    source = np.arange(100, dtype=np.int16).reshape(10, 10)
    view = View.from_dlpack(device, source)
    assert view.address == source.ctypes.data
    assert view.buffer.info.origin == "registered"
    source[1, 1] = -5
    assert view.numpy()[1, 1] == -5
    turned = View.from_dlpack(device, np.zeros((4, 6))[::-1, ::2], accessor="host", pin=False)
    assert turned.strides == (-6, 2)


def test_from_dlpack_keeps_the_tensor_until_its_last_use(device):
    class Array(np.ndarray):
        pass

    source = np.arange(4096, dtype=np.uint8).view(Array)
    gone = []
    weakref.finalize(source, gone.append, True)
    view = View.from_dlpack(device, source)
    del source
    outlives = view.numpy()
    stream = device.stream()
    gate = Gate(stream)
    view.release_after(stream)
    gc.collect()
    assert not gone and outlives[5] == 5
    del outlives
    assert not gone
    gate.open()
    device.drain(10)
    assert gone


def test_a_capsule_is_imported_once_only(device):
    source = np.arange(5)
    capsule = source.__dlpack__()
    with View.from_dlpack(device, capsule) as view:
        assert view.numpy().tolist() == [0, 1, 2, 3, 4]
        assert capsule_name(capsule) == b"used_dltensor"
        with pytest.raises(BufferError, match="once only"):
            View.from_dlpack(device, capsule)


def test_producers_from_before_dlpack_1_are_accepted(device):
    class Old:
        def __init__(self, array):
            self._array = array

        def __dlpack__(self, stream=None):
            return self._array.__dlpack__()

    assert View.from_dlpack(device, Old(np.arange(3))).shape == (3,)


def test_a_rejected_tensor_still_belongs_to_its_producer(device):
    class Array(np.ndarray):
        pass

    source = np.zeros(16, np.complex128).view(Array)  # a type that the library lacks
    gone = []
    weakref.finalize(source, gone.append, True)
    capsule = source.__dlpack__()
    with pytest.raises(BufferError) as caught:
        View.from_dlpack(device, capsule)
    assert caught.value.status == Status.DLPACK
    assert capsule_name(capsule) == b"dltensor"
    del source, caught
    gc.collect()
    assert not gone
    del capsule
    gc.collect()
    assert gone


def test_a_device_that_is_closed_during_the_import_leaks_no_tensor(device):
    class Array(np.ndarray):
        def __dlpack__(self, **options):
            opened.close()
            return super().__dlpack__(**options)

    opened, gone = weighbridge.Device(device.name), []
    source = np.arange(3).view(Array)
    weakref.finalize(source, gone.append, True)
    with View.from_dlpack(opened, source) as view:
        assert view.numpy().tolist() == [0, 1, 2]
    del source, view
    gc.collect()
    assert gone


def test_other_objects_and_device_tensors_are_rejected(device):
    with pytest.raises(TypeError, match="copy_from"):
        View.from_dlpack(device, [1, 2])
    if device.kind == "cuda":
        with device.buffer(8) as buffer, pytest.raises(WeighbridgeError) as caught:
            View.from_dlpack(device, buffer.view("uint8", (8,)))
        assert caught.value.status == Status.DLPACK


def test_a_producers_deleter_runs_on_a_thread_of_python(device):
    """NumPy's needs the interpreter's lock, which the library's threads must not take."""
    threads = []

    class Array(np.ndarray):
        pass

    source = np.zeros(4096, np.uint8).view(Array)
    weakref.finalize(source, lambda: threads.append(threading.current_thread()))
    stream = device.stream()
    view = View.from_dlpack(device, source)
    del source
    gate = Gate(stream)
    view.release_after(stream)
    gate.open()
    device.drain(10)
    assert threads == [threading.main_thread()]


@NUMPY_2_1
def test_a_tensor_of_another_major_version_is_rejected(device):
    capsule = np.arange(3).__dlpack__(max_version=(1, 0))
    managed = look(capsule)
    managed.major = 2
    with pytest.raises(BufferError, match="DLPack 2"):
        View.from_dlpack(device, capsule)
    managed.major = 1
    assert View.from_dlpack(device, capsule).shape == (3,)


@NUMPY_2_1
def test_the_read_only_flag_of_a_tensor_is_kept(device):
    source = np.arange(100)
    source.flags.writeable = False
    with View.from_dlpack(device, source, accessor="host", pin=False) as view:
        assert view.read_only and not view.numpy().flags.writeable

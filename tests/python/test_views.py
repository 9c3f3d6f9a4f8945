"""Views alias their buffer, copies are independent, and NumPy arrays alias both."""

from __future__ import annotations

import array
import sys

import numpy as np
import pytest

from native import Gate
from weighbridge import Dtype, View, WeighbridgeError

NUMPY = [dtype for dtype in Dtype if dtype.is_numpy]


def test_host_and_device_see_each_others_writes(device):
    with device.buffer(400) as buffer, buffer.view("int32", (10, 10)) as view:
        array, bytes_ = view.numpy(), np.asarray(buffer)
        array[3, 4] = -2
        assert bytes_[4 * 34 : 4 * 35].view(np.int32)[0] == -2
        bytes_[0:4] = [1, 2, 0, 0]
        assert array[0, 0] == 0x201
        memory = device.alloc(400)
        with device.stream() as stream:
            device.copy(memory, view.device_address, 400, stream)
            stream.synchronize()
            array[:] = 0
            device.copy(view, memory, 400, stream)
            stream.synchronize()
        assert array[3, 4] == -2
        device.free(memory)


def test_info_has_the_views_properties(device):
    with device.buffer(1000) as buffer:
        view = buffer.view("float16", (3, 4), (8, 2), offset=10)
        info = view.info
        assert info.dtype == Dtype.F16 and info.shape == (3, 4) and info.strides == (8, 2)
        assert (info.elements, info.nbytes, info.span_bytes) == (12, 24, 2 * (16 + 6 + 1))
        assert info.address == buffer.address + 10
        assert info.device_address == buffer.device_address + 10
        assert (view.ndim, view.accessor, view.read_only) == (2, "device", False)
        host = buffer.view("float16", (3,), accessor="host")
        assert (host.accessor, host.device_address) == ("host", None)
        assert buffer.view("uint8", 7).shape == (7,)
        assert buffer.view("uint8", ()).numpy().shape == ()


@pytest.mark.parametrize("strides", [(10, 1), (1, 10), (-10, 1), (10, -1), (-10, -1), (0, 1)])
def test_strides_may_have_any_sign(device, strides):
    with device.buffer(800) as buffer:
        values = np.asarray(buffer).view(np.float64)
        values[:] = np.arange(100)
        below = sum(4 * -stride for stride in strides if stride < 0)
        found = buffer.view("float64", (5, 5), strides, offset=8 * below).numpy()
        rows, columns = np.ogrid[:5, :5]
        assert (found == below + rows * strides[0] + columns * strides[1]).all()
        assert np.shares_memory(found, values)


@pytest.mark.parametrize("stride", [2**60, 2**63 - 1, -(2**62), -(2**63)])
def test_the_stride_of_a_single_element_may_have_any_size(device, stride):
    """Also one that does not fit in 64 bits when it is counted in bytes, as NumPy does."""
    with device.buffer(64) as buffer:
        np.asarray(buffer).view(np.float64)[:] = np.arange(8)
        view = buffer.view("float64", (1, 4), (stride, 2))
        assert view.strides == (stride, 2)
        assert view.numpy().tolist() == [[0, 2, 4, 6]]
        with View.copy_from(device, view) as copied:
            assert copied.numpy().tolist() == [[0, 2, 4, 6]]
        if device.kind == "cuda":
            assert view.__cuda_array_interface__["strides"] == (0, 16)


@pytest.mark.parametrize("dtype", NUMPY, ids=lambda dtype: dtype.label)
def test_every_type_of_numpy_is_copied_unchanged(device, dtype):
    values = np.frombuffer(
        bytes(range(64)) if dtype != Dtype.BOOL else bytes([0, 1] * 32), np.uint8
    )
    values = values.view(dtype.numpy()).reshape(4, -1)
    with View.copy_from(device, values) as view:
        assert view.dtype == dtype and view.numpy().dtype == values.dtype
        assert dtype.typestr == values.dtype.str
        assert view.numpy().tobytes() == values.tobytes()
    with View.copy_from(device, values, accessor="host") as view:
        assert np.from_dlpack(view).tobytes() == values.tobytes()


def test_types_that_numpy_lacks_come_from_ml_dtypes(device):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu"):
        values = np.array([0.5, 1, 2, 4]).astype(getattr(ml_dtypes, name))
        with View.copy_from(device, values) as view:
            assert view.dtype.label == name
            assert view.numpy().dtype == values.dtype
            assert view.numpy().tobytes() == values.tobytes()
            assert np.asarray(view).dtype == values.dtype
            assert view.numpy(bits=True).tobytes() == values.tobytes()
    with device.buffer(4) as buffer, pytest.raises(TypeError, match="uint8"):
        buffer.view("float4_e2m1fn_x2", (4,)).numpy()


def test_without_ml_dtypes_the_elements_are_available_as_bits(device, monkeypatch):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with device.buffer(4) as buffer:
        with pytest.raises(TypeError, match=r"install ml_dtypes.*bits=True.*uint16"):
            buffer.view("bfloat16", (2,)).numpy()
        bits = buffer.view("bfloat16", (2,)).numpy(bits=True)
        assert bits.dtype == np.uint16
        with pytest.raises(TypeError, match="as uint8"):
            buffer.view("float8_e5m2", (4,)).numpy()


def test_a_dtype_has_many_names():
    import weighbridge.dtypes as dtypes

    class Torch:
        def __init__(self, name):
            self.text = name

        def __str__(self):
            return self.text

    for given in ("float32", "F32", "f32", np.float32, np.dtype("float32"), Torch("torch.float32")):
        assert dtypes.Dtype.of(given) == Dtype.F32
    assert dtypes.Dtype.of(np.bool_) == dtypes.Dtype.of(bool) == Dtype.BOOL
    for given in ("float128", Torch("torch.qint8"), np.dtype("O"), np.dtype("U3"), None):
        with pytest.raises(ValueError, match="not an element type"):
            dtypes.Dtype.of(given)


def test_an_array_keeps_the_memory_of_a_closed_view(device):
    buffer = device.buffer(400)
    view = buffer.view("int32", (10, 10))
    outlives = view.numpy()
    buffer.close()
    view.close()
    stats = device.stats
    assert (stats.buffers, stats.views) == (1, 1)
    outlives[9, 9] = 4
    column = outlives[:, 9]
    del outlives
    assert column[9] == 4
    del column
    assert device.stats.views == 0


def test_asarray_copies_only_if_it_must(device):
    with device.buffer(16) as buffer, buffer.view("float32", (4,)) as view:
        same = np.asarray(view)
        same[1] = 2.5
        assert np.shares_memory(same, view.numpy())
        assert np.array(view).tolist() == [0, 2.5, 0, 0]
        assert not np.shares_memory(np.array(view), same)
        assert np.asarray(view, dtype=np.float64).dtype == np.float64


def sources():
    grid = np.arange(24, dtype=np.float32).reshape(4, 6)
    return {
        "contiguous": grid,
        "transposed": grid.T,
        "gaps": grid[::2, 1::3],
        "backwards": grid[::-1, ::-2],
        "broadcast": np.broadcast_to(grid[0], (3, 6)),
        "scalar": np.array(5, np.int16),
        "empty": np.zeros((0, 4), np.int8),
        "one": np.arange(9).reshape(9)[4:5],
    }


@pytest.mark.parametrize("kind", list(sources()))
def test_a_copy_is_independent_and_keeps_its_strides(device, kind):
    source = sources()[kind].copy() if kind == "contiguous" else sources()[kind]
    expected = source.copy()
    with View.copy_from(device, source) as view:
        copied = view.numpy()
        assert np.array_equal(copied, expected)
        assert not np.shares_memory(copied, source)
        if source.size > 1:
            assert view.strides == tuple(step // source.itemsize for step in source.strides)
            if source.flags.writeable:
                source[...] = -1
                assert np.array_equal(copied, expected)


def test_objects_with_the_buffer_protocol_can_be_copied(device):
    for source, dtype in [
        (b"abc", Dtype.U8),
        (bytearray(b"abc"), Dtype.U8),
        (array.array("h", [1, -2]), Dtype.I16),
        (array.array("L", [1, 2]), Dtype.U64),
        (array.array("d", [1.5]), Dtype.F64),
        (memoryview(b"\0\1\2\3\4\5\6\7").cast("B", (2, 4)), Dtype.U8),
        (memoryview(b"abcdef")[::-2], Dtype.U8),
    ]:
        with View.copy_from(device, source) as view:
            assert view.dtype == dtype
            assert view.numpy().tolist() == memoryview(source).tolist()


def test_a_view_can_be_copied(device):
    with View.copy_from(device, np.arange(6).reshape(2, 3)) as view:
        with View.copy_from(device, view, accessor="host") as copied:
            assert copied.numpy().tolist() == [[0, 1, 2], [3, 4, 5]]
            assert not np.shares_memory(copied.numpy(), view.numpy())


def test_copying_other_objects_raises(device):
    records = np.zeros(4, [("a", "i1"), ("b", "<i4")])
    for wrong in (np.zeros(2, ">f4"), records["b"], np.array(["x"]), records):
        with pytest.raises(ValueError):
            View.copy_from(device, wrong)
    for wrong in (5, "text", [1, 2]):
        with pytest.raises(TypeError):
            View.copy_from(device, wrong)

    class Array:
        dtype, values = np.dtype("u1"), np.arange(4, dtype=np.uint8)

        def __init__(self, data):
            self.__array_interface__ = {**self.values.__array_interface__, "data": data}

    with pytest.raises(ValueError, match="address is"):
        View.copy_from(device, Array((Array.values.ctypes.data + 2**64, False)))
    with pytest.raises(TypeError):
        View.copy_from(device, Array(bytes(4)))


def test_release_after_keeps_the_memory_for_the_stream(device):
    stream = device.stream()
    view = View.copy_from(device, np.arange(10))
    gate = Gate(stream)
    view.release_after(stream)
    assert view.closed
    stats = device.stats
    assert (stats.views, stats.buffers, stats.deferred) == (1, 1, 1)
    gate.open()
    device.drain(10)
    assert device.stats.views == 0


def test_a_failed_release_after_leaves_the_view_open(host):
    view = View.copy_from(host, np.arange(3))
    with pytest.raises(WeighbridgeError):
        view.release_after(99999)
    assert view.numpy().tolist() == [0, 1, 2]
    view.close()
    assert host.stats.views == 0


def test_the_ten_line_example_runs(run_python):
    from conftest import ROOT

    code, output, errors = run_python(str(ROOT / "examples" / "python" / "ten_lines.py"))
    assert (code, errors) == (0, "")
    assert output.count("1.5") == 6


def test_the_two_layer_example_runs(run_python, device):
    from conftest import ROOT

    name = "host" if device.info.kind == "host" else "cuda:0"
    code, output, errors = run_python(str(ROOT / "examples" / "python" / "two_layers.py"), name)
    assert (code, errors) == (0, "")
    assert "8388608 offloaded, 8388608 of slots" in output

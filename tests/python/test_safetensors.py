"""safetensors files: the tensors that the safetensors package reads, bit for bit."""

from __future__ import annotations

import gc
import json
import time

import numpy as np
import pytest

from weighbridge import (
    Dtype,
    Offloader,
    OpaqueDtype,
    Plan,
    Safetensors,
    Status,
    WeighbridgeError,
)
from weighbridge.plan import group_of

NAMES = {
    Dtype.BOOL: "BOOL",
    Dtype.F16: "F16",
    Dtype.BF16: "BF16",
    Dtype.F32: "F32",
    Dtype.F64: "F64",
    Dtype.C64: "C64",
    Dtype.F8_E4M3FN: "F8_E4M3",
    Dtype.F8_E5M2: "F8_E5M2",
    Dtype.F8_E8M0: "F8_E8M0",
    Dtype.F4_E2M1X2: "F4",
}
NAMES.update({dtype: dtype.name for dtype in Dtype if dtype.name[0] in "IU"})


def write(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(dtype, shape, start, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.fixture
def every(tmp_path):
    """A file with a tensor of every type."""
    header, data = {"__metadata__": {"made": "by hand"}}, b""
    for dtype, name in NAMES.items():
        values = bytes(range(48)) if dtype != Dtype.BOOL else bytes([0, 1] * 24)
        last = 48 // dtype.itemsize // 3 * (2 if name == "F4" else 1)
        header[f"a.{dtype.label}"] = entry(name, [3, last], len(data), len(data) + 48)
        data += values
    return write(tmp_path / "every.safetensors", header, data)


def test_every_type_is_read_bit_for_bit(device, every):
    data = every.read_bytes()
    with Safetensors(device, every) as file:
        assert len(file) == len(list(file)) == len(Dtype)
        assert file.metadata == {"made": "by hand"}
        for dtype in Dtype:
            name = f"a.{dtype.label}"
            info = file.tensor_info(name)
            assert (info.name, info.dtype, info.nbytes) == (name, dtype, 48)
            view, copied = file.load_view(name)
            assert view.dtype == dtype
            assert view.shape == info.shape == (3, 48 // dtype.itemsize // 3)
            assert (
                view.numpy(bits=True).tobytes() == data[info.offset_bytes : info.offset_bytes + 48]
            )
            assert copied == (info.offset_bytes % 16 != 0)


def test_the_safetensors_package_reads_the_same(device, tmp_path):
    package = pytest.importorskip("safetensors.numpy")
    random = np.random.default_rng(0)
    tensors = {}
    for at, dtype in enumerate(dtype for dtype in Dtype if dtype.is_numpy):
        shape = (1, 3, 5, 2)[: at % 4 + 1]
        values = random.integers(0, 2 if dtype == Dtype.BOOL else 100, shape)
        tensors[f"layer.{at}.{dtype.label}"] = values.astype(dtype.numpy())
    tensors["empty"] = np.zeros((0, 3), np.float32)
    tensors["scalar"] = np.array(2.5)
    try:
        import ml_dtypes

        tensors["bf16"] = np.arange(6).astype(ml_dtypes.bfloat16)
    except ImportError:
        pass
    path = tmp_path / "package.safetensors"
    package.save_file(tensors, path)
    expected = package.load_file(path)
    with Safetensors(device, path) as file:
        assert set(file) == set(expected)
        for name, values in expected.items():
            for accessor in ("device", "host"):
                with file.load_view(name, accessor).view as view:
                    found = view.numpy()
                    assert found.dtype == values.dtype and found.shape == values.shape
                    assert found.tobytes() == values.tobytes()


def test_a_view_of_a_tensor_aliases_the_mapped_file(device, every):
    with Safetensors(device, every) as file:
        with file.buffer as buffer:
            info = file.tensor_info("a.float32")
            with file.view("a.float32", alignment=1) as view:
                assert view.address == buffer.address + info.offset_bytes
                assert view.read_only and not view.numpy().flags.writeable
            assert buffer.info.origin == "file-mapped"
            assert buffer.nbytes == every.stat().st_size


@pytest.mark.parametrize("shift", [0, 4, 8])
def test_unaligned_tensors_are_copied_and_reported_as_copied(device, tmp_path, shift):
    header = {"first": entry("U8", [shift], 0, shift), "x": entry("F32", [4], shift, shift + 16)}
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 16)
    path = write(tmp_path / "file", text, bytes(shift) + np.arange(4, dtype="f4").tobytes())
    with Safetensors(device, path) as file:
        view, copied = file.load_view("x")
        assert copied is (shift != 0)
        assert view.read_only is (shift == 0)
        assert view.numpy().tolist() == [0, 1, 2, 3]
        assert view.address % 16 == 0
        assert not file.load_view("x", alignment=4).copied
        if shift:
            with pytest.raises(ValueError) as caught:
                file.view("x")
            assert caught.value.status == Status.UNALIGNED
        assert file.view("x", alignment=0).shape == (4,)


def test_views_keep_the_memory_of_a_closed_file(device, every):
    file = Safetensors(device, every)
    array = file.view("a.uint8", alignment=1).numpy()
    file.close()
    gc.collect()
    assert device.stats.buffers == 1
    assert array.tobytes() == bytes(range(48))
    with pytest.raises(ValueError, match="file is closed"):
        len(file)


def test_unknown_names_raise(device, every):
    with Safetensors(device, every) as file:
        assert "a.uint8" in file and "a.uint9" not in file and 5 not in file
        for name in ("a.uint9", "", "a.uint8\0", "\ud800"):
            with pytest.raises(KeyError):
                file.tensor_info(name)
            assert name not in file
        with pytest.raises(KeyError) as caught:
            file.view("nothing")
        assert caught.value.status == Status.NOT_FOUND and "nothing" in str(caught.value)


def test_a_tensor_of_an_unknown_type_has_no_view(device, tmp_path):
    path = write(tmp_path / "file", {"q": entry("F6_E2M3", [4], 0, 3)}, b"abc")
    with Safetensors(device, path) as file:
        info = file.tensor_info("q")
        assert (info.dtype, info.shape, info.nbytes) == (OpaqueDtype("F6_E2M3", 3, 4), (4,), 3)
        with pytest.raises(WeighbridgeError) as caught:
            file.load_view("q")
        assert caught.value.status == Status.NOT_SUPPORTED


def test_all_tensors_are_parameters_in_one_call(device, tmp_path):
    header, data = {}, b""
    for name in ("h.0.a.w", "h.1.a.w", "h.1.norm", "head.w", "w"):
        header[name] = entry("F32", [2, 4], len(data), len(data) + 32)
        data += bytes(range(len(data), len(data) + 32))
    header["h.0.q"] = entry("F6_E2M3", [2, 4], len(data), len(data) + 6)
    path = write(tmp_path / "model", header, data + bytes(6))
    with Safetensors(device, path, file_mode="source") as file:
        start = file.buffer.address
        layers = {one.name: one for one in file.parameters(sparse=["head.*"])}
        groups = {"h.0.a.w": "h.0", "h.1.a.w": "h.1", "h.1.norm": "h.1", "head.w": "head"}
        groups |= {"w": "", "h.0.q": "h.0"}
        assert {name: one.group for name, one in layers.items()} == groups
        assert {name: group_of(name) for name in layers} == groups
        modules = {one.name: one.group for one in file.parameters(grouping="module")}
        assert modules == {**groups, "h.0.a.w": "h.0.a", "h.1.a.w": "h.1.a"}
        for name, one in layers.items():
            info = file.tensor_info(name)
            assert (one.dtype, one.shape) == (info.dtype, info.shape)
            assert one.source == start + info.offset_bytes
            assert one.access_pattern == ("sparse" if name == "head.w" else "dense")
            assert file.parameter(name) == (one if name != "head.w" else file.parameter(name))
        assert layers["h.0.q"].dtype == OpaqueDtype("F6_E2M3", 3, 4)
        assert file.parameter("w", "mine", "sparse").group == "mine"
        with pytest.raises(ValueError, match="grouping"):
            file.parameters(grouping="file")
        del layers, one


def test_a_file_that_is_only_a_source_is_not_pinned(device, every):
    with Safetensors(device, every, file_mode="source") as file:
        with file.buffer as buffer:
            assert (buffer.info.origin, buffer.info.pinned_bytes) == ("file-mapped", 0)
            assert "pageable" in buffer.info.fallback_reason
    with pytest.raises(ValueError, match='file_mode="source"'):
        Safetensors(device, every, file_mode="source", pin=True)


def test_parameters_hold_their_file_until_the_commit(device, every):
    data = every.read_bytes()
    file = Safetensors(device, every, file_mode="source")
    offsets = {name: file.tensor_info(name).offset_bytes for name in file}
    parameters = file.parameters()
    file.close()
    plan = Plan(device, parameters, offload_bytes=1 << 20, transfer_mode="on-demand")
    del file, parameters
    gc.collect()
    assert device.stats.buffers == 1
    with Offloader(plan) as offloader:
        gc.collect()
        assert device.stats.buffers == 1  # the arena
        for info in offloader.parameter_infos():
            at = offsets[info.name]
            with offloader.host_view(info.name) as view:
                assert view.numpy(bits=True).tobytes() == data[at : at + 48], info


LARGE = {
    "dimensions": ('{"a":{"dtype":"U8","shape":[', "1,", "1]}}"),
    "metadata": ('{"__metadata__":{"a":""', ',"b":""', "},]"),
    "unknown field": ('{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"z":[', "1,", "]}}"),
    "past the end": ("{", '"x":{"dtype":"U8","shape":[9],"data_offsets":[0,9]},', '"y":1}'),
}

MEASURE = """
import resource, sys
import weighbridge
device = weighbridge.Device("host")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    weighbridge.Safetensors(device, sys.argv[1], pin=False).close()
    print("opened")
except weighbridge.WeighbridgeError as error:
    print(error.status.name)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("kind", list(LARGE))
def test_a_large_malformed_header_takes_the_memory_of_its_text(tmp_path, run_python, kind):
    first, many, last = LARGE[kind]
    size = 20_000_000
    text = (first + many * (size // len(many)) + last).encode()
    path = write(tmp_path / "large", text, b"1")
    code, output, errors = run_python("-c", MEASURE, str(path))
    assert code == 0, errors
    status, kilobytes = output.split()
    assert status in ("FORMAT", "FILE_TRUNCATED")
    assert int(kilobytes) * 1024 < 1.5 * size


def test_a_header_of_many_tensors_takes_memory_in_proportion(tmp_path, run_python):
    count = 200_000
    entries = (
        f'"layers.{at}.w":{{"dtype":"U8","shape":[1],"data_offsets":[{at},{at + 1}]}}'
        for at in range(count)
    )
    text = ("{" + ",".join(entries) + "}").encode()
    path = write(tmp_path / "many", text, bytes(count))
    code, output, errors = run_python("-c", MEASURE, str(path))
    assert code == 0, errors
    status, kilobytes = output.split()
    assert status == "opened"
    assert int(kilobytes) * 1024 < 5 * len(text)


MALFORMED = {
    "overlap": {"a": entry("U8", [4], 0, 4), "b": entry("U8", [4], 2, 6)},
    "gap": {"a": entry("U8", [1], 0, 1), "b": entry("U8", [5], 2, 7)},
    "overrun": {"a": entry("U8", [1000], 0, 1000)},
    "too short": {"a": entry("U8", [1], 0, 1)},
    "wrong size": {"a": entry("F32", [2], 0, 6)},
    "backwards": {"a": entry("U8", [2], 6, 4)},
    "huge": {"a": entry("F64", [2**62, 4], 0, 6)},
    "negative": {"a": entry("U8", [-6], 0, 6)},
    "unknown": {"a": entry("U7", [6], 0, 6)},
    "twice": b'{"a":{"dtype":"U8","shape":[6],"data_offsets":[0,6]},'
    b'"a":{"dtype":"U8","shape":[6],"data_offsets":[0,6]}}',
    "not json": b"{" * 20,
    "list": b"[]",
    "nothing": b"",
    "no text": b"\xff\xfe\xfd",
}


@pytest.mark.parametrize("kind", list(MALFORMED))
def test_a_malformed_header_is_an_error(device, tmp_path, kind):
    path = write(tmp_path / "malformed", MALFORMED[kind], b"\0" * 6)
    with pytest.raises(WeighbridgeError) as caught:
        Safetensors(device, path)
    assert caught.value.status in (Status.FORMAT, Status.FILE_TRUNCATED)
    assert str(path) in caught.value.message


@pytest.mark.parametrize("length", [2**64 - 1, 2**63, 100_000_001, 1000])
def test_an_invalid_header_length_is_an_error(device, tmp_path, length):
    path = tmp_path / "malformed"
    path.write_bytes(length.to_bytes(8, "little") + b"{}")
    with pytest.raises(WeighbridgeError) as caught:
        Safetensors(device, path)
    assert caught.value.status in (Status.FORMAT, Status.FILE_TRUNCATED)


def test_a_file_that_is_too_short_is_an_error(device, tmp_path):
    for data, status in [(b"", Status.FILE_EMPTY), (b"1234567", Status.FILE_TRUNCATED)]:
        (tmp_path / "short").write_bytes(data)
        with pytest.raises(OSError) as caught:
            Safetensors(device, tmp_path / "short")
        assert caught.value.status == status


def test_the_names_of_a_hundred_thousand_tensors_are_one_call(device, tmp_path):
    count = 100_000
    header = {
        f"layers.{at}": {"dtype": "U8", "shape": [1], "data_offsets": [at, at + 1]}
        for at in range(count)
    }
    text = json.dumps(header).encode()
    path = tmp_path / "many.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(count))
    with Safetensors(device, path) as file:
        begin = time.perf_counter()
        names = file.keys()
        seconds = time.perf_counter() - begin
        begin = time.perf_counter()
        for at in range(0, count, 100):
            file.tensor_info(names[at])
        of_a_hundredth = time.perf_counter() - begin
    assert names == list(header)
    assert seconds < 50 * of_a_hundredth, (seconds, of_a_hundredth)

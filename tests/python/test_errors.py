"""Exceptions carry status, code and message, and derive from the fitting built-in exceptions."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

import weighbridge
from weighbridge import (
    Device,
    QuantizeOptions,
    Quantizer,
    Status,
    View,
    WeighbridgeError,
    errors,
)


@pytest.mark.parametrize("status", [status for status in Status if status != Status.OK])
def test_an_exception_keeps_its_fields_when_it_is_pickled(status):
    message = "asked, found, to do"
    error = errors.make(status, message, 12, "cuda")
    assert isinstance(error, WeighbridgeError) and str(error) == message
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    for made in (error, again):
        assert (made.status, made.message) == (status, message)
        assert (made.code, made.code_domain) == (12, "cuda")


def test_a_status_from_a_newer_library_is_a_number():
    error = errors.make(999, "new")
    assert (error.status, error.code, error.code_domain) == (999, 0, None)


@pytest.mark.parametrize(
    ("status", "builtin"),
    [
        (Status.OUT_OF_MEMORY, MemoryError),
        (Status.MEMLOCK, MemoryError),
        (Status.CGROUP, MemoryError),
        (Status.DEVICE_MEMORY, MemoryError),
        (Status.FILE_MISSING, FileNotFoundError),
        (Status.FILE_ACCESS, PermissionError),
        (Status.FILE_IO, OSError),
        (Status.FILE_TRUNCATED, OSError),
        (Status.NOT_FOUND, KeyError),
        (Status.INVALID_ARGUMENT, ValueError),
        (Status.OUT_OF_RANGE, ValueError),
        (Status.OVERFLOW, ValueError),
        (Status.FORMAT, ValueError),
        (Status.TIMEOUT, TimeoutError),
        (Status.DLPACK, BufferError),
    ],
)
def test_exceptions_derive_from_built_in_ones(status, builtin):
    assert isinstance(errors.make(status, ""), builtin)


def test_a_file_error_has_the_errno(device, tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        weighbridge.Buffer.map_file(device, tmp_path / "missing")
    assert caught.value.errno == caught.value.code == 2
    assert caught.value.code_domain == "errno"
    assert str(tmp_path / "missing") in str(caught.value)


def test_an_unknown_device_raises():
    with pytest.raises(WeighbridgeError, match="tpu:0") as caught:
        Device("tpu:0")
    assert caught.value.status == Status.NO_DEVICE
    with pytest.raises(ValueError, match="NUL"):
        Device("host\0cuda")
    with pytest.raises(WeighbridgeError) as caught:
        Device("cuda:99")
    assert caught.value.status in (Status.NO_DEVICE, Status.NO_DRIVER)


@pytest.mark.parametrize("value", ["no", "off", "auto", "", 0, 1, [], object()])
@pytest.mark.parametrize("option", ["pin", "portable", "write_combined"])
def test_an_option_that_is_on_off_or_automatic_takes_no_word_for_it(device, option, value):
    with pytest.raises(TypeError, match=rf"{option} is .*: use True, False, or None"):
        device.buffer(4096, **{option: value})
    if option == "pin":
        for name in ("pin", "views"):
            with pytest.raises(TypeError, match=rf"{name} is .*: use True, False, or None"):
                Device(device.name, **{name: value})


def test_a_name_that_is_not_a_string_raises():
    for name in (None, 0, ["host"]):
        with pytest.raises(TypeError, match=r"name is .*it must be a string"):
            Device(name)


def test_the_message_names_an_argument_of_another_kind(device):
    w = weighbridge
    parameters = [w.Parameter("a", "layers.0", "float32", (1024,))]
    calls = {
        "device": [
            lambda: w.Buffer.alloc("host", 1),
            lambda: w.Plan(None, parameters, offload_bytes=4096),
            lambda: w.Safetensors("host", "weights.safetensors"),
            lambda: w.Stream(device.buffer(1)),
            lambda: w.Arbiter(0, 4096),
        ],
        "plan": [lambda: w.Offloader(None), lambda: w.Offloader(device)],
        "offloader": [lambda: w.Arbiter(device, 4096).add(device)],
        "buffer": [
            lambda: w.ExpertCache(device, [w.ExpertTensor(0, "w", "x", "int8", (1, 1))], slots=1)
        ],
        "a parameter": [lambda: w.Plan(device, ["a"], offload_bytes=4096)],
        "options": [lambda: w.Plan(device, parameters, offload_bytes=4096, quantize="fp8")],
    }
    for noun, refused in calls.items():
        for call in refused:
            with pytest.raises(TypeError, match=rf"^{noun} (is|are) .*must be (a )?weighbridge\."):
                call()


def test_shapes_and_strides_that_do_not_fit_are_named(device):
    with device.buffer(64) as buffer:
        with pytest.raises(TypeError, match=r"shape is \['a', 'b'\]; it must be integers"):
            buffer.view("float32", "ab")
        with pytest.raises(ValueError, match=r"shape \[2, 2\] has 2 dimensions, strides \[1\] 1"):
            buffer.view("float32", (2, 2), strides=(1,))


def test_types_that_a_quantizer_lacks_are_named_with_those_it_has(device):
    numbers, codes, scales = (np.zeros(16, kind) for kind in ("f4", "u1", "f4"))
    for option, value, words in [
        ("scale_dtype", "bfloat16", "'float32' or 'float8_e8m0fnu'"),
        ("scale_dtype", None, "'float32' or 'float8_e8m0fnu'"),
        ("format", "float8_e8m0fnu", "'float8_e4m3fn' or 'float8_e5m2'"),
        ("format", "float8_e4m3", "'float8_e4m3fn' or 'float8_e5m2'"),
    ]:
        options = QuantizeOptions(**{option: value})
        with pytest.raises(ValueError, match=f"{option} is {value!r}: use {words}"):
            Quantizer(device).quantize(
                numbers.ctypes.data,
                "float32",
                (4, 4),
                codes.ctypes.data,
                scales.ctypes.data,
                options,
            )
    with pytest.raises(TypeError, match="reject_nonfinite is 'no': use True or False"):
        Quantizer.scales_info("float32", (4, 4), QuantizeOptions(reject_nonfinite="no"))


def test_asking_for_too_much_memory_is_a_memory_error(device):
    with pytest.raises(MemoryError) as caught:
        device.buffer(1 << 60)
    assert caught.value.status in (Status.OUT_OF_MEMORY, Status.CGROUP)
    with pytest.raises(ValueError, match="nbytes"):
        device.buffer(-1)
    with pytest.raises(ValueError, match="nbytes"):
        device.buffer(1 << 64)


@pytest.mark.parametrize(
    ("dtype", "shape", "strides", "offset", "status"),
    [
        ("float32", (5, 5), None, 0, Status.OUT_OF_RANGE),
        ("float32", (16,), None, 1, Status.OUT_OF_RANGE),
        ("float32", (2,), (-1,), 0, Status.OUT_OF_RANGE),
        ("float32", (1 << 62, 1 << 62), None, 0, Status.OVERFLOW),
        ("float32", (-1,), None, 0, Status.INVALID_ARGUMENT),
        ("float32", (1,) * 65, None, 0, Status.INVALID_ARGUMENT),
    ],
)
def test_a_view_outside_of_its_buffer_raises(device, dtype, shape, strides, offset, status):
    with device.buffer(64) as buffer, pytest.raises(ValueError) as caught:
        buffer.view(dtype, shape, strides, offset)
    assert caught.value.status == status


def test_invalid_arguments_raise(device):
    with device.buffer(64) as buffer:
        for arguments in [
            {"dtype": "float31", "shape": (1,)},
            {"dtype": "float32", "shape": (1,), "strides": (1, 1)},
            {"dtype": "float32", "shape": (1 << 64,)},
            {"dtype": "float32", "shape": (1,), "offset": -1},
            {"dtype": "float32", "shape": (1,), "accessor": "gpu"},
            {"dtype": np.dtype(">f4"), "shape": (1,)},
        ]:
            with pytest.raises(ValueError):
                buffer.view(**arguments)
        with pytest.raises(TypeError):
            buffer.view(12, (1,))
    for options in [
        {"huge_pages": "maybe"},
        {"numa_node": "near"},
        {"numa_node": -7},
        {"threads": -1},
        {"threads": 1 << 32},
        {"chunk_bytes": -1},
    ]:
        with pytest.raises(ValueError):
            device.buffer(64, **options)
    for options in [{"colour": "red"}, {"progress": 7}]:
        with pytest.raises(TypeError):
            device.buffer(64, **options)


def test_use_after_close_raises_and_closing_twice_is_a_no_op(device):
    buffer = device.buffer(64)
    view = buffer.view("uint8", (64,))
    stream = device.stream()
    for thing in (buffer, view, stream):
        thing.close()
        thing.close()
        thing.release()
    uses = [
        lambda: buffer.info,
        lambda: buffer.view("uint8", (1,)),
        lambda: buffer.memoryview(),
        lambda: buffer.release_after(None),
        lambda: view.numpy(),
        lambda: view.shape,
        lambda: view.__dlpack__(),
        lambda: view.buffer,
        lambda: stream.handle,
        lambda: stream.synchronize(),
        lambda: buffer.__enter__(),
    ]
    for use in uses:
        with pytest.raises(ValueError, match="is closed") as caught:
            use()
        assert caught.value.status == Status.HANDLE
    assert "closed" in repr(buffer) + repr(view)


def test_use_of_a_closed_device_raises(host):
    device = Device("host")
    buffer = device.buffer(64)
    device.close()
    assert buffer.nbytes == 64
    assert buffer.device is device
    uses = [
        lambda: device.info,
        lambda: device.stats,
        lambda: device.buffer(1),
        lambda: device.stream(),
        lambda: device.alloc(1),
        lambda: device.drain(0),
        lambda: View.copy_from(device, b"x"),
        lambda: View.from_dlpack(device, np.zeros(1)),
    ]
    for use in uses:
        with pytest.raises(ValueError, match="device is closed"):
            use()


def test_context_managers_close_in_any_order(device):
    with device.buffer(64) as buffer:
        with buffer.view("uint8", (64,)) as view:
            buffer.close()
            assert view.numpy().nbytes == 64
            assert view.buffer.nbytes == 64
        assert view.closed
    assert buffer.closed

"""Devices: capabilities and policy, memory, copies, streams, and environment variables."""

from __future__ import annotations

import dataclasses
import time

import numpy as np
import pytest

from native import SLEEP, Gate
from weighbridge import Buffer, Device, Status, View, WeighbridgeError
from weighbridge.stream import stream_handle

OWN = ("WEIGHBRIDGE_DISABLE_PIN_MEMORY", "WEIGHBRIDGE_DISABLE_UVA")
VLLM = (
    "VLLM_WEIGHT_OFFLOADING_DISABLE_PIN_MEMORY",
    "VLLM_WEIGHT_OFFLOADING_DISABLE_UVA",
)


@pytest.fixture(autouse=True)
def no_switches(monkeypatch):
    for variable in (*OWN, *VLLM):
        monkeypatch.delenv(variable, raising=False)


def test_info_has_capabilities_and_policy(device):
    info = device.info
    assert info.kind == device.kind == device.name.split(":")[0]
    assert info.name
    assert 0 < info.free_bytes <= info.total_bytes
    assert info.pin_reason and info.views_reason
    assert dataclasses.asdict(info)["pin"] is info.pin
    if device.kind == "host":
        assert (info.driver_version, info.compute_capability) == (0, 0)
    else:
        assert info.driver_version >= 12000 and info.compute_capability > 0


def test_the_host_device_keeps_to_its_capacity():
    with Device("host", capacity_bytes=1 << 20) as device:
        assert device.info.total_bytes == 1 << 20
        address = device.alloc(1 << 19)
        assert device.info.free_bytes == 1 << 19
        assert device.stats.device_bytes == 1 << 19
        with pytest.raises(MemoryError) as caught:
            device.alloc(1 << 20)
        assert caught.value.status == Status.DEVICE_MEMORY
        device.free(address)
        assert device.stats.device_bytes == 0
        with pytest.raises(ValueError, match=r"Device\.alloc"):
            device.free(address)


@pytest.mark.parametrize("variables", [OWN, VLLM])
def test_variables_disable_pinning_and_views(device, monkeypatch, variables):
    for variable in variables:
        monkeypatch.setenv(variable, "1")
    with Device(device.name) as other:
        info = other.info
        assert (info.pin, info.views) == (False, False)
        assert info.pin_reason == f"{variables[0]}=1"
        assert info.views_reason == f"{variables[1]}=1"
        with other.buffer(4096) as buffer:
            assert buffer.info.pinning == "none"
            assert buffer.info.pinned_bytes == 0
            with pytest.raises(WeighbridgeError) as caught:
                buffer.view("uint8", (1,))
            assert caught.value.status == Status.NOT_MAPPED
            buffer.view("uint8", (1,), accessor="host").close()


@pytest.mark.parametrize("variables", [OWN, VLLM])
def test_an_option_takes_precedence_over_a_variable(device, monkeypatch, variables):
    for variable in variables:
        monkeypatch.setenv(variable, "1")
    with Device(device.name, pin=True, views=True) as other:
        assert (other.info.pin, other.info.views) == (True, True)
        assert other.info.pin_reason == "asked for in the options"
    with Device(device.name, pin=True) as other:
        assert (other.info.pin, other.info.views) == (True, False)


def test_each_variable_disables_one_feature(device, monkeypatch):
    monkeypatch.setenv(VLLM[1], "true")
    with Device(device.name, pin=True) as other:
        assert (other.info.pin, other.info.views) == (True, False)
    monkeypatch.setenv(VLLM[1], "0")
    with Device(device.name, pin=True) as other:
        assert other.info.views


def test_the_librarys_variable_takes_precedence_over_vllms(monkeypatch):
    monkeypatch.setenv(VLLM[1], "1")
    monkeypatch.setenv(OWN[1], "0")
    with Device("host") as device:
        assert device.info.views


@pytest.mark.parametrize("variable", [*OWN, *VLLM])
def test_an_unknown_value_of_a_variable_is_an_error(monkeypatch, variable):
    monkeypatch.setenv(variable, "perhaps")
    with pytest.raises(ValueError, match=f"{variable}=.perhaps."):
        Device("host")


def test_copies_accept_addresses_buffers_and_views(device):
    with device.buffer(64) as source, device.buffer(64) as back, device.stream() as stream:
        np.asarray(source)[:] = np.arange(64)
        memory = device.alloc(64)
        device.copy(memory, source, stream=stream)
        device.copy(back, memory, 32, stream)
        with back.view("uint8", (32,), offset=32) as upper:
            device.copy(upper, memory + 32, stream=stream)
            stream.synchronize()
        assert np.asarray(back).tolist() == list(range(64))
        device.free(memory)


def test_invalid_copies_raise(device):
    with device.buffer(64) as buffer, buffer.view("uint8", (4, 4), (16, 1)) as gaps:
        with pytest.raises(TypeError, match="nbytes"):
            device.copy(1, 2)
        with pytest.raises(ValueError, match="there are 64"):
            device.copy(buffer, buffer, 65)
        with pytest.raises(ValueError, match="gaps"):
            device.copy(buffer, gaps)
        with pytest.raises(WeighbridgeError) as caught:
            device.copy(buffer, 0, 64)
        assert caught.value.status == Status.INVALID_ARGUMENT


def test_copying_into_read_only_memory_raises(device, tmp_path):
    """Otherwise the copy would fault on read-only pages, or silently overwrite the bytes."""
    path = tmp_path / "file"
    path.write_bytes(bytes(64))
    constant = np.zeros(64, np.uint8)
    constant.flags.writeable = False
    with device.buffer(64) as source, device.stream() as stream:
        np.asarray(source)[:] = 7
        mapped = Buffer.map_file(device, path)
        imported = View.from_dlpack(device, constant, accessor="host", pin=False)
        for target in (mapped, mapped.view("uint8", (64,), accessor="host"), imported):
            with pytest.raises(ValueError, match="read-only"):
                device.copy(target, source, stream=stream)
            device.copy(source, target, stream=stream)
        stream.synchronize()
        assert not constant.any() and not np.asarray(source).any()


def test_a_stream_runs_in_order(device):
    size = 1 << 20
    with device.buffer(size) as buffer, device.buffer(size) as other, device.stream() as stream:
        array, memory = np.asarray(buffer), device.alloc(size)
        gate = Gate(stream)
        device.copy(memory, buffer, stream=stream)
        array[:] = 7
        gate.open()
        device.copy(other, memory, stream=stream)
        stream.synchronize()
        assert (np.asarray(other) == 7).all()
        device.free(memory)


def test_a_closed_stream_runs_its_queued_work(device):
    with device.buffer(4) as buffer, device.buffer(4) as other:
        np.asarray(buffer)[:] = 5
        stream = device.stream()
        stream.call(SLEEP, 20_000)
        device.copy(other, buffer, stream=stream)
        stream.close()
        deadline = time.monotonic() + 10
        while np.asarray(other)[3] != 5:
            assert time.monotonic() < deadline
            time.sleep(0.001)


def test_streams_of_every_framework_are_accepted():
    class Torch:
        cuda_stream = 7

    class CuPy:
        ptr = 8

    class Protocol:
        def __cuda_stream__(self):
            return 0, 9

    class Property:
        __cuda_stream__ = (0, 10)

    class Newer:
        __cuda_stream__ = (1, 10)

    given = [None, 0, 5, np.int64(6), Torch(), CuPy(), Protocol(), Property()]
    assert [stream_handle(stream) for stream in given] == [0, 0, 5, 6, 7, 8, 9, 10]
    for wrong in (True, "7", 1.5, object(), Newer()):
        with pytest.raises(TypeError):
            stream_handle(wrong)
    for wrong in (-1, 1 << 64):
        with pytest.raises(ValueError):
            stream_handle(wrong)


def test_the_host_device_rejects_a_foreign_stream(host):
    with pytest.raises(ValueError, match="stream"):
        host.buffer(1).release_after(12345)


def test_drain_waits_until_the_timeout(device):
    stream = device.stream()
    buffer = device.buffer(64)
    gate = Gate(stream)
    buffer.release_after(stream)
    assert device.stats.deferred == 1
    began = time.monotonic()
    with pytest.raises(TimeoutError, match="1 references still wait") as caught:
        device.drain(0.25)
    assert 0.2 < time.monotonic() - began < 5
    assert caught.value.status == Status.TIMEOUT
    with pytest.raises(TimeoutError):
        device.drain(0)
    gate.open()
    device.drain()
    assert device.stats.deferred == 0


def test_cuda_count_is_a_number_or_a_driver_error():
    try:
        assert Device.cuda_count() >= 0
    except WeighbridgeError as error:
        assert error.status in (Status.NO_DRIVER, Status.DRIVER_TOO_OLD, Status.DRIVER)
        assert error.message


def test_a_python_function_is_rejected_as_a_host_function(device):
    with device.stream() as stream, pytest.raises(TypeError, match="it must be an integer"):
        stream.call(lambda user: None)

"""Parameters of unknown types are carried bit for bit, with their true shape."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from weighbridge import (
    Dtype,
    Offloader,
    OpaqueDtype,
    Parameter,
    Plan,
    QuantizeOptions,
    Quantizer,
    Status,
    WeighbridgeError,
)

Q4_K = OpaqueDtype("q4_K", block_bytes=144, block_elements=256)
Q8_0 = OpaqueDtype("q8_0", 34, 32)
SHAPE = (6, 512)
BYTES = 6 * 2 * 144


def blocks(seed, nbytes=BYTES):
    return np.random.default_rng(seed).integers(0, 256, nbytes, np.uint8)


@pytest.fixture
def arrays():
    return [blocks(seed) for seed in range(4)]


@pytest.fixture
def parameters(arrays):
    return [
        Parameter(f"layers.{at}.w", f"layers.{at}", Q4_K, SHAPE, source=array.ctypes.data)
        for at, array in enumerate(arrays)
    ]


def in_host_memory(offloader, name):
    info = offloader.parameter_info(name)
    return ctypes.string_at(info.host_address, info.span_bytes)


@pytest.mark.parametrize("mode", ["zero-copy", "on-demand", "prefetch"])
def test_blocks_are_carried_bit_for_bit(device, parameters, arrays, mode):
    with Plan(device, parameters, offload_bytes=1 << 20, transfer_mode=mode) as plan:
        for planned in plan.parameters:
            assert (planned.dtype, planned.shape) == (Q4_K, SHAPE)
            assert (planned.strides, planned.span_bytes) == ((512, 1), BYTES)
        entry = plan.to_dict()["parameters"][0]
        assert (entry["dtype"], entry["shape"], entry["bytes"]) == ("q4_K", list(SHAPE), BYTES)
        with Offloader(plan) as offloader, device.stream() as stream, device.buffer(BYTES) as out:
            for group, array in enumerate(arrays):
                name = f"layers.{group}.w"
                info = offloader.parameter_info(name)
                assert (info.dtype, info.shape, info.strides) == (Q4_K, SHAPE, (512, 1))
                assert in_host_memory(offloader, name) == array.tobytes()
                with offloader.acquired(group, stream):
                    device.copy(out.address, info.device_address, BYTES, stream=stream)
                stream.synchronize()
                assert bytes(out.memoryview()) == array.tobytes()


def test_a_replacement_may_have_other_blocks(device, parameters):
    with Plan(device, parameters, offload_bytes=1 << 20, transfer_mode="on-demand") as plan:
        offloader = Offloader(plan)
    with offloader:
        same, other = blocks(9), blocks(10, 6 * 16 * 34)
        offloader.replace("layers.1.w", same.ctypes.data, Q4_K, SHAPE)
        assert in_host_memory(offloader, "layers.1.w") == same.tobytes()
        before = offloader.parameter_info("layers.1.w")
        offloader.replace("layers.1.w", other.ctypes.data, Q8_0, SHAPE)
        info = offloader.parameter_info("layers.1.w")
        assert (info.dtype, info.shape, info.span_bytes) == (Q8_0, SHAPE, other.nbytes)
        assert in_host_memory(offloader, "layers.1.w") == other.tobytes()
        # An info does not change.
        assert (before.dtype, before.shape) == (Q4_K, SHAPE)
        offloader.add(Parameter("layers.1.b", "layers.1", Q8_0, (32,), source=other.ctypes.data))
        assert in_host_memory(offloader, "layers.1.b") == other.tobytes()[:34]


def test_views_and_quantization_fail_and_name_the_type(device, parameters):
    with Plan(device, parameters, offload_bytes=1 << 20, transfer_mode="on-demand") as plan:
        offloader = Offloader(plan)
    with offloader:
        for view in (offloader.view, offloader.host_view):
            with pytest.raises(WeighbridgeError, match="q4_K") as caught:
                view("layers.0.w")
            assert caught.value.status == Status.NOT_SUPPORTED
    with device.buffer(BYTES) as buffer:
        with pytest.raises(ValueError, match="q4_K"):
            Dtype.of(Q4_K)
        with (
            Quantizer(device) as quantizer,
            pytest.raises(WeighbridgeError, match="q4_K"),
        ):
            quantizer.quantize(buffer.address, Q4_K, SHAPE, buffer.address, buffer.address)
    with pytest.raises(WeighbridgeError, match="q4_K") as caught:
        Plan(
            device,
            parameters,
            offload_bytes=1 << 20,
            quantize=QuantizeOptions(),
            quantize_select=["layers.2"],
        )
    assert caught.value.status == Status.NOT_SUPPORTED and "layers.2.w" in str(caught.value)


def test_quantizing_all_matrices_leaves_opaque_ones(device, parameters):
    dense = np.ones((4, 64), np.float32)
    more = Parameter("layers.0.up", "layers.0", "float32", (4, 64), source=dense.ctypes.data)
    with Plan(
        device,
        [*parameters, more],
        offload_bytes=1 << 20,
        quantize=QuantizeOptions(),
        transfer_mode="on-demand",
    ) as plan:
        types = {planned.name: planned.dtype for planned in plan.parameters}
        assert types["layers.0.w"] == Q4_K and types["layers.0.up"] == Dtype.F8_E4M3FN


@pytest.mark.parametrize(
    ("dtype", "shape", "text"),
    [
        (Q4_K, (512, 6), "multiple"),
        (Q4_K, (), "multiple"),
        (OpaqueDtype("bfloat16", 2), (4,), "known type"),
        (OpaqueDtype("F8_E4M3", 1), (4,), "known type"),
        (OpaqueDtype("", 2), (4,), "name"),
        (OpaqueDtype("x" * 64, 2), (4,), "name"),
        (OpaqueDtype("q", 0), (4,), "blocks of 1 elements in 0 bytes"),
        (OpaqueDtype("q", 2, 0), (4,), "blocks of 0 elements"),
    ],
)
def test_types_that_cannot_be_are_refused(device, dtype, shape, text):
    with pytest.raises(ValueError, match=text):
        Plan(device, [Parameter("w", "g", dtype, shape)], offload_bytes=1 << 20)


def test_strides_of_blocks_are_refused(device):
    parameter = Parameter("w", "g", Q4_K, SHAPE, strides=(1024, 1))
    with pytest.raises(ValueError, match="strides"):
        Plan(device, [parameter], offload_bytes=1 << 20)

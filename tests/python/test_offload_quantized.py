"""Parameters that are kept in 8 bits: planned, committed, carried and replaced so."""

from __future__ import annotations

import numpy as np
import pytest
from test_offloader import parameter_of, read
from test_quantizer import numbers, reference

from weighbridge import Offloader, Plan, Scheme, Status, WeighbridgeError

LAYERS = 4
SCHEME = Scheme(block=(32, 64))


def model() -> dict[str, np.ndarray]:
    found = {}
    for layer in range(LAYERS):
        found[f"layers.{layer}.up"] = numbers((96, 128), "bfloat16", layer)
        found[f"layers.{layer}.down"] = numbers((128, 96), "float32", layer + 9).T
        found[f"layers.{layer}.norm"] = numbers((128,), "bfloat16", layer)
    found["layers.3.tied"] = found["layers.0.up"]
    return found


def parameters(arrays):
    return [parameter_of(name, array) for name, array in arrays.items()]


def matrices(arrays):
    return {name for name, array in arrays.items() if array.ndim == 2}


def check(device, offloader, arrays, stream, scheme=SCHEME) -> None:
    """Every parameter is there, in 8 bits with its scales, or as it was."""
    for number, group in enumerate(offloader.plan.groups):
        with offloader.acquired(number, stream):
            for name, array in arrays.items():
                if not name.startswith(group.name + "."):
                    continue
                seen = read(device, offloader.view(name), stream) if array.ndim == 1 else None
                if seen is not None:
                    assert np.array_equal(seen, array)
                    continue
                scales, codes = reference(array, scheme)
                suffix = "_scale_inv" if min(scheme.block) > 1 else "_scale"
                found = read(device, offloader.view(name), stream).view(np.uint8)
                assert np.array_equal(found, codes), name
                found = read(device, offloader.view(name + suffix), stream)
                assert np.array_equal(found, scales[0]), name


@pytest.mark.parametrize("budget", [1 << 20, 40_000])
@pytest.mark.parametrize("carrier", ["view", "on-demand", "prefetch", "auto"])
def test_what_is_acquired_is_there_in_8_bits(device, carrier, budget):
    arrays = model()
    plan = Plan(device, parameters(arrays), offload_bytes=budget, carrier=carrier, quantize=SCHEME)
    told = {p["name"]: p for p in plan.to_dict()["parameters"]}
    for name in matrices(arrays):
        assert told[name]["dtype"] == "float8_e4m3fn"
        assert told[name]["quantized_from"] == arrays[name].dtype.name
        assert told[name]["bytes"] == arrays[name].size
        assert told[name + "_scale_inv"]["dtype"] == "float32"
    ties = {p.name: p.tied_to for p in plan.parameters}
    assert ties["layers.3.tied"] == ties["layers.0.up"]
    assert ties["layers.3.tied_scale_inv"] == ties["layers.0.up_scale_inv"] != ties["layers.0.up"]
    with device.stream() as stream, Offloader(plan, stream) as offloader:
        assert offloader.stats.asked_bytes <= budget
        for _ in range(2):
            check(device, offloader, arrays, stream)
        carriers = {offloader.info(name).carrier for name in matrices(arrays)}
        assert ("resident" in carriers) == (budget < 1 << 20)


def test_a_part_is_quantized(device):
    arrays = model()
    plan = Plan(
        device,
        parameters(arrays),
        offload_bytes=1 << 20,
        quantize=Scheme("float8_e5m2", "float8_e8m0fnu", (1, 0)),
        quantize_select=["up", "*.3.*"],
    )
    kinds = {p["name"]: p["dtype"] for p in plan.to_dict()["parameters"]}
    assert kinds["layers.0.up"] == kinds["layers.3.down"] == "float8_e5m2"
    assert kinds["layers.0.down"] == "float32" and kinds["layers.3.norm"] == "bfloat16"
    assert kinds["layers.0.up_scale"] == "float8_e8m0fnu"
    assert "layers.0.down_scale" not in kinds


@pytest.mark.parametrize("carrier", ["view", "prefetch"])
def test_replacing_quantizes_again(device, carrier):
    arrays = model()
    del arrays["layers.3.tied"]
    plan = Plan(device, parameters(arrays), offload_bytes=60_000, carrier=carrier, quantize=SCHEME)
    with device.stream() as stream, Offloader(plan, stream) as offloader:
        check(device, offloader, arrays, stream)
        before = offloader.stats
        for seed, name in enumerate(sorted(matrices(arrays))):
            arrays[name] = numbers(arrays[name].shape, "float16", seed + 50)
            array = arrays[name]
            source = array.__array_interface__["data"][0]
            offloader.replace(name, source, array.dtype, array.shape, None, stream)
        check(device, offloader, arrays, stream)
        after = offloader.stats
        assert after.generation == before.generation, "nothing has moved"
        assert after.asked_bytes == before.asked_bytes == after.peak_mapped_bytes
        array = numbers((8, 8), "float32")
        with pytest.raises(WeighbridgeError, match="shape") as caught:
            source = array.__array_interface__["data"][0]
            offloader.replace("layers.1.up", source, array.dtype, array.shape, None, stream)
        assert caught.value.status == Status.INVALID_ARGUMENT
        check(device, offloader, arrays, stream)


def test_what_cannot_be(device):
    arrays = model()
    for options, status in [
        ({"quantize": SCHEME, "quantize_select": "nothing"}, Status.SELECTOR),
        ({"quantize": Scheme("float16")}, Status.NOT_SUPPORTED),
    ]:
        with pytest.raises(WeighbridgeError) as caught:
            Plan(device, parameters(arrays), offload_bytes=1 << 20, **options)
        assert caught.value.status == status
    arrays["layers.0.up_scale_inv"] = np.zeros(3, np.float32)
    with pytest.raises(ValueError, match=r"layers\.0\.up_scale_inv"):
        Plan(device, parameters(arrays), offload_bytes=1 << 20, quantize=SCHEME)

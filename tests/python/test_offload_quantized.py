"""Parameters in FP8: planned, committed, transferred and replaced."""

from __future__ import annotations

import numpy as np
import pytest

from fp8_reference import blocks, numbers, reference
from parameters import parameter_of, read, replace
from weighbridge import Offloader, Plan, QuantizeOptions, Status, WeighbridgeError

LAYERS = 4
OPTIONS = blocks(32, 64)


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


def check(device, offloader, arrays, stream, options=OPTIONS) -> None:
    """Checks every parameter: the codes and scales of a matrix, the bytes of others."""
    for number, group in enumerate(offloader.plan.groups):
        with offloader.acquired(number, stream):
            for name, array in arrays.items():
                if not name.startswith(group.name + "."):
                    continue
                found = read(device, offloader.view(name), stream)
                if array.ndim == 1:
                    assert np.array_equal(found, array)
                    continue
                scales, codes = reference(array, options)
                assert np.array_equal(found.view(np.uint8), codes), name
                suffix = "_scale_inv" if options.block_rows else "_scale"
                found = read(device, offloader.view(name + suffix), stream)
                assert np.array_equal(found.reshape(scales[0].shape), scales[0]), name


@pytest.mark.parametrize("budget", [1 << 20, 40_000])
@pytest.mark.parametrize("transfer_mode", ["zero-copy", "on-demand", "prefetch", "auto"])
def test_an_acquired_matrix_is_in_fp8_with_its_scales(device, transfer_mode, budget):
    arrays = model()
    plan = Plan(
        device,
        parameters(arrays),
        offload_bytes=budget,
        transfer_mode=transfer_mode,
        quantize=OPTIONS,
    )
    planned = {p["name"]: p for p in plan.to_dict()["parameters"]}
    for name in matrices(arrays):
        assert planned[name]["dtype"] == "float8_e4m3fn"
        assert planned[name]["quantized_from"] == arrays[name].dtype.name
        assert planned[name]["bytes"] == arrays[name].size
        assert planned[name + "_scale_inv"]["dtype"] == "float32"
    ties = {p.name: p.tied_to for p in plan.parameters}
    assert ties["layers.3.tied"] == ties["layers.0.up"]
    assert ties["layers.3.tied_scale_inv"] == ties["layers.0.up_scale_inv"] != ties["layers.0.up"]
    with device.stream() as stream, Offloader(plan, stream) as offloader:
        assert offloader.stats.asked_bytes <= budget
        for _ in range(2):
            check(device, offloader, arrays, stream)
        infos = [offloader.parameter_info(name) for name in matrices(arrays)]
        assert any(info.placement == "resident" for info in infos) == (budget < 1 << 20)


def test_only_selected_matrices_are_quantized(device):
    arrays = model()
    plan = Plan(
        device,
        parameters(arrays),
        offload_bytes=1 << 20,
        quantize=QuantizeOptions("float8_e5m2", "float8_e8m0fnu", block_rows=1),
        quantize_select=["up", "*.3.*"],
    )
    kinds = {p["name"]: p["dtype"] for p in plan.to_dict()["parameters"]}
    assert kinds["layers.0.up"] == kinds["layers.3.down"] == "float8_e5m2"
    assert kinds["layers.0.down"] == "float32" and kinds["layers.3.norm"] == "bfloat16"
    assert kinds["layers.0.up_scale"] == "float8_e8m0fnu"
    assert "layers.0.down_scale" not in kinds


@pytest.mark.parametrize("transfer_mode", ["zero-copy", "prefetch"])
def test_a_replacement_is_quantized(device, transfer_mode):
    arrays = model()
    del arrays["layers.3.tied"]
    plan = Plan(
        device,
        parameters(arrays),
        offload_bytes=60_000,
        transfer_mode=transfer_mode,
        quantize=OPTIONS,
    )
    with device.stream() as stream, Offloader(plan, stream) as offloader:
        check(device, offloader, arrays, stream)
        before = offloader.stats
        for seed, name in enumerate(sorted(matrices(arrays))):
            arrays[name] = numbers(arrays[name].shape, "float16", seed + 50)
            replace(offloader, name, arrays[name], stream)
        check(device, offloader, arrays, stream)
        after = offloader.stats
        assert after.generation == before.generation, "no address has changed"
        assert after.asked_bytes == before.asked_bytes == after.peak_mapped_bytes
        with pytest.raises(WeighbridgeError, match="shape") as caught:
            replace(offloader, "layers.1.up", numbers((8, 8), "float32"), stream)
        assert caught.value.status == Status.INVALID_ARGUMENT
        check(device, offloader, arrays, stream)


def test_invalid_plans_raise(device):
    arrays = model()
    selected = {"quantize": OPTIONS, "quantize_select": "nothing"}
    with pytest.raises(WeighbridgeError) as caught:
        Plan(device, parameters(arrays), offload_bytes=1 << 20, **selected)
    assert caught.value.status == Status.SELECTOR
    with pytest.raises(ValueError, match="float16"):
        Plan(device, parameters(arrays), offload_bytes=1 << 20, quantize=QuantizeOptions("float16"))
    arrays["layers.0.up_scale_inv"] = np.zeros(3, np.float32)
    with pytest.raises(ValueError, match=r"layers\.0\.up_scale_inv"):
        Plan(device, parameters(arrays), offload_bytes=1 << 20, quantize=OPTIONS)


def test_matrices_that_are_quantized_at_the_same_time_are_all_right(device):
    """10 MiB each; one has a scale for the whole, for which it needs more staging memory alone."""
    options = blocks(0, 0)
    arrays = {f"layers.{at}.w": numbers((1000 + at, 2600), "float32", at) for at in range(6)}
    arrays["layers.6.w"] = numbers((4500, 2600), "float32", 7)
    plan = Plan(device, parameters(arrays), offload_bytes=1 << 24, quantize=options)
    reports = []
    with device.stream() as stream:
        offloader = Offloader(
            plan, stream, threads=3, progress=lambda *report: reports.append(report)
        )
        with offloader:
            check(device, offloader, arrays, stream, options)
            kept = {offloader.parameter_info(name).placement for name in arrays}
    assert kept == {"resident", "offloaded"}
    done = [done for phase, done, _ in reports if phase == "quantize"]
    total = sum(array.nbytes for array in arrays.values())
    assert done == sorted(done) and done[-1] == total
    assert {of for phase, _, of in reports if phase == "quantize"} == {total}


def test_a_matrix_that_is_refused_among_several_leaves_nothing(device):
    options = blocks(1, 0, reject_nonfinite=True)
    arrays = {f"layers.{at}.w": numbers((1000, 2600), "float32", at) for at in range(8)}
    arrays["layers.5.w"] = arrays["layers.5.w"].copy()
    arrays["layers.5.w"][1, 1] = np.inf
    before = device.stats
    with Plan(device, parameters(arrays), offload_bytes=1 << 24, quantize=options) as plan:
        with pytest.raises(WeighbridgeError, match="1 of 2600000 numbers") as raised:
            Offloader(plan, threads=3)
    assert raised.value.status == Status.NOT_FINITE
    assert device.stats.device_bytes == before.device_bytes
    assert device.stats.mapped_bytes == before.mapped_bytes

"""Weights that the device keeps compressed: plans, arrays and PyTorch models, bit for bit."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest

from parameters import parameter_of, read, replace
from weighbridge import Offloader, Plan

torch = pytest.importorskip("torch", reason="torch is not installed")

from test_torch_compressed import WIDTH, Net, same  # noqa: E402

import weighbridge.torch as wt  # noqa: E402

LAYERS = 12


def model() -> dict[str, np.ndarray]:
    """Weights of a layer each, of which a half is zeros: 250 KB that become 105 KB."""
    random = np.random.default_rng(5)
    found = {}
    for layer in range(LAYERS):
        weight = random.normal(0, 0.02, (250, 256)).astype(np.float32)
        weight[125:] = 0
        found[f"layers.{layer}.w"] = weight
    return found


def plan_of(device, arrays, part, **options) -> Plan:
    parameters = [parameter_of(name, array) for name, array in arrays.items()]
    total = sum(array.nbytes for array in arrays.values())
    options.setdefault("compress", ["layers"])
    return Plan(device, parameters, device_bytes=int(part * total), **options)


@pytest.mark.parametrize("part", [0.45, 0.7, 0.8])
def test_the_device_keeps_what_is_needed_within_its_bytes(device, part):
    arrays = model()
    plan = plan_of(device, arrays, part, link_bytes_per_second=25e9)
    kept = [info for info in plan.parameters if info.device_encoded_bytes]
    info = plan.info
    assert sum(one.device_encoded_bytes for one in kept) == info.device_encoded_bytes > 0
    assert sum(one.span_bytes for one in kept) == info.device_decoded_bytes
    assert all(one.reason.endswith("%, on the device") for one in kept)
    held = info.resident_bytes + info.slot_bytes + info.device_encoded_bytes
    total = sum(array.nbytes for array in arrays.values())
    assert held <= int(part * total)
    assert (info.step_bytes > 0) == (part < 0.6)
    totals = json.loads(plan.to_json())["totals"]
    assert totals["device_encoded_bytes"] == info.device_encoded_bytes
    raw = plan_of(device, arrays, part, compress=False, link_bytes_per_second=25e9)
    assert raw.info.device_encoded_bytes == 0
    assert info.step_seconds < raw.info.step_seconds
    with device.stream() as stream, Offloader(plan, stream) as offloader:
        stats = offloader.stats
        assert info.resident_bytes + stats.slot_bytes + stats.device_encoded_bytes <= int(
            part * total
        )
        assert stats.device_decoded_bytes == info.device_decoded_bytes
        for _ in range(2):
            for number in range(LAYERS):
                with offloader.acquired(number, stream):
                    name = f"layers.{number}.w"
                    assert np.array_equal(read(device, offloader.view(name), stream), arrays[name])
        if info.step_bytes == 0:
            assert offloader.stats.moved_bytes == 0
        # Bits without order do not fit where their predecessors are kept.
        bits = np.random.default_rng(6).integers(0, 1 << 32, (250, 256), dtype=np.uint32)
        arrays[kept[0].name] = bits.view(np.float32)
        replace(offloader, kept[0].name, arrays[kept[0].name], stream)
        with offloader.acquired(kept[0].group, stream):
            found = read(device, offloader.view(kept[0].name), stream)
        assert found.tobytes() == arrays[kept[0].name].tobytes()
        one = offloader.parameter_info(offloader.find_parameter(kept[0].name))
        assert one.device_encoded_bytes == 0 and "more bytes" in one.device_encoded_reason


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outputs_are_those_of_the_resident_model(where, dtype):
    torch.manual_seed(1)
    resident = Net().to(where, dtype).eval()
    with torch.no_grad():  # so that they compress well
        for layer in resident.layers:
            for one in layer.parameters():
                if one.dim() == 2:
                    one[one.shape[0] // 2 :] = 0
    model = copy.deepcopy(resident)
    payload = sum(one.numel() * one.element_size() for one in model.parameters())
    handle = wt.offload(model, device_bytes=payload * 85 // 100, depth=1, compress=["layers"])
    stats = handle.stats
    assert stats.device_decoded_bytes > 0
    assert stats.resident_bytes + stats.slot_bytes + stats.device_encoded_bytes <= payload
    x = torch.randn(3, WIDTH, device=where, dtype=dtype)
    with torch.no_grad():
        expected = resident(x)
        for _ in range(3):
            assert same(model(x), expected)
    for name, one in model.state_dict().items():
        assert same(one, resident.state_dict()[name]), name
    handle.remove()
    with torch.no_grad():
        assert same(model(x), expected)

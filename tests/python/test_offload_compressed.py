"""Parameters that are carried compressed: planned, committed, transferred and read."""

from __future__ import annotations

import numpy as np
import pytest

from parameters import parameter_of, read, replace
from weighbridge import Device, Offloader, Plan, Status, WeighbridgeError

LAYERS = 4


def model() -> dict[str, np.ndarray]:
    """Normally distributed values, which compress, and integers, which do not."""
    random = np.random.default_rng(3)
    found = {}
    for layer in range(LAYERS):
        weight = random.normal(0, 0.02, (300, 256)).astype(np.float32)
        found[f"layers.{layer}.up"] = weight
        found[f"layers.{layer}.down"] = weight[:, ::-1].astype(np.float16).T
        found[f"layers.{layer}.codes"] = random.integers(0, 256, 40000).astype(np.uint8)
    return found


@pytest.fixture
def stream(device):
    with device.stream() as made:
        yield made


def plan_of(device, arrays, **options) -> Plan:
    options.setdefault("offload_bytes", 1 << 24)
    options.setdefault("transfer_mode", "prefetch")
    parameters = [parameter_of(name, array) for name, array in arrays.items()]
    return Plan(device, parameters, allow=["everything-fits"], **options)


def check(device, offloader, arrays, stream) -> None:
    for number, group in enumerate(offloader.plan.groups):
        with offloader.acquired(number, stream):
            for name, array in arrays.items():
                if name.startswith(group.name + "."):
                    assert np.array_equal(read(device, offloader.view(name), stream), array), name
    for name, array in arrays.items():
        lowest = array if array.flags.c_contiguous else array.T
        assert bytes(offloader.read(name)) == np.ascontiguousarray(lowest).tobytes(), name


def test_selected_parameters_are_compressed_bit_for_bit(device, stream):
    arrays = model()
    plan = plan_of(device, arrays, compress=["up", "down"])
    small = {info.name for info in plan.parameters if info.encoded_bytes}
    assert small == {name for name in arrays if not name.endswith("codes")}
    assert plan.info.encoded_bytes == sum(info.encoded_bytes for info in plan.parameters)
    assert 0.8 < plan.info.encoded_bytes / plan.info.decoded_bytes < 0.88
    reasons = {info.name.rpartition(".")[2]: info.reason for info in plan.parameters}
    assert "; compressed to 8" in reasons["up"] and "no selector" in reasons["codes"]
    with Offloader(plan, stream) as offloader:
        check(device, offloader, arrays, stream)
        stats = offloader.stats
        assert stats.decoded_bytes == plan.info.decoded_bytes
        assert abs(stats.encoded_bytes / plan.info.encoded_bytes - 1) < 0.01
        # No bit of an exponent is saved of these.
        bits = np.random.default_rng(1).integers(0, 2**31, (300, 256)).astype(np.uint32)
        arrays["layers.1.up"] = (bits % 0x7F800000).astype(np.uint32).view(np.float32)
        before = offloader.generation
        replace(offloader, "layers.1.up", arrays["layers.1.up"], stream)
        assert offloader.generation == before
        check(device, offloader, arrays, stream)


@pytest.mark.parametrize("compress", [False, "off"])
def test_off_compresses_nothing(device, compress):
    plan = plan_of(device, model(), compress=compress)
    assert plan.info.encoded_bytes == 0 < plan.info.offloaded_bytes


def test_auto_takes_what_is_large_and_worth_it(device, stream):
    arrays = model()
    plan = plan_of(device, arrays, compress="auto", link_bytes_per_second=1e9)
    found = {info.name: (info.encoded_bytes > 0, info.reason) for info in plan.parameters}
    assert found["layers.0.up"][0]  # 307,200 bytes, to 84 %
    assert not found["layers.0.down"][0] and "too few" in found["layers.0.down"][1]
    among = plan_of(device, arrays, compress="auto", compress_select="layers.2")
    assert [i.name for i in among.parameters if i.encoded_bytes] == ["layers.2.up"]
    as_dict = among.to_dict()
    assert as_dict["options"]["compress"] == {"kind": "auto", "select": ["layers.2"]}
    assert as_dict["totals"]["encoded_bytes"] == among.info.encoded_bytes
    assert plan.info.decode_seconds == pytest.approx(0) or plan.info.decode_seconds > 0
    raw = plan_of(device, arrays, link_bytes_per_second=1e9)
    assert raw.info.encoded_bytes == 0 and plan.info.step_seconds <= raw.info.step_seconds
    with Offloader(plan, stream) as offloader:
        check(device, offloader, arrays, stream)


def test_host_views_are_refused_and_reading_works(device, stream):
    arrays = model()
    with Offloader(plan_of(device, arrays, compress=["up"]), stream) as offloader:
        assert offloader.parameter_info("layers.0.up").host_address is None
        for view in (offloader.host_view, offloader.zero_copy_view):
            with pytest.raises(WeighbridgeError, match="compressed") as caught:
                view("layers.0.up")
            assert caught.value.status == Status.NOT_SUPPORTED
        assert offloader.host_view("layers.0.codes").info.span_bytes == 40000
        with pytest.raises(KeyError):
            offloader.read("layers.9.up")


def test_arguments_are_checked(device):
    arrays = model()
    with pytest.raises(ValueError, match="compress_select"):
        plan_of(device, arrays, compress=["up"], compress_select=["down"])
    with pytest.raises(WeighbridgeError, match=r"no\.such"):
        plan_of(device, arrays, compress="no.such")
    with pytest.raises(WeighbridgeError, match="compress_select has 1"):
        plan_of(device, arrays, compress_select="up")


def test_without_views_everything_stays_raw(monkeypatch):
    monkeypatch.setenv("WEIGHBRIDGE_DISABLE_UVA", "1")
    arrays = model()
    with Device("host") as device:
        plan = plan_of(device, arrays, compress=["up"])
        assert plan.info.encoded_bytes == 0
        assert "decodes from mapped host memory" in plan.parameter_info("layers.0.up").reason

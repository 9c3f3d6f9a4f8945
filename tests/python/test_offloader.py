"""Offloaders: acquired parameters have their bytes, in every transfer mode, after every change."""

from __future__ import annotations

import dataclasses
import json
import random

import numpy as np
import pytest

from native import Gate
from parameters import LAYERS, TRANSFER_MODES, Model, check_step, parameter_of, read, replace
from weighbridge import Buffer, Device, Offloader, Parameter, Plan, Status, View, WeighbridgeError


@pytest.mark.parametrize("pin", [None, False])
@pytest.mark.parametrize("transfer_mode", TRANSFER_MODES)
def test_an_acquired_parameter_has_its_bytes(device, transfer_mode, pin):
    model = Model()
    opened = Device("host" if device.info.kind == "host" else "cuda:0", pin=pin)
    if transfer_mode == "zero-copy" and not opened.info.views:
        with pytest.raises(WeighbridgeError) as caught:
            Plan(opened, model.parameters(), offload_bytes=1 << 20, transfer_mode=transfer_mode)
        assert caught.value.status == Status.NOT_MAPPED
        return
    plan = Plan(opened, model.parameters(), offload_bytes=1 << 20, transfer_mode=transfer_mode)
    with opened.stream() as stream, Offloader(plan, stream) as offloader:
        check_step(opened, offloader, model.arrays, stream)
        check_step(opened, offloader, model.arrays, stream)
        order = [random.Random(7).randrange(LAYERS) for _ in range(30)]
        check_step(opened, offloader, model.arrays, stream, order)
        check_step(opened, offloader, model.arrays, stream)
        stats, planned = offloader.stats, plan.info
        assert stats.offloaded_bytes == planned.offloaded_bytes
        assert stats.asked_bytes == planned.arena_bytes
        assert stats.resident_bytes + stats.offloaded_bytes == planned.payload_bytes
        assert stats.slot_bytes == planned.slot_bytes == opened.stats.device_bytes
        assert (stats.pinned_bytes > 0) == (pin is None)
        staged = pin is False and opened.info.kind == "cuda"
        assert stats.staging_bytes == (8 << 20 if staged else 0)
        assert opened.stats.asked_bytes == stats.asked_bytes + stats.staging_bytes
        assert opened.stats.mapped_bytes == stats.mapped_bytes + stats.staging_bytes
        assert (stats.moved_bytes > 0) == (transfer_mode != "zero-copy")
    plan.close()
    opened.close()


def test_zero_copy_into_pageable_memory_fails_at_commit(device):
    if device.info.kind == "host":
        pytest.skip("the host device reads all memory; this fails on a CUDA device")
    plan = Plan(device, Model().parameters(), offload_bytes=1 << 20, transfer_mode="zero-copy")
    with pytest.raises(WeighbridgeError) as caught:
        Offloader(plan, pin=False)
    assert caught.value.status == Status.NOT_MAPPED
    assert device.stats.mapped_bytes == device.stats.device_bytes == 0


def test_views_of_slots_can_be_copied(device):
    model, name = Model(), "layers.0.w0"
    array = model.arrays[name]
    plan = Plan(device, model.parameters(), offload_bytes=1 << 20, transfer_mode="prefetch")
    with device.stream() as stream, Offloader(plan, stream) as offloader:
        with offloader.acquired(0, stream), device.buffer(array.nbytes) as back:
            view = offloader.view(name)
            device.copy(back, view, stream=stream)
            stream.synchronize()
            seen = np.asarray(back).view(array.dtype).reshape(array.shape)
            assert np.array_equal(seen, array)
            seen += 1
            device.copy(view, back, stream=stream)
            assert np.array_equal(read(device, view, stream), array + 1)


def test_a_view_of_a_slot_is_not_an_array(device):
    """A slot has no host address on a CUDA device: NumPy gets an error, not other bytes."""
    model, name = Model(), "layers.0.w0"
    plan = Plan(device, model.parameters(), offload_bytes=1 << 20, transfer_mode="prefetch")
    with device.stream() as stream, Offloader(plan, stream) as offloader:
        with offloader.acquired(0, stream):
            view = offloader.view(name)
            stream.synchronize()
            if device.kind == "host":
                assert np.array_equal(view.numpy(), model.arrays[name])
                return
            for look in (
                view.numpy,
                lambda: np.asarray(view),
                lambda: View.copy_from(device, view),
            ):
                with pytest.raises(
                    WeighbridgeError, match=r"device memory.*Device\.copy"
                ) as caught:
                    look()
                assert caught.value.status == Status.NOT_MAPPED


def test_a_view_of_a_slot_cannot_be_exported_to_the_host(device):
    """DLPack's protocol requires a BufferError."""
    plan = Plan(device, Model().parameters(), offload_bytes=1 << 20, transfer_mode="prefetch")
    with device.stream() as stream, Offloader(plan, stream) as offloader:
        with offloader.acquired(0, stream):
            view = offloader.view("layers.0.w0")
            if device.kind == "host":
                assert np.from_dlpack(view).shape == (64, 33)
                return
            with pytest.raises(BufferError, match="device memory"):
                view.__dlpack__(dl_device=(1, 0))


def test_parameters_beyond_the_budget_are_resident(device):
    model = Model()
    plan = Plan(device, model.parameters(), offload_bytes=16384, order="largest")
    with device.stream() as stream, Offloader(plan, stream) as offloader:
        check_step(device, offloader, model.arrays, stream)
        kinds = {(planned.placement, planned.transfer_mode) for planned in plan.parameters}
        assert kinds == {("resident", "auto"), ("offloaded", "prefetch")}
        for planned in plan.parameters:
            array = model.arrays[planned.name]
            if planned.placement == "resident" and array.size:
                assert np.array_equal(read(device, offloader.view(planned.name), stream), array)
                with pytest.raises(KeyError):
                    offloader.host_view(planned.name)
        assert offloader.stats.asked_bytes <= 16384


def test_tied_parameters_are_stored_once(device):
    model = Model()
    plan = Plan(device, model.parameters(), offload_bytes=1 << 20)
    first = plan.find_parameter("layers.0.tied")
    assert plan.parameter_info(first).tied_to == first
    assert plan.parameter_info("layers.5.tied").tied_to == first
    with device.stream() as stream, Offloader(plan, stream) as offloader:
        one, other = (
            offloader.parameter_info("layers.0.tied"),
            offloader.parameter_info("layers.5.tied"),
        )
        assert one.host_address == other.host_address


def test_parameters_are_found_by_index_and_by_name_and_all_at_once(device):
    model = Model()
    plan = Plan(device, model.parameters(), offload_bytes=16384, transfer_mode="prefetch")
    with device.stream() as stream, Offloader(plan, stream) as offloader:
        infos = offloader.parameter_infos()
        assert len(infos) == offloader.stats.parameters == len(model.arrays)
        for index, info in enumerate(infos):
            planned = plan.parameter_info(info.name)
            assert (info.placement, info.group) == (planned.placement, planned.group)
            assert info == offloader.parameter_info(index) == offloader.parameter_info(info.name)
            assert index == offloader.find_parameter(info.name)
            if info.span_bytes:
                assert info.owned
                assert (info.host_address is None) == (info.placement == "resident")
                assert offloader.view(index).shape == model.arrays[info.name].shape
        for index, group in enumerate(plan.groups):
            assert plan.group_info(index) == group
            assert offloader.find_group(group.name) == index


def test_unknown_names_and_indices_raise(device):
    plan = Plan(device, Model().parameters(), offload_bytes=1 << 20)
    with Offloader(plan) as offloader:
        by_name = (offloader.find_parameter, offloader.parameter_info, offloader.view)
        for call in (*by_name, offloader.find_group, plan.find_parameter, plan.parameter_info):
            with pytest.raises(KeyError):
                call("layers.0.none")
        by_index = (offloader.parameter_info, offloader.view, offloader.host_view)
        for call in (*by_index, plan.parameter_info, plan.group_info):
            with pytest.raises(ValueError) as caught:
                call(1000)
            assert caught.value.status == Status.OUT_OF_RANGE


@pytest.mark.parametrize("transfer_mode", TRANSFER_MODES)
def test_a_replaced_parameter_has_its_new_bytes(device, transfer_mode):
    model = Model()
    plan = Plan(device, model.parameters(), offload_bytes=1 << 20, transfer_mode=transfer_mode)
    rng = np.random.default_rng(3)
    with device.stream() as stream, Offloader(plan, stream) as offloader:
        check_step(device, offloader, model.arrays, stream)
        fresh = offloader.stats
        assert fresh.peak_mapped_bytes == fresh.mapped_bytes
        assert fresh.peak_slot_bytes == fresh.slot_bytes
        for name, array in [
            ("layers.1.w0", rng.standard_normal((64, 33)).astype(np.float32)),  # new data
            ("layers.2.w0", rng.integers(0, 255, (64, 33)).astype(np.uint8)),  # smaller, other type
            ("layers.3.w0", rng.standard_normal((100, 100))),  # larger
            ("layers.3.w0", rng.standard_normal((200, 100))),  # larger again
            ("layers.4.w4", rng.standard_normal((3, 14))[:, ::2]),  # other strides
            ("layers.5.tied", rng.standard_normal(50)),  # untied
            ("layers.5.w1", np.zeros((0,), np.float32)),  # empty
        ]:
            replace(offloader, name, array, stream)
            model.arrays[name] = array
            check_step(device, offloader, model.arrays, stream)
        before = offloader.stats
        offloader.compact(stream)
        check_step(device, offloader, model.arrays, stream)
        after = offloader.stats
        assert after.generation > before.generation
        assert after.offloaded_bytes == before.offloaded_bytes
        assert after.slot_bytes == device.stats.device_bytes
        # An oversized replacement gets its own buffer; an older one of its own is freed.
        assert after.asked_bytes - plan.info.arena_bytes < 170_000
        # The second one's 160,000 bytes were allocated after the first one's 80,000 were freed.
        assert after.peak_mapped_bytes - fresh.mapped_bytes < 200_000
        assert after.peak_mapped_bytes >= after.mapped_bytes > fresh.mapped_bytes
        assert after.peak_slot_bytes >= after.slot_bytes


def test_a_replacement_over_the_budget_changes_nothing(device):
    model = Model()
    arena = Plan(device, model.parameters(), offload_bytes=1 << 20).info.arena_bytes
    plan = Plan(device, model.parameters(), offload_bytes=arena)
    with device.stream() as stream, Offloader(plan, stream) as offloader:
        with pytest.raises(WeighbridgeError) as caught:
            replace(offloader, "layers.1.w0", np.ones(100_000))
        assert caught.value.status == Status.BUDGET
        assert str(arena) in str(caught.value)
        check_step(device, offloader, model.arrays, stream)


def test_an_acquired_parameter_cannot_be_replaced(device):
    model = Model()
    plan = Plan(device, model.parameters(), offload_bytes=1 << 20)
    array = model.arrays["layers.2.w0"] * 2
    with device.stream() as stream, Offloader(plan, stream) as offloader:
        with offloader.acquired(2, stream):
            with pytest.raises(WeighbridgeError) as caught:
                replace(offloader, "layers.2.w0", array)
            assert caught.value.status == Status.BUSY
            assert "layers.2" in str(caught.value)
        replace(offloader, "layers.2.w0", array)
        model.arrays["layers.2.w0"] = array
        check_step(device, offloader, model.arrays, stream)


def test_numbers_that_c_cannot_hold_raise(device):
    """Truncated, they would be those of another group, parameter or address."""
    array = np.zeros(10, np.float32)
    plan = Plan(device, Model().parameters(), offload_bytes=1 << 20)
    with device.stream() as stream, Offloader(plan, stream) as offloader:
        for group in (2**64, -(2**64), -1):
            for call in (offloader.acquire_group, offloader.release_group):
                with pytest.raises(ValueError, match=f"group is {group}"):
                    call(group, stream)
        for call in (offloader.parameter_info, offloader.view, offloader.host_view):
            with pytest.raises(ValueError, match=f"index is {2**64}"):
                call(2**64)
        with pytest.raises(ValueError, match="source"):
            source = 2**64 + array.ctypes.data
            offloader.replace("layers.0.w1", source, "float32", (10,), stream=stream)


def test_an_added_parameter_uses_the_memory_of_a_removed_one(device):
    model = Model()
    plan = Plan(device, model.parameters(), offload_bytes=1 << 20)
    with device.stream() as stream, Offloader(plan, stream) as offloader:
        offloader.remove("layers.1.w0", stream)
        del model.arrays["layers.1.w0"]
        with pytest.raises(KeyError):
            offloader.parameter_info("layers.1.w0")
        check_step(device, offloader, model.arrays, stream)
        held = offloader.stats.asked_bytes
        new = np.arange(400, dtype=np.float32)
        offloader.add(parameter_of("layers.1.scale", new), stream)
        model.arrays["layers.1.scale"] = new
        assert offloader.parameter_info("layers.1.scale").transfer_mode == "prefetch"
        assert offloader.stats.asked_bytes == held
        check_step(device, offloader, model.arrays, stream)
        for wrong in (parameter_of("layers.1.scale", new), parameter_of("other.x", new)):
            with pytest.raises(ValueError):
                offloader.add(wrong, stream)


def test_reconcile_compares_parameters_by_their_addresses(device):
    model = Model()
    plan = Plan(device, model.parameters(), offload_bytes=1 << 20)
    with device.stream() as stream, Offloader(plan, stream) as offloader:

        def now() -> list[Parameter]:
            found = []
            for name, array in model.arrays.items():
                given = parameter_of(name, array)
                if name not in changed:
                    address = offloader.parameter_info(name).device_address
                    given = dataclasses.replace(given, source=address or given.source)
                found.append(given)
            return found

        changed: set[str] = set()
        assert offloader.reconcile(now(), stream).replaced == 0
        for layer in range(LAYERS):
            name = f"layers.{layer}.w0"
            model.arrays[name] = (model.arrays[name] * 100).astype(np.int8)
            model.arrays[f"layers.{layer}.w0_scale"] = np.full(33, layer, np.float32)
            del model.arrays[f"layers.{layer}.w1"]
            changed |= {name, f"layers.{layer}.w0_scale"}
        done = offloader.reconcile(now(), stream)
        assert (done.replaced, done.added, done.removed) == (LAYERS, LAYERS, LAYERS)
        assert all(offloader.parameter_info(name).placement == "offloaded" for name in changed)
        check_step(device, offloader, model.arrays, stream)
        changed.clear()
        assert offloader.reconcile(now(), stream).kept == len(model.arrays)


def test_reset_ends_an_abandoned_step(device):
    model = Model()
    plan = Plan(device, model.parameters(), offload_bytes=1 << 20, transfer_mode="prefetch")
    with device.stream() as stream, Offloader(plan, stream) as offloader:
        offloader.acquire_group(0, stream)
        offloader.acquire_group(1, stream)
        with pytest.raises(WeighbridgeError) as caught:
            offloader.acquire_group(2, stream)
        assert caught.value.status == Status.BUSY
        assert "Offloader.reset ends an abandoned step" in str(caught.value)
        offloader.reset(stream)
        check_step(device, offloader, model.arrays, stream)


def test_offloaders_and_streams_are_independent(device):
    models = [Model(seed) for seed in (1, 2)]
    plans = [Plan(device, model.parameters(), offload_bytes=1 << 20) for model in models]
    with device.stream() as one, device.stream() as other:
        offloaders = [Offloader(plan, one) for plan in plans]
        for group in range(LAYERS):
            for offloader, model in zip(offloaders, models):
                for stream in (one, other):
                    check_step(device, offloader, model.arrays, stream, [group])
        for offloader in offloaders:
            offloader.close()


def test_closing_frees_memory_after_the_queued_work(device):
    model = Model()
    plan = Plan(device, model.parameters(), offload_bytes=1 << 20, transfer_mode="prefetch")
    stream = device.stream()
    offloader = Offloader(plan, stream)
    back = device.buffer(64 * 33 * 4)
    offloader.acquire_group(0, stream)
    address = offloader.parameter_info("layers.0.w0").device_address
    gate = Gate(stream)
    device.copy(back.address, address, back.nbytes, stream=stream)
    offloader.release_group(0, stream)
    gate.open()
    offloader.close()
    stream.synchronize()
    seen = np.asarray(back).view(np.float32)
    assert np.array_equal(seen, model.arrays["layers.0.w0"].ravel())
    back.close()


def test_a_plan_has_the_placement_and_the_reason(device):
    model = Model()
    plan = Plan(device, model.parameters(), offload_bytes=16384, link_bytes_per_second=1e9)
    written = json.loads(plan.to_json())
    assert written == plan.to_dict()
    assert [p["name"] for p in written["parameters"]] == list(model.arrays)
    by_name = {p["name"]: p for p in written["parameters"]}
    for planned in plan.parameters:
        entry = by_name[planned.name]
        assert entry["reason"] == planned.reason
        assert entry["bytes"] == planned.span_bytes
        assert entry["placement"] == planned.placement
        assert (entry["transfer_mode"] or "auto") == planned.transfer_mode
    info = plan.info
    assert (info.parameters, info.groups) == (len(plan.parameters), len(plan.groups))
    assert info.arena_bytes <= 16384
    assert sum(group.offloaded_bytes for group in plan.groups) == info.offloaded_bytes
    moved = info.step_bytes + info.view_bytes / 0.9  # reads in place are slower than copies
    assert info.step_seconds == pytest.approx(moved / 1e9)
    assert any("budget left" in planned.reason for planned in plan.parameters)


def test_a_step_is_predicted_from_the_link_and_the_kernels(device):
    parameters = Model().parameters()
    groups = len(dict.fromkeys(parameter.group for parameter in parameters))
    given = {"offload_bytes": 1 << 30, "transfer_mode": "prefetch", "link_bytes_per_second": 1e9}
    plan = Plan(device, parameters, **given, group_seconds=[0.5] * groups, rows=1)
    info = plan.info
    assert info.kernel_seconds == info.step_seconds == pytest.approx(0.5 * groups)
    assert info.link_seconds == pytest.approx(info.step_bytes / 1e9)
    options, totals = plan.to_dict()["options"], plan.to_dict()["totals"]
    assert (options["rows"], options["group_seconds"]) == (1, [0.5] * groups)
    assert totals["kernel_seconds"] == info.kernel_seconds
    # A parameter that is tied across groups is read by each of them.
    read = sum(planned.span_bytes for planned in plan.parameters)
    plan = Plan(device, parameters, **given, compute_bytes_per_second=read / 2)
    assert plan.info.kernel_seconds == pytest.approx(2)
    plan = Plan(device, parameters, **given)
    assert plan.info.kernel_seconds == 0
    assert plan.info.step_seconds == plan.info.link_seconds
    with pytest.raises(WeighbridgeError, match="entries"):
        Plan(device, parameters, **given, group_seconds=[0.5])


def test_invalid_plans_raise(host):
    parameters = Model().parameters()
    for options, status, text in [
        ({}, Status.INVALID_ARGUMENT, "one budget"),
        ({"offload_bytes": 1, "device_bytes": 1}, Status.INVALID_ARGUMENT, "one budget"),
        ({"offload_bytes": 100}, Status.NOTHING_OFFLOADED, "layers."),
        ({"offload_bytes": 1 << 20, "select": "nothing.here"}, Status.SELECTOR, "nothing.here"),
        ({"device_bytes": 1 << 30}, Status.EVERYTHING_FITS, "fit"),
        ({"device_bytes": 100, "exclude": "layers.0"}, Status.BUDGET, "100"),
        (
            {"offload_bytes": 1 << 20, "slot_bytes": 10, "transfer_mode": "prefetch"},
            Status.SLOTS_BUDGET,
            "10 bytes",
        ),
    ]:
        with pytest.raises(WeighbridgeError, match=text) as caught:
            Plan(host, parameters, **options)
        assert caught.value.status == status
    plan = Plan(host, parameters, offload_bytes=100, allow=["nothing-offloaded"])
    assert len(plan.warnings) == 1
    with pytest.raises(ValueError, match="declared"):
        Plan(host, parameters, offload_bytes=1, order="size")
    with pytest.raises(ValueError, match=f"depth is {2**32}"):
        Plan(host, parameters, offload_bytes=1 << 20, depth=2**32)


def test_a_source_may_be_a_mapped_file(device, tmp_path):
    array = np.arange(5000, dtype=np.float32)
    path = tmp_path / "weights"
    array.tofile(path)
    with Buffer.map_file(device, path) as mapped, device.stream() as stream:
        parameters = [Parameter("l.0.w", "l.0", "float32", (5000,), source=mapped.address)]
        plan = Plan(device, parameters, offload_bytes=1 << 20)
        with Offloader(plan, stream) as offloader:
            mapped.close()
            check_step(device, offloader, {"l.0.w": array}, stream)
            assert np.array_equal(offloader.host_view("l.0.w").numpy(), array)


def test_bytes_that_many_rows_read_may_be_more_than_a_number_holds(device):
    """The predicted bytes are 2**61 in 16 passes, which is 2**65."""
    huge = Parameter("huge", "g", "uint8", (1 << 61,), transfer_mode="zero-copy")
    options = {"offload_bytes": 1 << 62, "link_bytes_per_second": 1e9}
    with Plan(device, [huge], rows=16 * 128, **options) as many:
        with Plan(device, [huge], rows=1, **options) as one:
            assert one.info.link_seconds >= (1 << 61) / 1e9
            assert many.info.link_seconds == pytest.approx(16 * one.info.link_seconds)

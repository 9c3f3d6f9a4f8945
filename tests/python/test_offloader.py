"""The offloader: what is acquired is there, whatever carries it, whatever replaces it."""

from __future__ import annotations

import json
import random
import threading

import numpy as np
import pytest

from native import Gate
from weighbridge import Buffer, Device, Offloader, Parameter, Plan, Status, View, WeighbridgeError

LAYERS = 6
SHAPES = [(64, 33), (40,), (0, 3), (), (3, 5, 7)]


class Model:
    """Layers of arrays, some strided, some empty, one scalar, one tied across layers."""

    def __init__(self, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        self.arrays: dict[str, np.ndarray] = {}
        for layer in range(LAYERS):
            for at, shape in enumerate(SHAPES):
                name = f"layers.{layer}.w{at}"
                self.arrays[name] = random.standard_normal(shape).astype(np.float32)
            wide = random.integers(0, 100, (10, 40)).astype(np.int16)
            self.arrays[f"layers.{layer}.strided"] = wide[:, ::3]
            self.arrays[f"layers.{layer}.turned"] = random.standard_normal((9, 17)).T
        self.arrays["layers.0.tied"] = self.arrays["layers.5.tied"] = random.standard_normal(77)

    def parameters(self, **more: dict) -> list[Parameter]:
        return [
            parameter_of(name, array, **more.get(name, {})) for name, array in self.arrays.items()
        ]


def parameter_of(name: str, array: np.ndarray, **more) -> Parameter:
    return Parameter(
        name,
        more.pop("group", ".".join(name.split(".")[:2])),
        array.dtype,
        array.shape,
        tuple(stride // array.itemsize for stride in array.strides),
        source=array.__array_interface__["data"][0],
        held=array,
        **more,
    )


def read(device: Device, view, stream) -> np.ndarray:
    """A copy of what the device sees through a view, in the order of the stream."""
    info = view.info
    back = device.buffer(max(info.span_bytes, 1))
    low = sum(min(stride * (size - 1), 0) for stride, size in zip(info.strides, info.shape))
    if info.span_bytes:
        start = info.device_address + low * info.dtype.itemsize
        device.copy(back.address, start, info.span_bytes, stream=stream)
    stream.synchronize()
    strides = [stride * info.dtype.itemsize for stride in info.strides]
    offset = -low * info.dtype.itemsize
    return np.ndarray(info.shape, info.dtype.numpy(), back.memoryview(), offset, strides).copy()


def check_step(device, offloader, arrays, stream, order=None) -> None:
    """Every parameter of every group is right while its group is acquired."""
    groups = [group.name for group in offloader.plan.groups]
    for index in order if order is not None else range(len(groups)):
        with offloader.acquired(index, stream):
            for name, array in arrays.items():
                if name.startswith(groups[index] + ".") and array.size:
                    info = offloader.info(name)
                    if info.carrier != "resident":
                        seen = read(device, offloader.view(name), stream)
                        assert np.array_equal(seen, array), name


CARRIERS = ["view", "on-demand", "prefetch", "auto"]


@pytest.mark.parametrize("pin", [None, False])
@pytest.mark.parametrize("carrier", CARRIERS)
def test_what_is_acquired_is_there(device, carrier, pin):
    model = Model()
    opened = Device("host" if device.info.kind == "host" else "cuda:0", pin=pin)
    if carrier == "view" and not opened.info.views:
        with pytest.raises(WeighbridgeError) as caught:
            Plan(opened, model.parameters(), offload_bytes=1 << 20, carrier=carrier)
        assert caught.value.status == Status.NOT_MAPPED
        return
    plan = Plan(opened, model.parameters(), offload_bytes=1 << 20, carrier=carrier)
    with opened.stream() as stream, Offloader(plan, stream) as offloader:
        check_step(opened, offloader, model.arrays, stream)
        check_step(opened, offloader, model.arrays, stream)
        order = [random.Random(7).randrange(LAYERS) for _ in range(30)]
        check_step(opened, offloader, model.arrays, stream, order)
        check_step(opened, offloader, model.arrays, stream)
        stats, totals = offloader.stats, plan.totals
        assert stats.offloaded_bytes == totals.offloaded_bytes
        assert stats.asked_bytes == totals.arena_bytes
        assert stats.resident_bytes + stats.offloaded_bytes == totals.payload_bytes
        assert stats.slot_bytes == totals.slot_bytes == opened.usage.device_bytes
        assert (stats.pinned_bytes > 0) == (pin is None)
        staged = pin is False and opened.info.kind == "cuda"
        assert stats.staging_bytes == (8 << 20 if staged else 0)
        assert opened.usage.asked_bytes == stats.asked_bytes + stats.staging_bytes
        assert opened.usage.mapped_bytes == stats.mapped_bytes + stats.staging_bytes
        assert (stats.moved_bytes > 0) == (carrier != "view")
    plan.close()
    opened.close()


def test_views_need_the_memory_that_was_planned(device):
    """What would be read in place and cannot be is refused when the plan is committed."""
    if device.info.kind == "host":
        pytest.skip("the host device sees all memory; it is refused on a CUDA device")
    plan = Plan(device, Model().parameters(), offload_bytes=1 << 20, carrier="view")
    with pytest.raises(WeighbridgeError) as caught:
        Offloader(plan, pin=False)
    assert caught.value.status == Status.NOT_MAPPED
    assert device.usage.mapped_bytes == device.usage.device_bytes == 0


def test_device_memory_is_copied_through_its_view(device):
    model, name = Model(), "layers.0.w0"
    array = model.arrays[name]
    plan = Plan(device, model.parameters(), offload_bytes=1 << 20, carrier="prefetch")
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


def test_device_memory_is_no_array(device):
    """A slot has no host address on a CUDA device: NumPy gets an error, not other bytes."""
    model, name = Model(), "layers.0.w0"
    plan = Plan(device, model.parameters(), offload_bytes=1 << 20, carrier="prefetch")
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


def test_device_memory_is_not_to_be_had_for_the_host(device):
    """DLPack's protocol wants a BufferError."""
    plan = Plan(device, Model().parameters(), offload_bytes=1 << 20, carrier="prefetch")
    with device.stream() as stream, Offloader(plan, stream) as offloader:
        with offloader.acquired(0, stream):
            view = offloader.view("layers.0.w0")
            if device.kind == "host":
                assert np.from_dlpack(view).shape == (64, 33)
                return
            with pytest.raises(BufferError, match="device memory"):
                view.__dlpack__(dl_device=(1, 0))


def test_a_part_is_offloaded_and_the_rest_stays(device):
    model = Model()
    plan = Plan(device, model.parameters(), offload_bytes=16384, order="largest")
    with device.stream() as stream, Offloader(plan, stream) as offloader:
        check_step(device, offloader, model.arrays, stream)
        kinds = {parameter.carrier for parameter in plan.parameters}
        assert kinds == {"resident", "prefetch"}
        for planned in plan.parameters:
            array = model.arrays[planned.name]
            if planned.carrier == "resident" and array.size:
                assert np.array_equal(read(device, offloader.view(planned.name), stream), array)
                with pytest.raises(KeyError):
                    offloader.host_view(planned.name)
        assert offloader.stats.asked_bytes <= 16384


def test_ties_are_stored_once(device):
    model = Model()
    plan = Plan(device, model.parameters(), offload_bytes=1 << 20)
    first, second = (
        next(p for p in plan.parameters if p.name == name)
        for name in ("layers.0.tied", "layers.5.tied")
    )
    assert second.tied_to == first.tied_to
    with device.stream() as stream, Offloader(plan, stream) as offloader:
        one, other = offloader.info("layers.0.tied"), offloader.info("layers.5.tied")
        assert one.host_address == other.host_address


@pytest.mark.parametrize("carrier", CARRIERS)
def test_replacing(device, carrier):
    model = Model()
    plan = Plan(device, model.parameters(), offload_bytes=1 << 20, carrier=carrier)
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
            source = array.__array_interface__["data"][0]
            strides = tuple(stride // array.itemsize for stride in array.strides)
            offloader.replace(name, source, array.dtype, array.shape, strides, stream)
            model.arrays[name] = array
            check_step(device, offloader, model.arrays, stream)
        before = offloader.stats
        offloader.compact(stream)
        check_step(device, offloader, model.arrays, stream)
        after = offloader.stats
        assert after.generation > before.generation
        assert after.offloaded_bytes == before.offloaded_bytes
        assert after.slot_bytes == device.usage.device_bytes
        # What outgrew its room has a buffer of its own, and the one that it outgrew is gone.
        assert after.asked_bytes - plan.totals.arena_bytes < 170_000
        # The second of them took 160,000 bytes once the first one's 80,000 were given back.
        assert after.peak_mapped_bytes - fresh.mapped_bytes < 200_000
        assert after.peak_mapped_bytes >= after.mapped_bytes > fresh.mapped_bytes
        assert after.peak_slot_bytes >= after.slot_bytes


@pytest.mark.parametrize("depth", [2, LAYERS])
def test_a_replaced_weight_is_in_its_slot_at_once(device, depth):
    """Without another acquire: a graph that was captured before has none for what was there."""
    model = Model()
    plan = Plan(device, model.parameters(), offload_bytes=1 << 20, carrier="prefetch", depth=depth)
    with device.stream() as stream, Offloader(plan, stream) as offloader:
        check_step(device, offloader, model.arrays, stream)
        stays = range(LAYERS) if depth == LAYERS else range(1)
        for layer in stays:
            array = model.arrays[f"layers.{layer}.w0"] + 1
            source = array.__array_interface__["data"][0]
            offloader.replace(f"layers.{layer}.w0", source, array.dtype, array.shape, None, stream)
            model.arrays[f"layers.{layer}.w0"] = array
        offloader.join(stream)
        for layer in stays:
            for name in (f"layers.{layer}.w0", f"layers.{layer}.w1"):
                assert np.array_equal(
                    read(device, offloader.view(name), stream), model.arrays[name]
                )
        check_step(device, offloader, model.arrays, stream)


def test_replacing_over_the_budget_changes_nothing(device):
    model = Model()
    arena = Plan(device, model.parameters(), offload_bytes=1 << 20).totals.arena_bytes
    plan = Plan(device, model.parameters(), offload_bytes=arena)
    with device.stream() as stream, Offloader(plan, stream) as offloader:
        big = np.ones(100_000)
        with pytest.raises(WeighbridgeError) as caught:
            offloader.replace(
                "layers.1.w0", big.__array_interface__["data"][0], big.dtype, big.shape
            )
        assert caught.value.status == Status.BUDGET
        assert str(arena) in str(caught.value)
        check_step(device, offloader, model.arrays, stream)


def test_what_is_acquired_cannot_be_replaced(device):
    model = Model()
    plan = Plan(device, model.parameters(), offload_bytes=1 << 20)
    array = model.arrays["layers.2.w0"] * 2
    source = array.__array_interface__["data"][0]
    with device.stream() as stream, Offloader(plan, stream) as offloader:
        with offloader.acquired(2, stream):
            with pytest.raises(WeighbridgeError) as caught:
                offloader.replace("layers.2.w0", source, array.dtype, array.shape)
            assert caught.value.status == Status.BUSY
            assert "layers.2" in str(caught.value)
        offloader.replace("layers.2.w0", source, array.dtype, array.shape)
        model.arrays["layers.2.w0"] = array
        check_step(device, offloader, model.arrays, stream)


def test_numbers_that_c_cannot_hold_are_refused(device):
    """Cut off, they would be those of another group or of other memory."""
    array = np.zeros(10, np.float32)
    source = array.__array_interface__["data"][0]
    plan = Plan(device, Model().parameters(), offload_bytes=1 << 20)
    with device.stream() as stream, Offloader(plan, stream) as offloader:
        for group in (2**64, -(2**64), -1):
            for call in (offloader.acquire, offloader.release_group):
                with pytest.raises(ValueError, match=f"group is {group}"):
                    call(group, stream)
        with pytest.raises(ValueError, match="source"):
            offloader.replace("layers.0.w1", 2**64 + source, "float32", (10,), stream=stream)


def test_adding_and_removing(device):
    model = Model()
    plan = Plan(device, model.parameters(), offload_bytes=1 << 20)
    with device.stream() as stream, Offloader(plan, stream) as offloader:
        offloader.remove("layers.1.w0", stream)
        del model.arrays["layers.1.w0"]
        with pytest.raises(KeyError):
            offloader.info("layers.1.w0")
        check_step(device, offloader, model.arrays, stream)
        held = offloader.stats.asked_bytes
        new = np.arange(400, dtype=np.float32)
        offloader.add(parameter_of("layers.1.scale", new), stream)
        model.arrays["layers.1.scale"] = new
        assert offloader.info("layers.1.scale").carrier == "prefetch"
        assert offloader.stats.asked_bytes == held, "it took the room of the one that went"
        check_step(device, offloader, model.arrays, stream)
        for wrong in (parameter_of("layers.1.scale", new), parameter_of("other.x", new)):
            with pytest.raises(ValueError):
                offloader.add(wrong, stream)


def test_reconciling_judges_by_where_the_bytes_lie(device):
    model = Model()
    plan = Plan(device, model.parameters(), offload_bytes=1 << 20)
    with device.stream() as stream, Offloader(plan, stream) as offloader:

        def now() -> list[Parameter]:
            found = []
            for name, array in model.arrays.items():
                place = offloader.info(name).device_address if name not in changed else None
                given = parameter_of(name, array)
                found.append(
                    given if place is None else Parameter(**{**vars(given), "source": place})
                )
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
        assert all(offloader.info(name).carrier != "resident" for name in changed)
        check_step(device, offloader, model.arrays, stream)
        changed.clear()
        assert offloader.reconcile(now(), stream).kept == len(model.arrays)


def test_an_abandoned_step_is_reset(device):
    model = Model()
    plan = Plan(device, model.parameters(), offload_bytes=1 << 20, carrier="prefetch")
    with device.stream() as stream, Offloader(plan, stream) as offloader:
        offloader.acquire(0, stream)
        offloader.acquire(1, stream)
        with pytest.raises(WeighbridgeError) as caught:
            offloader.acquire(2, stream)
        assert caught.value.status == Status.BUSY
        offloader.reset(stream)
        check_step(device, offloader, model.arrays, stream)


def test_two_offloaders_and_two_streams(device):
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


@pytest.mark.parametrize("carrier", CARRIERS)
def test_threads_share_an_offloader(device, carrier):
    """Each on its own stream: a slot that another holds is an error, never a wrong weight."""
    model = Model()
    plan = Plan(device, model.parameters(), offload_bytes=1 << 20, carrier=carrier)
    wrong, visits = [], []

    def visit(number: int) -> None:
        chosen = random.Random(number)
        with device.stream() as stream:
            while len(visits) < 120:
                try:
                    check_step(device, offloader, model.arrays, stream, [chosen.randrange(LAYERS)])
                    visits.append(number)
                except WeighbridgeError as error:
                    if error.status != Status.BUSY:
                        wrong.append(error)
                except AssertionError as error:
                    wrong.append(error)

    with device.stream() as stream, Offloader(plan, stream) as offloader:
        threads = [threading.Thread(target=visit, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            assert offloader.stats.acquires >= 0
            threads[0].join(0.005)
        for thread in threads:
            thread.join()
        assert not wrong, wrong[0]
        assert len(set(visits)) > 1
        check_step(device, offloader, model.arrays, stream)


def test_memory_goes_back_when_what_is_queued_has_run(device):
    model = Model()
    plan = Plan(device, model.parameters(), offload_bytes=1 << 20, carrier="prefetch")
    stream = device.stream()
    offloader = Offloader(plan, stream)
    back = device.buffer(64 * 33 * 4)
    offloader.acquire(0, stream)
    address = offloader.info("layers.0.w0").device_address
    gate = Gate(stream)
    device.copy(back.address, address, back.nbytes, stream=stream)
    offloader.release_group(0, stream)
    gate.open()
    offloader.close()
    stream.synchronize()
    seen = np.asarray(back).view(np.float32)
    assert np.array_equal(seen, model.arrays["layers.0.w0"].ravel())
    back.close()


def test_a_plan_says_what_and_why(device):
    model = Model()
    plan = Plan(device, model.parameters(), offload_bytes=16384, link_bytes_per_second=1e9)
    told = json.loads(plan.to_json())
    assert told == plan.to_dict()
    assert [p["name"] for p in told["parameters"]] == list(model.arrays)
    by_name = {p["name"]: p for p in told["parameters"]}
    for planned in plan.parameters:
        entry = by_name[planned.name]
        assert entry["reason"] == planned.reason
        assert entry["bytes"] == planned.nbytes
        assert (entry["carrier"] or "resident") == planned.carrier
    totals = plan.totals
    assert totals.arena_bytes <= 16384
    assert sum(group.offloaded_bytes for group in plan.groups) == totals.offloaded_bytes
    assert totals.step_seconds == pytest.approx((totals.step_bytes + totals.view_bytes) / 1e9)
    assert any("budget left" in planned.reason for planned in plan.parameters)


def test_plans_that_cannot_be(host):
    parameters = Model().parameters()
    for options, status, text in [
        ({}, Status.INVALID_ARGUMENT, "one budget"),
        ({"offload_bytes": 1, "device_bytes": 1}, Status.INVALID_ARGUMENT, "one budget"),
        ({"offload_bytes": 100}, Status.NOTHING_OFFLOADED, "layers."),
        ({"offload_bytes": 1 << 20, "select": "nothing.here"}, Status.SELECTOR, "nothing.here"),
        ({"device_bytes": 1 << 30}, Status.EVERYTHING_FITS, "fit"),
        ({"device_bytes": 100, "exclude": "layers.0"}, Status.BUDGET, "100"),
        (
            {"offload_bytes": 1 << 20, "slot_bytes": 10, "carrier": "prefetch"},
            Status.SLOTS_BUDGET,
            "10 bytes",
        ),
    ]:
        with pytest.raises(WeighbridgeError, match=text) as caught:
            Plan(host, parameters, **options)
        assert caught.value.status == status
    plan = Plan(host, parameters, offload_bytes=100, allow=["nothing"])
    assert len(plan.warnings) == 1
    with pytest.raises(ValueError, match="declared"):
        Plan(host, parameters, offload_bytes=1, order="size")
    with pytest.raises(ValueError, match=f"depth is {2**32}"):
        Plan(host, parameters, offload_bytes=1 << 20, depth=2**32)


def test_registered_sources_and_files(device, tmp_path):
    """A source may be any memory of the process: registered, or a mapped file."""
    array = np.arange(5000, dtype=np.float32)
    path = tmp_path / "weights"
    array.tofile(path)
    with Buffer.map(device, path) as mapped, device.stream() as stream:
        parameters = [Parameter("l.0.w", "l.0", "float32", (5000,), source=mapped.address)]
        plan = Plan(device, parameters, offload_bytes=1 << 20)
        with Offloader(plan, stream) as offloader:
            mapped.close()
            check_step(device, offloader, {"l.0.w": array}, stream)
            assert np.array_equal(offloader.host_view("l.0.w").numpy(), array)

"""Offloaded parameters stay in the file that they come from, where its layout allows it."""

from __future__ import annotations

import gc
import json

import numpy as np
import pytest

from weighbridge import Offloader, Parameter, Plan, Safetensors, Status, WeighbridgeError

LAYERS = 4
SHAPE = (32, 64)
NBYTES = 32 * 64 * 2
MODES = ["zero-copy", "on-demand", "prefetch"]


def write(path, shapes, at=64):
    """Writes a file of float16 tensors whose data begins ``at`` bytes after a multiple of 256."""
    header, data = {}, b""
    for seed, (name, shape) in enumerate(shapes.items()):
        values = np.random.default_rng(seed).integers(0, 1 << 16, shape, np.uint16).tobytes()
        offsets = [len(data), len(data) + len(values)]
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": offsets}
        data += values
    text = json.dumps(header).encode()
    text += b" " * ((at - 8 - len(text)) % 256)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


@pytest.fixture
def path(tmp_path):
    shapes = {f"layers.{at // 2}.w{at % 2}": SHAPE for at in range(2 * LAYERS)}
    return write(tmp_path / "model.safetensors", shapes)


def bytes_of(path):
    with open(path, "rb") as file:
        raw = file.read()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    start = 8 + length
    return {
        name: raw[start + entry["data_offsets"][0] : start + entry["data_offsets"][1]]
        for name, entry in header.items()
    }


def offload(device, file, mode="prefetch", **options):
    options.setdefault("offload_bytes", 1 << 20)
    options.setdefault("host_store", "source")
    plan = Plan(device, file.parameters(), transfer_mode=mode, **options)
    offloader = Offloader(plan)
    plan.close()
    return offloader


def check(device, offloader, expected):
    """Checks what the host and the device have, in two steps."""
    with device.stream() as stream, device.buffer(1 << 16) as back:
        for _ in range(2):
            for info in offloader.parameter_infos():
                with offloader.host_view(info.name) as view:
                    assert view.numpy(bits=True).tobytes() == expected[info.name], info
                with offloader.acquired(info.group, stream):
                    now = offloader.parameter_info(info.name)
                    count = now.span_bytes
                    device.copy(back.address, now.device_address, count, stream=stream)
                stream.synchronize()
                assert bytes(back.memoryview()[:count]) == expected[info.name], info


def stores(offloader):
    return {info.name: info.host_store for info in offloader.parameter_infos()}


@pytest.mark.parametrize("mode", MODES)
def test_nothing_is_copied_where_the_file_can_stay(device, path, mode):
    expected = bytes_of(path)
    with Safetensors(device, path) as file:
        before = device.stats
        start = file.buffer.address
        offsets = {name: file.tensor_info(name).offset_bytes for name in file}
        offloader = offload(device, file, mode)
        gc.collect()
    with offloader:
        # No host memory beside the file, which outlives its object.
        after = device.stats
        assert (after.asked_bytes, after.pinned_bytes) == (before.asked_bytes, before.pinned_bytes)
        stats = offloader.stats
        assert stats.offloaded_bytes == 2 * LAYERS * NBYTES
        assert stats.mapped_bytes == after.mapped_bytes
        for info in offloader.parameter_infos():
            assert (info.host_store, info.host_store_reason) == ("source", "")
            assert info.host_address == start + offsets[info.name]
        check(device, offloader, expected)


def test_a_copy_is_the_default(device, path):
    with Safetensors(device, path) as file:
        offloader = offload(device, file, host_store="copy")
    with offloader:
        for info in offloader.parameter_infos():
            assert (info.host_store, info.host_store_reason) == ("copy", "")


@pytest.mark.parametrize("mode", MODES)
def test_a_replacement_moves_the_parameter_and_leaves_the_file(device, path, mode):
    expected, written = bytes_of(path), path.read_bytes()
    same = np.random.default_rng(9).integers(0, 1 << 16, SHAPE, np.uint16)
    other = np.random.default_rng(10).integers(0, 1 << 16, (64, 64), np.uint16)
    with Safetensors(device, path) as file:
        offloader = offload(device, file, mode)
    with offloader:
        generation = offloader.stats.generation
        for name, array in [("layers.1.w0", same), ("layers.2.w1", other), ("layers.1.w0", same)]:
            address = array.__array_interface__["data"][0]
            offloader.replace(name, address, "float16", array.shape)
            expected[name] = array.tobytes()
            check(device, offloader, expected)
        assert offloader.stats.generation > generation
        moved = {name for name, store in stores(offloader).items() if store == "copy"}
        assert moved == {"layers.1.w0", "layers.2.w1"}
        offloader.remove("layers.3.w0")
        offloader.add(
            Parameter("layers.3.b", "layers.3", "float16", SHAPE, source=same.ctypes.data)
        )
        expected["layers.3.b"] = same.tobytes()
        offloader.compact()
        check(device, offloader, expected)
        assert stores(offloader)["layers.3.b"] == "copy"
        assert stores(offloader)["layers.3.w1"] == "source"
        # The file's own addresses are in place already.
        now = [
            Parameter(
                info.name,
                f"layers.{info.name[7]}",
                info.dtype,
                info.shape,
                source=info.host_address,
            )
            for info in offloader.parameter_infos()
        ]
        assert offloader.reconcile(now).kept == len(now)
    assert path.read_bytes() == written


def test_tied_parameters_move_together(device, tmp_path):
    path = write(tmp_path / "tied", {"a.w": SHAPE, "b.w": SHAPE})
    new = np.full(SHAPE, 7, np.uint16)
    with Safetensors(device, path) as file:
        a, b = file.parameters()
        tied = Parameter("a.again", "a", "float16", SHAPE, source=a.source, held=a.held)
        plan = Plan(
            device,
            [a, b, tied],
            offload_bytes=1 << 20,
            transfer_mode="prefetch",
            host_store="source",
        )
        offloader = Offloader(plan)
        plan.close()
        del a, b, tied
    with offloader:
        assert set(stores(offloader).values()) == {"source"}
        offloader.replace("a.w", new.ctypes.data, "float16", SHAPE)
        assert stores(offloader) == {"a.w": "copy", "a.again": "copy", "b.w": "source"}
        for name in ("a.w", "a.again"):
            with offloader.host_view(name) as view:
                assert view.numpy(bits=True).tobytes() == new.tobytes()


def test_the_budget_holds_when_parameters_move(device, path):
    new = np.zeros(SHAPE, np.uint16)
    with Safetensors(device, path) as file:
        offloader = offload(device, file, offload_bytes=2 * LAYERS * NBYTES)
    with offloader:
        # As many bytes in memory of the offloader as there are less in the file.
        for name in list(stores(offloader)):
            offloader.replace(name, new.ctypes.data, "float16", SHAPE)
        assert set(stores(offloader).values()) == {"copy"}
        gc.collect()
        assert device.stats.mapped_bytes == offloader.stats.mapped_bytes == 2 * LAYERS * NBYTES
        large = np.zeros((64, 64), np.uint16)
        with pytest.raises(WeighbridgeError) as caught:
            offloader.replace("layers.0.w0", large.ctypes.data, "float16", large.shape)
        assert caught.value.status == Status.BUDGET


def test_a_group_is_copied_with_a_reason_where_the_file_cannot_stay(device, tmp_path):
    shapes = {
        "a.w": SHAPE,
        "b.odd": (3,),
        "b.w": SHAPE,
        "c.w": SHAPE,
        "d.w": SHAPE,
        "c.again": SHAPE,
    }
    path = write(tmp_path / "model", shapes)
    with Safetensors(device, path) as file:
        offloader = offload(device, file, "on-demand")
    with offloader:
        infos = {info.name: info for info in offloader.parameter_infos()}
        assert {name for name, info in infos.items() if info.host_store == "source"} == {
            "a.w",
            "d.w",
        }
        assert infos["a.w"].host_store_reason == ""
        # All of a group moves as one, or is copied.
        for name, text in [
            ("b.w", "256"),
            ("b.odd", "256"),
            ("c.w", "c.again"),
            ("c.again", "c.again"),
        ]:
            assert text in infos[name].host_store_reason, infos[name]
        check(device, offloader, bytes_of(path))


@pytest.mark.parametrize(("at", "store"), [(8, "copy"), (64, "source"), (0, "source")])
def test_views_need_aligned_data(device, tmp_path, at, store):
    path = write(tmp_path / "model", {"a.w": SHAPE}, at)
    with Safetensors(device, path) as file:
        offloader = offload(device, file, "zero-copy")
    with offloader:
        info = offloader.parameter_info("a.w")
        assert info.host_store == store
        assert ("aligned to 64" in info.host_store_reason) == (store == "copy")
        check(device, offloader, bytes_of(path))


def test_sources_without_a_buffer_and_pageable_ones_are_copied(device, path):
    array = np.ones(SHAPE, np.float16)
    parameter = Parameter("g.w", "g", "float16", SHAPE, source=array.ctypes.data)
    plan = Plan(
        device, [parameter], offload_bytes=1 << 20, transfer_mode="prefetch", host_store="source"
    )
    with plan, Offloader(plan) as offloader:
        info = offloader.parameter_info("g.w")
        assert info.host_store == "copy" and "no buffer" in info.host_store_reason
    with Safetensors(device, path, file_mode="source") as file:
        offloader = offload(device, file)
    with offloader:
        info = offloader.parameter_info("layers.0.w0")
        pinned = device.info.kind == "cuda"
        assert info.host_store == ("copy" if pinned else "source")
        assert ("not pinned" in info.host_store_reason) == pinned
    if pinned:
        gc.collect()

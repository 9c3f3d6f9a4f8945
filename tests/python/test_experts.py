"""Expert caches from Python: what slots hold, counters, budgets, and errors."""

from __future__ import annotations

import ctypes
import json
import re
from contextlib import contextmanager

import pytest
from conftest import ROOT

from weighbridge import (
    ExpertCache,
    ExpertParameter,
    ExpertTensor,
    Offloader,
    OpaqueDtype,
    Parameter,
    Plan,
    Status,
    WeighbridgeError,
)

LAYERS, EXPERTS = 2, 6
Q4 = OpaqueDtype("q4_0", 18, 32)
KINDS = [("w13", "float32", (3, 4), 48), ("w2", Q4, (64,), 36)]


def _content(layer: int, expert: int, name: str, nbytes: int) -> bytes:
    return bytes((layer * 83 + expert * 31 + len(name) * 7 + at * 3) % 256 for at in range(nbytes))


def _tensors(device):
    tensors = []
    for layer in range(LAYERS):
        for name, dtype, shape, nbytes in KINDS:
            buffer = device.buffer(8 + EXPERTS * nbytes)
            experts = (_content(layer, expert, name, nbytes) for expert in range(EXPERTS))
            content = b"".join(experts)
            ctypes.memmove(buffer.address + 8, content, len(content))
            tensors.append(ExpertTensor(layer, name, buffer, dtype, (EXPERTS, *shape), offset=8))
    return tensors


class Bench:
    """A cache, and numbers in device memory that are written and read through host memory."""

    def __init__(self, device, **options):
        self.device = device
        self.cache = ExpertCache(device, _tensors(device), **options)
        self.staging = device.buffer(256)
        self.numbers = device.alloc(256)
        self.stream = device.stream()

    def route(self, layer, ids, dtype="int32", **options):
        number = ctypes.c_int32 if dtype == "int32" else ctypes.c_int64
        array = (number * len(ids)).from_address(self.staging.address)
        array[:] = ids
        nbytes = ctypes.sizeof(array)
        self.device.copy(self.numbers, self.staging.address, nbytes, self.stream)
        options["stream"] = self.stream
        self.cache.route(layer, self.numbers, len(ids), self.numbers, dtype=dtype, **options)
        self.device.copy(self.staging.address, self.numbers, nbytes, self.stream)
        self.stream.synchronize()
        return list(array)

    def held(self, slot, layer, expert):
        for index, (name, _, _, nbytes) in enumerate(KINDS):
            info = self.cache.slots_info(index)
            assert (info.name, info.expert_bytes) == (name, nbytes)
            address = info.device_address + slot * nbytes
            self.device.copy(self.staging.address + 128, address, nbytes, self.stream)
            self.stream.synchronize()
            found = ctypes.string_at(self.staging.address + 128, nbytes)
            assert found == _content(layer, expert, name, nbytes)


@contextmanager
def bench(device, **options):
    made = Bench(device, **options)
    yield made
    made.cache.close()
    device.free(made.numbers)


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_ids_become_slots_that_hold_their_experts(device, dtype):
    with bench(device, slots=4) as made:
        slots = made.route(1, [5, 0, -1, 5], dtype)
        assert slots == [1, 0, -1, 1]
        made.held(0, 1, 0)
        made.held(1, 1, 5)
        assert made.route(1, [0, 2], dtype) == [0, 2]
        stats = made.cache.stats(1)
        assert (stats.calls, stats.hits, stats.misses, stats.ignored) == (2, 1, 3, 1)
        assert stats.gathered_bytes == 3 * (48 + 36)
        assert stats.hit_rate == 1 / 4
        assert made.cache.stats() == stats
        assert made.cache.stats(0).calls == 0


def test_slots_are_a_view_of_the_capacity(device):
    with bench(device, slots=3) as made:
        view = made.cache.view(0)
        assert view.info.shape == (3, 3, 4)
        assert view.info.dtype.label == "float32"
        with pytest.raises(WeighbridgeError, match="opaque") as raised:
            made.cache.view(1)
        assert raised.value.status == Status.NOT_SUPPORTED
        assert made.cache.slots_info(1).dtype == Q4
        assert made.cache.info.capacity == 3
        view.close()


def test_more_experts_than_slots_are_computed_in_passes(device):
    with bench(device, slots=4) as made:
        with pytest.raises(WeighbridgeError, match="in 2 passes") as raised:
            made.route(0, [0, 1, 2, 3, 4])
        assert raised.value.status == Status.SLOTS_BUDGET
        assert made.cache.passes(0, 5) == 2
        low = made.route(0, [0, 1, 2, 3, 4], pass_=0, passes=2)
        assert [slot >= 0 for slot in low] == [True, True, True, False, False]
        high = made.route(0, [0, 1, 2, 3, 4], pass_=1, passes=2)
        assert [slot >= 0 for slot in high] == [False, False, False, True, True]
        made.held(high[4], 0, 4)


def test_a_hint_is_a_hit_of_its_call_and_reset_forgets_it(device):
    with bench(device, slots=4, lanes=2) as made:
        stream = device.stream()
        array = (ctypes.c_int32 * 1).from_address(made.staging.address)
        array[0] = 3
        device.copy(made.numbers, made.staging.address, 4, stream)
        made.cache.prefetch(0, made.numbers, 1, stream=stream)
        stream.synchronize()
        assert made.route(0, [3], lane=1) == [0]
        stats = made.cache.stats(0)
        assert (stats.prefetched, stats.hits, stats.misses) == (1, 1, 0)
        made.cache.reset(made.stream)
        made.route(0, [3])
        assert made.cache.stats(0).misses == 1
        made.cache.resize(2, made.stream)
        assert made.cache.info.slots == 2
        stream.close()


def test_a_budget_is_a_ceiling_and_memory_can_be_the_callers(device):
    tensors = _tensors(device)
    size = ExpertCache.measure(device, tensors, slots=5)
    assert size.slots == 5
    total = size.slot_bytes + size.state_bytes
    assert ExpertCache.measure(device, tensors, device_bytes=total).slots == 5
    assert ExpertCache.measure(device, tensors, device_bytes=total - 1).slots == 4
    memory = device.alloc(size.slot_bytes)
    with ExpertCache(device, tensors, slots=5, memory=(memory, size.slot_bytes)) as cache:
        assert cache.slots_info(0).device_address == memory
        assert "5 slots, 12 experts" in repr(cache)
    assert "closed" in repr(cache)
    device.free(memory)


def test_descriptions_that_make_no_cache_are_refused(device):
    tensors = _tensors(device)
    with pytest.raises(ValueError, match="give one of them"):
        ExpertCache(device, tensors)
    with pytest.raises(ValueError, match='layer 1 has no tensor "w2"'):
        ExpertCache(device, tensors[:-1], slots=2)
    with pytest.raises(ValueError, match="lanes"):
        ExpertCache(device, tensors, slots=2, lanes=-1)


def test_a_cache_of_an_offloaders_parameters_follows_them(device):
    shape, nbytes = (EXPERTS, 8), EXPERTS * 32
    content = [bytes((layer * 50 + at) % 256 for at in range(nbytes)) for layer in range(3)]
    held = [ctypes.create_string_buffer(one, nbytes) for one in content]
    parameters = [
        Parameter(
            f"{layer}.w13",
            str(layer),
            "float32",
            shape,
            source=ctypes.addressof(held[layer]),
            access_pattern="experts",
        )
        for layer in range(LAYERS)
    ]
    plan = Plan(device, parameters, offload_bytes=1 << 20, expert_bytes=4096)
    assert plan.info.expert_bytes == 4096
    assert "in slots of 4,096" in plan.parameters[0].reason
    stream = device.stream()
    offloader = Offloader(plan, stream)
    tensors = [ExpertParameter(layer, "w13", f"{layer}.w13") for layer in range(LAYERS)]
    staging, number = device.buffer(64), device.alloc(64)

    def read(layer, expert):
        ctypes.c_int32.from_address(staging.address).value = expert
        device.copy(number, staging.address, 4, stream)
        cache.route(layer, number, 1, number, stream=stream)
        device.copy(staging.address, number, 4, stream)
        stream.synchronize()
        slot = ctypes.c_int32.from_address(staging.address).value
        at = cache.slots_info(0).device_address + slot * 32
        device.copy(staging.address, at, 32, stream)
        stream.synchronize()
        return ctypes.string_at(staging.address, 32)

    with ExpertCache.for_offloader(offloader, tensors) as cache:
        assert cache.info.experts == LAYERS * EXPERTS
        assert cache.info.slots == LAYERS * EXPERTS
        stats = offloader.stats
        assert stats.expert_bytes == cache.info.slot_bytes + cache.info.state_bytes
        assert read(1, 4) == content[1][4 * 32 : 5 * 32]
        source = ctypes.addressof(held[2])
        offloader.replace("1.w13", source, "float32", shape, None, stream)
        assert read(1, 4) == content[2][4 * 32 : 5 * 32]
        assert read(0, 5) == content[0][5 * 32 :]
        with pytest.raises(WeighbridgeError) as raised:
            ExpertCache.for_offloader(offloader, tensors, slots=LAYERS * EXPERTS)
        assert raised.value.status == Status.BUDGET
    assert offloader.stats.expert_bytes == 0
    offloader.close()
    plan.close()
    device.free(number)


def test_slots_come_and_go_with_the_budget_of_an_offloader(device):
    piece, count, nbytes = 2 << 20, 6, 1 << 20
    content = bytes(expert for expert in range(count) for _ in range(nbytes))
    held = ctypes.create_string_buffer(content, len(content))
    parameter = Parameter(
        "w13",
        "0",
        "uint8",
        (count, nbytes),
        source=ctypes.addressof(held),
        access_pattern="experts",
    )
    # The state, and slots for four of six experts.
    plan = Plan(
        device, [parameter], offload_bytes=16 << 20, expert_bytes=3 * piece, fixed_addresses=True
    )
    assert plan.info.expert_hit_rate == 4 / count
    assert json.loads(plan.to_json())["totals"]["expert_hit_rate"] == 4 / count
    stream = device.stream()
    staging, number = device.buffer(64), device.alloc(64)
    with (
        Offloader(plan, stream) as offloader,
        ExpertCache.for_offloader(offloader, [ExpertParameter(0, "w13", "w13")]) as cache,
    ):

        def read(expert):
            ctypes.c_int32.from_address(staging.address).value = expert
            device.copy(number, staging.address, 4, stream)
            cache.route(0, number, 1, number, stream=stream)
            device.copy(staging.address, number, 4, stream)
            stream.synchronize()
            slot = ctypes.c_int32.from_address(staging.address).value
            at = cache.slots_info(0).device_address + slot * nbytes
            device.copy(staging.address, at + nbytes - 1, 1, stream)
            stream.synchronize()
            return ctypes.c_uint8.from_address(staging.address).value

        address = cache.slots_info(0).device_address
        assert cache.slots_info(0).shape == (count, nbytes)
        for pieces, slots in ((3, 4), (2, 2), (0, 0), (9, 4), (3, 4)):
            progress = offloader.resize(device_bytes=pieces * piece, stream=stream)
            info = cache.info
            held_pieces = 1 + slots // 2 if slots else 0
            assert progress.device_bytes == held_pieces * piece
            assert info.slot_bytes + info.state_bytes == progress.device_bytes
            assert (info.slots, info.capacity, info.most_slots) == (slots, slots, count)
            assert info.predicted_hit_rate == slots / count
            if slots == 0:
                with pytest.raises(WeighbridgeError) as raised:
                    read(0)
                assert raised.value.status == Status.BUSY
                continue
            for _ in range(2):
                assert [read(expert) for expert in range(count)] == list(range(count))
            assert cache.slots_info(0).device_address == address
        stats = cache.stats()
        assert stats.hits + stats.misses == stats.calls == 4 * 2 * count
    plan.close()
    device.free(number)


def test_the_guide_computes_what_all_experts_give(host, monkeypatch):
    torch = pytest.importorskip("torch")
    guide = (ROOT / "docs/experts.md").read_text()
    code = re.search(r"```python\n(.*?)```", guide, re.DOTALL)[1]
    assert len(code.split("):  # between")[1].splitlines()) <= 15
    count, hidden = 8, 16
    torch.manual_seed(0)
    weights, described = [], []
    for layer in range(2):
        for name, shape in (("w13", (count, 8, hidden)), ("w2", (count, hidden, 4))):
            buffer = host.buffer(2 * torch.Size(shape).numel())
            held = torch.from_dlpack(buffer.view("bfloat16", shape, accessor="host"))
            held.copy_(torch.randn(shape))
            weights.append(held)
            described.append((layer, name, buffer, shape))

    def fused_experts(x, w13, w2, topk_weights, ids):
        gate, up = torch.einsum("td,tked->tke", x, w13[ids.long()].float()).chunk(2, dim=-1)
        out = torch.einsum("tke,tkde->tkd", gate * up, w2[ids.long()].float())
        return (out * topk_weights[..., None]).sum(1)

    class Waits(ExpertCache):
        """PyTorch on the host does not wait for streams."""

        def route(self, *call, stream, **options):
            super().route(*call, stream=stream, **options)
            stream.synchronize()

    stream = host.stream()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    size = ExpertCache.measure(
        host, [ExpertTensor(*one, "bfloat16", shape) for *one, shape in described], slots=3
    )
    space = {"torch": torch, "device": host, "fused_experts": fused_experts}
    space.update(ExpertCache=Waits, ExpertTensor=ExpertTensor, layer_name_buffer_shape=described)
    given = code.replace("20 << 30", str(size.slot_bytes + size.state_bytes))
    assert given != code
    exec(given, space)
    assert space["cache"].info.slots == 3
    for tokens, passes in ((1, 1), (6, 3)):
        for layer in (0, 1):
            x, topk_weights = torch.randn(tokens, hidden), torch.rand(tokens, 2)
            ids = torch.stack([torch.randperm(count)[:2] for _ in range(tokens)]).int()
            assert space["cache"].passes(layer, ids.numel()) == passes
            found = space["experts"](layer, x, topk_weights, ids)
            wanted = fused_experts(x, *weights[2 * layer : 2 * layer + 2], topk_weights, ids)
            torch.testing.assert_close(found, wanted)
    space["cache"].close()
    space.clear()


def test_the_example_computes_what_all_experts_give(run_python):
    pytest.importorskip("torch")
    status, printed, error = run_python(str(ROOT / "examples/python/experts.py"))
    assert status == 0, error
    assert "of the experts were in slots" in printed

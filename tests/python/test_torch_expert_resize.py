"""Caches of experts at fixed addresses: budgets change under eager, compiled and captured steps."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

from conftest import REPEATS  # noqa: E402
from expert_models import build, calls, hits, logits  # noqa: E402

import weighbridge.torch as wt  # noqa: E402
from graphs import graph_of  # noqa: E402
from weighbridge import Status, WeighbridgeError  # noqa: E402
from weighbridge.torch._expert_caches import MOST_SLOTS  # noqa: E402

PIECE = 2 << 20
SHARES = (0.45, 0.36, 1.0, 0.4, 0.36, 0.6)


def large(where, implementation="grouped_mm", **options):
    """A model whose 32 experts have 768 KiB each."""
    sizes = {"hidden_size": 256, "intermediate_size": 512}
    return build("mixtral", where, implementation, **{**sizes, **options})


def every_byte(model):
    """Bytes of the weights, and of the pieces that they are in."""
    return sum(parameter.nbytes for parameter in model.parameters()) + 16 * PIECE


def offload(model, **options):
    given = options or {"device_bytes": every_byte(model) - 17 * PIECE}
    return wt.offload(model, transfer_mode="experts", fixed_addresses=True, **given)


def addresses(handle):
    slots = [cache.slots_info(i).device_address for cache in handle.expert_caches for i in (0, 1)]
    tensors = [t.data_ptr() for pool in handle._weights.expert_pools for t in pool.tensors]
    infos = handle.offloader.parameter_infos()
    return slots, tensors, [info.device_address for info in infos]


def slots(handle):
    return sum(cache.info.slots for cache in handle.expert_caches)


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm", "batched_mm"])
def test_outputs_and_addresses_are_the_same_at_every_budget(where, implementation):
    model = large(where, implementation)
    every = every_byte(model)
    steps = ((1, 0), (2, 5), (20, 3))
    wanted = [logits(model, count, first).clone() for count, first in steps]
    handle = offload(model)
    before, found = addresses(handle), set()
    for share in SHARES:
        progress = handle.resize(device_bytes=int(every * share))
        assert progress.pending_units == 0 and progress.device_bytes <= every * share
        found.add(slots(handle))
        made = calls(handle)
        for _ in range(2):
            for want, (count, first) in zip(wanted, steps):
                assert torch.equal(logits(model, count, first), want)
        # A step of one token has slots for its experts at every budget.
        assert calls(handle) - made >= 2 * 4
    assert len(found) >= 4 and min(found) < 8 < max(found)
    assert hits(handle) > 0
    assert addresses(handle) == before
    handle.remove()
    assert torch.equal(logits(model, *steps[0]), wanted[0])


def test_a_sleeping_model_holds_no_slots_and_wakes_up_at_its_addresses(where):
    model = large(where)
    wanted = logits(model, 2).clone()
    handle = offload(model)
    assert torch.equal(logits(model, 2), wanted)
    before, awake = addresses(handle), slots(handle)
    for _ in range(2):
        handle.sleep()
        assert slots(handle) == 0
        assert handle.offloader.resize_advance().device_bytes == 0
        with pytest.raises(WeighbridgeError) as raised:
            logits(model, 2)
        assert raised.value.status == Status.BUSY
        handle.wake()
        assert slots(handle) == awake
        assert addresses(handle) == before
        made = calls(handle)
        assert torch.equal(logits(model, 2), wanted)
        assert calls(handle) == made + 4


def test_slots_that_go_during_a_step_are_missed_by_none(where):
    model = large(where)
    every = every_byte(model)
    wanted = logits(model, 4).clone()
    handle = offload(model)
    assert torch.equal(logits(model, 4), wanted)
    made = calls(handle)
    for share in (0.36, 1.0, 0.36, 0.5):

        def resize(*_, share=share):
            handle.resize(device_bytes=int(every * share), wait=False)

        # In the middle of a step, whose groups are in use.
        hook = model.model.layers[1].register_forward_hook(resize)
        assert torch.equal(logits(model, 4), wanted)
        hook.remove()
        while handle.offloader.resize_advance(handle._weights.stream()).pending_units:
            pass
        assert torch.equal(logits(model, 4), wanted)
    assert calls(handle) > made


def test_a_call_that_finds_too_few_slots_reads_in_place(where):
    torch.compiler.reset()
    model = large(where, dtype=torch.float32, num_hidden_layers=2)
    every = every_byte(model)
    compiled = torch.compile(model, backend="aot_eager")
    wanted = logits(model, 6).clone(), logits(compiled, 6).clone()
    torch.compiler.reset()
    handle = offload(model)

    def resize(share):
        """As callers of the C interface do, of whom the handle does not know."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(handle.offloader, "around_moves", None)
            handle.offloader.resize(int(every * share), handle._weights.stream(), wait=False)

    resize(1.0)
    logits(model, 6)
    compiled = torch.compile(model, backend="aot_eager")
    assert torch.equal(logits(compiled, 6), wanted[1])
    made = calls(handle)
    hook = model.model.layers[0].register_forward_hook(lambda *_: resize(0.36))
    assert torch.equal(logits(model, 6), wanted[0])
    assert calls(handle) == made + 1
    hook.remove()
    # Compiled code cannot choose.
    handle.resize(device_bytes=every)
    assert torch.equal(logits(compiled, 6), wanted[1])
    resize(0.36)
    with pytest.raises(RuntimeError, match="fewer slots for experts"):
        logits(compiled, 6)
    assert torch.equal(logits(compiled, 6), wanted[1])
    torch.compiler.reset()


def test_a_cache_is_for_as_many_experts_as_kernels_take(where):
    model = build("qwen3-moe", where, num_experts=300, num_hidden_layers=6)
    wanted = logits(model).clone()
    handle = offload(model, offload_bytes=1 << 24, expert_bytes=24 << 20)
    assert [cache.info.experts for cache in handle.expert_caches] == [600] * 3
    for pool in handle._weights.expert_pools:
        assert all(tensor.shape[0] == 600 <= MOST_SLOTS for tensor in pool.tensors)
    held = handle.offloader.resize_advance().device_bytes
    for pieces in (0, 3, 1, 4):
        handle.resize(device_bytes=held + pieces * PIECE)
        assert torch.equal(logits(model), wanted)
    assert calls(handle) == 4 * 6


@pytest.mark.parametrize(
    ("backend", "dtype"),
    [
        ("aot_eager", torch.bfloat16),
        # Inductor rounds to 16 bits less often, the more operations it fuses.
        pytest.param("inductor", torch.float32, marks=REPEATS),
    ],
)
def test_compiled_code_is_right_at_every_budget(where, backend, dtype):
    torch.compiler.reset()
    layers = 4 if dtype == torch.bfloat16 else 2
    model = large(where, dtype=dtype, num_hidden_layers=layers)
    every = every_byte(model)
    steps = ((1, 0), (1, 5), (1, 9))
    compiled = torch.compile(model, backend=backend)
    wanted = [logits(compiled, count, first).clone() for count, first in steps]
    torch.compiler.reset()
    handle = offload(model)
    compiled = torch.compile(model, backend=backend)
    logits(compiled, 1)  # the first step is not compiled
    before = addresses(handle)
    for turn, share in enumerate(SHARES):
        handle.resize(device_bytes=int(every * share))
        if turn == 3:
            handle.sleep()
            handle.wake()
        made = calls(handle)
        for want, (count, first) in zip(wanted, steps):
            assert torch.equal(logits(compiled, count, first), want)
        assert calls(handle) == made + layers * len(steps)
    assert addresses(handle) == before
    torch.compiler.reset()


def test_code_compiled_for_more_slots_is_compiled_again_for_fewer(where):
    torch.compiler.reset()
    model = large(where, dtype=torch.float32, num_hidden_layers=2)
    every, count = every_byte(model), 6  # 12 ids, of 8 experts
    compiled = torch.compile(model, backend="aot_eager")
    wanted = logits(compiled, count).clone()
    torch.compiler.reset()
    handle = offload(model)
    compiled = torch.compile(model, backend="aot_eager")
    for share, routes in ((1.0, True), (0.36, False), (1.0, True)):
        handle.resize(device_bytes=int(every * share))
        assert all(cache.info.slots >= 8 for cache in handle.expert_caches) is routes
        logits(compiled, count)
        made = calls(handle)
        assert torch.equal(logits(compiled, count), wanted)
        assert calls(handle) - made == (2 if routes else 0)
    torch.compiler.reset()


@pytest.mark.parametrize("leaves", [True, False])
def test_a_model_is_called_after_another_of_its_arbiter_was_removed(where, leaves):
    models = [large(where) for _ in range(2)]
    wanted = logits(models[1], 2).clone()
    handles = [offload(model) for model in models]
    with_both = wt.Arbiter(2 * every_byte(models[0]))
    for handle in handles:
        with_both.add(handle)
        with_both.use(handle)
    if leaves:
        with_both.remove(handles[0])
    handles[0].remove()
    assert with_both.use(handles[1]).ready
    assert torch.equal(logits(models[1], 2), wanted)


def test_experts_are_whole_where_everything_fits_but_for_the_padding(where):
    model = large(where)
    total = sum(parameter.nbytes for parameter in model.parameters())
    wanted = logits(model, 2).clone()
    for pieces in (0, 2, 4):
        handle = offload(model, device_bytes=total + pieces * PIECE)
        assert 0 < slots(handle) < 32
        assert torch.equal(logits(model, 2), wanted)
        handle.remove()


@pytest.mark.gpu
@pytest.mark.parametrize("implementation", ["grouped_mm", "batched_mm"])
def test_a_graph_is_right_at_every_budget(implementation):
    model = large(torch.device("cuda:0"), implementation)
    every = every_byte(model)
    tokens = torch.zeros((1, 2), dtype=torch.int64, device="cuda:0")

    def step():
        return model(input_ids=tokens, use_cache=False).logits

    with torch.no_grad():
        wanted = []
        for token in range(12):
            tokens.fill_(token)
            wanted.append(step().clone())
        handle = offload(model)
        graph, found = graph_of(step)
        before = addresses(handle)
        for turn, share in enumerate(SHARES):
            handle.resize(device_bytes=int(every * share))
            if turn == 3:
                handle.sleep()
                handle.wake()
            for token in range(12):
                tokens.fill_(token)
                graph.replay()
                assert torch.equal(found, wanted[token])
        assert addresses(handle) == before
    assert sum(cache.stats().evictions for cache in handle.expert_caches) > 0


@pytest.mark.gpu
def test_a_resize_waits_for_steps_on_other_streams():
    model = large(torch.device("cuda:0"))
    every = every_byte(model)
    wanted = [logits(model, 2, first).clone() for first in range(12)]
    handle = offload(model)
    side = torch.cuda.Stream()
    torch.cuda.synchronize()
    found = []
    for first in range(12):
        with torch.cuda.stream(side):
            found.append(logits(model, 2, first))
        handle.resize(device_bytes=int(every * SHARES[first % len(SHARES)]))
    torch.cuda.synchronize()
    assert all(torch.equal(one, want) for one, want in zip(found, wanted))

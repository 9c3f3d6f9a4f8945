"""Several threads and tasks use one offloaded model: right numbers, or errors that name it."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from .twins import Net, equal, forward, refusal, weights


def together(work, count=2):
    """Runs a function on some threads at a time, and returns what they raised."""
    raised = []

    def run():
        try:
            work()
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"
    return raised


@pytest.mark.parametrize("count", [2, 4])
def test_threads_run_one_model(compare, count):
    model = compare.made(Net)
    wanted, state = forward(model), weights(model)
    handle = compare.offload(model)
    wrong = []

    def work():
        for _ in range(25):
            try:
                found = forward(model)
            except Exception as error:
                if refusal(error) is None:
                    raise
                compare.outcome.raised.append(refusal(error))
            else:
                if not equal(found, wanted):
                    wrong.append(1)

    assert together(work, count) == []
    assert not wrong, f"WRONG numbers in {len(wrong)} steps"
    with compare.outcome.may_raise():
        assert equal(forward(model), wanted), "WRONG numbers after the threads"
    handle.reset()
    assert equal(forward(model), wanted), "WRONG numbers after reset()"
    handle.remove()
    assert equal(weights(model), state), "WRONG weights after remove()"


def test_one_thread_reads_weights_while_another_runs(compare):
    model = compare.made(Net)
    wanted, state = forward(model), weights(model)
    handle = compare.offload(model)
    done = threading.Event()

    def read():
        while not done.is_set():
            try:
                found = weights(model)
            except Exception as error:
                if refusal(error) is None:
                    raise
                compare.outcome.raised.append(refusal(error))
            else:
                assert equal(found, state), "WRONG state_dict() beside a step"

    reader = threading.Thread(target=lambda: raised.extend(together(read, 1)))
    raised = []
    reader.start()
    for _ in range(10):
        with compare.outcome.may_raise():
            assert equal(forward(model), wanted), "WRONG numbers beside a reader"
    done.set()
    reader.join(60)
    assert raised == []
    handle.remove()


def test_a_model_runs_on_another_thread_than_it_was_offloaded_on(compare):
    model = compare.made(Net)
    wanted = forward(model)
    handle = compare.offload(model)
    found = []
    for _ in range(3):
        assert together(lambda: found.append(forward(model)), 1) == []
    assert equal(found, [wanted] * 3), "WRONG numbers on another thread"
    assert together(handle.remove, 1) == []
    assert equal(forward(model), wanted), "WRONG numbers after remove()"


def test_threads_run_models_of_their_own(compare):
    models = [compare.made(Net) for _ in range(2)]
    wanted = forward(models[0])
    handles = [compare.offload(model) for model in models]
    turns = iter(models)
    wrong = []

    def work():
        model = next(turns)
        for _ in range(20):
            if not equal(forward(model), wanted):
                wrong.append(1)

    assert together(work) == []
    assert not wrong, "WRONG numbers"
    for handle in handles:
        handle.remove()


def test_tasks_take_turns_between_layers(compare):
    """Two asyncio tasks of one thread interleave their layers."""
    import torch

    model = compare.made(Net)
    handle_free = compare.made(Net)

    async def step(model, tokens):
        x = model.embed(torch.tensor([tokens], device=model.embed.weight.device))
        for layer in model.layers:
            with torch.no_grad():
                x = layer(x)
            await asyncio.sleep(0)
        return model.head(x).detach()

    async def both(model):
        return await asyncio.gather(step(model, [1, 2]), step(model, [3, 4]))

    wanted = asyncio.run(both(handle_free))
    handle = compare.offload(model)
    with compare.outcome.may_raise():
        assert equal(asyncio.run(both(model)), wanted), "WRONG numbers of tasks"
    handle.remove()
    assert equal(asyncio.run(both(model)), wanted), "WRONG numbers after remove()"


class Branches(Net):
    """A net that runs its layers on threads, and waits for them."""

    def forward(self, tokens):
        x, gradients = self.embed(tokens), torch.is_grad_enabled()

        def call(layer):
            with torch.set_grad_enabled(gradients):
                return layer(x)

        with ThreadPoolExecutor(3) as threads:
            started = [threads.submit(call, layer) for layer in self.layers]
            return self.head(sum(branch.result(20) for branch in started))


def test_a_forward_runs_layers_on_threads(compare):
    compare(Branches, lambda model: [forward(model) for _ in range(2)])


def test_threads_call_layers_while_the_model_runs(compare):
    model = compare.made(Net)
    x = torch.ones(2, 4, 32, device=compare.where)
    with torch.no_grad():
        wanted, alone = forward(model), [layer(x) for layer in model.layers]
    compare.offload(model)
    wrong = []

    def work():
        for _ in range(10):
            with torch.no_grad():
                if not all(equal(layer(x), out) for layer, out in zip(model.layers, alone)):
                    wrong.append("layers")
            if not equal(forward(model), wanted):
                wrong.append("model")

    assert together(work, 3) == []
    assert not wrong, f"WRONG numbers: {wrong}"

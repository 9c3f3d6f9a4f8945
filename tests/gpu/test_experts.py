"""The CUDA kernel of the expert cache takes the slots of the host kernel, and gathers experts."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
import torch

from weighbridge import Device, ExpertCache, ExpertTensor

WORDS = 16


class Side:
    """A cache on one device; an expert holds its own number, 16 times."""

    def __init__(self, name, layers, experts, slots, lanes, wide):
        self.device = Device(name)
        self.stream = self.device.stream()
        self.buffer = self.device.buffer(layers * experts * WORDS * 4)
        numbers = np.repeat(np.arange(layers * experts, dtype=np.int32), WORDS)
        ctypes.memmove(self.buffer.address, numbers.ctypes.data, numbers.nbytes)
        nbytes = experts * WORDS * 4
        tensors = [
            ExpertTensor(layer, "w", self.buffer, "int32", (experts, WORDS), offset=layer * nbytes)
            for layer in range(layers)
        ]
        self.cache = ExpertCache(self.device, tensors, slots=slots, lanes=lanes)
        self.dtype, self.type = ("int64", np.int64) if wide else ("int32", np.int32)
        self.staging = self.device.buffer(1 << 20)
        self.numbers = self.device.alloc(1 << 20)

    def call(self, layer, ids, lane):
        """Routes, or prefetches with lane -1. Returns the slots."""
        given = np.ascontiguousarray(ids, dtype=self.type)
        ctypes.memmove(self.staging.address, given.ctypes.data, given.nbytes)
        self.device.copy(self.numbers, self.staging.address, given.nbytes, self.stream)
        options = {"dtype": self.dtype, "stream": self.stream}
        if lane < 0:
            self.cache.prefetch(layer, self.numbers, given.size, **options)
        else:
            self.cache.route(layer, self.numbers, given.size, self.numbers, lane=lane, **options)
        self.device.copy(self.staging.address, self.numbers, given.nbytes, self.stream)
        self.stream.synchronize()
        return np.frombuffer(ctypes.string_at(self.staging.address, given.nbytes), self.type)

    def close(self):
        self.cache.close()
        self.device.free(self.numbers)


# Slots within one round of the block, beyond what it keeps in registers, and as many as experts.
@pytest.mark.parametrize(
    ("layers", "experts", "slots", "lanes", "wide"),
    [
        (4, 128, 300, 2, False),
        (3, 40, 120, 1, True),
        (80, 128, 9000, 2, False),
        (6, 384, 1500, 3, True),
        (2, 4096, 8192, 1, False),
    ],
)
def test_slots_and_counters_are_those_of_the_host_device(layers, experts, slots, lanes, wide):
    random = np.random.default_rng(layers * slots)
    cuda = Side("cuda:0", layers, experts, slots, lanes, wide)
    host = Side("host", layers, experts, slots, lanes, wide)
    held = torch.from_dlpack(cuda.cache.view(0))
    for turn in range(400 if slots < 5000 else 1200):
        layer = int(random.integers(layers))
        most = min(experts, slots // lanes)
        count = int(random.choice([1, 8, 64, 512, 3000]))
        if count > most:  # few distinct ones, so that the host's bound is kept by the pass
            count = most
        skew = random.zipf(1.3, size=count) if turn % 2 else random.integers(1, experts + 1, count)
        ids = np.where(random.random(count) < 0.02, -1, (skew - 1) % experts)
        lane = int(random.integers(-1, lanes))
        found, wanted = cuda.call(layer, ids, lane), host.call(layer, ids, lane)
        np.testing.assert_array_equal(found, wanted, f"turn {turn}, layer {layer}, lane {lane}")
        if lane >= 0 and turn % 10 == 0:
            real = ids >= 0
            at = torch.from_numpy(found[real].astype(np.int64)).cuda()
            numbers = torch.from_numpy(layer * experts + ids[real]).cuda()
            assert bool((held[at] == numbers[:, None]).all())
    for layer in range(layers):
        assert cuda.cache.stats(layer) == host.cache.stats(layer)
    assert cuda.cache.stats().misses > 0
    del held
    cuda.close()
    host.close()


def test_a_graph_of_a_step_takes_the_slots_of_one_that_was_not_captured():
    layers, experts, slots, used = 24, 64, 400, 8
    graph, eager = (Side("cuda:0", layers, experts, slots, 1, False) for _ in range(2))
    ids = torch.zeros((layers, used), dtype=torch.int32, device="cuda")
    ahead = torch.zeros_like(ids)
    found = {side: torch.zeros_like(ids) for side in (graph, eager)}

    def step(side):
        """Calls of all layers, each with a hint for the next on another stream."""
        stream, other = torch.cuda.current_stream(), torch.cuda.Stream()
        for layer in range(layers):
            at, to = ids[layer].data_ptr(), found[side][layer].data_ptr()
            side.cache.route(layer, at, used, to, stream=stream)
            if layer + 1 < layers:
                other.wait_stream(stream)
                hint = ahead[layer + 1].data_ptr()
                side.cache.prefetch(layer + 1, hint, used, stream=other)
        stream.wait_stream(other)

    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        step(graph)
    random = np.random.default_rng(3)
    for turn in range(60):
        drawn = random.zipf(1.4, size=(2, layers, used)) % experts
        ids.copy_(torch.from_numpy(drawn[0].astype(np.int32)))
        ahead.copy_(torch.from_numpy(drawn[1].astype(np.int32)))
        captured.replay()
        step(eager)
        torch.cuda.synchronize()
        assert torch.equal(found[graph], found[eager]), f"turn {turn}"
        held = torch.from_dlpack(graph.cache.view(0))
        last = layers - 1
        at, numbers = found[graph][last].long(), last * experts + ids[last]
        assert bool((held[at] == numbers[:, None]).all())
        del held
    assert graph.cache.stats() == eager.cache.stats()
    assert graph.cache.stats().prefetched > 0
    graph.close()
    eager.close()

"""A decoder of the shape of Qwen3-30B-A3B for benchmarks: 128 experts in each layer, of which a
token uses 8, hidden size 2048, intermediate size 768, bf16. Weights are random, routings are given.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from weighbridge import Buffer, Device, ExpertTensor

HIDDEN, INTERMEDIATE, EXPERTS, USED = 2048, 768, 128, 8
HEADS, KV_HEADS, HEAD, CONTEXT = 32, 4, 128, 1024
W13, W2 = (2 * INTERMEDIATE, HIDDEN), (HIDDEN, INTERMEDIATE)
EXPERT_BYTES = 2 * (2 * INTERMEDIATE * HIDDEN + HIDDEN * INTERMEDIATE)


@triton.jit
def up_kernel(
    x,
    w13,
    ids,
    out,
    USED: tl.constexpr,
    HIDDEN: tl.constexpr,
    MIDDLE: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """silu(gate) * up of each token and use, for ROWS of the intermediate size."""
    pair = tl.program_id(0)
    expert = tl.load(ids + pair).to(tl.int64)
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    cols = tl.arange(0, COLS)
    base = w13 + expert * (2 * MIDDLE * HIDDEN)
    gate = tl.zeros((ROWS,), tl.float32)
    up = tl.zeros((ROWS,), tl.float32)
    for first in range(0, HIDDEN, COLS):
        token = tl.load(x + pair // USED * HIDDEN + first + cols).to(tl.float32)
        at = base + rows[:, None] * HIDDEN + first + cols[None, :]
        gate += tl.sum(tl.load(at).to(tl.float32) * token[None, :], axis=1)
        up += tl.sum(tl.load(at + MIDDLE * HIDDEN).to(tl.float32) * token[None, :], axis=1)
    tl.store(out + pair * MIDDLE + rows, (gate / (1 + tl.exp(-gate)) * up).to(tl.bfloat16))


@triton.jit
def down_kernel(
    middle,
    w2,
    ids,
    weights,
    out,
    HIDDEN: tl.constexpr,
    MIDDLE: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """The weighted result of each token and use, for ROWS of the hidden size."""
    pair = tl.program_id(0)
    expert = tl.load(ids + pair).to(tl.int64)
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    cols = tl.arange(0, COLS)
    total = tl.zeros((ROWS,), tl.float32)
    for first in range(0, MIDDLE, COLS):
        token = tl.load(middle + pair * MIDDLE + first + cols).to(tl.float32)
        at = w2 + expert * (HIDDEN * MIDDLE) + rows[:, None] * MIDDLE + first + cols[None, :]
        total += tl.sum(tl.load(at).to(tl.float32) * token[None, :], axis=1)
    tl.store(out + pair * HIDDEN + rows, total * tl.load(weights + pair))


def fused_experts(
    x: torch.Tensor, w13: torch.Tensor, w2: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """A fused mixture of experts, which reads row ``ids`` of its expert tensors."""
    pairs = ids.numel()
    middle = torch.empty((pairs, INTERMEDIATE), dtype=torch.bfloat16, device="cuda")
    out = torch.empty((pairs, HIDDEN), dtype=torch.float32, device="cuda")
    up_kernel[(pairs, INTERMEDIATE // 16)](x, w13, ids, middle, USED, HIDDEN, INTERMEDIATE, 16, 256)
    down_kernel[(pairs, HIDDEN // 32)](middle, w2, ids, weights, out, HIDDEN, INTERMEDIATE, 32, 256)
    return out.view(-1, USED, HIDDEN).sum(1).to(torch.bfloat16)


class Host:
    """The experts of all layers in pinned host memory."""

    def __init__(self, device: Device, layers: int) -> None:
        self.device, self.layers = device, layers
        self.buffers: list[tuple[Buffer, Buffer]] = []
        torch.manual_seed(1)
        noise = torch.randn((EXPERTS, *W13), device="cuda", dtype=torch.bfloat16) * 0.02
        for layer in range(layers):
            pair = tuple(device.buffer(2 * EXPERTS * rows * cols) for rows, cols in (W13, W2))
            # Other values in each layer, at the rate of the link.
            noise = noise.roll(1 + layer, dims=0).neg()
            self.host(pair[0], W13).copy_(noise)
            self.host(pair[1], W2).copy_(noise.view(-1)[: EXPERTS * W2[0] * W2[1]].view(-1, *W2))
            self.buffers.append(pair)
        torch.cuda.synchronize()

    @staticmethod
    def host(buffer: Buffer, shape: tuple[int, int]) -> torch.Tensor:
        """A tensor of the host over a buffer."""
        return torch.from_dlpack(buffer.view("bfloat16", (EXPERTS, *shape), accessor="host"))

    def mapped(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Tensors of the device over host memory."""
        w13, w2 = self.buffers[layer]
        return tuple(
            torch.from_dlpack(buffer.view("bfloat16", (EXPERTS, *shape)))
            for buffer, shape in ((w13, W13), (w2, W2))
        )

    def tensors(self) -> list[ExpertTensor]:
        """What an expert cache needs to know."""
        found = []
        for layer, (w13, w2) in enumerate(self.buffers):
            found.append(ExpertTensor(layer, "w13", w13, "bfloat16", (EXPERTS, *W13)))
            found.append(ExpertTensor(layer, "w2", w2, "bfloat16", (EXPERTS, *W2)))
        return found


Experts = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""Computes the experts of a layer from its tokens, ids and weights."""


class Decoder:
    """Everything but the experts, and a step in which they are given."""

    def __init__(self, layers: int) -> None:
        torch.manual_seed(2)

        def weight(rows: int, cols: int) -> torch.Tensor:
            return torch.randn((rows, cols), device="cuda", dtype=torch.bfloat16) * 0.02

        self.layers = layers
        self.qkv = [weight((HEADS + 2 * KV_HEADS) * HEAD, HIDDEN) for _ in range(layers)]
        self.out = [weight(HIDDEN, HEADS * HEAD) for _ in range(layers)]
        self.router = [weight(EXPERTS, HIDDEN) for _ in range(layers)]
        self.norm = torch.ones(HIDDEN, device="cuda", dtype=torch.bfloat16)
        self.cache = [
            torch.randn((2, 1, KV_HEADS, CONTEXT, HEAD), device="cuda", dtype=torch.bfloat16)
            for _ in range(layers)
        ]
        self.token = torch.randn((1, HIDDEN), device="cuda", dtype=torch.bfloat16)
        self.ids = torch.zeros((layers, USED), device="cuda", dtype=torch.int32)

    def step(self, experts: Experts) -> torch.Tensor:
        """Decodes a token, of which ``ids`` name the experts."""
        x = self.token
        for layer in range(self.layers):
            h = F.rms_norm(x, (HIDDEN,), self.norm)
            qkv = F.linear(h, self.qkv[layer]).view(1, HEADS + 2 * KV_HEADS, 1, HEAD)
            query, key, value = qkv.split([HEADS, KV_HEADS, KV_HEADS], dim=1)
            keys, values = self.cache[layer]
            keys[:, :, -1:].copy_(key)
            values[:, :, -1:].copy_(value)
            # Not a fused attention: some do not give the same bits twice.
            query = query.view(KV_HEADS, HEADS // KV_HEADS, HEAD) * HEAD**-0.5
            seen = (query @ keys[0].mT).float().softmax(-1).to(query.dtype) @ values[0]
            x = x + F.linear(seen.view(1, HEADS * HEAD), self.out[layer])
            h = F.rms_norm(x, (HIDDEN,), self.norm)
            scores = F.linear(h, self.router[layer]).float().softmax(-1)
            weights = scores.topk(USED).values
            x = x + experts(layer, h, self.ids[layer], weights)
        return x


class Graph:
    """A step as a CUDA graph."""

    def __init__(self, decoder: Decoder, experts: Experts) -> None:
        self.decoder = decoder
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            decoder.step(experts)
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.result = decoder.step(experts)

    def run(self, ids: torch.Tensor) -> torch.Tensor:
        """Replays the step with other experts."""
        self.decoder.ids.copy_(ids)
        self.graph.replay()
        return self.result


def timed(run: Callable[[torch.Tensor], object], trace: torch.Tensor) -> list[float]:
    """Milliseconds of each step, by events, with no wait of the host in between."""
    events = [torch.cuda.Event(enable_timing=True) for _ in range(len(trace) + 1)]
    events[0].record()
    for event, ids in zip(events[1:], trace):
        run(ids)
        event.record()
    torch.cuda.synchronize()
    return [before.elapsed_time(after) for before, after in zip(events, events[1:])]


def layers_that_fit() -> int:
    """As many layers as device memory, with space for the rest, and half of host memory hold."""
    layer = EXPERTS * EXPERT_BYTES
    free = torch.cuda.mem_get_info()[0] - (8 << 30)
    available = next(
        int(line.split()[1]) * 1024
        for line in Path("/proc/meminfo").read_text().splitlines()
        if line.startswith("MemAvailable")
    )
    return max(1, min(48, free // layer, int(0.6 * available) // layer))

"""A KV cache that grows into memory of the weights while a model generates; then they return.

    python examples/python/kv_cache.py [plot.svg]

Every output is that of the resident model, bit for bit.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch

import weighbridge.torch

LAYERS, WIDTH, BATCH, BLOCK, PIECE = 8, 512, 16, 16, 2 << 20
where = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Layer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = torch.nn.Linear(WIDTH, 3 * WIDTH)
        self.up = torch.nn.Linear(WIDTH, 4 * WIDTH)
        self.down = torch.nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x, cache, at):
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        keys, values = cache.append(at, k, v)
        scores = torch.einsum("bd,btd->bt", q, keys) / WIDTH**0.5
        x = x + torch.einsum("bt,btd->bd", scores.softmax(-1), values)
        return x + self.down(torch.relu(self.up(x)))


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(Layer() for _ in range(LAYERS))

    def forward(self, x, cache):
        for at, layer in enumerate(self.layers):
            x = layer(x, cache, at)
        return torch.tanh(x)


class Cache:
    """Keys and values in blocks of tokens, made when they are needed."""

    BLOCK_BYTES = 4 * LAYERS * 2 * BATCH * BLOCK * WIDTH

    def __init__(self, take_memory) -> None:
        self.blocks, self.length, self.take_memory = [], 0, take_memory

    @property
    def nbytes(self) -> int:
        return len(self.blocks) * self.BLOCK_BYTES

    def begin_token(self) -> None:
        if self.length % BLOCK == 0:
            self.take_memory(self.nbytes + self.BLOCK_BYTES)
            self.blocks.append(torch.zeros(LAYERS, 2, BATCH, BLOCK, WIDTH, device=where))
        self.length += 1

    def append(self, layer, key, value):
        last = (self.length - 1) % BLOCK
        self.blocks[-1][layer, 0, :, last], self.blocks[-1][layer, 1, :, last] = key, value
        both = torch.cat([block[layer] for block in self.blocks], dim=2)
        return both[0, :, : self.length], both[1, :, : self.length]


def generate(model, steps, take_memory=lambda nbytes: None):
    """Yields the output and the bytes of the cache after each token."""
    cache, x = Cache(take_memory), torch.ones(BATCH, WIDTH, device=where) / WIDTH
    for _ in range(steps):
        cache.begin_token()
        x = model(x, cache)
        yield x, cache.nbytes


def svg(path: Path, milliseconds: list[float], lines: dict[str, list[float]]) -> None:
    """Draws step times and MiB over the tokens."""
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 720 400"><style>'
        "text{font:13px sans-serif;fill:#888}polyline{fill:none;stroke-width:2}</style>"
    ]
    highest = 1.1 * max(max(line) for line in lines.values())
    times = sorted(milliseconds)[len(milliseconds) * 98 // 100] * 1.3
    drawn = [(name, line, highest, 30) for name, line in lines.items()]
    drawn.append(("a step", milliseconds, times, 230))
    for (name, line, most, top), colour in zip(drawn, ("#1f77b4", "#2ca02c", "#d62728")):
        points = [
            f"{70 + 560 * at / len(line):.1f},{top + 140 * (1 - min(y / most, 1)):.1f}"
            for at, y in enumerate(line)
        ]
        parts.append(f'<polyline stroke="{colour}" points="{" ".join(points)}"/>')
        end = float(points[-1].partition(",")[2]) + 4
        parts.append(f'<text x="640" y="{end:.0f}" style="fill:{colour}">{name}</text>')
    for most, top, unit in ((highest, 30, "MiB"), (times, 230, "ms")):
        parts.append(f'<text x="62" y="{top + 8}" text-anchor="end">{most:.0f} {unit}</text>')
        parts.append(f'<polyline stroke="#888" points="70,{top} 70,{top + 140} 630,{top + 140}"/>')
    parts.append(f'<text x="300" y="392">{len(milliseconds)} tokens</text></svg>')
    path.write_text("\n".join(parts) + "\n")


def main() -> None:
    torch.manual_seed(0)
    model = Model().to(where).eval().requires_grad_(False)
    requests = (128, 64)  # tokens
    expected = [x.clone() for steps in requests for x, _ in generate(model, steps)]

    # Planned for the least that the weights may need, so that every layer may leave.
    handle = weighbridge.torch.offload(
        model, offload_bytes=1 << 40, transfer_mode="prefetch", depth=2, fixed_addresses=True
    )
    each = sum(p.nbytes for p in model.layers[0].parameters())
    total = handle.stats.slot_bytes + LAYERS * -(-each // PIECE) * PIECE
    handle.resize(device_bytes=total)

    def take_memory(cache_bytes: int) -> None:
        handle.resize(device_bytes=total - cache_bytes)  # the weights give what the cache takes

    milliseconds, weights, caches, outputs = [], [], [], []
    for steps in requests:
        began = time.perf_counter()
        for x, cache_bytes in generate(model, steps, take_memory):
            if where.type == "cuda":
                torch.cuda.synchronize()
            milliseconds.append(1e3 * (time.perf_counter() - began))
            held = handle.offloader.resize_advance().device_bytes
            assert held + cache_bytes <= total
            weights.append(held / 2**20)
            caches.append(cache_bytes / 2**20)
            outputs.append(x.clone())
            began = time.perf_counter()
        handle.resize(device_bytes=total)  # the cache is gone: the weights return
    assert all(torch.equal(x, y) for x, y in zip(outputs, expected))
    print(
        f"{len(outputs)} tokens as the resident model computes them; the weights had from "
        f"{min(weights):.0f} to {max(weights):.0f} MiB, the cache up to {max(caches):.0f} MiB"
    )
    if len(sys.argv) > 1:
        svg(Path(sys.argv[1]), milliseconds, {"weights": weights, "KV cache": caches})


if __name__ == "__main__":
    main()

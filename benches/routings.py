"""Routings of a mixture of experts, as traces: with the skew of public hit rates, and uniform.

    python benches/routings.py skewed build/skewed.jsonl.gz
    python -m weighbridge experts build/skewed.jsonl.gz --slots 15%,30%,50%

A token of a layer uses ``used`` experts, drawn without replacement with probabilities proportional
to ``rank ** -exponent``; ranks are a permutation of the layer's own. Reports on Qwen3-30B-A3B say
that a cache of recently used experts finds 74 % with 15 % of the experts resident, 89 % with 30 %
and 96 % with 50 %. The exponent was fitted to these: see tests/python/test_expert_trace.py.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np

from weighbridge.expert_trace import ExpertTrace


@dataclass(frozen=True)
class Routing:
    """How experts are drawn."""

    exponent: float
    layers: int = 48
    experts: int = 128
    used: int = 8
    seed: int = 20260516


SKEWED = Routing(exponent=1.8)
UNIFORM = Routing(exponent=0.0)
ROUTINGS = {"skewed": SKEWED, "uniform": UNIFORM}


def draw(routing: Routing, steps: int, tokens: int = 1) -> np.ndarray:
    """Returns the experts of each step, layer, token and use."""
    random = np.random.default_rng(routing.seed)
    ranks = np.arange(1, routing.experts + 1)
    weights = np.stack([random.permutation(ranks) for _ in range(routing.layers)])
    logits = -routing.exponent * np.log(weights)
    drawn = np.empty((steps, routing.layers, tokens, routing.used), dtype=np.int32)
    for step in range(steps):
        # The largest of logits with Gumbel noise are a draw without replacement.
        noise = random.gumbel(size=(routing.layers, tokens, routing.experts))
        noisy = logits[:, None, :] + noise
        drawn[step] = np.argpartition(-noisy, routing.used, axis=-1)[..., : routing.used]
    return drawn


def trace_of(drawn: np.ndarray, experts: int) -> ExpertTrace:
    """Returns drawn experts as a trace."""
    trace = ExpertTrace((experts,) * drawn.shape[1])
    for step, layers in enumerate(drawn):
        for layer, ids in enumerate(layers):
            trace.record(layer, ids, step)
    return trace


def main() -> None:
    """Writes a trace."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("routing", choices=ROUTINGS)
    parser.add_argument("path", help="the file to write; compressed if it ends in .gz")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--tokens", type=int, default=1, help="tokens of a step")
    given = parser.parse_args()
    routing = ROUTINGS[given.routing]
    trace_of(draw(routing, given.steps, given.tokens), routing.experts).write(given.path)


if __name__ == "__main__":
    main()

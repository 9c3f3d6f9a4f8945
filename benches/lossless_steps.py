"""Steps of a Llama-shaped model whose every second layer crosses the link compressed.

Beside the same steps with raw weights, and with as many bytes of device memory in which residents
are compressed, too; over the time that the copy engine needs for the raw bytes.
``python benches/lossless_steps.py`` runs a tiny model on the host: it verifies outputs.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import torch

import llama
import weighbridge
import weighbridge.torch as wt
from report import ROOT, Report

sys.path.append(str(ROOT / "tests" / "python"))
from graphs import graph_of

RUNS = 7
TINY = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 8, "vocab_size": 100}
# Decoding one token, and prompts.
TOKENS = {"decode": 1, "prefill2048": 2048, "prefill8192": 8192}


class Steps:
    """The model, resident and offloaded."""

    def __init__(self, report: Report, peak: float, where: str, tokens: dict[str, int]) -> None:
        self.report, self.where = report, where
        tiny = where == "cpu"
        self.model = llama.build(where, **(TINY if tiny else {}))
        layers = TINY["num_hidden_layers"] if tiny else llama.LAYERS
        self.second = [f"layers.{layer}" for layer in range(0, layers, 2)]
        self.compress: Any = self.second if tiny else "auto"
        self.steps = {name: self.stepper(count) for name, count in tokens.items()}
        self.expected = {name: step().clone() for name, step in self.steps.items()}
        self.compressed: dict[str, float] = {}
        self.peak, self.bound, self.device_bytes = peak, 0.0, 0
        # Every second layer compressed; as many bytes of device memory with compressed residents.
        self.goals = {
            "compressed": {"decode": 0.74, "prefill2048": 0.8},
            "residents": {"decode": 0.40},
        }

    def stepper(self, tokens: int) -> Callable[[], torch.Tensor]:
        """Returns a step on a sequence of ``tokens`` tokens."""
        torch.manual_seed(1)
        width = self.model.config.hidden_size
        inputs = torch.randn(1, tokens, width, device=self.where, dtype=torch.bfloat16)

        def step() -> torch.Tensor:
            with torch.no_grad():
                return self.model(inputs_embeds=inputs, use_cache=False).last_hidden_state

        return step

    def synchronize(self) -> None:
        """Waits for the device."""
        if self.where != "cpu":
            torch.cuda.synchronize()

    def time(self, name: str, step: Callable[[], Any], what: str) -> float:
        """Adds a figure: the milliseconds of a step, for which the host waits."""
        taken = []
        for run in range(RUNS + 3):
            start = time.perf_counter()
            step()
            self.synchronize()
            if run >= 3:
                taken.append(1e3 * (time.perf_counter() - start))
        return self.report.figure(name, taken, "ms", what)

    def run(self) -> None:
        """Measures resident steps, raw ones and compressed ones, and sets the bars."""
        before = self.residents("resident", "all resident")
        second: dict[str, Any] = {"offload_bytes": 1 << 40, "select": self.second}
        raw_bytes = self.offloaded("raw", **second)
        plan_bytes = self.offloaded("compressed", compress=self.compress, **second)
        what = "bytes over the link in a step, for each byte of the offloaded weights"
        self.report.figure("step.ratio", [plan_bytes / raw_bytes], "", what)
        compress = ["layers"] if self.where == "cpu" else "auto"
        # "auto" prefetches the layers, too, and reads the table of the embedding in place.
        budget: dict[str, Any] = {"device_bytes": self.device_bytes, "transfer_mode": "auto"}
        rest = self.offloaded("residents", compress=compress, **budget)
        what = (
            f"the same with residents compressed, too, in {self.device_bytes} bytes on the device"
        )
        self.report.figure("step.residents.ratio", [rest / raw_bytes], "", what)
        # A device that is warm is slower.
        after = self.residents("resident.after", "all resident, after the other steps")
        for name in self.steps if self.where != "cpu" else ():
            if name not in self.goals["compressed"]:
                over = self.compressed[name] / ((before[name] + after[name]) / 2)
                label = f"{name}, compressed, over resident before and after"
                self.report.bar(label, over, "<=", 1.03)

    def residents(self, kind: str, what: str) -> dict[str, float]:
        """Returns the milliseconds of the resident model's steps."""
        steps = self.steps.items()
        return {name: self.time(f"step.{kind}.{name}", step, what) for name, step in steps}

    def offloaded(self, kind: str, **options: Any) -> float:
        """Measures steps with weights offloaded; returns the bytes that one moves."""
        common = {"transfer_mode": "prefetch", "overlap_steps": True}
        link_rate = 1e9 * self.peak
        handle = wt.offload(self.model, link_bytes_per_second=link_rate, **{**common, **options})
        info, stats = handle.offloader.plan.info, handle.stats
        if kind == "raw":
            self.device_bytes = info.resident_bytes + info.slot_bytes
            self.bound = 1e3 * stats.offloaded_bytes / self.peak / 1e9
            self.report.figure("step.bound", [self.bound], "ms", "raw bytes over copy.peak")
        if kind == "residents":
            held = info.resident_bytes + stats.slot_bytes + stats.device_encoded_bytes
            if held > self.device_bytes or stats.device_decoded_bytes == 0:
                raise RuntimeError(f"{held} bytes on the device, {stats.device_decoded_bytes} kept")
            predicted = 1e3 * info.step_seconds
            self.report.figure("step.residents.predicted", [predicted], "ms", "of the plan")
        self.steps["decode"]()
        before = handle.stats.moved_bytes
        self.steps["decode"]()
        moved = handle.stats.moved_bytes - before
        for name, step in self.steps.items():
            for _ in range(2):
                if not torch.equal(step(), self.expected[name]):
                    raise RuntimeError(f"{name}, {kind}: the output is not the resident model's")
            taken = self.time(f"step.{kind}.{name}", step, f"offloaded, {kind}")
            if kind == "compressed":
                self.compressed[name] = taken
            self.bars(kind, name, taken)
        if self.where != "cpu":
            graph, result = graph_of(self.steps["decode"], warm=2)
            graph.replay()
            if not torch.equal(result, self.expected["decode"]):
                raise RuntimeError(f"{kind}: the output of a replay is not the resident model's")
            taken = self.time(f"step.{kind}.graph", graph.replay, f"decode in a graph, {kind}")
            self.bars(kind, "decode", taken, ", graph")
            del graph
        handle.remove()
        return moved

    def bars(self, kind: str, name: str, taken: float, how: str = "") -> None:
        """Sets the bars of a step with compressed weights on a GPU."""
        if self.where == "cpu" or kind not in self.goals:
            return
        if name in self.goals[kind]:
            label = f"{name}{how}, {kind}, over the raw link bound"
            self.report.bar(label, taken / self.bound, "<=", self.goals[kind][name])


def main() -> int:
    """Runs a tiny model on the host, whose times say nothing."""
    report = Report("lossless", weighbridge.__version__)
    Steps(report, 10.0, "cpu", {"decode": 1, "prefill": 16}).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())

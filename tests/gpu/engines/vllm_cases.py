"""Runs vLLM with and without offloaded weights and compares tokens and log-probabilities.

python vllm_cases.py [SECONDS] [CASE...]     (all cases that fit into the seconds)
python vllm_cases.py --run CASE OUTPUT       (one case, in this process)
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vllm_models import EXPERTS, SMALL, write_checkpoint

FOLDER = Path(os.environ.get("VLLM_MODELS", "/tmp/vllm-models"))
SITE = Path(os.environ.get("VLLM_SITE", "/tmp/vllm-site"))
MODELS = {"dense": SMALL, "moe": EXPERTS}
AT_ONCE = 5
LIMIT = 150.0
"""Seconds of one case."""

GRAPHS: dict[str, dict[str, Any]] = {
    "eager": {"enforce_eager": True},
    # Compiled in pieces, with graphs of the pieces, and graphs of whole decode steps.
    "default": {"compilation_config": {"cudagraph_capture_sizes": [1, 2, 4, 8, 16, 32]}},
    "full": {
        "compilation_config": {
            "mode": 0,
            "cudagraph_mode": "FULL",
            "cudagraph_capture_sizes": [1, 2, 4, 8],
        }
    },
    "compile": {"compilation_config": {"cudagraph_mode": "NONE"}},
}


def with_weighbridge(**options: Any) -> dict[str, Any]:
    return {"load_format": "weighbridge", "additional_config": {"weighbridge": options}}


BUDGETS: dict[str, dict[str, Any]] = {
    "resident": {},
    "gb": {**with_weighbridge(), "cpu_offload_gb": 0.14},
    "views": {**with_weighbridge(transfer_mode="zero-copy"), "cpu_offload_gb": 0.14},
    "selected": {**with_weighbridge(offload_bytes="60MB", select=["mlp.down_proj"])},
    "prefetch": {**with_weighbridge(), "offload_group_size": 2, "offload_num_in_group": 1},
    "every": {**with_weighbridge(), "offload_group_size": 1, "offload_num_in_group": 1},
    "device": with_weighbridge(device_bytes="180MB"),
    "device-moe": with_weighbridge(device_bytes="150MB"),
}


@dataclass(frozen=True)
class Case:
    model: str
    quantization: str
    graphs: str
    runner: int
    budget: str
    environment: dict[str, str] = field(default_factory=dict, hash=False)

    @property
    def name(self) -> str:
        quantized = f"-{self.quantization}" if self.quantization else ""
        switches = "".join(f"-{name.lower()}" for name in self.environment)
        return f"{self.model}{quantized}/{self.graphs}/v{self.runner}/{self.budget}{switches}"

    @property
    def reference(self) -> str:
        return Case(self.model, self.quantization, self.graphs, self.runner, "resident").name


def all_cases() -> list[Case]:
    """Returns the cases, those that matter most first; a reference comes before what needs it."""
    pin = {"VLLM_WEIGHT_OFFLOADING_DISABLE_PIN_MEMORY": "1"}
    uva = {"VLLM_WEIGHT_OFFLOADING_DISABLE_UVA": "1"}
    cases = [
        Case("dense", "", "eager", 1, budget)
        for budget in ("resident", "gb", "prefetch", "device", "views", "every", "selected")
    ]
    cases += [Case("dense", "", "eager", 2, budget) for budget in ("resident", "gb", "prefetch")]
    for graphs in ("default", "full", "compile"):
        for runner in (1, 2):
            budgets = ("resident", "gb", "prefetch") if runner == 1 else ("resident", "gb")
            cases += [Case("dense", "", graphs, runner, budget) for budget in budgets]
        if graphs == "default":
            cases += [Case("dense", "", graphs, 1, budget) for budget in ("device", "views")]
    cases += [Case("dense", "fp8", "eager", 1, budget) for budget in ("resident", "gb", "prefetch")]
    cases += [Case("dense", "fp8", "default", 1, budget) for budget in ("resident", "gb")]
    cases += [Case("dense", "", "eager", 1, "gb", switch) for switch in (pin, uva)]
    for graphs in ("eager", "default"):
        for budget in ("resident", "gb", "prefetch", "device-moe"):
            cases.append(Case("moe", "", graphs, 1, budget))
    return cases


def run(case: Case, output: Path) -> None:
    """Generates, and writes tokens, log-probabilities and the counters of the offloader."""
    import random

    import torch
    from vllm import LLM, SamplingParams

    begun = time.monotonic()
    llm = LLM(
        model=str(FOLDER / case.model),
        skip_tokenizer_init=True,
        dtype="bfloat16",
        seed=0,
        max_model_len=1024,
        max_num_batched_tokens=1024,
        kv_cache_memory_bytes=1 << 30,
        gpu_memory_utilization=0.1,
        enable_prefix_caching=False,
        disable_log_stats=True,
        quantization=case.quantization or None,
        **GRAPHS[case.graphs],
        **BUDGETS[case.budget],
    )
    started = time.monotonic() - begun
    random.seed(3)
    prompts = [
        {"prompt_token_ids": [random.randrange(2, 8000) for _ in range(length)]}
        for length in (1, 5, 17, 64, 200, 3, 333, 40)
    ]
    greedy = SamplingParams(
        temperature=0, max_tokens=16, ignore_eos=True, detokenize=False, logprobs=2
    )
    found = {}
    for count in (1, len(prompts), 3):
        outputs = llm.generate(prompts[:count], greedy, use_tqdm=False)
        found[str(count)] = [
            [
                [list(o.outputs[0].token_ids)],
                [sorted((k, v.logprob) for k, v in step.items()) for step in o.outputs[0].logprobs],
            ]
            for o in outputs
        ]
    from vllm.model_executor.offloader.base import get_offloader

    offloader, stats = get_offloader(), {}
    weights = getattr(offloader, "_weights", None)
    if weights is not None:
        counters = weights.offloader.stats
        stats = {
            name: getattr(counters, name)
            for name in ("offloaded_bytes", "slot_bytes", "mapped_bytes", "copies", "late_copies")
        }
        infos = weights.offloader.parameter_infos()
        stats["stores"] = sorted({info.host_store for info in infos if info.host_address})
        stats["modes"] = sorted({info.transfer_mode for info in infos if info.host_address})
    stats["device_peak"] = torch.cuda.max_memory_allocated()
    output.write_text(
        json.dumps({"found": found, "stats": stats, "started": started, "name": case.name})
    )
    os._exit(0)  # the engine's threads need no end


def compare(expected: dict[str, Any], found: dict[str, Any]) -> str:
    """Returns "" if tokens and log-probabilities are equal, bit for bit."""
    tokens = bits = total = 0
    for count, sequences in expected.items():
        for one, other in zip(sequences, found[count]):
            total += 1
            tokens += one[0] != other[0]
            bits += one[1] != other[1]
    if tokens:
        return f"TOKENS DIFFER in {tokens} of {total}"
    return f"log-probabilities differ in {bits} of {total}" if bits else ""


class Runner:
    """Runs cases beside one another and prints each result."""

    def __init__(self, folder: Path, seconds: float) -> None:
        self.folder = folder
        self.end = time.monotonic() + seconds
        self.results: dict[str, str] = {}
        self.found: dict[str, Any] = {}
        self._running: list[tuple[Case, subprocess.Popen[bytes], float]] = []

    def run(self, cases: list[Case]) -> None:
        waiting = list(cases)
        while (waiting or self._running) and time.monotonic() < self.end:
            ready = [case for case in waiting if self._may_start(case)]
            if ready and len(self._running) < AT_ONCE:
                waiting.remove(ready[0])
                self._start(ready[0])
                continue
            self._collect()
            time.sleep(0.2)
        for case, process, _ in self._running:
            process.kill()
            self._say(case, "NOT FINISHED in the time given")
        for case in waiting:
            self._say(case, "not run: no time")

    def _may_start(self, case: Case) -> bool:
        if case.name == case.reference:
            return True
        return case.reference in self.results

    def _start(self, case: Case) -> None:
        stem = case.name.replace("/", "_")
        with open(self.folder / f"{stem}.log", "wb") as log:
            process = subprocess.Popen(
                [sys.executable, __file__, "--run", case.name, str(self.folder / f"{stem}.json")],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "VLLM_USE_V2_MODEL_RUNNER": str(case.runner - 1)}
                | case.environment,
            )
        self._running.append((case, process, time.monotonic()))

    def _collect(self) -> None:
        for entry in list(self._running):
            case, process, begun = entry
            late = time.monotonic() - begun > LIMIT
            if process.poll() is None and not late:
                continue
            self._running.remove(entry)
            if late:
                process.kill()
            stem = case.name.replace("/", "_")
            output = self.folder / f"{stem}.json"
            took = f"{time.monotonic() - begun:.0f} s"
            if not output.exists():
                log = (self.folder / f"{stem}.log").read_text(errors="replace").splitlines()
                print("\n".join(f"    {line[:240]}" for line in log[-28:]))
                self._say(case, f"FAILED after {took}" + " (time limit)" * late)
                continue
            self.found[case.name] = json.loads(output.read_text())
            self._say(case, self._verdict(case) + f"  ({took})")

    def _verdict(self, case: Case) -> str:
        found = self.found[case.name]
        stats = json.dumps(found["stats"])
        if case.name == case.reference:
            return f"reference {stats}"
        if case.reference not in self.found:
            return f"NO REFERENCE {stats}"
        if not found["stats"].get("offloaded_bytes"):
            return f"NOTHING OFFLOADED {stats}"
        difference = compare(self.found[case.reference]["found"], found["found"])
        return f"{difference or 'equal'} {stats}"

    def _say(self, case: Case, result: str) -> None:
        self.results[case.name] = result
        print(f"{case.name}: {result}", flush=True)


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["--run"]:
        case = next(case for case in all_cases() if case.name == arguments[1])
        run(case, Path(arguments[2]))
    seconds = float(arguments[0]) if arguments else 560.0
    cases = all_cases()
    if not (SITE / "vllm/_moe_C_stable_libtorch.abi3.so").exists():
        print("without the kernels for experts: the cases of that model are left out")
        cases = [case for case in cases if case.model != "moe"]
    if arguments[1:]:
        wanted = [case for case in cases if any(part in case.name for part in arguments[1:])]
        references = {case.reference for case in wanted}
        cases = [case for case in cases if case in wanted or case.name in references]
    for model in {case.model for case in cases}:
        write_checkpoint(FOLDER / model, MODELS[model])
    # The first one alone: it compiles kernels that all of them use.
    runner = Runner(Path(tempfile.mkdtemp(prefix="vllm-cases-")), seconds)
    runner.run(cases)
    print("\nsummary")
    for name, result in runner.results.items():
        print(f"  {name:55} {result.split('{')[0].strip()}")
    bad = [name for name, result in runner.results.items() if result[:1].isupper()]
    print(f"{len(runner.results) - len(bad)} of {len(runner.results)} as expected")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

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

from vllm_models import (
    AWQ,
    EXPERTS,
    LATENT,
    NVFP4,
    PROPOSER,
    SMALL,
    write_adapter,
    write_checkpoint,
)

FOLDER = Path(os.environ.get("VLLM_MODELS", "/tmp/vllm-models"))
SITE = Path(os.environ.get("VLLM_SITE", "/tmp/vllm-site"))
MODELS = {"dense": SMALL, "moe": EXPERTS, "awq": AWQ, "nvfp4": NVFP4, "latent": LATENT}
AT_ONCE = int(os.environ.get("VLLM_AT_ONCE", "8"))
LIMIT = 140.0
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
    # With nothing in the code that a measurement has chosen: the same in each process.
    "fixed": {
        "compilation_config": {
            "cudagraph_capture_sizes": [1, 2, 4, 8, 16, 32],
            "inductor_compile_config": {
                "deterministic": True,
                "combo_kernels": False,
                "benchmark_combo_kernel": False,
            },
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
    "device-fp8": with_weighbridge(device_bytes="110MB"),
    "half-int4": {**with_weighbridge(offload_bytes="34MB")},
    # All experts leave: slots for more than a layer, for half of one, and for what is left.
    "cache": with_weighbridge(offload_bytes="600MB", experts="cache", expert_bytes="120MB"),
    "cache-few": with_weighbridge(offload_bytes="600MB", experts="cache", expert_bytes="40MB"),
    "cache-device": with_weighbridge(device_bytes="250MB", experts="cache"),
}
EXTRAS: dict[str, dict[str, Any]] = {
    "": {},
    # With operators at the borders of layers, as for models without known attention.
    "operators": {},
    "lora": {"enable_lora": True, "max_lora_rank": 8},
    "ngram": {
        "speculative_config": {
            "method": "ngram",
            "num_speculative_tokens": 3,
            "prompt_lookup_max": 3,
            "prompt_lookup_min": 1,
        }
    },
    "draft": {
        "max_num_seqs": 16,
        "max_num_batched_tokens": 2048,
        "speculative_config": {
            "method": "draft_model",
            "model": str(FOLDER / "draft"),
            "num_speculative_tokens": 2,
        },
    },
    "reload": {},
    # The kernel whose experts may be in a cache, where vLLM would choose another.
    "triton": {"moe_backend": "triton"},
    "marlin": {"moe_backend": "marlin"},
    "tp2": {
        "tensor_parallel_size": 2,
        "distributed_executor_backend": "mp",
        "disable_custom_all_reduce": True,
    },
}


@dataclass(frozen=True)
class Case:
    model: str
    quantization: str
    graphs: str
    runner: int
    budget: str
    environment: dict[str, str] = field(default_factory=dict, hash=False)
    extra: str = ""

    @property
    def name(self) -> str:
        quantized = f"-{self.quantization}" if self.quantization else ""
        switches = "".join(f"-{name.lower()}" for name in self.environment)
        budget = f"{self.budget}+{self.extra}" if self.extra else self.budget
        return f"{self.model}{quantized}/{self.graphs}/v{self.runner}/{budget}{switches}"

    @property
    def reference(self) -> str:
        extra = "" if self.extra == "operators" else self.extra
        alone = (self.model, self.quantization, self.graphs, self.runner, "resident")
        return Case(*alone, extra=extra).name


def all_cases() -> list[Case]:
    """Returns the cases, those that matter most first; a reference comes before what needs it."""

    def make(model: str, graphs: str, runner: int, budgets: str, **more: Any) -> list[Case]:
        quantization = more.pop("quantization", "")
        return [
            Case(model, quantization, graphs, runner, budget, **more) for budget in budgets.split()
        ]

    again = {"VLLM_CACHE_ROOT": "/tmp/vllm-cache-again"}
    switches = [{f"VLLM_WEIGHT_OFFLOADING_DISABLE_{name}": "1"} for name in ("PIN_MEMORY", "UVA")]
    cases = make("dense", "default", 1, "resident gb every device prefetch views")
    cases += make("dense", "default", 2, "resident every")
    cases += make("dense", "eager", 1, "resident", quantization="fp8")
    cases += make("dense", "eager", 1, "gb prefetch device-fp8", quantization="fp8")
    cases += make("moe", "default", 1, "resident gb device-moe")
    cases += make("moe", "fixed", 1, "resident gb device-moe")
    cases += make("moe", "eager", 1, "resident gb prefetch")
    cases += make("moe", "eager", 1, "cache cache-few cache-device")
    cases += make("moe", "fixed", 1, "cache cache-few cache-device")
    cases += make("moe", "full", 1, "resident cache cache-few")
    cases += make("moe", "default", 1, "cache cache-few")
    cases += make("moe", "fixed", 2, "resident cache")
    for kernel in ("triton", "marlin"):
        cases += make("moe", "eager", 1, "resident cache", quantization="fp8", extra=kernel)
    cases += make("moe", "eager", 1, "resident cache", extra="reload")
    cases += make("moe", "fixed", 1, "resident cache", extra="reload")
    cases += make("dense", "default", 1, "resident gb", quantization="fp8")
    cases += make("awq", "default", 1, "resident half-int4")
    cases += make("nvfp4", "default", 1, "resident half-int4")
    cases += make("dense", "default", 1, "every", extra="operators")
    cases += make("dense", "default", 1, "resident gb", extra="lora")
    cases += make("dense", "eager", 1, "resident gb", extra="lora")
    # vLLM alone, compiled again: what differs without the plug-in.
    cases += make("moe", "default", 1, "resident", environment=again)
    cases += make("dense", "default", 1, "resident", extra="lora", environment=again)
    cases += make("dense", "default", 1, "resident gb", extra="ngram")
    cases += make("dense", "eager", 1, "resident gb", extra="draft")
    cases += make("dense", "eager", 1, "resident gb", extra="reload")
    cases += make("latent", "eager", 1, "resident every")
    cases += make("latent", "default", 1, "resident every")
    cases += make("dense", "compile", 1, "resident gb prefetch")
    cases += make("dense", "default", 2, "gb prefetch device selected")
    cases += make("dense", "full", 1, "resident gb prefetch")
    cases += make("dense", "full", 2, "resident gb")
    cases += make("dense", "eager", 1, "resident gb prefetch device views every selected")
    cases += make("dense", "eager", 2, "resident gb prefetch")
    for switch in switches:
        cases += make("dense", "eager", 1, "gb", environment=switch)
    for graphs in ("default", "eager"):
        cases += make("dense", graphs, 1, "resident gb every", extra="tp2")
    cases += make("dense", "default", 2, "resident every", extra="tp2")
    cases += make("moe", "fixed", 1, "resident gb cache", extra="tp2")
    return cases


def run(case: Case, output: Path) -> None:
    """Generates, and writes tokens, log-probabilities and the counters of the offloader."""
    import random

    import torch
    from vllm import LLM, SamplingParams

    if case.extra == "operators":
        from weighbridge.engines.vllm import _loader

        _loader.splits_by = lambda operators: None
    begun = time.monotonic()
    options: dict[str, Any] = dict(
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
    llm = LLM(**{**options, **EXTRAS[case.extra]})
    started = time.monotonic() - begun
    random.seed(3)
    prompts = [
        {"prompt_token_ids": [random.randrange(2, 8000) for _ in range(length)]}
        for length in (1, 5, 17, 64, 200, 3, 333, 40)
    ]
    speculates = "speculative_config" in EXTRAS[case.extra]
    greedy = SamplingParams(
        temperature=0,
        max_tokens=16,
        ignore_eos=True,
        detokenize=False,
        logprobs=None if speculates else 2,
    )
    request = None
    if case.extra == "lora":
        from vllm.lora.request import LoRARequest

        request = LoRARequest("adapter", 1, str(FOLDER / "adapter"))
    found: dict[str, Any] = {}

    def generate(label: str, count: int) -> None:
        outputs = llm.generate(prompts[:count], greedy, use_tqdm=False, lora_request=request)
        found[label] = [
            [
                [list(o.outputs[0].token_ids)],
                [
                    sorted((key, value.logprob) for key, value in step.items())
                    for step in o.outputs[0].logprobs or []
                ],
            ]
            for o in outputs
        ]

    for count in (1, len(prompts), 3):
        generate(str(count), count)
    generate("again", len(prompts))
    if case.extra == "reload":
        llm.apply_model(_halve)
        generate("halved", 3)
        llm.collective_rpc("reload_weights")
        generate("reloaded", 3)
        assert found["reloaded"] == found["3"] != found["halved"]
    if case.extra == "tp2":
        stats, other = llm.collective_rpc(counters)
        stats["equal_ranks"] = stats == other
    else:
        stats = counters()
    stats["device_peak"] = torch.cuda.max_memory_allocated()
    output.write_text(
        json.dumps({"found": found, "stats": stats, "started": started, "name": case.name})
    )
    os._exit(0)  # the engine's threads need no end


def counters(_worker: Any = None) -> dict[str, Any]:
    """Returns what this process has offloaded."""
    from vllm.model_executor.offloader.base import get_offloader

    weights = getattr(get_offloader(), "_weights", None)
    if weights is None:
        return {}
    held, names = weights.offloader.stats, "offloaded_bytes slot_bytes mapped_bytes copies"
    infos = [i for i in weights.offloader.parameter_infos() if i.host_address]
    experts = [pool.cache.stats() for pool in weights.expert_pools]
    return {
        **{
            name: sum(getattr(one, name) for one in experts) for name in ("calls", "hits", "misses")
        },
        **{name: getattr(held, name) for name in [*names.split(), "late_copies"]},
        "stores": sorted({info.host_store for info in infos}),
        "modes": sorted({info.transfer_mode for info in infos}),
    }


def _halve(model: Any) -> None:
    import torch

    for name, parameter in model.named_parameters():
        if "down_proj" in name:
            parameter.data.mul_(0.5)
        elif "w2_weight" in name:  # counted by PyTorch, as a cache of experts needs it
            with torch.no_grad():
                parameter.mul_(0.5)


def largest_difference(expected: dict[str, Any], found: dict[str, Any]) -> float:
    """Returns the largest difference of the log-probabilities of first tokens."""
    pairs = [
        (dict(one[1][0]), dict(other[1][0]))
        for count in expected.keys() & {"8", "3"}
        for one, other in zip(expected[count], found[count])
        if one[1]
    ]
    if not pairs:
        return float("nan")
    return max(abs(one[key] - other[key]) for one, other in pairs for key in one.keys() & other)


def compare(expected: dict[str, Any], found: dict[str, Any]) -> str:
    """Returns "" if tokens and log-probabilities are equal, bit for bit."""
    tokens = bits = total = 0
    for count, sequences in expected.items():
        if count == "again":
            continue
        for one, other in zip(sequences, found[count]):
            total += 1
            tokens += one[0] != other[0]
            bits += one[1] != other[1]
    if not bits and not tokens:
        return ""
    by = f"first tokens' log-probabilities by {largest_difference(expected, found):.3g} at most"
    if tokens:
        return f"TOKENS DIFFER in {tokens} of {total}, {by}"
    return f"LOG-PROBABILITIES DIFFER in {bits} of {total}, {by}"


class Runner:
    """Runs cases beside one another and prints each result."""

    def __init__(self, folder: Path, seconds: float) -> None:
        self.folder = folder
        self.end = time.monotonic() + seconds
        self.results: dict[str, str] = {}
        self.found: dict[str, Any] = {}
        self._running: list[tuple[Case, subprocess.Popen[bytes], float]] = []
        self._cases: list[Case] = []

    def run(self, cases: list[Case]) -> None:
        waiting, self._cases = list(cases), cases
        while (waiting or self._running) and time.monotonic() < self.end:
            if waiting and len(self._running) < AT_ONCE:
                self._start(waiting.pop(0))
                continue
            self._collect()
            time.sleep(0.2)
        for case, process, _ in self._running:
            process.kill()
            self._say(case, "NOT FINISHED in the time given")
        for case in waiting:
            self._say(case, "not run: no time")
        self._compare(cases)

    def _compare(self, cases: list[Case]) -> None:
        """Says the result of each finished case whose reference has finished, too."""
        for case in cases:
            finished = case.name in self.found and case.name not in self.results
            if finished and (case.reference in self.found or not self._runs(case.reference)):
                self._say(case, self._verdict(case))

    def _runs(self, name: str) -> bool:
        return time.monotonic() < self.end and name not in self.results

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
            self.found[case.name] = {**json.loads(output.read_text()), "took": took}
            self._compare(self._cases)

    def _verdict(self, case: Case) -> str:
        found = self.found[case.name]
        stats = f"{json.dumps(found['stats'])}  ({found['took']})"
        if case.name == case.reference:
            again = {"8": found["found"]["again"]}
            itself = compare({"8": found["found"]["8"]}, again)
            return f"reference, again in the same process: {itself or 'equal'} {stats}"
        if case.reference not in self.found:
            return f"NO REFERENCE {stats}"
        if case.budget == "resident":
            difference = compare(self.found[case.reference]["found"], found["found"])
            return f"vLLM alone, again: {difference or 'equal'}"
        if not found["stats"].get("offloaded_bytes"):
            return f"NOTHING OFFLOADED {stats}"
        if case.budget.startswith("cache") and not found["stats"].get("misses"):
            return f"NO EXPERT IN A SLOT {stats}"
        difference = compare(self.found[case.reference]["found"], found["found"])
        if case.extra == "operators" and difference:
            return f"as expected, since the operators move the borders of fusion: {difference}"
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
    import torch

    if torch.cuda.device_count() < 2:
        cases = [case for case in cases if case.extra != "tp2"]
    if arguments[1:]:
        wanted = [case for case in cases if any(part in case.name for part in arguments[1:])]
        references = {case.reference for case in wanted}
        cases = [case for case in cases if case in wanted or case.name in references]
    for model in {case.model for case in cases}:
        write_checkpoint(FOLDER / model, MODELS[model])
    write_checkpoint(FOLDER / "draft", PROPOSER)
    write_adapter(FOLDER / "adapter", SMALL)
    runner = Runner(Path(tempfile.mkdtemp(prefix="vllm-cases-")), seconds)
    runner.run(cases)
    pair = [runner.found.get(f"dense/{graphs}/v1/resident") for graphs in ("eager", "default")]
    if all(pair):
        print("\nfor comparison, vLLM alone:", compare(pair[0]["found"], pair[1]["found"]))
        print("    between eager and compiled")
    print("\nsummary")
    for name, result in runner.results.items():
        print(f"  {name:55} {result.split('{')[0].strip()}")
    bad = [name for name, result in runner.results.items() if result[:1].isupper()]
    print(f"{len(runner.results) - len(bad)} of {len(runner.results)} as expected")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Benchmark of engines with offloaded weights, beside what the engines have for it.

    make gpu-bench SUBJECT=engines       (tests/gpu/engines/vllm.sh bench, with vLLM of build/vllm)

vLLM serves 16 layers of the shape of Llama-3-8B with dummy weights, half of them offloaded. Each
configuration has a process of its own and is measured alone. A decode step is the difference of two
generations of other lengths; a prefill is a generation of one token. GB is 10^9 bytes.

Those named ``moe`` serve 12 layers of the shape of Qwen3-30B-A3B, in device memory for three of ten
experts: read in place, or by caches. Tokens are sampled from dummy weights, so that nearly all
experts are used alike, which is the least that a cache may find (``hits``). With build/vllm-moe:

    tests/gpu/engines/vllm.sh bench --only moe-resident.graphs moe-views.graphs moe-cache.graphs
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from report import RESULTS, ROOT, Report

sys.path.insert(0, str(ROOT / "tests" / "gpu" / "engines"))

from vllm_models import LARGE, LARGE_EXPERTS, write_config

HALF_GIB = 3.25  # of 16 layers of 436 MB
LAYER_BYTES = 436_224_000
FP8_BUDGET = 3_000_000_000
MOE_BUDGET = 5_000_000_000  # of 14.5 GB of experts, and 0.7 GB of others


def with_weighbridge(**options: Any) -> dict[str, Any]:
    return {"load_format": "weighbridge", "additional_config": {"weighbridge": options}}


DUMMY = {"load_format": "dummy"}
PREFETCH = {"offload_group_size": 2, "offload_num_in_group": 1, "offload_prefetch_step": 1}
FP8 = {"quantization": "fp8"}
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "resident": DUMMY,
    "uva": {**DUMMY, "cpu_offload_gb": HALF_GIB},
    "prefetch": {**DUMMY, **PREFETCH},
    "weighbridge": {**with_weighbridge(load_format="dummy"), "cpu_offload_gb": HALF_GIB},
    "weighbridge-prefetch": {**with_weighbridge(load_format="dummy"), **PREFETCH},
    "fp8": {**DUMMY, **FP8},
    "fp8-uva": {**DUMMY, **FP8, "cpu_offload_gb": HALF_GIB / 2},
    "fp8-weighbridge": {**with_weighbridge(load_format="dummy", device_bytes=FP8_BUDGET), **FP8},
    "moe-resident": DUMMY,
    **{
        f"moe-{experts}": with_weighbridge(
            load_format="dummy", device_bytes=MOE_BUDGET, experts=experts
        )
        for experts in ("views", "cache")
    },
}
ORDER = [
    ("resident", False),
    ("weighbridge", False),
    ("prefetch", False),
    ("resident", True),
    ("weighbridge", True),
    ("uva", False),
    ("uva", True),
    ("prefetch", True),
    ("fp8-weighbridge", False),
    ("fp8-uva", False),
    ("weighbridge-prefetch", True),
    ("weighbridge-prefetch", False),
    ("fp8", False),
    ("moe-cache", True),
    ("moe-views", True),
    ("moe-resident", True),
]
"""Configurations, and whether code is compiled and captured; the most important ones first."""


class HostPeak:
    """Watches by how much the machine's available memory falls."""

    def __init__(self) -> None:
        self.before = self.lowest = self._available()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def end(self) -> int:
        self._ended.set()
        self._thread.join()
        return self.before - self.lowest

    def _watch(self) -> None:
        while not self._ended.wait(0.02):
            self.lowest = min(self.lowest, self._available())

    @staticmethod
    def _available() -> int:
        with open("/proc/meminfo") as lines:
            return next(
                int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")
            )


def measure(name: str, graphs: bool, output: Path) -> None:
    """Measures one configuration in this process."""
    import torch
    from vllm import LLM, SamplingParams
    from vllm.model_executor.model_loader import dummy_loader
    from vllm.model_executor.offloader.base import get_offloader

    found: dict[str, Any] = {}

    def watched(load: Any) -> Any:
        def load_model(*arguments: Any, **named: Any) -> Any:
            if "load_seconds" in found or found.get("loading"):
                return load(*arguments, **named)
            found["loading"] = True
            torch.cuda.reset_peak_memory_stats()
            before, host, begun = torch.cuda.mem_get_info()[0], HostPeak(), time.perf_counter()
            model = load(*arguments, **named)
            torch.cuda.synchronize()
            found["load_seconds"] = time.perf_counter() - begun
            found["host_peak"] = host.end()
            found["load_peak"] = torch.cuda.max_memory_allocated()
            torch.cuda.empty_cache()
            found["device_bytes"] = before - torch.cuda.mem_get_info()[0]
            return model

        return load_model

    base = dummy_loader.BaseModelLoader
    base.load_model = watched(base.load_model)
    if CONFIGURATIONS[name]["load_format"] == "weighbridge":
        import weighbridge.engines.vllm as plugin

        plugin.register()
        from weighbridge.engines.vllm._loader import WeighbridgeModelLoader

        WeighbridgeModelLoader.load_model = watched(WeighbridgeModelLoader.load_model)
    mixture = name.startswith("moe-")
    stem = "engines-mixture" if mixture else "engines-model"
    folder = write_config(Path(tempfile.gettempdir()) / stem, LARGE_EXPERTS if mixture else LARGE)
    begun = time.perf_counter()
    llm = LLM(
        model=str(folder),
        skip_tokenizer_init=True,
        dtype="bfloat16",
        max_model_len=8448,
        max_num_batched_tokens=8448,
        max_num_seqs=64,
        kv_cache_memory_bytes=4 << 30,
        enable_prefix_caching=False,
        disable_log_stats=True,
        **(
            {"compilation_config": {"cudagraph_capture_sizes": [1, 2, 4, 8, 16, 32]}}
            if graphs
            else {"enforce_eager": True}
        ),
        **CONFIGURATIONS[name],
    )
    found["start"] = time.perf_counter() - begun

    def generate(count: int, length: int, tokens: int) -> float:
        prompts = [{"prompt_token_ids": [5 + one] * length} for one in range(count)]
        options = SamplingParams(
            temperature=1.0 if mixture else 0.0,
            seed=7 if mixture else None,
            max_tokens=tokens,
            ignore_eos=True,
            detokenize=False,
        )
        torch.cuda.synchronize()
        start = time.perf_counter()
        llm.generate(prompts, options, use_tqdm=False)
        torch.cuda.synchronize()
        return time.perf_counter() - start

    for batch in (1, 32):
        generate(batch, 16, 3)
        steps = [(generate(batch, 16, 28) - generate(batch, 16, 4)) / 24 * 1e3 for _ in range(3)]
        found[f"decode{batch}"] = steps
    for length in (2048, 8192):
        generate(1, length, 1)
        found[f"prefill{length}"] = [generate(1, length, 1) * 1e3 for _ in range(2)]
    weights = getattr(get_offloader(), "_weights", None)
    if weights is not None:
        stats = weights.offloader.stats
        found["offloaded"], found["slots"] = stats.offloaded_bytes, stats.slot_bytes
        counted = [pool.cache.stats() for pool in weights.expert_pools]
        if counted:
            hits = sum(one.hits for one in counted)
            found["hits"] = hits / max(hits + sum(one.misses for one in counted), 1)
        found["step_bytes"] = sum(
            info.span_bytes
            for info in weights.offloader.parameter_infos()
            if info.transfer_mode in ("prefetch", "on-demand")
        )
    output.write_text(json.dumps(found))
    os._exit(0)


def run(name: str, graphs: bool, seconds: float) -> dict[str, Any] | None:
    """Measures one configuration in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        output, log = Path(folder) / "found.json", Path(folder) / "log"
        command = [sys.executable, __file__, "--measure", name, str(output)] + ["--graphs"] * graphs
        # The newer of vLLM's runners ignores its own offloading.
        environment = {**os.environ, "VLLM_USE_V2_MODEL_RUNNER": "0"}
        try:
            with log.open("wb") as file:
                subprocess.run(
                    command, stdout=file, stderr=file, timeout=seconds, env=environment, check=False
                )
        except subprocess.TimeoutExpired:
            print(f"{name}: not finished in {seconds:.0f} s")
        if output.exists():
            return json.loads(output.read_text())
        print("\n".join(log.read_text(errors="replace").splitlines()[-25:]))
        print(f"{name}: FAILED", flush=True)
        return None


STEPS = ("decode1", "decode32", "prefill2048", "prefill8192")


def figures(report: Report, label: str, found: dict[str, Any]) -> None:
    for step in STEPS:
        what = "a decode step" if step.startswith("decode") else "a prefill with its first token"
        report.figure(f"vllm.{label}.{step}", found[step], "ms", what)
    report.figure(f"vllm.{label}.start", [found["start"]], "s", "until the engine can generate")
    report.figure(f"vllm.{label}.load", [found["load_seconds"]], "s", "loading of the model")
    sizes = ("host_peak", "load_peak", "device_bytes", "offloaded", "slots", "step_bytes")
    for name in sizes:
        if name in found:
            what = f"{name.replace('_', ' ')}: of the loading of the model"
            report.figure(f"vllm.{label}.{name}", [found[name] / 1e9], "GB", what)

    if "hits" in found:
        report.figure(f"vllm.{label}.hits", [found["hits"]], "", "experts found in slots")


def before(report: Report, path: Path) -> dict[str, dict[str, Any]]:
    """Takes the figures of an earlier run on the same kind of machine that are not measured now."""
    found: dict[str, dict[str, Any]] = {}
    measured = {figure["name"] for figure in report.figures}
    for figure in json.loads(path.read_text())["figures"]:
        engine, _, rest = figure["name"].partition(".")
        label, _, key = rest.rpartition(".")
        if engine != "vllm" or figure["name"] in measured:
            continue
        report.figures.append(figure)
        value = figure["value"] * (1e9 if figure["unit"] == "GB" else 1)
        of_label = found.setdefault(label, {})
        of_label["load_seconds" if key == "load" else key] = [value] if key in STEPS else value
    return found


def bars(report: Report, found: dict[str, dict[str, Any]], link: float, suffix: str) -> None:
    """Compares the offloaded engine with the others, as far as they were measured."""
    carried, resident = found.get(f"weighbridge{suffix}"), found.get(f"resident{suffix}")
    if carried is None or resident is None:
        return
    median = statistics.median
    for step in ("decode1", "decode32"):
        mine = median(carried[step])
        bound = max(carried["step_bytes"] / link / 1e6, median(resident[step]))
        report.bar(f"{step}{suffix} over max(link, resident)", mine / bound, "<=", 1.05)
        for other, goal in (("prefetch", 1.0), ("uva", 1.1)):
            if peer := found.get(f"{other}{suffix}"):
                rate = median(peer[step]) / mine
                report.bar(f"{step}{suffix}, rate over vLLM's {other}", rate, ">=", goal)
    others = [found[name] for name in (f"uva{suffix}", f"prefetch{suffix}") if name in found]
    if not others:
        return
    for step in ("prefill2048", "prefill8192"):
        best = min(median(other[step]) for other in others)
        mine = median(carried[step])
        report.bar(f"{step}{suffix} over vLLM's best", mine / best, "<=", 1.01)
    if uva := found.get(f"uva{suffix}"):
        rate = median(uva["prefill8192"]) / median(carried["prefill8192"])
        report.bar(f"prefill8192{suffix}, rate over vLLM's uva", rate, ">=", 3.0)
    if not suffix and (prefetch := found.get("prefetch")):
        alone = resident["load_seconds"]
        cost = (carried["load_seconds"] - alone) / (prefetch["load_seconds"] - alone)
        report.bar("time to offload over that of vLLM's prefetch", cost, "<=", 0.3)
        host = (carried["host_peak"] - resident["host_peak"]) / carried["offloaded"]
        report.bar("host peak over offloaded bytes", host, "<=", 1.02)


def bars_of_experts(report: Report, found: dict[str, dict[str, Any]], suffix: str) -> None:
    """Compares experts in caches with those that are read in place, at equal device memory."""
    cached, views = found.get(f"moe-cache{suffix}"), found.get(f"moe-views{suffix}")
    if cached is None or views is None:
        return
    for step in ("decode1", "decode32"):
        rate = statistics.median(views[step]) / statistics.median(cached[step])
        report.bar(f"{step}{suffix}, tokens/s by caches of experts over views", rate, ">=", 1.0)


def main() -> int:
    """Runs the benchmark and writes the result file; returns 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--seconds", type=float, default=570.0)
    parser.add_argument("--measure", nargs=2, metavar=("NAME", "OUTPUT"))
    parser.add_argument("--graphs", action="store_true")
    parser.add_argument("--only", nargs="*", default=None, help="labels of configurations")
    parser.add_argument("--base", type=Path, help="a result file with what is not measured now")
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure[0], arguments.graphs, Path(arguments.measure[1]))
    if "VLLM_SITE" not in os.environ:  # unpacks vLLM, and says where it is
        script = str(ROOT / "tests" / "gpu" / "engines" / "vllm.sh")
        os.execvp(script, [script, "bench", *sys.argv[1:]])
    import weighbridge

    end = time.monotonic() + arguments.seconds
    with weighbridge.Device("cuda:0") as device:
        link = device.measure_link() / 1e9
    report = Report("engines", weighbridge.__version__, peers={"vllm": "0.26.0"})
    report.figure("link", [link], "GB/s", "pinned host memory to the device")
    found: dict[str, dict[str, Any]] = {}
    for name, graphs in ORDER:
        label = f"{name}{'.graphs' if graphs else ''}"
        if arguments.only is not None and label not in arguments.only:
            continue
        left = end - time.monotonic()
        if left < 35:
            print(f"{label}: not run, {left:.0f} s are left")
            continue
        begun = time.monotonic()
        result = run(name, graphs, min(left - 5, 130))
        print(f"{label}: took {time.monotonic() - begun:.0f} s", flush=True)
        if result is not None:
            found[label] = result
            figures(report, label, result)
    if arguments.base is not None:
        found = {**before(report, arguments.base), **found}
    bars(report, found, link, "")
    bars(report, found, link, ".graphs")
    bars_of_experts(report, found, ".graphs")
    if fp8 := found.get("fp8-weighbridge"):
        peak = fp8["load_peak"] + fp8["slots"]
        report.bar(
            "device peak of loading in FP8 over budget and a layer",
            peak / (FP8_BUDGET + LAYER_BYTES),
            "<=",
            1.0,
        )
    report.write(arguments.out)
    return 0 if all(bar["holds"] for bar in report.bars) else 1


if __name__ == "__main__":
    sys.exit(main())

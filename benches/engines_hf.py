"""Benchmark of the plug-ins for diffusers and transformers, beside what these have themselves.

    make gpu-bench SUBJECT=engines_hf

diffusers: denoising steps of a pipeline with a transformer of Flux's shape (a third of its blocks,
8 GB in bf16; 4096 tokens of an image and 512 of a text), with a quarter of its bytes on the device,
beside group offloading with streams and model offloading. The bound is the longer of the link's
time for the bytes that a step copies, and of a resident step.

transformers: from_pretrained of Llama-3-8B's shape in shards of bf16, 16 GB in the page cache, with
half of it on the device, and with nearly all. GB is 10^9 bytes.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import struct
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import diffusers
import torch
import transformers

import weighbridge
import weighbridge.torch
from report import RESULTS, Report
from weighbridge import Device
from weighbridge.engines.diffusers import offload
from weighbridge.engines.transformers import from_pretrained

WARM, RUNS = 2, 5
STEPS = 6
"""Of denoising, in a call of the pipeline."""
FLUX = {"num_layers": 6, "num_single_layers": 12, "guidance_embeds": True}
TINY_FLUX = {
    "num_layers": 2,
    "num_single_layers": 4,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 32,
    "pooled_projection_dim": 32,
    "axes_dims_rope": (4, 4, 8),
    "in_channels": 16,
    "guidance_embeds": True,
}
LLAMA = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "dtype": "bfloat16",
}
TINY_LLAMA = {
    **LLAMA,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
}
SHARDS = 4
PIECE = 32 << 20


class Bench:
    """One run of the benchmark, on a GPU or, to show that it works, on the host."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self.cuda = torch.cuda.is_available()
        self.where = torch.device("cuda", 0) if self.cuda else torch.device("cpu")
        self.link = 0.0
        self.variants: dict[str, dict[str, Any]] = {}
        """Other options of offload() that are measured, too, by name."""

    def wait(self) -> None:
        """Waits for the work queued on the device."""
        if self.cuda:
            torch.cuda.synchronize()

    def seconds(
        self, name: str, call: Callable[[], Any], what: str, warm: int = WARM, runs: int = RUNS
    ) -> float:
        """Measures a call; returns the median of its seconds."""
        taken = []
        for run in range(warm + runs):
            self.wait()
            start = time.perf_counter()
            call()
            self.wait()
            if run >= warm:
                taken.append(time.perf_counter() - start)
        self.report.figure(name, [1e3 * one for one in taken], "ms", what)
        return statistics.median(taken)

    def bar(self, name: str, figure: float, sense: str, goal: float) -> None:
        """Adds a bar. Without a GPU none says anything."""
        if self.cuda:
            self.report.bar(name, figure, sense, goal)

    def steps(self, name: str, pipeline: Any, what: str) -> float:
        """Measures denoising steps within calls of a pipeline; returns the median of their seconds.

        From the end of one step to the end of the next, as the device sees them.
        """
        taken: list[float] = []
        for run in range(3):
            marks: list[Any] = []

            def mark(
                _pipeline: Any, _step: int, _time: Any, given: Any, marks: list[Any] = marks
            ) -> Any:
                if self.cuda:
                    marks.append(torch.cuda.Event(enable_timing=True))
                    marks[-1].record()
                else:
                    marks.append(time.perf_counter())
                return given

            self.image(pipeline, callback_on_step_end=mark)
            self.wait()
            if run > 0:
                pairs = list(zip(marks, marks[1:]))
                taken += [
                    one.elapsed_time(other) / 1e3 if self.cuda else other - one
                    for one, other in pairs
                ]
        self.report.figure(name, [1e3 * one for one in taken], "ms", what)
        return statistics.median(taken)

    def measure_link(self) -> None:
        """Measures the link by a copy of pinned memory."""
        with Device("cuda:0" if self.cuda else "host") as device:
            rates = [device.measure_link() for _ in range(3)]
        what = "pinned memory to the device, as Device.measure_link"
        self.link = 1e9 * self.report.figure("link", [rate / 1e9 for rate in rates], "GB/s", what)

    # diffusers.

    def flux(self) -> Any:
        """Returns a pipeline with a transformer of Flux's shape on the CPU, always the same."""
        torch.manual_seed(0)
        config = FLUX if self.cuda else TINY_FLUX
        with torch.device("meta"):
            model = diffusers.FluxTransformer2DModel(**config).to(torch.bfloat16)
        model = model.to_empty(device=self.where).eval().requires_grad_(False)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0, 0.02)
        pipeline = diffusers.FluxPipeline(
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
            vae=None,
            text_encoder=None,
            tokenizer=None,
            text_encoder_2=None,
            tokenizer_2=None,
            transformer=model,
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def image(self, pipeline: Any, **more: Any) -> torch.Tensor:
        """Denoises an image's latents by the pipeline."""
        config = pipeline.transformer.config
        side, text = (1024, 512) if self.cuda else (64, 8)
        kind = {"dtype": torch.bfloat16, "device": self.where}
        torch.manual_seed(1)
        return pipeline(
            prompt_embeds=torch.randn(1, text, config.joint_attention_dim, **kind),
            pooled_prompt_embeds=torch.randn(1, config.pooled_projection_dim, **kind),
            height=side,
            width=side,
            num_inference_steps=STEPS,
            generator=torch.Generator("cpu").manual_seed(2),
            output_type="latent",
            **more,
        ).images

    def denoise(self) -> None:
        """Measures steps and calls of the pipeline."""
        report = self.report
        pipeline = self.flux()
        nbytes = sum(p.nbytes for p in pipeline.transformer.parameters())
        image = self.image(pipeline).clone()
        what = f"a step with all {nbytes / 1e9:.2f} GB on the device"
        resident = self.steps("denoise.resident", pipeline, what)
        pipeline.to("cpu")
        self.free()
        start = time.perf_counter()
        handle = offload(pipeline, device_bytes=nbytes // 4, device=self.where)
        taken = time.perf_counter() - start
        report.figure("denoise.offload", [taken], "s", "offload() of the pipeline on the CPU")
        info, stats = handle.components["transformer"].plan.info, handle.stats
        for _ in range(2):
            if not torch.equal(self.image(pipeline), image):
                raise RuntimeError("the offloaded pipeline's image is not the resident one")
        what = (
            f"{stats.resident_bytes / 1e9:.2f} GB resident, {stats.slot_bytes / 1e9:.2f} GB of "
            f"slots for {info.depth} groups, {info.step_bytes / 1e9:.2f} GB copied"
        )
        carried = self.steps("denoise.weighbridge", pipeline, what)
        of_all = (stats.resident_bytes + stats.slot_bytes) / nbytes
        report.figure("denoise.device", [of_all], "x", "device bytes of weights over all bytes")
        what = f"{STEPS} steps"
        call = self.seconds("call.weighbridge", lambda: self.image(pipeline), what, 1, 3)
        bound = max(info.step_bytes / self.link, resident)
        report.figure("denoise.bound", [1e3 * bound], "ms", "the longer of link and resident step")
        self.bar("a step with 25 % on the device, over the bound", carried / bound, "<=", 1.05)
        for name, options in self.variants.items():
            handle.remove("cpu")
            handle = offload(pipeline, device_bytes=nbytes // 4, device=self.where, **options)
            if not torch.equal(self.image(pipeline), image):
                raise RuntimeError(f"{name}: the image is not the resident one")
            self.steps(f"denoise.{name}", pipeline, f"offload(..., {options})")
        handle.remove("cpu")
        self.free()
        if self.cuda:
            self.peers(pipeline, image, carried, call)
        self.free()

    def peers(self, pipeline: Any, image: torch.Tensor, carried: float, call: float) -> None:
        """Measures what diffusers has itself, beside a step and a call that weighbridge carries."""
        pipeline.enable_model_cpu_offload()
        self.image(pipeline)
        what = f"{STEPS} steps by enable_model_cpu_offload, with all bytes on the device meanwhile"
        moved = self.seconds("call.model-cpu-offload", lambda: self.image(pipeline), what, 0, 3)
        self.bar("model offloading over it, a call", moved / call, ">=", 1.0)
        pipeline.remove_all_hooks()
        pipeline.to("cpu")
        others = []
        kinds: dict[str, dict[str, Any]] = {
            "block": {"offload_type": "block_level", "num_blocks_per_group": 1},
            "leaf": {"offload_type": "leaf_level"},
        }
        for name, options in kinds.items():
            pipeline.transformer.enable_group_offload(
                onload_device=self.where,
                offload_device=torch.device("cpu"),
                use_stream=True,
                **options,
            )
            same = torch.equal(self.image(pipeline), image)
            what = f"enable_group_offload(use_stream=True, {options}), equal: {same}"
            others.append(self.steps(f"denoise.group-{name}", pipeline, what))
            if len(others) < len(kinds):
                pipeline = self.flux()
                pipeline.to("cpu")
                self.free()
        self.bar("group offloading with streams over it", min(others) / carried, ">=", 1.15)

    def free(self) -> None:
        """Returns memory that nothing uses."""
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()

    def allocated(self) -> int:
        """Returns the bytes of the device that torch has allocated."""
        return torch.cuda.memory_allocated() if self.cuda else 0

    # transformers.

    def load(self) -> None:
        """Measures from_pretrained."""
        with checkpoint(LLAMA if self.cuda else TINY_LLAMA) as (path, nbytes):
            shown = f"of {nbytes / 1e9:.2f} GB in {SHARDS} files"
            config, taken = transformers.AutoConfig.from_pretrained(path), []
            for _ in range(3):
                start = time.perf_counter()
                with torch.device("meta"):
                    transformers.LlamaForCausalLM(config)
                taken.append(1e3 * (time.perf_counter() - start))
            what = "transformers' modules of the model, without memory: in every call"
            self.report.figure("load.construction", taken, "ms", what)
            for name, part in (("half", 0.5), ("device", 1.0)):
                self.load_under(path, nbytes, name, part, shown)
            if self.cuda:
                taken = []
                for _ in range(2):
                    start = time.perf_counter()
                    model = transformers.LlamaForCausalLM.from_pretrained(path, device_map="cuda")
                    self.wait()
                    taken.append(time.perf_counter() - start)
                    del model
                    self.free()
                rates = [nbytes / one / 1e9 for one in taken]
                what = f'transformers\' own, device_map="cuda", {shown}'
                self.report.figure("load.transformers", rates, "GB/s", what)

    def load_under(self, path: Path, nbytes: int, name: str, part: float, shown: str) -> None:
        """Measures from_pretrained of weighbridge with a part of the bytes on the device."""
        # Of all bytes on the device a norm is offloaded, since a plan offloads something.
        budget: dict[str, Any] = {"device_bytes": int(nbytes * part)}
        if part == 1.0:
            budget = {"offload_bytes": 1 << 20, "select": "model.norm"}
        whole, weights, peaks = [], [], []
        for run in range(3):
            calls: list[tuple[str, float]] = []

            def progress(
                phase: str, done: int, total: int, calls: list[tuple[str, float]] = calls
            ) -> None:
                calls.append((phase, time.perf_counter()))

            with AnonymousPeak() if run == 0 else no_peak() as peak:
                start = time.perf_counter()
                model = from_pretrained(path, device=self.where, progress=progress, **budget)
                self.wait()
                end = time.perf_counter()
            handle = weighbridge.torch.handle_of(model)
            if run == 0:
                peaks.append(peak.nbytes - handle.plan.info.arena_bytes)
            else:
                whole.append(nbytes / (end - start) / 1e9)
                first, last = calls[0][1], calls[-1][1]
                weights.append(nbytes / (last - first) / 1e9)
                phases = {phase: f"{at - first:.3f}" for phase, at in calls}
                print(
                    f"{first - start:.3f} s before, then until {phases}, {end - last:.3f} s after",
                    file=sys.stderr,
                )
            handle.offloader.close()
            del model, handle
            self.free()
        what = f"from_pretrained {shown}, {name}: the whole call, until the model can be used"
        rate = self.report.figure(f"load.{name}", whole, "GB/s", what)
        what = f"from_pretrained {shown}, {name}: from the first byte to the last"
        fill = self.report.figure(f"load.{name}.fill", weights, "GB/s", what)
        what = f"from_pretrained, {name}, its fill alone, over the link"
        self.bar(what, 1e9 * fill / self.link, ">=", 0.8)
        self.bar(f"from_pretrained, {name}, over the link", 1e9 * rate / self.link, ">=", 0.8)
        what = "highest anonymous memory in the call, beyond the arena"
        over = self.report.figure(f"load.{name}.peak", [one / 1e6 for one in peaks], "MB", what)
        self.bar(f"host memory beyond the arena, {name}, MB", over, "<=", 256 * 1.048576)


class AnonymousPeak:
    """The highest anonymous memory of this process, beyond that at the beginning."""

    nbytes = 0

    def __enter__(self) -> AnonymousPeak:
        self._before = anonymous_bytes()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.002):
            self.nbytes = max(self.nbytes, anonymous_bytes() - self._before)

    def __exit__(self, *_: Any) -> None:
        self._done.set()
        self._thread.join()


@contextmanager
def no_peak() -> Iterator[Any]:
    """Measures nothing."""
    yield None


def anonymous_bytes() -> int:
    """Returns the anonymous memory of this process; the page cache does not count."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    raise RuntimeError("/proc/self/status has no RssAnon")


@contextmanager
def checkpoint(options: dict[str, Any]) -> Iterator[tuple[Path, int]]:
    """Writes a sharded checkpoint, whose pages are in the page cache then; gives its bytes."""
    config = transformers.LlamaConfig(**options)
    config.architectures = ["LlamaForCausalLM"]
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    total = sum(2 * torch.Size(shape).numel() for shape in shapes.values())
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        config.save_pretrained(path)
        torch.manual_seed(3)
        piece = torch.empty(PIECE // 2, dtype=torch.bfloat16).normal_(0, 0.02)
        content = piece.view(torch.uint8).numpy().tobytes()
        names, limit = list(shapes), total / SHARDS
        shards: list[list[str]] = [[]]
        size = 0
        for one in names:
            if size > limit * len(shards):
                shards.append([])
            shards[-1].append(one)
            size += 2 * torch.Size(shapes[one]).numel()
        index = {}

        def write(at: int) -> None:
            file = f"model-{at + 1:05}-of-{len(shards):05}.safetensors"
            header, end = {}, 0
            for one in shards[at]:
                index[one] = file
                start, end = end, end + 2 * torch.Size(shapes[one]).numel()
                header[one] = {
                    "dtype": "BF16",
                    "shape": shapes[one],
                    "data_offsets": [start, end],
                }
            text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
            text += b" " * (-len(text) % 64)
            with (path / file).open("wb") as target:
                target.write(struct.pack("<Q", len(text)) + text)
                for start in range(0, end, PIECE):
                    target.write(content[: end - start])

        with ThreadPoolExecutor() as threads:
            list(threads.map(write, range(len(shards))))
        text = json.dumps({"metadata": {"total_size": total}, "weight_map": index})
        (path / "model.safetensors.index.json").write_text(text)
        print(f"checkpoint in {path}", file=sys.stderr, flush=True)
        yield path, total


def main() -> int:
    """Runs the benchmark; returns 1 if a bar is missed.

    Without a GPU it shows, with tiny models, that it works; nothing is written.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--only", choices=("denoise", "load"))
    parser.add_argument("--variants", default="{}", help="options of offload(), by name, as JSON")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.utils.logging.disable_progress_bar()
    report = Report("engines_hf", weighbridge.__version__)
    report.peers = {
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
    }
    began = time.perf_counter()
    with torch.no_grad():
        bench = Bench(report)
        bench.variants = json.loads(arguments.variants)
        bench.measure_link()
        for part in ("load", "denoise"):
            if arguments.only in (None, part):
                getattr(bench, part)()
                print(f"{part}: {time.perf_counter() - began:.0f} s so far", file=sys.stderr)
    if bench.cuda:
        report.write(arguments.out)
    return 0 if all(bar["holds"] for bar in report.bars) else 1


if __name__ == "__main__":
    sys.exit(main())

"""Benchmark of the expert cache: routing, gathering, and decode steps of a mixture of experts.

    make gpu-bench SUBJECT=experts

The decoder of benches/mixture.py has 48 layers or as many as fit. Routings are drawn by
benches/routings.py, skewed and uniform, so that all systems compute the same. A step decodes one
token and is one CUDA graph, except where PyTorch copies the routed experts on demand. GB is 10^9
bytes. Beside the result file it writes a plot of the step over the share of experts resident.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from ctypes import byref
from pathlib import Path

import numpy as np
import routings
import torch
from mixture import (
    EXPERT_BYTES,
    EXPERTS,
    USED,
    W2,
    W13,
    Decoder,
    Experts,
    Graph,
    Host,
    fused_experts,
    layers_that_fit,
    timed,
)

import weighbridge
from plot import shares_plot
from report import RESULTS, Report
from weighbridge import Buffer, Device, ExpertCache, ExpertTensor
from weighbridge._abi import wb_error
from weighbridge._library import lib
from weighbridge.expert_trace import lru_hits

PARTS = (0.15, 0.30, 0.50)


def view_rate(buffer: Buffer) -> list[float]:
    """GB/s of a kernel that reads host memory in place."""
    nbytes = buffer.info.asked_bytes // 16 * 16
    try:
        import link
    except ImportError:  # no CuPy
        whole = torch.from_dlpack(buffer.view("int32", (nbytes // 4,)))
        rates = []
        for _ in range(8):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            whole.sum()
            end.record()
            end.synchronize()
            rates.append(nbytes / begin.elapsed_time(end) / 1e6)
        return rates[1:]
    return link.bandwidth(link.kernel_read(buffer.info.device_address, nbytes), nbytes)


class Bench:
    """One run of the benchmark."""

    def __init__(self, report: Report, device: Device, layers: int, steps: int, parts: list[str]):
        self.report, self.device, self.layers, self.steps = report, device, layers, steps
        self.parts = parts

    def run(self) -> None:
        """Measures everything."""
        self.routing()
        start = time.perf_counter()
        self.host = Host(self.device, self.layers)
        seconds = time.perf_counter() - start
        print(f"# {self.layers} layers in host memory after {seconds:.1f} s", flush=True)
        what = "a kernel that reads the experts of a layer in host memory in place"
        self.rate = self.report.figure("view", view_rate(self.host.buffers[0][0]), "GB/s", what)
        self.gather()
        self.decode()

    def routing(self) -> None:
        """Times calls that find everything, with tiny experts."""
        layers, device = 48, self.device
        buffer = device.buffer(layers * EXPERTS * 64)
        tensors = [
            ExpertTensor(layer, "w", buffer, "uint8", (EXPERTS, 64), offset=layer * EXPERTS * 64)
            for layer in range(layers)
        ]
        cache = ExpertCache(device, tensors, slots=layers * EXPERTS)
        slowest = 0.0
        for tokens in (1, 4, 16, 64):
            drawn = torch.stack(
                [torch.randperm(EXPERTS, device="cuda")[:USED] for _ in range(layers * tokens)]
            )
            ids = drawn.to(torch.int32).view(layers, tokens * USED).contiguous()
            slots = torch.empty_like(ids)

            def calls(ids: torch.Tensor = ids, slots: torch.Tensor = slots) -> None:
                stream = torch.cuda.current_stream()
                for layer in range(layers):
                    at, to = ids[layer].data_ptr(), slots[layer].data_ptr()
                    cache.route(layer, at, ids.shape[1], to, stream=stream)

            calls()
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                calls()
            before = cache.stats().misses
            times = timed(lambda _, graph=graph: graph.replay(), ids[:1].expand(40, -1))
            if cache.stats().misses != before or bool((slots < 0).any()):
                raise RuntimeError("a call that was to find everything missed")
            what = f"a call that finds all experts of {tokens} tokens, of 48 calls in a graph"
            each = [1e3 * ms / layers for ms in times[10:]]
            slowest = max(slowest, self.report.figure(f"route.{tokens}", each, "us", what))
        self.report.bar("a call that finds all, 1 to 64 tokens (us)", slowest, "<=", 6)
        ids = torch.zeros(USED, device="cuda", dtype=torch.int32)
        reference, error = cache._live(), wb_error()
        stream, other = torch.cuda.current_stream().cuda_stream, torch.cuda.Stream().cuda_stream
        at, route = ids.data_ptr(), lib.wb_expert_cache_route
        out = torch.empty_like(ids).data_ptr()

        def host_times(streams: tuple[int, int]) -> list[float]:
            times = []
            for _ in range(40):
                torch.cuda.synchronize()
                start = time.perf_counter()
                for call in range(50):
                    where = streams[call % 2]
                    route(reference, 0, at, USED, 4, out, None, where, byref(error))
                times.append((time.perf_counter() - start) / 50 * 1e6)
            torch.cuda.synchronize()
            return times[5:]

        what = "host time of a call of the C function from Python"
        host = self.report.figure("route.host", host_times((stream, stream)), "us", what)
        what = "the same on two streams in turn, so that each call waits for the one before it"
        self.report.figure("route.host.streams", host_times((stream, other)), "us", what)
        self.report.bar("host time of a call (us)", host, "<=", 10)
        cache.close()

    def gather(self) -> None:
        """Times calls that find nothing."""
        cache = ExpertCache(self.device, self.host.tensors(), slots=64)
        found = []
        layers = list(range(min(self.layers, 8)))
        for count in (1, 8, 32):
            ids = torch.arange(EXPERTS, device="cuda", dtype=torch.int32).view(-1, count)
            slots = torch.empty(count, device="cuda", dtype=torch.int32)

            cache.reset(torch.cuda.current_stream())  # of what calls before left in slots
            events = [torch.cuda.Event(enable_timing=True) for _ in range(41)]
            before = cache.stats()
            events[0].record()
            for at, event in enumerate(events[1:]):
                row, layer = ids[at % len(ids)].data_ptr(), layers[at // len(ids) % len(layers)]
                stream = torch.cuda.current_stream()
                cache.route(layer, row, count, slots.data_ptr(), stream=stream)
                event.record()
            torch.cuda.synchronize()
            if cache.stats().hits != before.hits:
                raise RuntimeError("a call that was to find nothing hit")
            times = [a.elapsed_time(b) for a, b in zip(events, events[1:])][4:]
            rates = [count * EXPERT_BYTES / ms / 1e6 for ms in times]
            what = f"calls that gather {count} experts of 9.4 MB, everything included"
            found.append(self.report.figure(f"gather.{count}", rates, "GB/s", what))
        self.report.bar("gathering over the view's rate", found[-1] / self.rate, ">=", 0.95)
        cache.close()

    def trace(self, name: str) -> torch.Tensor:
        """The ids of each step and layer."""
        routing = routings.ROUTINGS[name]
        drawn = routings.draw(routing, 2 * self.steps)[:, : self.layers]
        return torch.from_numpy(np.ascontiguousarray(drawn[:, :, 0])).cuda()

    def decode(self) -> None:
        """Times decode steps."""
        report, host = self.report, self.host
        decoder = Decoder(self.layers)
        traces = {name: self.trace(name) for name in ("skewed", "uniform")}
        few = traces["skewed"][: min(20, self.steps)]

        wanted, base, repeated = self._resident(decoder, few, traces["skewed"])
        same = traces["skewed"][:1].expand(30, -1, -1)
        torch.cuda.empty_cache()

        mapped = [host.mapped(layer) for layer in range(self.layers)]
        view = Graph(decoder, lambda at, x, ids, w: fused_experts(x, *mapped[at], ids, w))
        self._same(view, few, wanted, "the view")
        what = "a decode step that reads all routed experts in host memory in place"
        in_place = report.figure("in_place", timed(view.run, few)[2:], "ms", what)
        del view

        on_demand = self._on_demand(decoder)
        what = "a decode step for which PyTorch copies the routed experts, not a graph"
        copied = report.figure("on_demand", timed(on_demand, few)[2:], "ms", what)

        for name, trace in traces.items():
            for part in PARTS:
                slots = int(part * self.layers * EXPERTS)
                cache = ExpertCache(self.device, host.tensors(), slots=slots)
                cached = Graph(decoder, self._cached(cache))
                cache.reset(torch.cuda.current_stream())
                torch.cuda.synchronize()
                first = cache.stats()
                if name == "skewed":
                    self._same(cached, few, wanted, f"the cache of {slots} slots")
                    cache.reset(torch.cuda.current_stream())
                    torch.cuda.synchronize()
                    first = cache.stats()
                timed(cached.run, trace[: self.steps])
                middle = cache.stats()
                times = timed(cached.run, trace[self.steps :])
                end = cache.stats()
                self._report_cached(name, part, slots, trace, base, times, (first, middle, end))
                if part == 0.30:
                    step = sum(times) / len(times)
                    if name == "skewed":
                        report.bar("30 %, skewed: view over cache", in_place / step, ">=", 3)
                        report.bar(
                            "30 %, skewed: PyTorch's copies over cache", copied / step, ">=", 3
                        )
                    else:
                        report.bar("30 %, uniform: cache over view", step / in_place, "<=", 1.05)
                if name == "skewed" and part == 0.50:
                    ms = statistics.median(timed(cached.run, same)[10:])
                    what = "a decode step through the cache that finds all experts"
                    report.figure("no_misses", [ms], "ms", what)
                    report.bar("no misses, over resident", ms / repeated, "<=", 1.03)
                del cached
                cache.close()

    def _resident(
        self, decoder: Decoder, few: torch.Tensor, trace: torch.Tensor
    ) -> tuple[list[torch.Tensor], float, float]:
        """Results of some steps; milliseconds of steps, and of one that is repeated."""
        layers = range(self.layers)
        weights = [tuple(w.cuda() for w in self._host_tensors(layer)) for layer in layers]
        resident = Graph(decoder, lambda at, x, ids, w: fused_experts(x, *weights[at], ids, w))
        wanted = [resident.run(ids).clone() for ids in few[:4]]
        what = "a decode step with all experts on the device"
        base = self.report.figure("resident", timed(resident.run, trace[:30])[10:], "ms", what)
        same = trace[:1].expand(30, -1, -1)
        return wanted, base, statistics.median(timed(resident.run, same)[10:])

    def _report_cached(self, name, part, slots, trace, base, times, stats) -> None:
        first, middle, end = stats
        steps = len(times)
        mean = sum(times) / steps
        self.report.figure(
            f"cache.{name}.{part:.2f}", times, "ms", f"a decode step, {part:.0%} resident, {name}"
        )
        missed = (end.gathered_bytes - middle.gathered_bytes) / steps
        bound = base + missed / self.rate / 1e6
        hits = (end.hits - middle.hits) / (end.hits + end.misses - middle.hits - middle.misses)
        what = f"experts found in slots, {part:.0%} resident, {name}"
        self.report.figure(f"hits.{name}.{part:.2f}", [hits], "", what)
        label = f"{part:.0%} resident, {name}"
        self.report.bar(f"mean step over its bound, {label}", mean / bound, "<=", 1.10)
        drawn = trace.cpu().numpy()[:, :, None, :]
        wanted = sum(lru_hits(routings.trace_of(drawn, EXPERTS), slots))
        found = end.hits - first.hits
        total = drawn.size
        self.report.bar(f"hit rate off the LRU's, {label}", abs(found - wanted) / total, "<=", 0.02)

    @staticmethod
    def _same(graph: Graph, few: torch.Tensor, wanted: list[torch.Tensor], what: str) -> None:
        for ids, result in zip(few, wanted):
            if not torch.equal(graph.run(ids), result):
                raise RuntimeError(f"{what} computes other bits than the resident model")

    def _cached(self, cache: ExpertCache) -> Experts:
        w13, w2 = (torch.from_dlpack(cache.view(index)) for index in range(2))
        slots = torch.empty((self.layers, USED), device="cuda", dtype=torch.int32)

        def experts(layer, x, ids, weights):
            stream = torch.cuda.current_stream()
            at = slots[layer]
            cache.route(layer, ids.data_ptr(), USED, at.data_ptr(), stream=stream)
            return fused_experts(x, w13, w2, at, weights)

        return experts

    def _host_tensors(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        w13, w2 = self.host.buffers[layer]
        return self.host.host(w13, W13), self.host.host(w2, W2)

    def _on_demand(self, decoder: Decoder) -> Callable[[torch.Tensor], object]:
        w13 = torch.empty((USED, *W13), device="cuda", dtype=torch.bfloat16)
        w2 = torch.empty((USED, *W2), device="cuda", dtype=torch.bfloat16)
        order = torch.arange(USED, device="cuda", dtype=torch.int32)
        hosts = [self._host_tensors(layer) for layer in range(self.layers)]

        def experts(layer, x, ids, weights):
            for at, expert in enumerate(ids.tolist()):
                w13[at].copy_(hosts[layer][0][expert], non_blocking=True)
                w2[at].copy_(hosts[layer][1][expert], non_blocking=True)
            return fused_experts(x, w13, w2, order, weights)

        def run(ids: torch.Tensor) -> torch.Tensor:
            decoder.ids.copy_(ids)
            return decoder.step(experts)

        return run


def main() -> int:
    """Runs the benchmark; 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--layers", type=int, default=0, help="0: as many as fit")
    parser.add_argument("--steps", type=int, default=100, help="measured, after as many others")
    given = parser.parse_args()
    report = Report("experts", weighbridge.__version__, {"torch": torch.__version__})
    with Device("cuda:0") as device, torch.inference_mode():
        Bench(report, device, given.layers or layers_that_fit(), given.steps, []).run()
    report.write(given.out)
    path = report.path(given.out)
    shares_plot(path.with_suffix(".svg"), report.figures)
    return 0 if all(bar["holds"] for bar in report.bars) else 1


if __name__ == "__main__":
    sys.exit(main())

"""Replays a trace of experts, or predicts from a router's frequencies what caches would find:
``python -m weighbridge experts TRACE --slots 15%,30%,50%``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from xml.sax.saxutils import escape

from .._text import in_words, print_table
from ..expert_router import KIND as ROUTER
from ..expert_router import ExpertRouter, step_seconds
from ..expert_trace import ExpertTrace, HitRates, replay
from .arguments import bytes_argument

_COLOURS = {"optimum": "#2f9e44", "LRU": "#1971c2", "by frequency": "#f08c00"}
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _RIGHT = 640, 360, 60, 50, 130
_STYLE = """
text { font: 12px sans-serif; fill: #333 } .axis { stroke: #888; fill: none }
polyline { fill: none; stroke-width: 2 }
@media (prefers-color-scheme: dark) { text { fill: #ccc } }
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument(
        "trace",
        metavar="TRACE",
        help="a trace, see weighbridge.expert_trace, or a router's frequencies, see "
        "weighbridge.expert_router",
    )
    parser.add_argument(
        "--slots",
        default="10%,15%,20%,30%,40%,50%,70%,100%",
        metavar="N,...",
        help="numbers of slots, or parts of all experts such as 30%% (default: %(default)s)",
    )
    parser.add_argument(
        "--expert-bytes",
        type=bytes_argument,
        default=0,
        metavar="SIZE",
        help="of an expert, such as 9.4MB: print the memory of the slots, and what a step gathers",
    )
    parser.add_argument(
        "--resident-ms",
        type=float,
        metavar="MS",
        help="of a step with all experts on the device: print what a step takes",
    )
    parser.add_argument(
        "--link",
        type=bytes_argument,
        default=0,
        metavar="SIZE",
        help="bytes a second that the device reads from host memory, such as 50GB, for "
        "--resident-ms",
    )
    parser.add_argument("--layers", action="store_true", help="print the LRU's rate of each layer")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="write the rates as an SVG")


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; returns the exit status."""
    try:
        trace, about, rates = _rates_of(arguments)
    except (OSError, ValueError) as error:
        print(f"weighbridge experts: {error}", file=sys.stderr)
        return 1
    each_bytes = arguments.expert_bytes
    columns = ["slots", "of experts", "LRU", "by frequency", "optimum"]
    columns += ["memory", "gathered a step"] if each_bytes else []
    times: list[str] = []
    if arguments.resident_ms is not None:
        columns.append("a step")
        seconds = arguments.resident_ms / 1e3
        each_time = (step_seconds(each, seconds, each_bytes, arguments.link) for each in rates)
        times = [f"{1e3 * one:.2f} ms" for one in each_time]
    print_table(
        f"{arguments.trace}: {about}",
        columns,
        [
            [
                str(each.slots),
                _percent(each.slots / trace.total),
                _percent(each.lru),
                _percent(each.frequency),
                _percent(each.optimum),
                in_words(each.slots * each_bytes),
                in_words(round(each.lru_misses * each_bytes)),
                *times[at : at + 1],
            ][: len(columns)]
            for at, each in enumerate(rates)
        ],
        right=range(len(columns)),
    )
    if arguments.layers:
        print_table(
            "LRU, by layer",
            ["layer", *(f"{each.slots} slots" for each in rates)],
            [
                [str(layer), *(_percent(each.lru_layers[layer]) for each in rates)]
                for layer in range(len(rates[0].lru_layers))
            ],
            right=range(1 + len(rates)),
        )
    if arguments.svg:
        arguments.svg.write_text(rates_svg(rates, trace.total), encoding="utf-8")
    return 0


def _rates_of(
    arguments: argparse.Namespace,
) -> tuple[ExpertRouter | ExpertTrace, str, list[HitRates]]:
    """Returns the trace or the frequencies, what they are, and what caches find."""
    if arguments.resident_ms is not None and not (arguments.expert_bytes and arguments.link):
        raise ValueError("--resident-ms needs --expert-bytes and --link, both above 0")
    with open(arguments.trace, "rb") as file:
        is_router = f'"{ROUTER}"'.encode() in file.read(256)
    if is_router:
        router = ExpertRouter.read(arguments.trace)
        found = [router.predict(slots) for slots in slots_of(arguments.slots, router.total)]
        about = f"frequencies of {len(router.frequencies)} layers, {router.total} experts"
        return router, about, found
    trace = ExpertTrace.read(arguments.trace)
    about = f"{trace.steps} steps, {len(trace.experts)} layers, {trace.total} experts"
    return trace, about, [replay(trace, one) for one in slots_of(arguments.slots, trace.total)]


def slots_of(text: str, total: int) -> list[int]:
    """Returns the numbers of slots that an argument names, of ``total`` experts."""
    found = []
    for word in text.split(","):
        number, percent, rest = word.strip().partition("%")
        try:
            slots = int(float(number) * total / 100) if percent else int(number)
        except ValueError:
            slots = 0
        if rest or not 0 < slots <= total:
            raise ValueError(f"--slots {word!r}: use 1 to {total} slots, or a part such as 30%")
        found.append(slots)
    return found


def _percent(rate: float) -> str:
    return f"{100 * rate:.1f} %"


def rates_svg(rates: list[HitRates], total: int) -> str:
    """Returns the rates over the part of experts that have slots, as an SVG."""
    across, down = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _BOTTOM - 20

    def place(part: float, rate: float) -> tuple[float, float]:
        return _LEFT + part * across, 20 + (1 - rate) * down

    def points(places: list[tuple[float, float]]) -> str:
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)

    frame = points([place(0, 1), place(0, 0), place(1, 0)])
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}">',
        f"<style>{_STYLE}</style>",
        f'<polyline class="axis" points="{frame}"/>',
    ]
    for tick in (0, 25, 50, 75, 100):
        x, y = place(tick / 100, 0)
        parts.append(f'<text x="{x:.1f}" y="{y + 18:.1f}" text-anchor="middle">{tick} %</text>')
        x, y = place(0, tick / 100)
        parts.append(f'<text x="{x - 8:.1f}" y="{y + 4:.1f}" text-anchor="end">{tick} %</text>')
    parts.append(f'<text x="{_LEFT}" y="12">experts found in slots</text>')
    middle = _LEFT + across / 2
    parts.append(
        f'<text x="{middle}" y="{_HEIGHT - 8}" text-anchor="middle">experts with a slot</text>'
    )
    ordered = sorted(rates, key=lambda each: each.slots)
    lines = {
        "optimum": [place(each.slots / total, each.optimum) for each in ordered],
        "LRU": [place(each.slots / total, each.lru) for each in ordered],
        "by frequency": [place(each.slots / total, each.frequency) for each in ordered],
    }
    below = 0.0
    for name, places in sorted(lines.items(), key=lambda line: line[1][-1][1]):
        colour = _COLOURS[name]
        parts.append(f'<polyline stroke="{colour}" points="{points(places)}"/>')
        x, y = places[-1]
        below = max(y + 4, below + 15)
        label = f'<text x="{x + 8:.1f}" y="{below:.1f}" style="fill:{colour}">{escape(name)}</text>'
        parts.append(label)
    return "\n".join([*parts, "</svg>"]) + "\n"

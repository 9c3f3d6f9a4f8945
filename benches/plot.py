"""Plots of step times as SVG: against offloaded bytes, and against the share of experts resident.

python benches/plot.py benches/results/h100-experts.json     writes h100-experts.svg
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

WIDTH, HEIGHT, LEFT, BOTTOM = 720, 400, 70, 60
COLOURS = ["#1f77b4", "#d62728", "#2ca02c"]
STYLE = """
text { font: 13px sans-serif; fill: #333 } .axis { stroke: #888; stroke-width: 1 }
.bound { stroke: #888; stroke-dasharray: 5 4; fill: none } .line { fill: none; stroke-width: 2 }
@media (prefers-color-scheme: dark) { text { fill: #ccc } }
"""

Points = Sequence[tuple[float, float]]


def times_plot(path: Path, points: dict[str, list[tuple[float, float]]], rate: float) -> None:
    """Plots milliseconds over GB for each name, and the link bound at ``rate`` GB/s."""
    most = max(x for line in points.values() for x, _ in line)
    bound = [(0.0, 0.0), (most, 1e3 * most / rate)]
    _plot(path, points, ("link bound", bound), "GB offloaded", ".1f")


def shares_plot(path: Path, figures: list[dict[str, Any]]) -> None:
    """Plots the figures of ``SUBJECT=experts``: the milliseconds of a decode step over the
    percentage of experts that are resident. With none of them the experts are read in place."""
    values = {figure["name"]: figure["value"] for figure in figures}
    resident = values["resident"]
    points = {}
    for name in ("skewed", "uniform"):
        line = [(0.0, values["in_place"])]
        for figure, value in values.items():
            kind, _, rest = figure.partition(".")
            if kind == "cache" and rest.startswith(f"{name}."):
                line.append((100 * float(rest.partition(".")[2]), value))
        points[f"{name} routings"] = [*sorted(line), (100.0, resident)]
    bound = [(0.0, resident), (100.0, resident)]
    _plot(path, points, ("all resident", bound), "% of the experts resident", ".0f")


def _plot(
    path: Path, points: dict[str, Points], bound: tuple[str, Points], across: str, number: str
) -> None:
    """Plots milliseconds for each name, and a bound with a name of its own."""
    lines = [*points.values(), bound[1]]
    most_x = max(x for line in lines for x, _ in line)
    most_y = max(y for line in lines for _, y in line) * 1.05

    def place(x: float, y: float) -> str:
        right = LEFT + x / most_x * (WIDTH - LEFT - 160)
        return f"{right:.1f},{HEIGHT - BOTTOM - y / most_y * (HEIGHT - BOTTOM - 20):.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}">',
        f"<style>{STYLE}</style>",
        f'<polyline class="axis" fill="none" points="{place(0, most_y)} {place(0, 0)} '
        f'{place(most_x, 0)}"/>',
        f'<polyline class="bound" points="{" ".join(place(x, y) for x, y in bound[1])}"/>',
    ]
    for step in range(5):
        x, y = most_x * step / 4, most_y * step / 4
        at_x, _, at_y = place(x, 0).partition(",")
        label = f"{x:{number}}"
        parts.append(f'<text x="{at_x}" y="{float(at_y) + 18}" text-anchor="middle">{label}</text>')
        at_x, _, at_y = place(0, y).partition(",")
        parts.append(f'<text x="{float(at_x) - 8}" y="{at_y}" text-anchor="end">{y:.0f}</text>')
    parts.append(f'<text x="{LEFT}" y="14">ms a step</text>')
    parts.append(f'<text x="{WIDTH / 2 - 80}" y="{HEIGHT - 14}">{across}</text>')
    ends = [(*bound[1][-1], bound[0], "#888")]
    for at, (name, line) in enumerate(points.items()):
        colour = COLOURS[at % len(COLOURS)]
        drawn = " ".join(place(x, y) for x, y in line)
        parts.append(f'<polyline class="line" stroke="{colour}" points="{drawn}"/>')
        ends.append((*line[-1], name, colour))
    below = 0.0
    for x, y, name, colour in sorted(ends, key=lambda end: -end[1]):
        right, _, down = place(x, y).partition(",")
        below = max(float(down), below + 16)  # so that names do not overlap
        parts.append(
            f'<text x="{float(right) + 8}" y="{below}" style="fill:{colour}">{name}</text>'
        )
    path.write_text("\n".join([*parts, "</svg>"]) + "\n")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        shares_plot(Path(name).with_suffix(".svg"), json.loads(Path(name).read_text())["figures"])

"""A plot of step times against offloaded bytes, as SVG."""

from __future__ import annotations

from pathlib import Path

WIDTH, HEIGHT, LEFT, BOTTOM = 720, 400, 70, 60
COLOURS = ["#1f77b4", "#d62728", "#2ca02c"]
STYLE = """
text { font: 13px sans-serif; fill: #333 } .axis { stroke: #888; stroke-width: 1 }
.bound { stroke: #888; stroke-dasharray: 5 4; fill: none } .line { fill: none; stroke-width: 2 }
@media (prefers-color-scheme: dark) { text { fill: #ccc } }
"""


def times_plot(path: Path, points: dict[str, list[tuple[float, float]]], rate: float) -> None:
    """Plots milliseconds over GB for each name, and the link bound at ``rate`` GB/s."""
    most_x = max(x for line in points.values() for x, _ in line)
    bound = [(0.0, 0.0), (most_x, 1e3 * most_x / rate)]
    most_y = max([y for line in points.values() for _, y in line] + [bound[1][1]]) * 1.05

    def place(x: float, y: float) -> str:
        across = LEFT + x / most_x * (WIDTH - LEFT - 160)
        return f"{across:.1f},{HEIGHT - BOTTOM - y / most_y * (HEIGHT - BOTTOM - 20):.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}">',
        f"<style>{STYLE}</style>",
        f'<polyline class="axis" fill="none" points="{place(0, most_y)} {place(0, 0)} '
        f'{place(most_x, 0)}"/>',
        f'<polyline class="bound" points="{" ".join(place(x, y) for x, y in bound)}"/>',
    ]
    for step in range(5):
        x, y = most_x * step / 4, most_y * step / 4
        at_x, _, at_y = place(x, 0).partition(",")
        parts.append(f'<text x="{at_x}" y="{float(at_y) + 18}" text-anchor="middle">{x:.1f}</text>')
        at_x, _, at_y = place(0, y).partition(",")
        parts.append(f'<text x="{float(at_x) - 8}" y="{at_y}" text-anchor="end">{y:.0f}</text>')
    parts.append(f'<text x="{LEFT}" y="14">ms a step</text>')
    parts.append(f'<text x="{WIDTH / 2 - 80}" y="{HEIGHT - 14}">GB offloaded</text>')
    ends = [(*bound[1], "link bound", "#888")]
    for at, (name, line) in enumerate(points.items()):
        colour = COLOURS[at % len(COLOURS)]
        drawn = " ".join(place(x, y) for x, y in line)
        parts.append(f'<polyline class="line" stroke="{colour}" points="{drawn}"/>')
        ends.append((*line[-1], name, colour))
    below = 0.0
    for x, y, name, colour in sorted(ends, key=lambda end: -end[1]):
        across, _, down = place(x, y).partition(",")
        below = max(float(down), below + 16)  # so that names do not overlap
        parts.append(
            f'<text x="{float(across) + 8}" y="{below}" style="fill:{colour}">{name}</text>'
        )
    path.write_text("\n".join([*parts, "</svg>"]) + "\n")

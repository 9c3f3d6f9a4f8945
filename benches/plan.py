"""Benchmark of planning: how its time grows with parameters and groups, and the memory of its JSON.

    make gpu-bench SUBJECT=plan

It needs no GPU. An exponent is the slope of the logarithm of thread seconds over that of the number
of parameters: 1 is linear. Plans whose budget is one byte too small for everything are the worst
case: a search that tries once for each parameter is quadratic there.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass
from math import log
from pathlib import Path

import native
import weighbridge
from report import RESULTS, Report

RUNS = 3


@dataclass(frozen=True)
class Series:
    """Plans of growing models under one kind of budget."""

    name: str
    budget: str
    counts: tuple[int, ...]
    what: str
    each: int = 0
    """Parameters of a group; 0 if there is one group."""


SERIES = (
    Series("offload", "offload", (62_500, 250_000, 1_000_000), "offload_bytes of a half", 1000),
    Series("device", "device", (62_500, 250_000, 1_000_000), "device_bytes of a half", 1000),
    Series("groups", "device", (6_250, 25_000, 100_000), "the same, a parameter in each group", 1),
    Series("short", "short", (6_250, 25_000, 100_000), "all but one byte, likewise", 1),
    Series("short.4", "short", (6_250, 25_000, 100_000), "all but one byte, groups of 4", 4),
    Series("short.one", "short", (4_000, 16_000, 64_000), "all but one byte, one group"),
)


def slope(points: list[tuple[int, float]]) -> float:
    """Returns the exponent of the power of the first number that is nearest to the second."""
    across = [log(count) for count, _ in points]
    up = [log(seconds) for _, seconds in points]
    middle, height = sum(across) / len(points), sum(up) / len(points)
    above = sum((x - middle) * (y - height) for x, y in zip(across, up))
    return above / sum((x - middle) ** 2 for x in across)


def main() -> int:
    """Runs the benchmark; returns 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--divide", type=int, default=1, help="divides the numbers of parameters")
    arguments = parser.parse_args()
    report = Report("plan", weighbridge.__version__)
    texts: list[tuple[int, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        for series in SERIES:
            plans: list[tuple[int, float]] = []
            for count in (count // arguments.divide for count in series.counts):
                groups = max(count // series.each, 1) if series.each else 1
                printed = native.run(
                    Path(folder),
                    "plan_cost",
                    "host",
                    str(count),
                    str(groups),
                    series.budget,
                    str(RUNS),
                )
                lines = [[float(part) for part in line.split()] for line in printed.splitlines()]
                name, what = f"{series.name}.{count}", f"{count:,} parameters, {series.what}"
                report.figure(name, [line[0] for line in lines], "s", what)
                # The least is what the machine's other work disturbed least.
                plans.append((count, min(line[0] for line in lines)))
                if series.name == "device":
                    report.figure(f"json.{count}", [line[1] for line in lines], "s", "its JSON")
                    texts.append((count, min(line[1] for line in lines)))
                    grown = [line[3] / line[2] for line in lines]
                    over = report.figure(f"json.{count}.grown", grown, "x", "bytes over its bytes")
            report.bar(f"exponent of {series.name}: {series.what}", slope(plans), "<=", 1.15)
            if series.each == 1000:  # in seconds, on slow cores as well
                label = f"plan of {plans[-1][0]:,} parameters, {series.what} (s)"
                report.bar(label, plans[-1][1], "<=", 2)
        report.bar("exponent of the JSON", slope(texts), "<=", 1.15)
        report.bar("bytes that the JSON of the largest takes over its own", over, "<=", 2)
    report.write(arguments.out)
    return 0 if all(bar["holds"] for bar in report.bars) else 1


if __name__ == "__main__":
    sys.exit(main())

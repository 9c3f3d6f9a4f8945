"""Benchmark of scale: how the cost of each call grows with the number of parameters.

    make gpu-bench SUBJECT=scale

Runs on the host device, without a GPU, with parameters of 1 KiB. An exponent is the slope of a line
through the logarithms of count and cost: 1 is proportional. Of several runs the fastest counts,
since other programs only ever slow one down.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from pathlib import Path

import native
import weighbridge
from report import RESULTS, Report

COUNTS = (6250, 25000, 100000)
STEPS = (100, 1000, 10000, 100000)
BUDGETS = (1000, 2000, 4000, 8000, 16000, 32000)
TEXTS = (62500, 250000, 1000000)
RESIDENT = (6250, 12500, 25000)
"""Each is a mapping on the host device, of which the kernel allows some ten thousand."""
EXPONENT = 1.15
CALLS = {
    "plan": "wb_plan_new",
    "commit": "wb_offloader_new",
    "memory": "memory that the commit takes beside the parameters' bytes",
    "infos": "wb_offloader_get_parameter_infos of all",
    "kept": "wb_offloader_reconcile, nothing differs",
    "same_size": "wb_offloader_reconcile, all replaced by as many bytes",
    "replace": "wb_offloader_replace of each by as many bytes, one by one",
    "smaller": "wb_offloader_reconcile, all replaced by half the bytes",
    "larger": "wb_offloader_reconcile, all replaced by four times the bytes",
    "added": "wb_offloader_reconcile, as many added",
    "one_smaller": "wb_offloader_replace of one by half the bytes",
    "one_removed": "wb_offloader_remove of one",
    "one_added": "wb_offloader_add of one",
    "grown": "wb_offloader_reconcile, one tenth replaced by twice the bytes",
    "compact": "wb_offloader_compact",
    "stats": "wb_offloader_get_stats",
    "removed": "wb_offloader_reconcile, all removed but one",
    "release": "wb_offloader_release",
    "json": "wb_plan_to_json",
    "json_memory": "peak of the memory that it takes, with the text",
}
KINDS = {
    "groups": "each in a group of its own",
    "group": "all in one group",
    "resident": "all but one resident",
    "budget": "each in a group of its own, within device_bytes of four",
    "depth": "each in a group of its own, two at a time within slot_bytes of three",
    "json": "in 1,000 groups",
}
UNMEASURED = ("step", "json_bytes")
"""Reported otherwise."""


def exponent(costs: dict[int, float]) -> float:
    """Returns the slope of a line through the logarithms, by least squares."""
    points = [(math.log(count), math.log(cost)) for count, cost in costs.items()]
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    above = sum((x - mean_x) * (y - mean_y) for x, y in points)
    return above / sum((x - mean_x) ** 2 for x, _ in points)


def measure(folder: Path, kind: str, count: int, runs: int) -> dict[str, list[float]]:
    """Returns what each run of the program printed, by name."""
    found: dict[str, list[float]] = {}
    for _ in range(runs):
        for line in native.run(folder, "scale", "host", kind, str(count)).splitlines():
            name, value = line.split()
            found.setdefault(name, []).append(float(value))
    return found


def growth(report: Report, folder: Path, kind: str, counts: tuple[int, ...], runs: int) -> None:
    """Reports the cost of each call at the largest count, and its exponent."""
    measured = {count: measure(folder, kind, count, runs) for count in counts}
    for name in measured[counts[-1]]:
        if name in UNMEASURED:
            continue
        unit = "bytes" if name.endswith("memory") else "s"
        what = f"{CALLS[name]}; {counts[-1]} parameters, {KINDS[kind]}"
        report.figure(f"{kind}.{name}", measured[counts[-1]][name], unit, what)
        slope = exponent({count: min(measured[count][name]) for count in counts})
        what = f"{CALLS[name]}; {counts[0]} to {counts[-1]} parameters, {KINDS[kind]}"
        report.figure(f"{kind}.{name}.exponent", [slope], "", what)
        report.bar(f"exponent of {kind}.{name}", slope, "<=", EXPONENT)


def steps(report: Report, folder: Path, runs: int) -> None:
    """Reports the nanoseconds to acquire and release a group, by the number of groups."""
    took = {}
    for count in STEPS:
        values = measure(folder, "groups", count, runs)["step"]
        what = f"host time to acquire and release a group of {count}, in the order of a step"
        report.figure(f"step.{count}", values, "ns", what)
        took[count] = min(values)
    what = f"the same, {STEPS[0]} to {STEPS[-1]} groups; 0 is flat"
    slope = report.figure("step.exponent", [exponent(took)], "", what)
    report.bar("exponent of acquire and release", slope, "<=", EXPONENT - 1)


def main() -> int:
    """Runs the benchmark and writes the result file; returns 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    report = Report(subject="scale", library_version=weighbridge.__version__)
    with tempfile.TemporaryDirectory() as name:
        folder, runs = Path(name), arguments.runs
        steps(report, folder, runs)
        growth(report, folder, "groups", COUNTS, runs)
        growth(report, folder, "group", COUNTS, runs)
        growth(report, folder, "resident", RESIDENT, runs)
        growth(report, folder, "budget", BUDGETS, runs)
        growth(report, folder, "depth", BUDGETS, runs)
        growth(report, folder, "json", TEXTS, runs)
        text = measure(folder, "json", TEXTS[-1], 1)
        over = text["json_memory"][0] / text["json_bytes"][0]
        what = f"peak of the memory over bytes of the text of {TEXTS[-1]} parameters"
        report.figure("json.over", [over], "x", what)
        report.bar("memory over bytes of a plan's text", over, "<=", 2)
    report.write(arguments.out)
    return 0 if all(bar["holds"] for bar in report.bars) else 1


if __name__ == "__main__":
    sys.exit(main())

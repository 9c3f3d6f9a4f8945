"""Writes a result file: figures, the bars computed from them, and the machine they are from."""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def cpu_cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0))


def _command_output(*command: str) -> str:
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip()


def _link() -> str:
    """PCIe generation and width of GPU 0 as the driver gives them at most."""
    answer = _command_output(
        "nvidia-smi",
        "--query-gpu=pcie.link.gen.max,pcie.link.width.max",
        "--format=csv,noheader,nounits",
        "-i",
        "0",
    )
    parts = [part.strip() for part in answer.split(",")]
    return f"PCIe {parts[0]} x{parts[1]}" if len(parts) == 2 else "unknown"


def machine() -> dict[str, Any]:
    """Hardware and system, read from the driver and the kernel."""
    names = _command_output(
        "nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"
    )
    name, _, driver = names.splitlines()[0].partition(", ") if names else ("host", "", "none")
    return {
        "device": name,
        "driver": driver,
        "link": _link() if names else "none",
        "cpu_cores": cpu_cores(),
        "kernel": platform.release().split("-")[0],
    }


def commit() -> str:
    """The commit that was measured: WEIGHBRIDGE_COMMIT where that is set, else git's."""
    given = os.environ.get("WEIGHBRIDGE_COMMIT", "")
    described = ("git", "describe", "--always", "--abbrev=12", "--dirty", "--exclude=*")
    return given or _command_output(*described) or "unknown"


@dataclass
class Report:
    """Figures and bars of one run of one subject."""

    subject: str
    library_version: str
    command: str
    peers: dict[str, str] = field(default_factory=dict)
    figures: list[dict[str, Any]] = field(default_factory=list)
    bars: list[dict[str, Any]] = field(default_factory=list)

    def figure(self, name: str, values: list[float], unit: str, what: str) -> float:
        """Adds a figure, the median of its runs, and prints it. ``what`` spells out the measure."""
        median = statistics.median(values)
        self.figures.append(
            {
                "name": name,
                "value": round(median, 6),
                "unit": unit,
                "runs": len(values),
                "min": round(min(values), 6),
                "max": round(max(values), 6),
                "what": what,
            }
        )
        print(
            f"{name:42} {median:12.4g} {unit:6} ({min(values):.4g} to {max(values):.4g})",
            flush=True,
        )
        return median

    def bar(self, name: str, figure: float, sense: str, goal: float) -> bool:
        """Adds a bar and prints whether it holds."""
        holds = figure >= goal if sense == ">=" else figure <= goal
        self.bars.append(
            {"name": name, "figure": round(figure, 4), "goal": goal, "sense": sense, "holds": holds}
        )
        print(f"{'holds' if holds else 'MISSED':7} {name}: {figure:.4g} {sense} {goal}", flush=True)
        return holds

    def write(self, path: Path) -> None:
        """Writes the result file."""
        content = {
            "subject": self.subject,
            "machine": machine(),
            "library": {"version": self.library_version, "commit": commit()},
            "peers": self.peers,
            "date": datetime.date.today().isoformat(),
            "command": self.command,
            "figures": self.figures,
            "bars": self.bars,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=2) + "\n")
        held = sum(bar["holds"] for bar in self.bars)
        print(f"{path}: {held} of {len(self.bars)} bars hold", file=sys.stderr)

"""Result files: figures, the bars computed from them, and the machine that produced them.

A file is named after the device that it was measured on: ``h100-offload.json``.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benches" / "results"


def device_name(device: str) -> str:
    """The short name of a device, for file names: ``h100`` for ``NVIDIA H100 80GB HBM3``.

    It ends with the first word that has a digit; the words behind it are memory and form factor.
    """
    words = re.findall(r"[a-z0-9]+", device.lower())
    words = [word for word in words if word not in ("nvidia", "geforce")]
    model = next((at for at, word in enumerate(words) if re.search(r"\d", word)), len(words))
    return "-".join(words[: model + 1]) or "unknown"


def newest(pattern: str) -> Path:
    """The result file with the latest date of those that match a pattern below the repository.

    Of several with the same date it is the one whose name sorts last.
    """
    found = list(ROOT.glob(pattern))
    if not found:
        raise FileNotFoundError(f"no result file matches {pattern}")
    return max(found, key=lambda path: (json.loads(path.read_text())["date"], path.name))


def cpu_cores() -> int:
    """Returns the number of processors that this process may use."""
    return len(os.sched_getaffinity(0))


def _command_output(*command: str) -> str:
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip()


def _link() -> str:
    """Returns the highest PCIe generation and width of GPU 0."""
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
    """Returns hardware and system, read from the driver and the kernel."""
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
    """Returns the commit that is measured: WEIGHBRIDGE_COMMIT if set, else the checkout's."""
    given = os.environ.get("WEIGHBRIDGE_COMMIT", "")
    described = ("git", "describe", "--always", "--abbrev=12", "--dirty", "--exclude=*")
    return given or _command_output(*described) or "unknown"


@dataclass
class Report:
    """Figures and bars of one run of one subject."""

    subject: str
    library_version: str
    peers: dict[str, str] = field(default_factory=dict)
    figures: list[dict[str, Any]] = field(default_factory=list)
    bars: list[dict[str, Any]] = field(default_factory=list)

    def figure(self, name: str, values: list[float], unit: str, what: str) -> float:
        """Adds and prints a figure, the median of its runs. ``what`` says what was measured."""
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
        """Adds a bar, a goal that a figure must meet, and prints whether it holds."""
        holds = figure >= goal if sense == ">=" else figure <= goal
        self.bars.append(
            {"name": name, "figure": round(figure, 4), "goal": goal, "sense": sense, "holds": holds}
        )
        print(f"{'holds' if holds else 'MISSED':7} {name}: {figure:.4g} {sense} {goal}", flush=True)
        return holds

    def path(self, folder: Path) -> Path:
        """Returns the result file of this subject on this machine's device."""
        return folder / f"{device_name(machine()['device'])}-{self.subject}.json"

    def write(self, folder: Path) -> None:
        """Writes the result file into ``folder``."""
        content = {
            "subject": self.subject,
            "machine": machine(),
            "library": {"version": self.library_version, "commit": commit()},
            "peers": self.peers,
            "date": datetime.date.today().isoformat(),
            "command": f"make gpu-bench SUBJECT={self.subject}",
            "figures": self.figures,
            "bars": self.bars,
        }
        path = self.path(folder)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=2) + "\n")
        held = sum(bar["holds"] for bar in self.bars)
        print(f"{path}: {held} of {len(self.bars)} bars hold", file=sys.stderr)

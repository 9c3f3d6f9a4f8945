"""Runs the checks that take hours in all, prints their figures, and writes them to tests/reports.

A check is a make target; its figures are the lines ``reliability: {...}`` that it prints. A check
without figures has checked nothing and fails. ``--gpu`` runs the checks that need an NVIDIA GPU.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benches"))

import report  # noqa: E402

MARK = "reliability: "

# The subject of each check, its target, and the seconds after which it counts as hanging.
HERE = [
    ("every call that can fail, failing", "faults", 7200),
    ("address, leak and undefined-behaviour sanitizers", "asan", 2400),
    ("valgrind", "valgrind", 2400),
    ("models of shared state", "models", 900),
    ("properties, with new random inputs", "properties", 2400),
    ("fuzzing", "fuzz", 3600),
    ("process life and limits", "life", 900),
    ("soak", "soak", 2400),
    ("uses of offloaded PyTorch models", "cases", 3600),
    ("models of transformers and diffusers", "sweep", 1800),
    ("examples of engines: ggml, libtorch", "engines", 900),
    ("crates", "deny", 900),
    ("lints of fuzz targets and tools", "lint-tools", 900),
    ("the wheel", "wheel", 1800),
]
GPU = [
    ("compute-sanitizer", "gpu-sanitize", 600),
    ("soak on the GPU", "gpu-soak", 720),
]


def run(what: str, target: str, limit: int) -> dict[str, Any]:
    """Runs one target, logs to build/check, and returns its entry of the report."""
    log = ROOT / "build" / "check" / f"{target}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    print(f"{what}: make {target} … ", end="", flush=True)
    start = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["make", target], cwd=ROOT, stdout=output, stderr=output, start_new_session=True
        )
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with every process it started
            process.wait()
            status = None
    lines = log.read_text(errors="replace").splitlines()
    figures = [json.loads(line[len(MARK) :]) for line in lines if line.startswith(MARK)]
    if status is None:
        result = f"failed: it hung, and was ended after {limit} s"
    elif status != 0:
        result = f"failed: exit {status}"
    elif not figures:
        result = "failed: it checked nothing"
    elif any(str(value).startswith("not run") for entry in figures for value in entry.values()):
        result = "passed in part"
    else:
        result = "passed"
    seconds = round(time.monotonic() - start)
    print(f"{result}, {seconds} s")
    for entry in figures:
        print("   ", ", ".join(f"{name} {value}" for name, value in entry.items()))
    if not result.startswith("passed"):
        print("   ", f"see {log.relative_to(ROOT)}")
    return {
        "check": what,
        "command": f"make {target}",
        "result": result,
        "seconds": seconds,
        "figures": figures,
    }


def save(done: list[dict[str, Any]], gpu: bool, commit: str) -> Path:
    """Writes the report; other checks of the same commit and machine in it stay."""
    machine = report.machine()
    name = f"{report.device_name(machine['device'])}-reliability" if gpu else "reliability"
    path = ROOT / "tests" / "reports" / f"{name}.json"
    found = {entry["command"]: entry for entry in done}
    if path.exists():
        before = json.loads(path.read_text())
        if before["library"]["commit"] == commit and before["machine"] == machine:
            found = {entry["command"]: entry for entry in before["checks"]} | found
    path.parent.mkdir(exist_ok=True)
    content = {
        "machine": machine,
        "library": {"commit": commit},
        "date": datetime.date.today().isoformat(),
        "command": "make gpu-check" if gpu else "make check",
        "checks": list(found.values()),
    }
    path.write_text(json.dumps(content, indent=2) + "\n")
    return path


def main() -> int:
    """Runs the checks; 1 if one of them failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpu", action="store_true", help="run the checks that need an NVIDIA GPU")
    parser.add_argument("--only", nargs="+", metavar="TARGET", help="run these targets only")
    given = parser.parse_args()
    checks = [
        check for check in (GPU if given.gpu else HERE) if not given.only or check[1] in given.only
    ]
    # Asked first: the report itself is an uncommitted change.
    commit = report.commit()
    done = []
    for check in checks:
        done.append(run(*check))
        path = save(done, given.gpu, commit)
    failed = [entry for entry in done if not entry["result"].startswith("passed")]
    print(f"{len(done) - len(failed)} passed, {len(failed)} failed")
    if done:
        print(f"written to {path.relative_to(ROOT)}")
    return 1 if failed or not done else 0


if __name__ == "__main__":
    sys.exit(main())

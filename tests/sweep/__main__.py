"""Compares every model of the tables, offloaded, with itself, resident: ``make sweep``.

Prints the models whose numbers differ or which are refused, and the number of each at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import subprocess
import sys
import threading
import time
from pathlib import Path

from .compare import MODELS

WORST = ("wrong", "refused", "equal")
LIMIT = 300
"""Seconds after which a model counts as hanging."""


class Worker:
    """A process that compares models; a new one is started when it ends or hangs."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.process: subprocess.Popen[str] | None = None

    def compare(self, name: str) -> dict[str, list[str]]:
        """Returns the results of one model."""
        if self.process is None:
            self.process = self._start()
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(f"{name}\n")
        self.process.stdin.flush()
        timer = threading.Timer(LIMIT, self.process.kill)
        timer.start()
        answer = self.process.stdout.readline()
        timer.cancel()
        if answer:
            results: dict[str, list[str]] = json.loads(answer)
            return results
        status, self.process = self.process.wait(), None
        return {"": ["wrong", f"its process ended with {status}, or hung for {LIMIT} s"]}

    def close(self) -> None:
        """Ends the process."""
        if self.process is not None and self.process.stdin:
            self.process.stdin.close()
            self.process.wait()

    def _start(self) -> subprocess.Popen[str]:
        # One thread: sums then have one order, and processes do not wait for each other.
        one = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"}
        return subprocess.Popen(
            [sys.executable, "-m", "sweep.worker", self.device],
            cwd=Path(__file__).resolve().parents[1],
            env={**os.environ, **one},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )


def summary(results: dict[str, list[str]]) -> tuple[str, str]:
    """Returns the worst outcome of a model, and where it occurs and why."""
    for outcome in WORST:
        found = {where: reason for where, (word, reason) in results.items() if word == outcome}
        if found:
            reason = " ".join(next(iter(found.values())).split())[:160]
            return outcome, f"{', '.join(found)}: {reason}"
    raise ValueError("a model without results")


def main() -> int:
    """Compares the models; 1 if one is wrong."""
    parser = argparse.ArgumentParser(prog="sweep", description=__doc__)
    parser.add_argument("models", nargs="*", help="names of models; every model if none is given")
    parser.add_argument("--device", default="cpu", help="where the models run")
    parser.add_argument("--processes", type=int, default=2, help="how many run at a time")
    given = parser.parse_args()
    names = given.models or list(MODELS)
    unknown = set(names) - MODELS.keys()
    if unknown:
        parser.error(f"no model {', '.join(sorted(unknown))}; there are {', '.join(MODELS)}")

    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
    for name in names:
        waiting.put(name)
    counts = dict.fromkeys(WORST, 0)
    start = time.monotonic()
    lock = threading.Lock()

    def work() -> None:
        worker = Worker(given.device)
        while True:
            try:
                name = waiting.get_nowait()
            except queue.Empty:
                return worker.close()
            outcome, where = summary(worker.compare(name))
            with lock:
                counts[outcome] += 1
                done = sum(counts.values())
                if outcome != "equal":
                    print(f"{outcome:7}  {name}: {where}", flush=True)
                if done % 20 == 0 and done < len(names):
                    print(f"{done} of {len(names)}, {time.monotonic() - start:.0f} s", flush=True)

    threads = [threading.Thread(target=work) for _ in range(given.processes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    equal, refused, wrong = counts["equal"], counts["refused"], counts["wrong"]
    print(f"sweep: {len(names)} models, {equal} equal, {refused} refused, {wrong} wrong")
    print("reliability: " + json.dumps({"models": len(names), **counts}))
    # Fewer results than names: a thread failed.
    return 1 if wrong or sum(counts.values()) < len(names) else 0


if __name__ == "__main__":
    sys.exit(main())

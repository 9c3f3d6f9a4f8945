"""Compares every model of the tables, offloaded, with itself, resident: ``make sweep``.

Prints a row for each model with its outcome in every transfer mode, why one is not equal, and how
many there are of each outcome at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

from .compare import MODELS, OUTCOMES, TRANSFER_MODES

Results = dict[str, tuple[str, str]]
"""The outcomes of one model, and why, by transfer mode and share."""
WIDTH = max(map(len, MODELS)) + 1
LIMIT = 300
"""Seconds after which a model counts as hanging."""


class Worker:
    """A process that compares models; a new one is started when it ends or hangs."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.process: subprocess.Popen[str] | None = None

    def compare(self, name: str) -> Results:
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
            return {where: (word, why) for where, (word, why) in json.loads(answer).items()}
        status, self.process = self.process.wait(), None
        why = f"its process ended with {status}, or hung for {LIMIT} s"
        return {mode: ("wrong", why) for mode in TRANSFER_MODES}

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


def by_mode(results: Results) -> dict[str, str]:
    """Returns the worst outcome of a model in each transfer mode."""
    return {
        mode: min(
            (word for where, (word, _) in results.items() if where.split()[0] == mode),
            key=OUTCOMES.index,
        )
        for mode in TRANSFER_MODES
    }


def row(name: str, cells: Iterable[object]) -> str:
    """Returns a row of the table."""
    return f"{name:{WIDTH}}" + "".join(f"{cell!s:>11}" for cell in cells)


def show(name: str, results: Results) -> None:
    """Prints the row of a model, and below it what is not equal, and why."""
    print(row(name, by_mode(results).values()), flush=True)
    reasons: dict[tuple[str, str], list[str]] = {}
    for where, (word, why) in results.items():
        if word != "equal":
            reasons.setdefault((word, " ".join(why.split())[:300]), []).append(where)
    for (word, why), places in reasons.items():
        print(f"    {word} ({', '.join(places)}): {why}", flush=True)


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
    found: dict[str, Results] = {}
    shown = iter(names)
    following = next(shown)
    lock = threading.Lock()

    def work() -> None:
        nonlocal following
        worker = Worker(given.device)
        while True:
            try:
                name = waiting.get_nowait()
            except queue.Empty:
                return worker.close()
            results = worker.compare(name)
            with lock:
                found[name] = results
                while following in found:  # in the order of the tables
                    show(following, found[following])
                    following = next(shown, "")

    print(row("", TRANSFER_MODES), flush=True)
    threads = [threading.Thread(target=work) for _ in range(given.processes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return conclude(names, found)


def conclude(names: Sequence[str], found: dict[str, Results]) -> int:
    """Prints how many models have each outcome; 1 if one is wrong or has no result."""
    modes = [by_mode(results) for results in found.values()]
    for outcome in reversed(OUTCOMES):
        counts = [sum(words[mode] == outcome for words in modes) for mode in TRANSFER_MODES]
        print(row(outcome, counts))
    worst = [min(words.values(), key=OUTCOMES.index) for words in modes]
    counted = {outcome: worst.count(outcome) for outcome in reversed(OUTCOMES)}
    missing = len(names) - len(found)  # a thread failed
    print(f"sweep: {len(names)} models, " + ", ".join(f"{n} {word}" for word, n in counted.items()))
    figures: dict[str, object] = {"models": len(names), **counted}
    if counted["not built"]:
        figures["not built"] = f"not run: {counted['not built']}"
    print("reliability: " + json.dumps(figures))
    return 1 if counted["wrong"] or missing else 0


if __name__ == "__main__":
    sys.exit(main())

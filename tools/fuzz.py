"""Runs the fuzz targets: past crashes, the seeds, then the number of inputs asked for.

    python tools/fuzz.py             ten million inputs of parsers, a million sequences of calls
    python tools/fuzz.py --part 100  a hundredth of that

Two processes run at a time. The counts are libFuzzer's. The flags are those of cargo-fuzz, which
has no budget over several targets and does not count inputs.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FUZZ = ROOT / "fuzz"
BUILD = ROOT / "build" / "fuzz"
TRIPLE = "x86_64-unknown-linux-gnu"

# Of each target: inputs of a full run, bytes of the longest, processes. The slow ones start first.
TARGETS = {
    "calls": (1_000_000, 96, 2),
    "headers": (3_000_000, 512, 1),
    "selectors": (4_500_000, 128, 1),
    "plans": (800_000, 384, 1),
    "layouts": (1_200_000, 256, 1),
    "codec": (600_000, 256, 1),
    "experts": (400_000, 256, 1),
    "dlpack": (500_000, 128, 1),
}

FLAGS = [
    "-Zsanitizer=address",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=3",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "--cfg=fuzzing",
]

# A long quarantine and a stack trace of every allocation would take most of the time.
SANITIZER = "quarantine_size_mb=4:malloc_context_size=4:detect_stack_use_after_return=0"

# The threads of their streams may run until the process ends, which would count as a leak.
THREADED = ("calls", "layouts", "codec", "experts")


def build() -> None:
    """Builds every target with coverage and AddressSanitizer, by the stable compiler."""
    environment = {**os.environ, "RUSTC_BOOTSTRAP": "1", "RUSTFLAGS": " ".join(FLAGS)}
    command = ["cargo", "build", "--quiet", "--locked", "--release", "--target", TRIPLE]
    where = ["--manifest-path", str(FUZZ / "Cargo.toml"), "--target-dir", str(BUILD / "target")]
    subprocess.run(command + where, env=environment, check=True)


def options(name: str, longest: int, seed: int) -> list[str]:
    """Options of libFuzzer: coverage of edges only, since more would take most of the time."""
    crashes = BUILD / "crashes"
    crashes.mkdir(parents=True, exist_ok=True)
    dictionary = FUZZ / "dictionaries" / name
    return [
        f"-max_len={longest}",
        f"-seed={seed}",
        f"-artifact_prefix={crashes}/{name}-",
        "-entropic=0",
        "-reduce_inputs=0",
        "-use_counters=0",
        "-print_funcs=0",
        "-timeout=25",
        "-detect_leaks=0",
        "-print_final_stats=1",
        *([f"-dict={dictionary}"] if dictionary.exists() else []),
    ]


def last_number(pattern: str, text: str) -> int:
    """The last number in a log that the pattern finds."""
    found = re.findall(pattern, text)
    return int(found[-1]) if found else 0


def run(name: str, inputs: int, seed: int, process: int) -> dict[str, int | float]:
    """Runs one process of a target and returns its counts."""
    binary = BUILD / "target" / TRIPLE / "release" / name
    command = [str(binary), *options(name, TARGETS[name][1], seed)]
    leaks = int(name not in THREADED)
    environment = {**os.environ, "ASAN_OPTIONS": f"{SANITIZER}:detect_leaks={leaks}"}
    corpus = BUILD / "corpus" / name
    corpus.mkdir(parents=True, exist_ok=True)
    log = BUILD / f"{name}.{process}.log"
    start = time.monotonic()
    past = sorted(map(str, (FUZZ / "crashes" / name).glob("*")))
    # libFuzzer runs a file once, and takes inputs from a folder.
    calls = [[*command, *past]] if past else []
    calls.append([*command, f"-runs={inputs}", str(corpus), str(FUZZ / "seeds" / name)])
    with log.open("wb") as output:
        ended = (
            subprocess.run(call, env=environment, stdout=output, stderr=output) for call in calls
        )
        failed = any(one.returncode for one in ended)
    text = log.read_text(errors="replace")
    if failed:
        print(f"{name}: failed; the end of {log}:", *text.splitlines()[-40:], sep="\n")
    return {
        "executions": last_number(r"stat::number_of_executed_units: (\d+)", text),
        "edges": last_number(r"cov: (\d+)", text),
        "crashes": int(failed),
        "seconds": round(time.monotonic() - start, 1),
    }


def total(parts: list[dict[str, int | float]]) -> dict[str, int | float]:
    """The counts of all processes of a target."""
    largest = {key: max(part[key] for part in parts) for key in ("edges", "seconds")}
    return {**largest, **{key: sum(p[key] for p in parts) for key in ("executions", "crashes")}}


def main() -> int:
    """Runs the targets; 1 if one crashed or ran fewer inputs than asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--part", type=int, default=1, help="1/PART of a full run's inputs")
    parser.add_argument("--only", choices=sorted(TARGETS), action="append", help="these targets")
    parser.add_argument("--seed", type=int, default=0, help="of the random inputs; 0: a new one")
    parser.add_argument(
        "--double", help="folder of the driver double: sequences run on cuda:0 there"
    )
    asked = parser.parse_args()
    if asked.double:
        os.environ.update(LD_LIBRARY_PATH=asked.double, WEIGHBRIDGE_FUZZ_DEVICE="cuda:0")
    build()
    names = [name for name in TARGETS if not asked.only or name in asked.only]
    wanted = {name: TARGETS[name][0] // asked.part for name in names}
    with ThreadPoolExecutor(max_workers=2) as pool:
        jobs = {name: [] for name in names}
        for name in names:
            processes = TARGETS[name][2]
            for process in range(processes):
                inputs = -(-wanted[name] // processes)
                seed = asked.seed and asked.seed + process
                jobs[name].append(pool.submit(run, name, inputs, seed, process))
    done = {name: total([job.result() for job in parts]) for name, parts in jobs.items()}
    sequences = int(done.get("calls", {}).get("executions", 0))
    every = sum(int(one["executions"]) for one in done.values())
    report = {
        "parser_executions": every - sequences,
        "sequence_executions": sequences,
        "crashes": sum(int(one["crashes"]) for one in done.values()),
        "targets": done,
    }
    print("reliability:", json.dumps(report))
    short = [name for name in names if int(done[name]["executions"]) < wanted[name]]
    if short:
        print("fewer inputs than asked for:", ", ".join(short))
    return 1 if short or report["crashes"] else 0


if __name__ == "__main__":
    sys.exit(main())

"""``make gpu-test`` runs its suites together, in time, and drops none."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT

PROGRAM = ROOT / "tests" / "gpu" / "run.py"
spec = importlib.util.spec_from_file_location("gpu_run", PROGRAM)
gpu_run = sys.modules["gpu_run"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(gpu_run)


def suite(name: str, code: str, limit: float = 30):
    return gpu_run.Suite(name, limit, [sys.executable, "-c", code])


def runs(process: int) -> bool:
    """Whether a process runs; one that has ended has no command line, or no longer exists."""
    try:
        return bool(Path(f"/proc/{process}/cmdline").read_bytes())
    except FileNotFoundError:
        return False


@pytest.fixture
def runner(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_run, "GRACE_SECONDS", 1.0)
    with gpu_run.Runner(tmp_path / "logs") as runner:
        yield runner


def test_suites_run_at_the_same_time_and_are_printed_in_their_order(runner, tmp_path, capfd):
    # Each waits for the other, so that one after another both would run into their limit.
    wait = "import pathlib, time\npathlib.Path({0!r}).touch()\n"
    wait += "while not pathlib.Path({1!r}).exists(): time.sleep(0.01)\n{2}print({3!r})"
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    chains = [
        [suite("a", wait.format(one, two, "time.sleep(0.2)\n", "first"))],
        [suite("b", wait.format(two, one, "", "second")), suite("c", "print('third')")],
    ]
    outcomes = gpu_run.run_together(runner, chains, 2)
    assert [(o.suite.name, o.result) for o in outcomes] == [(n, "passed") for n in "abc"]
    assert capfd.readouterr().out == "== a\nfirst\n\n== b\nsecond\n\n== c\nthird\n\n"


def test_a_suite_that_hangs_is_ended_with_its_children_and_the_others_go_on(runner, tmp_path):
    child = tmp_path / "child"
    hangs = (
        "import pathlib, signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "sleeper = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"pathlib.Path({str(child)!r}).write_text(str(sleeper.pid))\n"
        "time.sleep(60)"
    )
    chains = [[suite("hangs", hangs, 3.0), suite("after", "")], [suite("fails", "exit(3)")]]
    outcomes = gpu_run.run_together(runner, chains, 2)
    assert [o.result for o in outcomes] == ["ended after 3 s", "passed", "exit 3"]
    deadline = time.monotonic() + 10
    while runs(int(child.read_text())):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_missing_command_is_a_failure(runner):
    (outcome,) = gpu_run.run_together(runner, [[gpu_run.Suite("a", 1, ["/no/such/command"])]], 1)
    assert outcome.result.startswith("not started")


@pytest.mark.parametrize(
    ("needs_packages", "result"), [(True, "nothing to run"), (False, "exit 5")]
)
def test_only_a_file_that_needs_packages_may_run_nothing(runner, needs_packages, result):
    command = [sys.executable, "-c", "raise SystemExit(5)"]
    empty = gpu_run.Suite("a", 30, command, needs_packages=needs_packages)
    assert runner.run(empty).result == result


def test_every_file_is_run_in_all_of_its_parts():
    suites = gpu_run.python_suites(1)
    assert len({suite.name for suite in suites}) == len(suites)
    run = {suite.command[-1].removeprefix("tests/python/") for suite in suites}
    tests = ROOT / "tests" / "python"
    assert run == {str(path.relative_to(tests)) for path in tests.rglob("test_*.py")}
    assert set(gpu_run.SLOW_FILES) <= run
    for name, parts in gpu_run.SLOW_FILES.items():
        own = [suite for suite in suites if suite.command[-1].endswith(f"/{name}")]
        wanted = [f"--part={part}/{parts}" for part in range(1, parts + 1)]
        assert [suite.command[-2] for suite in own] == wanted


def test_parts_are_disjoint_and_together_the_whole():
    def collected(part: str) -> list[str]:
        command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
        done = subprocess.run(
            [*command, f"--part={part}", "tests/python/test_errors.py"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        return [line for line in done.stdout.splitlines() if "::" in line]

    whole, parts = collected("1/1"), [collected("1/2"), collected("2/2")]
    assert len(whole) > 2 and all(parts)
    assert sorted(parts[0] + parts[1]) == sorted(whole)


def test_without_a_gpu_nothing_is_run_and_it_fails(tmp_path):
    for script in (None, "exit 9"):
        if script:
            (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
            (tmp_path / "nvidia-smi").chmod(0o755)
        done = subprocess.run(
            [sys.executable, PROGRAM],
            env={**os.environ, "PATH": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout) == (1, "gpu-test: no GPU: nothing was run\n")

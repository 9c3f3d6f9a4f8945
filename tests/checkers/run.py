"""Runs the suites under a checker: ``run.py address|valgrind``; with --quick the C suite only.

Builds the library and the suites for the checker in ``build/<checker>``, checks that it reports
defects made on purpose, and runs the suites. Fails if a defect is not reported, or anything else
is.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / "tests/checkers"
BIN = ROOT / ".venv/bin"
TRIPLE = "x86_64-unknown-linux-gnu"

# The C suite, without `handles`, which tests a debug build of the library.
C = tuple(sorted(path.stem for path in (ROOT / "tests/c").glob("*.c") if path.stem != "handles"))
# The suites that take address space or threads, exit, raise signals or replace functions of the C
# library, as the sanitizer's runtime does itself. They run with the library as it is shipped.
ON_THEIR_OWN = r"^(life|(soak|steps)\.finds)|^c(\+\+)?\." + (
    r"(exit|interrupt|limits|panics|thread_end|unload|exhaustion|security)\."
)
# Four fifths of the time is that of these programs over the double, whose own decoder and exchanges
# of memory they keep busy: --quick has them on the host alone. Of windows on the host it has those
# whose budgets change, which do what the others do, too, with smaller weights.
SLOW = (
    r"^c\.(arbiter|experts_resize|fill|partly_resident|replays_residents|residents"
    r"|resize|resize_compressed|sleep|windows|windows_resized)\.double|^c\.windows\.host"
)


def one_of(names: tuple[str, ...]) -> str:
    """A pattern that matches each of the names."""
    return f"({'|'.join(names)})"


@dataclass(frozen=True)
class Checker:
    """How the suites are built and run, and what proves that the checker is on."""

    finds: tuple[str, ...]
    #: Each defect of defects.c that must be reported, and a pattern of the report.
    defects: dict[str, str]
    #: Options of ctest, and the targets to build for it; all if none is named.
    suites: tuple[str, ...]
    environment: dict[str, str]
    targets: tuple[str, ...] = ()
    #: The command that starts every program.
    launcher: tuple[str, ...] = ()
    #: Flags that instrument the library and its kernels.
    rust: str = ""
    kernels: str = ""
    #: Symbols of the runtime that an instrumented library needs.
    needs: tuple[str, ...] = ()
    #: Whether Rust's own tests run under it.
    rust_tests: bool = False


# A stack frame in the library has the name of its crate.
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
    "valgrind": Checker(
        finds=("memcheck", "leak"),
        launcher=("valgrind",),
        defects={
            "heap_overflow": "Invalid write of size 1",
            "uninitialised": "Conditional jump or move depends on uninitialised",
            "leak": "4,321 bytes in 1 blocks are definitely lost",
            "freed_in_the_library": "Invalid write of size.*weighbridge::capi::",
        },
        # The C suite. Without `exact`, which counts the memory of the process and so valgrind's;
        # without suites that fork, since memory that only the stacks of the parent's threads point
        # to looks lost in the child; without `security`, since valgrind has shared memory.
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
    """Runs a command that must succeed, prints its output, and returns it."""
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


def target_folder(checker: Checker, build: Path) -> Path:
    """Returns the folder that cargo builds in: with sanitizers the common one."""
    return ROOT / "target" if checker.rust else build / "cargo"


def cargo(checker: Checker, build: Path, *arguments: str) -> str:
    """Runs cargo with the instrumentation."""
    # Naming the target keeps sanitizers out of build scripts. What these need is then built as for
    # others, and once: tools/rustc.sh allows the unstable option for instrumented crates alone,
    # since others would be built again where RUSTC_BOOTSTRAP differs.
    instrumented = {
        "RUSTFLAGS": f"{checker.rust} -Cforce-frame-pointers=yes",
        "CFLAGS": f"{checker.kernels} -fno-omit-frame-pointer -g",
        "CARGO_PROFILE_TEST_OPT_LEVEL": "1",
    }
    command, *more = arguments
    place = ["--locked", "--target", TRIPLE, "--target-dir", str(target_folder(checker, build))]
    return run(
        ["cargo", command, *place, *more],
        checker.environment | (instrumented if checker.rust else {}),
    )


def check_needs(checker: Checker, library: Path) -> None:
    """Checks that the library and its kernels call the sanitizers' runtimes."""
    symbols = subprocess.run(
        ["nm", "-D", "--undefined-only", library], capture_output=True, text=True, check=True
    ).stdout
    for symbol in checker.needs:
        if not re.search(rf"\b{symbol}\b", symbols):
            sys.exit(f"{library} is not instrumented: it does not call {symbol}")


def check_defects(checker: Checker, program: list[str | Path]) -> None:
    """Checks that every defect is reported and fails its program."""
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
        print(f"reported as expected: {defect}", flush=True)


def main() -> None:
    """Runs the checker that the command line names."""
    name = sys.argv[1]
    checker = CHECKERS[name]
    if "--quick" in sys.argv:
        suites = ("-R", rf"^c\.{one_of(C)}\.", "-E", f"{ON_THEIR_OWN}|{SLOW}")
        targets = tuple(f"test_c_{program}" for program in C)
        checker = replace(checker, suites=suites, targets=targets, rust_tests=False)
    start = time.monotonic()
    build = ROOT / "build" / name
    cargo(checker, build, "build", "--lib")
    library = target_folder(checker, build) / TRIPLE / "debug/libweighbridge.so"
    check_needs(checker, library)
    run([
        BIN / "cmake", "-S", ROOT, "-B", build / "cmake", "-G", "Ninja",
        "-DWEIGHBRIDGE_BUILD_TESTS=ON",
        f"-DCMAKE_MAKE_PROGRAM={BIN / 'ninja'}", "-DCMAKE_BUILD_TYPE=Debug",
        f"-DWEIGHBRIDGE_LIBRARY={library}", f"-DWEIGHBRIDGE_CHECKER={name}",
        "-DWEIGHBRIDGE_TEST_TIMEOUT=300",
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
        # The sanitizer's runtime turns mlock into a no-op.
        output = cargo(checker, build, "test", "--lib", "--", "--skip", "host::mlock")
        figures["rust_tests"] = sum(map(int, re.findall(r"result: ok\. (\d+) passed", output)))
    figures["seconds"] = round(time.monotonic() - start)
    print("reliability:", json.dumps(figures))


if __name__ == "__main__":
    main()

"""Runs the tests of a process's life and limits, and prints one line of figures.

python tests/life/run.py BUILD: the folder that `make test-c` built. The closing lines of the
programs count the cases; each case that was not run is printed with its reason.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys

LIMITS = {"c.limits", "c++.limits", "c.exhaustion", "c++.exhaustion"}
CLOSING = re.compile(r"^\S+: (\d+) passed, (\d+) failed(?:, (\d+) not run here)?$")


def main(build: str) -> int:
    """Runs the programs; 1 if a case failed or none ran."""
    programs = "exhaustion|exit|fork|interrupt|limits|panics|reset|thread_end|unload"
    ran = subprocess.run(
        ["ctest", "--test-dir", build, "-R", rf"^(c|c\+\+)\.({programs})\.", "-V"],
        stdout=subprocess.PIPE,
        text=True,
    )
    cases, limits, failed, not_run = 0, {}, 0, []
    name = ""
    for line in ran.stdout.splitlines():
        if start := re.match(r"^\s+Start\s+\d+: (\S+)$", line):
            name = start[1]
            continue
        shown = re.sub(r"^\d+: ", "", line)
        if closing := CLOSING.match(shown):
            cases += int(closing[1])
            failed += int(closing[2])
        elif name.rpartition(".")[0] in LIMITS and (met := re.match(r"^(ok  |FAIL) (\w+)$", shown)):
            limits.setdefault(met[2], []).append(met[1] == "ok  ")
        elif reason := re.match(r"^--   (\w+): not run: (.*)$", shown):
            if not reason[2].startswith("it is for"):
                not_run.append(f"{name} {reason[1]}: {reason[2]}")
    print(*not_run, sep="\n")
    figures = {
        "process_life_cases": cases,
        "failed": failed,
        "limits": {limit: all(met) for limit, met in sorted(limits.items())},
        "not_run": not_run,
    }
    print("reliability:", json.dumps(figures))
    if ran.returncode != 0 or cases == 0:
        print(ran.stdout, file=sys.stderr)
    return ran.returncode or int(cases == 0 or failed > 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

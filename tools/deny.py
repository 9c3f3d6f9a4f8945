"""Checks the crates by cargo-deny and deny.toml: licences, bans, sources, advisories.

    python tools/deny.py           exits with 0, with 1 where a check failed, and with 3 where all
                                   that could be run passed and the advisories could not

cargo-deny is built from crates.io into build/tools at the first call. The database of advisories is
a repository on GitHub: without a way there that check is not run, and said not to be.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VERSION = "0.20.2"
TOOLS = ROOT / "build" / "tools"
PROGRAM = TOOLS / "bin" / "cargo-deny"
NOT_RUN = "not run: no network to the database"


def install() -> None:
    if PROGRAM.exists():
        shown = subprocess.run([PROGRAM, "--version"], capture_output=True, text=True).stdout
        if shown.split()[-1:] == [VERSION]:
            return
    # Not optimised: it runs for a second, and would be built for minutes.
    command = ["cargo", "install", "cargo-deny", "--locked", "--debug", "--force"]
    command += ["--version", VERSION, "--root", str(TOOLS)]
    environment = {
        **os.environ,
        "CARGO_TARGET_DIR": str(TOOLS / "target"),
        "CARGO_PROFILE_DEV_DEBUG": "0",
    }
    subprocess.run(command, check=True, cwd=ROOT, env=environment)


def check(what: str) -> str:
    """\"ok\", \"failed\", or why it was not run."""
    command = [PROGRAM, "--locked", "check", what]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode == 0:
        return "ok"
    if what == "advisories" and "failed to fetch advisory database" in done.stderr:
        return NOT_RUN
    sys.stderr.write(done.stdout + done.stderr)
    return "failed"


def main() -> int:
    install()
    found = {"licences": check("licenses")}
    found.update({what: check(what) for what in ("bans", "sources", "advisories")})
    print("reliability:", json.dumps(found))
    if "failed" in found.values():
        return 1
    return 3 if NOT_RUN in found.values() else 0


if __name__ == "__main__":
    sys.exit(main())

"""Checks a wheel that is to be published: ``python tools/wheel.py WHEEL``.

By auditwheel it must have the tag that its symbols allow, and installed alone it must run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path


def run(*command: str, **variables: str) -> str:
    """Runs a command that must succeed, outside of the checkout, and returns its output."""
    own = ("PYTHONPATH", "WEIGHBRIDGE_LIBRARY")
    environment = {name: value for name, value in os.environ.items() if name not in own}
    done = subprocess.run(
        command, cwd="/", env=environment | variables, stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout


def main() -> None:
    """Checks the wheel that the command line names."""
    wheel = Path(sys.argv[1]).resolve()
    tag = wheel.stem.split("-")[-1]
    shown = " ".join(run(sys.executable, "-m", "auditwheel", "show", str(wheel)).split())
    if f'is consistent with the following platform tag: "{tag}"' not in shown:
        sys.exit(f"{wheel.name}: auditwheel finds another tag: {shown}")
    with tempfile.TemporaryDirectory() as folder:
        pip = (sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check")
        run(*pip, "--no-deps", "--no-index", "--target", folder, str(wheel))
        doctor = ("-m", "weighbridge", "doctor", "--json", "--device", "host")
        if folder not in run(sys.executable, *doctor, PYTHONPATH=folder):
            sys.exit(f"{wheel.name}: another library is loaded than the wheel's own")
    figures = {"wheel": wheel.name, "auditwheel": "ok", "bytes": wheel.stat().st_size}
    print("reliability:", json.dumps(figures))


if __name__ == "__main__":
    main()

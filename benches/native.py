"""Builds C programs of this folder against the measured library, and runs them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from report import ROOT


def run(folder: Path, name: str, *arguments: str) -> str:
    """Builds and runs ``benches/NAME.c``; returns what it prints."""
    library = Path(os.environ["WEIGHBRIDGE_LIBRARY"]).resolve()
    soname = folder / "libweighbridge.so.0"
    if not soname.exists():
        soname.symlink_to(library)
    program, source = folder / name, ROOT / "benches" / f"{name}.c"
    include, search = f"-I{ROOT / 'include'}", f"-Wl,-rpath,{folder}"
    compiler = os.environ.get("CC", "cc")
    subprocess.run(
        [compiler, "-O2", include, source, "-o", program, str(library), search, "-ldl"], check=True
    )
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{name}: {done.stderr}")
    return done.stdout

"""Builds the wheel: the package, and the native library that it carries.

The library is built with cargo from the repository that this folder is part of, or taken from
``WEIGHBRIDGE_LIBRARY``, the path of one that was built before. It speaks to Python through ctypes
only, so one wheel serves every version of Python 3.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py
from setuptools.dist import Distribution

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent


def version() -> str:
    """The version of the library's Cargo.toml, the one place for it."""
    manifest = ROOT / "Cargo.toml"
    if not manifest.is_file():
        raise SystemExit(f"{manifest} is missing: build from a checkout of the whole repository")
    found = re.search(r'^\[package\][^\[]*?^version = "([^"]+)"', manifest.read_text(), re.M | re.S)
    if not found:
        raise SystemExit(f"{manifest} names no version")
    return found[1]


def library() -> Path:
    """The native library, built if none is given."""
    given = os.environ.get("WEIGHBRIDGE_LIBRARY")
    if given:
        path = Path(given)
        if not path.is_file():
            raise SystemExit(f"WEIGHBRIDGE_LIBRARY={given} is not a file")
        return path
    # As in `make build`, whose output it shares.
    command = ["cargo", "rustc", "--release", "--locked", "--lib"]
    command += ["--crate-type", "cdylib,staticlib"]
    try:
        built = subprocess.run(
            [*command, "--message-format=json-render-diagnostics"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
    except FileNotFoundError:
        raise SystemExit(
            "cargo is not installed: get Rust from https://rustup.rs, or set WEIGHBRIDGE_LIBRARY "
            "to a libweighbridge.so that was built before"
        ) from None
    if built.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed")
    messages = (json.loads(line) for line in built.stdout.splitlines() if line.startswith("{"))
    names = [name for message in messages for name in message.get("filenames", ())]
    found = [Path(name) for name in names if name.endswith("/libweighbridge.so")]
    if not found:
        raise SystemExit(f"{' '.join(command)} made no libweighbridge.so")
    return found[-1]


class BuildWithLibrary(build_py):
    """Puts the library beside the package's Python files."""

    def run(self) -> None:
        """Copy the Python files, then the library."""
        if not self.editable_mode:  # what an earlier build left there would go into the wheel
            shutil.rmtree(Path(self.build_lib) / "weighbridge", ignore_errors=True)
        super().run()
        base = HERE / "src" if self.editable_mode else Path(self.build_lib)
        target = base / "weighbridge" / "libweighbridge.so"
        target.parent.mkdir(parents=True, exist_ok=True)
        source = library()
        if target.resolve() != source.resolve():
            target.unlink(missing_ok=True)  # a process may have the old one mapped
            shutil.copyfile(source, target)


class PlatformWheel(bdist_wheel):
    """Tags the wheel for every Python 3 on this platform."""

    def finalize_options(self) -> None:
        """Say that it is not pure."""
        super().finalize_options()
        self.root_is_pure = False

    def get_tag(self) -> tuple[str, str, str]:
        """``py3-none-<platform>``."""
        return "py3", "none", super().get_tag()[2]


class NativeDistribution(Distribution):
    """Installed where packages with native code go."""

    def has_ext_modules(self) -> bool:
        """Yes: the library."""
        return True


setup(
    version=version(),
    distclass=NativeDistribution,
    cmdclass={"build_py": BuildWithLibrary, "bdist_wheel": PlatformWheel},
)

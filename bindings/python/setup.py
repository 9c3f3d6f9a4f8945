"""Builds the wheel: the package, and the native library that it carries; and the source archive.

The library is built with cargo from the repository that this folder is part of, or taken from
``WEIGHBRIDGE_LIBRARY``, the path of one that was built before. It speaks to Python through ctypes
only, so one wheel serves every version of Python 3. A source archive has the sources of the library
in its folder ``library``.
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
from setuptools.command.sdist import sdist
from setuptools.dist import Distribution

HERE = Path(__file__).resolve().parent
ARCHIVED = HERE / "library"
ROOT = ARCHIVED if ARCHIVED.is_dir() else HERE.parent.parent
#: What cargo needs of the repository, in the archive.
SOURCES = (
    ".cargo",
    "Cargo.lock",
    "Cargo.toml",
    "build_script",
    "kernels",
)
SOURCES += ("LICENSE", "THIRD-PARTY.md", "src", "tools/rustc.sh", "tools/link.sh")


def version() -> str:
    """The version of the library's Cargo.toml, the one place for it."""
    manifest = ROOT / "Cargo.toml"
    if not manifest.is_file():
        raise SystemExit(
            f"{manifest} is missing: build from a checkout of the whole repository, or from the "
            "source archive"
        )
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
            "cargo is not installed: get Rust 1.91 or later from https://rustup.rs, or set "
            "WEIGHBRIDGE_LIBRARY to a libweighbridge.so that was built before"
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
    """Tags the wheel for every Python 3 on the platforms that have what the library needs."""

    def finalize_options(self) -> None:
        """Say that it is not pure."""
        super().finalize_options()
        self.root_is_pure = False

    def get_tag(self) -> tuple[str, str, str]:
        """``py3-none-<platform>``."""
        platform = super().get_tag()[2]
        (packed,) = Path(self.bdist_dir).rglob("libweighbridge.so")
        needed = re.findall(rb"\0GLIBC_(\d+)\.(\d+)", packed.read_bytes())
        if needed and platform.startswith("linux_"):
            # The first C library with every function that this one is linked to (PEP 600).
            major, minor = max((int(major), int(minor)) for major, minor in needed)
            platform = platform.replace("linux_", f"manylinux_{major}_{minor}_", 1)
        return "py3", "none", platform


class SourceArchive(sdist):
    """Adds the sources of the library."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        """Copy the package's sources, then the library's."""
        super().make_release_tree(base_dir, files)
        for name in SOURCES:
            source, target = ROOT / name, Path(base_dir) / "library" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target)
            else:
                shutil.copy2(source, target)
        for name in ("LICENSE", "THIRD-PARTY.md"):  # links out of the archive
            (Path(base_dir) / name).unlink()
            shutil.copy2(ROOT / name, Path(base_dir) / name)


class NativeDistribution(Distribution):
    """Installed where packages with native code go."""

    def has_ext_modules(self) -> bool:
        """Yes: the library."""
        return True


setup(
    version=version(),
    distclass=NativeDistribution,
    cmdclass={
        "build_py": BuildWithLibrary,
        "bdist_wheel": PlatformWheel,
        "sdist": SourceArchive,
    },
)

"""The wheel carries the library, serves every Python 3, and runs where it is installed; the source
archive has what a build needs."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from email.parser import Parser
from pathlib import Path

import pytest
from conftest import ROOT, SOURCE

pytest.importorskip("setuptools", minversion="77", reason="setuptools is not installed")
pytest.importorskip("wheel", reason="wheel is not installed")

PROJECT = ROOT / "bindings" / "python"
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
LICENCES = ("LICENSE", "THIRD-PARTY.md")
pytestmark = pytest.mark.slow


def run(*command: object, cwd: Path | None = None, **variables: str | None) -> str:
    """Runs a command that must succeed; a variable of None is not set."""
    environment = {**os.environ, "PYTHONPATH": None, **variables}
    done = subprocess.run(
        [str(word) for word in command],
        env={name: value for name, value in environment.items() if value is not None},
        cwd=cwd,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@contextmanager
def alone() -> Iterator[None]:
    """Keeps other processes of the suite from building: the sources have one build folder."""
    (ROOT / "build").mkdir(exist_ok=True)
    with open(ROOT / "build" / "wheel.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def build_wheel(source: Path, target: Path) -> Path:
    """Builds a wheel with the setuptools of this Python and a library that is built already."""
    run(*PIP, "wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", target, source)
    (wheel,) = target.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    with alone():
        return build_wheel(PROJECT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """The source archive, unpacked."""
    folder = tmp_path_factory.mktemp("archive")
    build = f"from setuptools import build_meta; build_meta.build_sdist({str(folder)!r})"
    with alone():
        run(sys.executable, "-c", build, cwd=PROJECT)
    (packed,) = folder.glob("*.tar.gz")
    with tarfile.open(packed) as files:
        files.extractall(folder)
    return folder / packed.name[: -len(".tar.gz")]


def test_a_wheel_carries_the_library_and_runs(wheel, tmp_path):
    version = re.search(r'^version = "(.+)"', (ROOT / "Cargo.toml").read_text(), re.M)[1]
    assert re.fullmatch(rf"weighbridge-{re.escape(version)}-py3-none-\w*linux\w*\.whl", wheel.name)
    with zipfile.ZipFile(wheel) as packed:
        names = packed.namelist()
        with open(os.environ["WEIGHBRIDGE_LIBRARY"], "rb") as library:
            assert packed.read("weighbridge/libweighbridge.so") == library.read()
    package = PROJECT / "src"
    sources = {str(path.relative_to(package)) for path in package.glob("weighbridge/**/*.py")}
    assert {*sources, "weighbridge/py.typed"} <= set(names)

    installed = tmp_path / "installed"
    run(*PIP, "install", "-q", "--no-deps", "--no-index", "--target", installed, wheel)
    doctor = run(
        *(sys.executable, "-m", "weighbridge", "doctor", "--json", "--device", "host"),
        cwd=tmp_path,
        PYTHONPATH=str(installed),
        WEIGHBRIDGE_LIBRARY=None,
    )
    assert str(installed) in doctor


def test_a_wheel_has_the_licences_and_names_what_it_can_use(wheel):
    with zipfile.ZipFile(wheel) as packed:
        (path,) = (name for name in packed.namelist() if name.endswith(".dist-info/METADATA"))
        files = set(packed.namelist())
        metadata = Parser().parsestr(packed.read(path).decode())
        for name in LICENCES:
            licence = packed.read(path.replace("METADATA", f"licenses/{name}"))
            assert licence == (ROOT / name).read_bytes()
    assert metadata.get_all("License-File") == list(LICENCES)
    extras = ["cli", "diffusers", "numpy", "sglang", "torch", "transformers", "vllm"]
    assert metadata.get_all("Provides-Extra") == extras
    packages = (SOURCE / "weighbridge").rglob("__init__.py")
    assert files >= {str(path.relative_to(SOURCE)) for path in packages}
    needed = metadata.get_all("Requires-Dist")
    assert all("extra ==" in requirement for requirement in needed), "the package needs nothing"
    assert 'numpy; extra == "numpy"' in needed and 'torch; extra == "torch"' in needed


def test_the_tag_of_a_wheel_is_what_the_library_allows(wheel):
    """By auditwheel, which knows the symbols of every version of the C library."""
    pytest.importorskip("auditwheel", reason="auditwheel is not installed")
    shown = " ".join(run(sys.executable, "-m", "auditwheel", "show", wheel).split())
    tag = wheel.stem.split("-")[-1]
    assert f'is consistent with the following platform tag: "{tag}"' in shown


def test_a_source_archive_gives_the_same_wheel(archive, wheel, tmp_path):
    for name in LICENCES:
        assert not (archive / name).is_symlink()
        assert (archive / name).read_bytes() == (ROOT / name).read_bytes()
    built = build_wheel(archive, tmp_path)
    assert built.name == wheel.name
    with zipfile.ZipFile(built) as found, zipfile.ZipFile(wheel) as expected:
        changing = ("RECORD", "METADATA")  # they list files, and how the licences were given
        names = [name for name in expected.namelist() if not name.endswith(changing)]
        assert {*names} <= {*found.namelist()}
        assert all(found.read(name) == expected.read(name) for name in names)


def test_a_source_archive_has_every_file_that_the_library_was_built_of(archive):
    """Cargo lists them beside the library."""
    library = Path(os.environ["WEIGHBRIDGE_LIBRARY"])
    listed = library.with_suffix(".d")
    if ROOT not in listed.parents or not listed.is_file():
        pytest.skip("the library was not built in this checkout")
    _, _, files = listed.read_text().partition(": ")
    paths = [Path(file.replace("\\", "")) for file in re.split(r"(?<!\\)\s", files.strip())]
    names = [path.relative_to(ROOT) for path in paths if library.parent not in path.parents]
    assert {Path("src/lib.rs"), Path("build_script/main.rs")} <= {*names}
    names += [Path("Cargo.toml"), Path("Cargo.lock"), Path(".cargo/config.toml")]
    assert not [name for name in names if not (archive / "library" / name).exists()]


@pytest.mark.repeats
def test_a_source_archive_has_all_that_cargo_needs(archive):
    """The library's sources compile, its headers are up to date and its kernels are there."""
    if not shutil.which("cargo"):
        pytest.skip("cargo is not installed")
    # The crates that it needs are checked already if `make lint` ran.
    shared = str(ROOT / "target")
    run("cargo", "check", "--locked", "--lib", cwd=archive / "library", CARGO_TARGET_DIR=shared)

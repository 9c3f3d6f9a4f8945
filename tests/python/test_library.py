"""Which native library the package loads, and the error if it finds none."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from conftest import ROOT, SOURCE

LIBRARY = Path(os.environ["WEIGHBRIDGE_LIBRARY"]).resolve()


@pytest.fixture
def checkout(tmp_path):
    """A source checkout with the package and no library."""
    package = tmp_path / "checkout" / "bindings" / "python" / "src" / "weighbridge"
    shutil.copytree(
        SOURCE / "weighbridge", package, ignore=shutil.ignore_patterns("*.so", "__pycache__")
    )
    (tmp_path / "checkout" / "Cargo.toml").touch()
    return tmp_path / "checkout"


@pytest.fixture
def loaded(run_python):
    """The library that the package below a folder loads without WEIGHBRIDGE_LIBRARY."""

    def loaded(source: Path) -> tuple[str, str]:
        environment = {"PYTHONPATH": str(source), "WEIGHBRIDGE_LIBRARY": None}
        command = "from weighbridge._library import PATH; print(PATH)"
        _, output, errors = run_python("-c", command, **environment)
        return output.strip(), errors

    return loaded


def put_library(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(LIBRARY)
    return str(path)


def test_a_source_checkout_is_used_with_the_release_library_that_was_built_in_it(checkout, loaded):
    source = checkout / "bindings" / "python" / "src"
    built = put_library(checkout / "target" / "release" / "libweighbridge.so")
    assert loaded(source) == (built, "")
    beside = put_library(source / "weighbridge" / "libweighbridge.so")
    assert loaded(source) == (beside, ""), "what pip installed comes first"


def test_an_installed_package_looks_for_its_library_beside_itself_alone(checkout, loaded):
    put_library(checkout / "target" / "release" / "libweighbridge.so")
    (checkout / "Cargo.toml").unlink()
    output, errors = loaded(checkout / "bindings" / "python" / "src")
    assert output == "" and "ImportError" in errors and "release" not in errors


def test_a_missing_library_says_where_it_was_looked_for_and_what_to_do(checkout, loaded):
    output, errors = loaded(checkout / "bindings" / "python" / "src")
    assert output == "" and "ImportError" in errors
    for part in (
        "src/weighbridge/libweighbridge.so",
        "target/release/libweighbridge.so",
        "install the package with pip",
        "make build",
        "WEIGHBRIDGE_LIBRARY",
    ):
        assert part in errors


def test_an_environment_that_is_not_trusted_names_no_library(checkout, run_python, tmp_path):
    source = str(checkout / "bindings" / "python" / "src")
    code, _, errors = run_python(
        "-I",
        "-c",
        f"import sys; sys.path.insert(0, {source!r}); import weighbridge",
        WEIGHBRIDGE_LIBRARY=str(tmp_path / "untrusted.so"),
    )
    assert code == 1 and "untrusted.so" not in errors
    assert "install the package with pip" in errors


def test_the_environment_that_make_made_runs_doctor_without_variables(run_python):
    environment = ROOT / ".venv"
    if Path(sys.prefix) != environment or environment.is_symlink():
        pytest.skip("this Python is not of the .venv that make made for this checkout")
    code, output, errors = run_python(
        *("-m", "weighbridge", "doctor", "--json", "--device", "host"),
        PYTHONPATH=None,
        WEIGHBRIDGE_LIBRARY=None,
    )
    assert code == 0, errors
    assert json.loads(output)["library"] == str(ROOT / "target/release/libweighbridge.so")

"""What is installed for each version of Python."""

from __future__ import annotations

import os
import subprocess

import pytest
from conftest import ROOT

requirements = pytest.importorskip("packaging.requirements", reason="packaging is not installed")

FILE = ROOT / "examples" / "demo" / "requirements.txt"


@pytest.mark.parametrize("python", ["3.9", "3.10", "3.11", "3.12", "3.13", "3.14"])
def test_the_demo_needs_one_version_of_each_package(python):
    lines = [line for line in FILE.read_text().splitlines() if not line.startswith("#")]
    every = [requirements.Requirement(line) for line in lines]
    chosen = [
        one.name
        for one in every
        if not one.marker or one.marker.evaluate({"python_version": python})
    ]
    assert sorted(chosen) == sorted({one.name for one in every})


def test_make_says_that_a_python_is_too_old(tmp_path):
    """With a stand-in for an old interpreter, which is given only what make asks it."""
    old = tmp_path / "python3.9"
    old.write_text(
        """#!/bin/sh
[ "$1" = -c ] || { echo "it was asked for more: $*"; exit 1; }
exec python3 -c "import sys; sys.version_info = (3, 9, 2, 'final', 0); $2"
"""
    )
    old.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if name != "MAKEFLAGS"}
    done = subprocess.run(
        ["make", "-C", ROOT, f"PYTHON={old}", f"VENV={tmp_path}/venv", f"{tmp_path}/venv/made"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0 and not (tmp_path / "venv").exists()
    assert "needs Python 3.11 or later" in done.stderr and "is Python 3.9" in done.stderr
    assert "make PYTHON=" in done.stderr

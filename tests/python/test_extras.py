"""Without NumPy or PyTorch the package works, and the calls that need one say what to install."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from conftest import SOURCE


def run_without(package: str, program: str) -> str:
    """Runs a program in a Python that lacks a package, and returns what it prints."""
    blocked = f"import sys; sys.modules[{package!r}] = None\n"
    done = subprocess.run(
        [sys.executable, "-c", blocked + program],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


WITHOUT_NUMPY = """
import weighbridge
from weighbridge import Device, Dtype, View
with Device("host") as device, device.buffer(16) as buffer, buffer.view("float32", (4,)) as view:
    buffer.memoryview()[:] = bytes(range(16))
    with View.copy_from(device, view, accessor="host") as copy:
        assert copy.shape == (4,) and copy.dtype == Dtype.F32
    for call in (%s):
        try:
            call()
        except ImportError as error:
            print(error.name, error)
"""


@pytest.mark.parametrize(
    "call", ["view.numpy", "view.__array__", "Dtype.F32.numpy", "Dtype.BF16.bits"]
)
def test_without_numpy_only_arrays_are_missing(call):
    printed = run_without("numpy", WITHOUT_NUMPY % f"{call},")
    assert printed.startswith("numpy ") and "needs numpy, which is not installed" in printed
    assert "pip install 'weighbridge[numpy]'" in printed


def test_without_pytorch_its_module_says_what_to_install():
    program = "import weighbridge\ntry:\n    import weighbridge.torch\n"
    printed = run_without("torch", program + "except ImportError as error: print(error)")
    assert "weighbridge.torch needs torch, which is not installed" in printed
    assert "pip install 'weighbridge[torch]'" in printed


def test_a_numpy_that_is_installed_and_broken_says_what_it_lacks(tmp_path):
    (tmp_path / "numpy.py").write_text("import a_part_of_numpy\n")
    program = f"sys.path.insert(0, {str(tmp_path)!r})\nfrom weighbridge import Dtype\n"
    printed = run_without(
        "unused", program + "try:\n    Dtype.F32.numpy()\nexcept ImportError as error: print(error)"
    )
    assert printed == "No module named 'a_part_of_numpy'\n"


@pytest.mark.parametrize("engine", ["diffusers", "transformers"])
def test_without_an_engine_its_plug_in_says_what_to_install(engine):
    pytest.importorskip("torch", reason="torch is not installed")
    program = f"import weighbridge.engines\ntry:\n    import weighbridge.engines.{engine}\n"
    printed = run_without(engine, program + "except ImportError as error: print(error)")
    assert f"weighbridge.engines.{engine} needs {engine}, which is not installed" in printed
    assert f"pip install 'weighbridge[{engine}]'" in printed

"""Fixtures: every test with a ``device`` runs on each device that WEIGHBRIDGE_TEST_DEVICE names.

The package is taken from the source tree, the library from WEIGHBRIDGE_LIBRARY or target/release.
``--part=1/2`` runs the first of two parts of the tests. Tests that repeat others run with
``--every-mode`` alone.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "bindings" / "python" / "src"
DEVICES = [name.strip() for name in os.environ.get("WEIGHBRIDGE_TEST_DEVICE", "host").split(",")]
GPU = Path("/dev/nvidiactl").exists()
# Marks tests that repeat others, and are slow without a GPU alone.
REPEATS = () if GPU else pytest.mark.repeats

os.environ.setdefault("WEIGHBRIDGE_LIBRARY", str(ROOT / "target" / "release" / "libweighbridge.so"))
sys.path.insert(0, str(SOURCE))

import weighbridge  # noqa: E402

_not_run: list[str] = []
# Devices that a test left empty, for the next test: to open a CUDA device may create its context
# and compile its kernels.
_open_devices: dict[str, weighbridge.Device] = {}


def pytest_addoption(parser):
    parser.addoption("--part", default="1/1", help="the part of the tests to run, such as 1/2")
    parser.addoption(
        "--every-mode",
        action="store_true",
        help="run uses in each transfer mode, and tests that repeat another with more",
    )


def pytest_configure(config):
    config.addinivalue_line("markers", "gpu: needs a real GPU; not run on a machine without one")
    config.addinivalue_line("markers", "slow: takes seconds rather than milliseconds")
    config.addinivalue_line("markers", "other_memory: gives offloaded weights other memory")
    config.addinivalue_line(
        "markers", "repeats: takes long, and repeats another with another model or compiler"
    )


def pytest_report_header(config):
    return f"weighbridge {weighbridge.__version__} on {', '.join(DEVICES)}"


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--every-mode"):
        repeated = [item for item in items if item.get_closest_marker("repeats")]
        config.hook.pytest_deselected(items=repeated)
        items[:] = [item for item in items if item not in repeated]
    part, parts = map(int, config.getoption("--part").split("/"))
    items[:] = items[part - 1 :: parts]
    if GPU:
        return
    deselected = [item for item in items if item.get_closest_marker("gpu")]
    _not_run.extend(item.nodeid for item in deselected)
    config.hook.pytest_deselected(items=deselected)
    items[:] = [item for item in items if item not in deselected]


def pytest_terminal_summary(terminalreporter):
    if _not_run:
        terminalreporter.write_line(f"gpu: {len(_not_run)} tests not run: no NVIDIA GPU here")
    for report in terminalreporter.stats.get("skipped", ()):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        terminalreporter.write_line(f"{report.nodeid}: {reason}")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    if call.when == "call":
        item.passed = outcome.get_result().passed


@pytest.fixture(params=DEVICES)
def device(request):
    """An open device. After the test it must have no buffer, no view and no device memory."""
    opened = _open_devices.pop(request.param, None) or weighbridge.Device(request.param)
    # What exists now, such as all of PyTorch, need not be searched for garbage below.
    gc.freeze()
    yield opened
    if not getattr(request.node, "passed", False):
        opened.close()  # the next test gets a device without leftovers
        return
    gc.collect()
    if not opened.closed:
        opened.drain(10)
        stats = opened.stats
        assert (stats.buffers, stats.views, stats.deferred) == (0, 0, 0), stats
        assert (stats.asked_bytes, stats.mapped_bytes, stats.pinned_bytes) == (0, 0, 0), stats
        assert stats.device_bytes == 0, stats
        _open_devices[request.param] = opened


def pytest_sessionfinish():
    while _open_devices:
        _open_devices.popitem()[1].close()


@pytest.fixture
def where(device):
    """The torch device of the device; the driver double has none."""
    import torch

    if device.info.kind == "host":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        pytest.skip("torch has no GPU: the host device covers this test")
    return torch.device("cuda", 0)


@pytest.fixture
def host():
    """The host device."""
    with weighbridge.Device("host") as opened:
        yield opened


@pytest.fixture
def run_python():
    """Runs a program in a new interpreter; returns exit status, stdout and stderr."""

    def run(*arguments: str, timeout: float = 120, **environment: str):
        env = {**os.environ, "PYTHONPATH": str(SOURCE), **environment}
        env = {key: value for key, value in env.items() if value is not None}
        done = subprocess.run(
            [sys.executable, *arguments], env=env, capture_output=True, text=True, timeout=timeout
        )
        return done.returncode, done.stdout, done.stderr

    return run

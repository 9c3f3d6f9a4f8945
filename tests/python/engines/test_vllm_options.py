"""What the vLLM plug-in refuses and follows, and how vLLM finds it.

With WEIGHBRIDGE_VLLM=DIR1:DIR2, folders with the sources of vLLM, the fakes' interfaces are
compared with those of vLLM.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, SOURCE

from engines import fake_vllm

from .vllm_models import (
    BUDGETS,
    IDS,
    LAYERS,
    MATRIX,
    VERSIONS,
    check_equal,
    resident,
    start,
)

REFUSED = {
    "ubatching": ({"parallel_config__use_ubatching": True}, "--enable-dbo"),
    "experts that move": ({"parallel_config__enable_eplb": True}, "--enable-eplb"),
    "sleep": ({"model_config__enable_sleep_mode": True}, "--enable-sleep-mode"),
    "another device": ({"device_config__device_type": "tpu"}, "the device tpu"),
    "Inductor's partitions": (
        {"compilation_config__use_inductor_graph_partition": True},
        "use_inductor_graph_partition",
    ),
    "another compiler": ({"compilation_config__mode": 1}, "compilation mode 1"),
    "one graph": ({"compilation_config__mode": 3}, "splitting_ops is empty"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_the_error_names_an_unsupported_feature(vllm, what):
    changes, named = REFUSED[what]
    with pytest.raises(ValueError, match=named):
        start(vllm, **BUDGETS["offload_bytes"], **changes)
    assert isinstance(vllm.get_offloader(), vllm.NoopOffloader)


def test_breakable_graphs_are_refused(vllm):
    vllm.envs.VLLM_USE_BREAKABLE_CUDAGRAPH = True
    with pytest.raises(ValueError, match=r"VLLM_USE_BREAKABLE_CUDAGRAPH=1.*unset it"):
        start(vllm, **BUDGETS["offload_bytes"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs a budget"),
        ({"additional_config": object()}, "additional_config is a object: pass a dictionary"),
        ({"weighbridge": {"offload_gb": 3}}, "unknown options offload_gb"),
        ({"weighbridge": {"offload_bytes": 1, "device_bytes": 1}}, "give one budget"),
        ({"weighbridge": {"offload_bytes": "much"}}, "is not a number of bytes"),
        ({"weighbridge": {"offload_bytes": 1, "select": "model.*"}}, "whole segments"),
        (
            {"weighbridge": {"device_bytes": 1}, "offload_config__uva__cpu_offload_gb": 1.0},
            "give one budget, in one of these places",
        ),
    ],
)
def test_options_that_cannot_be_followed_are_errors(vllm, options, message):
    with pytest.raises(ValueError, match=message):
        start(vllm, **options)


@pytest.mark.parametrize("version", ["0.25.1", "0.34.0", "1.0.0", "dev"])
def test_a_version_that_is_not_known_is_refused(monkeypatch, version):
    fake = fake_vllm.install(monkeypatch, "0.33.0")
    import weighbridge.engines.vllm as plugin

    plugin.register()
    fake.vllm.__version__ = version
    with pytest.raises(RuntimeError, match=rf"0\.26 to 0\.33, and found {version}: install"):
        start(fake, **BUDGETS["offload_bytes"])


@pytest.mark.parametrize("version", ["0.26.0", "0.30.2rc1", "0.33.0+cu130", "0.33.1.dev7"])
def test_the_known_versions_are_accepted(version):
    from weighbridge.engines.vllm._versions import check_version

    check_version(version)


@pytest.mark.parametrize("switch", ["DISABLE_PIN_MEMORY", "DISABLE_UVA"])
def test_vllms_switches_have_their_effect(vllm, monkeypatch, switch):
    monkeypatch.setenv(f"VLLM_WEIGHT_OFFLOADING_{switch}", "1")
    model, offloader, _ = start(vllm, **BUDGETS["offload_bytes"])
    info = offloader.device.info
    off = info.pin_reason if switch == "DISABLE_PIN_MEMORY" else info.views_reason
    assert switch in off
    check_equal(model, resident())


def test_what_was_planned_and_moved_is_logged(vllm):
    model, offloader, _ = start(vllm, **BUDGETS["offload_bytes"])
    with torch.inference_mode():
        model(IDS)
    offloader.close()
    lines = "\n".join(vllm.loggers["vllm.weighbridge"].lines)
    assert f"offloads {LAYERS * MATRIX / 2**20:.1f} MiB" in lines and "slots of" in lines
    moved = re.search(r"copied (\d\.\d) MiB in (\d+) copies", lines)
    # The end of the step copies for the next one.
    assert moved and LAYERS <= int(moved[2]) <= LAYERS + 2 and float(moved[1]) >= 1.5


def test_the_entry_point_is_light_and_quiet_without_vllm():
    program = (
        "import sys; sys.modules['vllm'] = None\n"
        "from weighbridge.engines.vllm import register; register(); register()\n"
        "assert 'torch' not in sys.modules, 'PyTorch was imported'\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)


def test_the_package_names_the_entry_point():
    text = (ROOT / "bindings/python/pyproject.toml").read_text()
    _, _, entry = text.partition('[project.entry-points."vllm.general_plugins"]')
    assert entry.split()[:3] == ["weighbridge", "=", '"weighbridge.engines.vllm:register"']
    from weighbridge.engines.vllm._versions import FIRST, LAST

    assert f'vllm = ["vllm>={FIRST[0]}.{FIRST[1]},<{LAST[0]}.{LAST[1] + 1}"]' in text


def _methods(path, name):
    """The methods of a class in a source file, with the names of their arguments."""
    tree = ast.parse(path.read_text())
    found = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name)
    functions = [node for node in found.body if isinstance(node, ast.FunctionDef)]
    return {node.name: [one.arg for one in node.args.args] for node in functions}


def test_the_fakes_have_the_interface_of_vllm(monkeypatch):
    given = [Path(part) for part in os.environ.get("WEIGHBRIDGE_VLLM", "").split(":") if part]
    if not given:
        pytest.skip("WEIGHBRIDGE_VLLM names no folders with the sources of vLLM")
    for folder, version in zip(given, VERSIONS):
        fake = fake_vllm.install(monkeypatch, version)
        base = folder / "vllm/model_executor/offloader/base.py"
        for name in ("BaseOffloader", "NoopOffloader"):
            methods = _methods(base, name)
            for method, arguments in methods.items():
                code = getattr(getattr(fake, name), method).__code__
                mine = list(code.co_varnames[: code.co_argcount])
                assert mine[: len(arguments)] == arguments, (version, name, method)
        loader = folder / "vllm/model_executor/model_loader/base_loader.py"
        methods = _methods(loader, "BaseModelLoader")
        assert ("create_model" in methods) == hasattr(fake.BaseModelLoader, "create_model")
        for method, arguments in methods.items():
            code = getattr(fake.BaseModelLoader, method).__code__
            assert list(code.co_varnames[: code.co_argcount]) == arguments, (version, method)

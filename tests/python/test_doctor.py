"""``python -m weighbridge doctor`` says what is so, for people and for programs."""

from __future__ import annotations

import json

import pytest
from conftest import DEVICES

from weighbridge import DeviceInfo, __version__


def doctor(run_python, *arguments, **environment):
    return run_python("-m", "weighbridge", "doctor", *arguments, **environment)


def test_json_has_every_fact_of_every_device(run_python):
    code, output, errors = doctor(run_python, "--json")
    assert (code, errors) == (0, "")
    found = json.loads(output)
    assert set(found) == {"version", "library", "python", "environment", "cuda", "devices"}
    assert found["version"] == __version__
    assert set(found["cuda"]) == {"count", "error"}
    names = [device["device"] for device in found["devices"]]
    assert names == ["host", *(f"cuda:{at}" for at in range(found["cuda"]["count"]))]
    assert set(DEVICES) <= set(names)
    for device in found["devices"]:
        assert set(device) == {"device", "error", "info"}
        assert set(device["info"]) == set(DeviceInfo.__dataclass_fields__)
        assert device["info"]["pin_reason"] and device["info"]["views_reason"]


def test_one_device_and_a_missing_one(run_python):
    for name in DEVICES:
        code, output, _ = doctor(run_python, "--json", "--device", name)
        assert code == 0
        assert [device["device"] for device in json.loads(output)["devices"]] == [name]
    code, output, errors = doctor(run_python, "--json", "--device", "cuda:77")
    error = json.loads(output)["devices"][0]["error"]
    assert (code, errors) == (1, "")
    assert error["status"] in ("WB_ERR_NO_DEVICE", "WB_ERR_NO_DRIVER") and error["message"]
    code, output, _ = doctor(run_python, "--device", "tpu")
    assert code == 1 and 'no device "tpu"' in output


@pytest.mark.parametrize("with_rich", [True, False])
def test_a_table_for_people(run_python, tmp_path, with_rich):
    path = str(tmp_path)
    if with_rich:
        pytest.importorskip("rich")
    else:
        (tmp_path / "rich.py").write_text("raise ImportError('not installed')\n")
    from conftest import SOURCE

    environment = {"PYTHONPATH": f"{path}:{SOURCE}", "COLUMNS": "200"}
    code, output, errors = doctor(run_python, "--device", "host", **environment)
    assert (code, errors) == (0, "")
    assert ("┃" in output) is with_rich
    assert "pin host memory" in output and "RLIMIT_MEMLOCK" in output
    assert "views of host memory" in output


def test_switches_are_named_as_reasons(run_python):
    switches = {"VLLM_WEIGHT_OFFLOADING_DISABLE_PIN_MEMORY": "1", "WEIGHBRIDGE_DISABLE_UVA": "1"}
    code, output, _ = doctor(run_python, "--json", "--device", "host", **switches)
    found = json.loads(output)
    assert code == 0
    assert switches.items() <= found["environment"].items()
    info = found["devices"][0]["info"]
    assert info["pin_reason"] == "VLLM_WEIGHT_OFFLOADING_DISABLE_PIN_MEMORY=1"
    assert info["views_reason"] == "WEIGHBRIDGE_DISABLE_UVA=1"
    code, output, _ = doctor(run_python, "--device", "host", WEIGHBRIDGE_DISABLE_UVA="maybe")
    assert code == 1 and 'WEIGHBRIDGE_DISABLE_UVA="maybe"' in output


def test_a_missing_driver_is_said_plainly(run_python, tmp_path):
    if "cuda:0" in DEVICES:
        pytest.skip("there is a driver")
    code, output, _ = doctor(run_python)
    if "cuda:0" not in output:
        assert code == 0
        assert "CUDA: " in output and "driver" in output


def test_help_and_version(run_python):
    code, output, _ = run_python("-m", "weighbridge", "--version")
    assert (code, output) == (0, f"weighbridge {__version__}\n")
    code, _, errors = run_python("-m", "weighbridge")
    assert code == 2 and "doctor" in errors


def test_an_output_that_cannot_be_written(run_python):
    program = (
        "import subprocess, sys\n"
        "command = [sys.executable, '-m', 'weighbridge', 'doctor']\n"
        "with open('/dev/full', 'w') as full:\n"
        "    sys.exit(subprocess.run(command, stdout=full).returncode)\n"
    )
    code, _, errors = run_python("-c", program)
    assert code == 1 and errors.startswith("weighbridge doctor: "), errors
    assert "Traceback" not in errors

"""``python -m weighbridge plan`` shows the plan of a file as a table, as JSON or as SVG."""

from __future__ import annotations

import json
import os
import xml.etree.ElementTree as xml

import numpy as np
import pytest
from safetensors.numpy import save_file

from weighbridge import Device, Plan, Safetensors
from weighbridge._text import byte_count
from weighbridge.plan import group_of

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def path(tmp_path):
    """Three layers of 12,800 bytes each, an embedding and a norm."""
    tensors = {"model.embed.weight": np.zeros((100, 16), np.float32)}
    for layer in range(3):
        tensors[f"model.layers.{layer}.up.weight"] = np.zeros((64, 33), np.float32)
        tensors[f"model.layers.{layer}.down.weight"] = np.zeros((33, 32), np.float32)
    tensors["model.norm.weight"] = np.zeros(16, np.float32)
    save_file(tensors, tmp_path / "model.safetensors")
    return str(tmp_path / "model.safetensors")


def plan(run_python, *arguments, **environment):
    environment = {"COLUMNS": "160", **environment}
    return run_python("-m", "weighbridge", "plan", *arguments, **environment)


def test_the_table_has_every_parameter_and_the_totals(run_python, path):
    code, output, errors = plan(run_python, path, "--offload-bytes", "20KB")
    assert (code, errors) == (0, "")
    with Device("host") as device, Safetensors(device, path, pin=False) as file:
        with Plan(device, file.parameters(["*.embed.*"]), offload_bytes=20_000) as made:
            for planned in made.parameters:
                line = next(line for line in output.splitlines() if f" {planned.name} " in line)
                assert f" {planned.span_bytes:,} " in line
                assert planned.reason.partition(": ")[2] in line
                resident = planned.placement == "resident"
                assert f" {'resident' if resident else planned.transfer_mode} " in line
            info = made.info
            total = f"{info.offloaded_bytes:,} of {info.payload_bytes:,} bytes offloaded"
            assert total in output
    assert "budget left" in output and " 64x33 " in output and " f32 " in output


def test_json_is_the_plan_with_the_same_options(run_python, path):
    options = {
        "select": ["layers.0", "*.layers.2.*"],
        "exclude": ["down"],
        "transfer_mode": "on-demand",
    }
    arguments = [path, "--offload-bytes", "1MiB", "--order", "largest", "--json"]
    for selector in options["select"]:
        arguments += ["--select", selector]
    arguments += ["--exclude", "down", "--transfer-mode", "on-demand", "--depth", "1"]
    code, output, errors = plan(run_python, *arguments)
    assert (code, errors) == (0, "")
    with Device("host") as device, Safetensors(device, path, pin=False) as file:
        parameters = file.parameters(["*.embed.*"])
        with Plan(
            device, parameters, offload_bytes=1 << 20, order="largest", depth=1, **options
        ) as made:
            assert json.loads(output) == made.to_dict()
    offloaded = {
        p["name"] for p in json.loads(output)["parameters"] if p["placement"] == "offloaded"
    }
    assert offloaded == {"model.layers.0.up.weight", "model.layers.2.up.weight"}


def test_measuring_the_link_predicts_the_time_of_a_step(run_python, path):
    arguments = [path, "--offload-bytes", "1MB", "--transfer-mode", "on-demand", "--json"]
    _, output, _ = plan(run_python, *arguments)
    assert json.loads(output)["totals"]["step_seconds"] is None
    _, output, _ = plan(run_python, *arguments, "--measure")
    found = json.loads(output)
    totals, link = found["totals"], found["options"]["link_bytes_per_second"]
    assert link > 1e7
    moved = totals["step_bytes"] + totals["view_bytes"]
    assert totals["step_seconds"] == pytest.approx(moved / link)


def test_a_step_is_predicted_in_words(run_python, path):
    arguments = [path, "--offload-bytes", "1MB", "--transfer-mode", "prefetch", "--rows", "1"]
    arguments += ["--link-bytes-per-second", "1e9"]
    code, output, errors = plan(run_python, *arguments)
    assert (code, errors) == (0, "")
    assert " ms of the link\n" in output
    # The tensors have 44,480 bytes.
    code, output, errors = plan(run_python, *arguments, "--compute-bytes-per-second", "44480")
    assert (code, errors) == (0, "")
    assert "1000.00 ms per step: " in output and ", 1000.00 ms of kernels" in output


def test_embeddings_are_read_in_place_and_norms_stay(run_python, tmp_path):
    tensors = {
        "model.embed_tokens.weight": np.zeros((512, 64), np.float32),
        "lm_head.weight": np.zeros((512, 64), np.float32),
        "model.rotary_embedding": np.zeros((64, 64), np.float32),
        "embeddings.norm.weight": np.zeros(64, np.float32),
    }
    for layer in range(8):
        tensors[f"model.layers.{layer}.up.weight"] = np.zeros((256, 64), np.float32)
        tensors[f"model.layers.{layer}.norm.weight"] = np.zeros(8, np.float32)
    save_file(tensors, tmp_path / "model.safetensors")
    path = str(tmp_path / "model.safetensors")
    for budget in ("--device-bytes", "--offload-bytes"):
        code, output, errors = plan(run_python, path, budget, "400KB", "--json")
        assert (code, errors) == (0, "")
        placed = {one["name"]: one for one in json.loads(output)["parameters"]}
        sparse = [name for name, one in placed.items() if one["access_pattern"] == "sparse"]
        assert sparse == ["model.embed_tokens.weight"]
        assert placed["model.embed_tokens.weight"]["transfer_mode"] == "zero-copy"
        assert all(
            placed[f"model.layers.{at}.norm.weight"]["placement"] == "resident" for at in range(8)
        )


def test_the_svg_has_every_parameter(run_python, path, tmp_path):
    out = tmp_path / "plan.svg"
    code, output, errors = plan(
        run_python, path, "--device-bytes", "30KB", "--sparse", "*.embed.*", "--svg", str(out)
    )
    assert (code, errors, output.strip()) == (0, "", str(out))
    svg = xml.parse(out).getroot()
    labels = [text.text for text in svg.iter(f"{SVG}text")]
    assert all(f"model.layers.{layer}" in labels for layer in range(3))
    titles = [title.text for title in svg.iter(f"{SVG}title")]
    assert len(titles) == 8
    assert any(t.startswith("model.embed.weight: 6,400 bytes, ") for t in titles)
    # Widths are proportional to bytes.
    widths = {
        rect.find(f"{SVG}title").text.partition(":")[0]: float(rect.get("width"))
        for rect in svg.iter(f"{SVG}rect")
        if rect.find(f"{SVG}title") is not None
    }
    up, down = (widths[f"model.layers.1.{name}.weight"] for name in ("up", "down"))
    assert up / down == pytest.approx(2, rel=0.01)


def test_invalid_arguments_are_errors_without_a_traceback(run_python, path, tmp_path):
    for arguments, status, text in [
        ([path, "--offload-bytes", "100"], 1, "100 bytes"),
        ([path, "--offload-bytes", "1MB", "--select", "nothing"], 1, '"nothing"'),
        ([path, "--device-bytes", "1GB"], 1, "all parameters fit"),
        ([str(tmp_path / "none"), "--offload-bytes", "1MB"], 1, "none"),
        ([path, "--offload-bytes", "1MB", "--device", "tpu"], 1, "tpu"),
        ([path, "--offload-bytes", "1MB", "--depth", str(1 << 32)], 1, "depth is 4294967296"),
        ([path], 2, "--offload-bytes"),
        ([path, "--offload-bytes", "1MB", "--device-bytes", "1MB"], 2, "not allowed"),
        ([path, "--offload-bytes", "4O0"], 2, "write 60MB"),
        (["--offload-bytes", "1MB"], 2, "FILE"),
        ([path, "--offload-bytes", "1MB", "--svg", str(tmp_path / "no/where.svg")], 1, "where.svg"),
    ]:
        code, output, errors = plan(run_python, *arguments)
        assert (code, output) == (status, ""), arguments
        assert text in errors and "Traceback" not in errors, errors


def test_several_files_make_one_model(run_python, path, tmp_path):
    other = str(tmp_path / "more.safetensors")
    save_file({"model.layers.3.up.weight": np.zeros((64, 33), np.float32)}, other)
    code, output, _ = plan(run_python, path, other, "--offload-bytes", "1MB", "--json")
    assert code == 0
    assert len(json.loads(output)["parameters"]) == 9
    code, _, errors = plan(run_python, path, os.path.relpath(path), "--offload-bytes", "1MB")
    assert code == 1 and "model.embed.weight" in errors


def test_numbers_of_bytes_have_decimal_and_binary_units():
    for text, count in [
        ("4096", 4096),
        ("40MB", 40_000_000),
        ("1.5GiB", 3 << 29),
        ("2 kb", 2000),
        ("0", 0),
    ]:
        assert byte_count(text) == count
    for text in ("", "MB", "-1", "1TB", "1e3", "4O"):
        with pytest.raises(ValueError, match="write 60MB"):
            byte_count(text)


def test_names_imply_groups():
    for name, group in [
        ("model.layers.3.mlp.experts.5.w1", "model.layers.3"),
        ("model.norm.weight", "model.norm"),
        ("h.0.attn.weight", "h.0"),
        ("weight", ""),
        ("0.weight", "0"),
    ]:
        assert group_of(name) == group


def test_compressed_parameters_are_shown(run_python, path):
    arguments = [path, "--offload-bytes", "1MiB", "--transfer-mode", "prefetch"]
    code, output, errors = plan(run_python, *arguments, "--compress", "up")
    assert (code, errors) == (0, "")
    lines = [line for line in output.splitlines() if "up.weight" in line]
    assert len(lines) == 3 and all("; compressed to 2 %" in line for line in lines)
    assert "KiB compressed to" in output  # 25 KiB of zeros
    code, output, _ = plan(run_python, *arguments, "--compress", "auto", "--json")
    assert code == 0
    made = json.loads(output)
    assert made["options"]["compress"] == {"kind": "auto", "select": []}
    assert made["totals"]["encoded_bytes"] == 0  # all are too small

"""Result files are named after their device, and documents quote the newest of each subject."""

from __future__ import annotations

import json
import sys
from xml.etree import ElementTree

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benches"))

import plot
import report


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "rtx-pro-6000"),
        ("host", "host"),
    ],
)
def test_a_device_gives_its_result_files_their_name(device, name):
    assert report.device_name(device) == name


def test_a_result_file_is_named_after_the_device_that_it_was_measured_on(tmp_path, monkeypatch):
    machine = {"device": "NVIDIA H100 80GB HBM3"}
    monkeypatch.setattr(report, "machine", lambda: machine)
    result = report.Report("offload", "0.1.0")
    result.write(tmp_path)
    written = json.loads((tmp_path / "h100-offload.json").read_text())
    assert written["subject"] == "offload" and written["machine"] == machine
    assert written["command"] == "make gpu-bench SUBJECT=offload"


def test_the_newest_result_file_is_chosen_whatever_its_device(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "ROOT", tmp_path)
    dates = {"h100-a": "2026-11-26", "h200-a": "2026-11-21", "h200-b": "2026-12-01"}
    for name, date in dates.items():
        (tmp_path / f"{name}.json").write_text(json.dumps({"date": date}))
    assert report.newest("*-a.json").name == "h100-a.json"
    (tmp_path / "h200-a.json").write_text(json.dumps({"date": "2026-11-26"}))
    assert report.newest("*-a.json").name == "h200-a.json", "of one date the last by name"
    with pytest.raises(FileNotFoundError):
        report.newest("*-c.json")


def test_the_plot_of_experts_has_the_steps_of_the_result_file(tmp_path):
    steps = {"resident": 5.0, "in_place": 80.0, "on_demand": 200.0}
    for name, at in (("skewed", (30, 20, 10)), ("uniform", (70, 60, 40))):
        for share, step in zip(("0.15", "0.30", "0.50"), at):
            steps[f"cache.{name}.{share}"] = float(step)
            steps[f"hits.{name}.{share}"] = 0.9
    figures = [{"name": name, "value": value} for name, value in steps.items()]
    plot.shares_plot(tmp_path / "plot.svg", figures)
    drawn = ElementTree.parse(tmp_path / "plot.svg").getroot()
    lines = [element for element in drawn.iter() if element.get("class") == "line"]
    points = [
        [tuple(map(float, point.split(","))) for point in line.get("points").split()]
        for line in lines
    ]
    assert [len(one) for one in points] == [5, 5]
    left, right = points[0][0][0], points[0][-1][0]
    low, high = points[0][-1][1], points[0][0][1]
    for line, wanted in zip(points, ((80, 30, 20, 10, 5), (80, 70, 60, 40, 5))):
        for (x, y), share, step in zip(line, (0, 15, 30, 50, 100), wanted):
            assert x == pytest.approx(left + share / 100 * (right - left), abs=0.11)
            assert y == pytest.approx(low + (step - 5) / 75 * (high - low), abs=0.11)
    names = [element.text for element in drawn.iter() if element.text]
    assert {"skewed routings", "uniform routings", "all resident"} <= set(names)

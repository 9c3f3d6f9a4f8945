"""Fixtures of the uses, and the table of their outcomes that ``make cases`` prints."""

from __future__ import annotations

import json
import typing
import warnings
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from weighbridge._enums import TransferMode  # noqa: E402

from . import twins  # noqa: E402

TRANSFER_MODES = typing.get_args(TransferMode)


def pytest_addoption(parser):
    parser.addoption("--table", action="store_true", help="print the outcome of each use")
    parser.addoption(
        "--resized",
        action="store_true",
        help="offload at fixed addresses, and resize after each use",
    )


def pytest_collection_modifyitems(config, items):
    if config.getoption("--resized"):
        reason = pytest.mark.skip(reason="gives weights other memory, which fixed addresses refuse")
        for item in items:
            if item.get_closest_marker("other_memory"):
                item.add_marker(reason)


def pytest_generate_tests(metafunc):
    """Without --every-mode, uses run in the mode in which a use out of turn does most harm."""
    own = any(
        "transfer_mode" in str(mark.args[0])
        for mark in metafunc.definition.iter_markers("parametrize")
    )
    if "transfer_mode" in metafunc.fixturenames and not own:
        every = metafunc.config.getoption("--every-mode")
        metafunc.parametrize("transfer_mode", TRANSFER_MODES if every else ["prefetch"])


@pytest.fixture(params=["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def where(request):
    """The torch device: the host, and a GPU if there is one."""
    return torch.device(request.param, 0 if request.param == "cuda" else None)


@pytest.fixture(autouse=True)
def quiet():
    """Warnings of frameworks about their own deprecations say nothing about this library."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture
def compare(request, transfer_mode, where):
    """Compares a use of an offloaded model with that of a resident one; see twins.py."""
    resized = request.config.getoption("--resized")
    comparison = twins.Compare(transfer_mode, where, resized=resized)
    yield comparison
    request.node.user_properties.append(("outcome", str(comparison.outcome)))


def pytest_terminal_summary(terminalreporter, config):
    if not config.getoption("--table", default=False):
        return
    rows = {}
    for report in terminalreporter.stats.get("failed", ()):
        rows[_kind_and_mode(report.nodeid)] = "WRONG: " + _reason(report)
    for report in terminalreporter.stats.get("skipped", ()):
        rows[_kind_and_mode(report.nodeid)] = "not run: " + report.longrepr[2].partition(": ")[2]
    for report in terminalreporter.stats.get("passed", ()):
        rows[_kind_and_mode(report.nodeid)] = "equal"
    # The reports of the teardown have what the fixture stored.
    for report in terminalreporter.stats.get("", ()):
        outcome = dict(report.user_properties).get("outcome", "")
        if outcome.startswith("raised") and rows.get(_kind_and_mode(report.nodeid)) == "equal":
            rows[_kind_and_mode(report.nodeid)] = outcome
    width = max((len(kind) for kind, _ in rows), default=0)
    for (kind, mode), outcome in sorted(rows.items()):
        terminalreporter.write_line(f"{kind:{width}}  {mode:9}  {outcome[:140]}")
    counts = {
        word: sum(outcome.startswith(word) for outcome in rows.values())
        for word in ("equal", "raised", "WRONG", "not run")
    }
    counted = ", ".join(f"{count} {word}" for word, count in counts.items())
    terminalreporter.write_line(f"cases: {counted}")
    figures = {f"cases {word}": count for word, count in counts.items() if count}
    terminalreporter.write_line(f"reliability: {json.dumps(figures)}")


def _kind_and_mode(node: str) -> tuple[str, str]:
    """Returns what a test is about, in words, and its transfer mode."""
    path, _, test = node.partition("::")
    name, _, given = test.partition("[")
    subject, kind = (
        text.removeprefix("test_").replace("_", " ") for text in (Path(path).stem, name)
    )
    given = f"-{given.rstrip(']')}-"
    mode = next((mode for mode in TRANSFER_MODES if f"-{mode}-" in given), "")
    others = [
        part for part in given.replace(f"-{mode}-", "-").split("-") if part not in ("", "cpu")
    ]
    return f"{subject}: {kind}" + (f" ({', '.join(others)})" if others else ""), mode


def _reason(report) -> str:
    """Returns why a test failed, without pytest's explanation of the values."""
    crash = getattr(report.longrepr, "reprcrash", None)
    message = " ".join((crash.message if crash else str(report.longrepr)).split())
    message = message.partition(" assert ")[0]
    return message.removeprefix("AssertionError: ").removeprefix("WRONG").lstrip(": ")

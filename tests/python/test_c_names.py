"""Messages name what a Python program can call, not the C function behind it."""

from __future__ import annotations

import re

import pytest
from conftest import ROOT

import weighbridge
from weighbridge import _c_names, _enums

SOURCES = ROOT / "src"
KERNELS = {SOURCES / "device/cuda/kernels.rs", SOURCES / "device/host/codec.rs"}


def _messages() -> str:
    """All texts in the library's sources but the names of kernels, of which no message speaks."""
    texts = []
    for path in SOURCES.rglob("*.rs"):
        if path not in KERNELS:
            code = re.sub(r"^\s*//.*$", "", path.read_text(), flags=re.M)
            texts += re.findall(r'"((?:[^"\\]|\\.)*)"', code, re.S)
    return "\n".join(texts)


def test_every_function_that_a_message_names_has_a_name_in_python():
    named = {name for name in re.findall(r"\bwb_\w+\b", _messages()) if "_options" not in name}
    assert len(named) > 15
    assert named - set(_c_names.FUNCTIONS) == set()


@pytest.mark.parametrize("name", _c_names.FUNCTIONS.values())
def test_the_name_in_python_is_there(name):
    found = weighbridge
    for part in name.split("."):
        found = getattr(found, part)


@pytest.mark.parametrize(
    ("prefix", "words"),
    [
        ("WB_ACCESSOR_", _enums.ACCESSOR),
        ("WB_COMPRESS_", _enums.COMPRESS),
        ("WB_FILE_MODE_", _enums.FILE_MODE),
        ("WB_HUGE_PAGES_", _enums.HUGE_PAGES),
        ("WB_NUMA_", _enums.NUMA_POLICY),
        ("WB_PLACEMENT_", _enums.PLACEMENT),
        ("WB_TRANSFER_MODE_", _enums.TRANSFER_MODE),
    ],
)
def test_constants_become_words(prefix, words):
    for word in words.words:
        constant = prefix + word.upper().replace("-", "_")
        assert _c_names.in_python(f"give {constant}.") == (
            f'give {_c_names.ARGUMENTS[prefix]}="{word}".'
        )


def test_a_message_of_the_library_speaks_python(host):
    one = weighbridge.Parameter("a", "layer", "uint8", (64,), placement="offloaded")
    with pytest.raises(ValueError, match='give placement="auto"') as caught:
        weighbridge.Plan(host, [one], offload_bytes=64)
    assert "in select" in str(caught.value)
    assert "wb_" not in str(caught.value).lower()

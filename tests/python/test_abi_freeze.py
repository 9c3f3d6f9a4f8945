"""tools/abi.py freezes every header, and finds what breaks a frozen interface."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess

import pytest
from conftest import ROOT

_spec = importlib.util.spec_from_file_location("abi_tool", ROOT / "tools" / "abi.py")
abi = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(abi)

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")

EXTRA = """\
#ifndef WEIGHBRIDGE_EXTRA_H
#define WEIGHBRIDGE_EXTRA_H
#include <stdint.h>

/* A number; and a comment; */
#define WB_EXTRA_ONE 1

typedef int32_t wb_extra_kind;

typedef void (*wb_extra_callback)(void *user, wb_extra_kind kind);

typedef struct {
    uint32_t struct_size;
    wb_extra_kind kind;
    uint64_t bytes;
    uint64_t reserved[2];
} wb_extra;

#define WB_EXTRA_INIT {sizeof(wb_extra), 0, 0, {0, 0}}

#ifdef __cplusplus
extern "C" {
#endif

int32_t wb_extra_get(uint64_t index,
                     wb_extra *extra);

#ifdef __cplusplus
}
#endif

#endif
"""

FUNCTION = "int32_t wb_extra_get(uint64_t index,\n                     wb_extra *extra);"
FIRST = "    uint32_t struct_size;\n"
KIND = "    wb_extra_kind kind;\n"
RESERVED = "    uint64_t reserved[2];\n"
ONE = "#define WB_EXTRA_ONE 1\n"

BREAKS = {
    "function is gone": (FUNCTION, ""),
    "prototype": ("wb_extra_get(uint64_t index", "wb_extra_get(uint32_t index"),
    "type of a field": ("uint64_t bytes", "int64_t bytes"),
    "field has moved": (FIRST + KIND, KIND + FIRST),
    "struct has shrunk": (RESERVED, ""),
    "value": (ONE, "#define WB_EXTRA_ONE 2\n"),
    "constant is gone": (ONE, ""),
    "initial value is gone": ("#define WB_EXTRA_INIT", "#define WB_EXTRA_START_INIT"),
    "type": ("typedef int32_t wb_extra_kind", "typedef uint32_t wb_extra_kind"),
    "callback": ("(*wb_extra_callback)(void *user, ", "(*wb_extra_callback)(int user, "),
}

EXTENSIONS = {
    "function": (FUNCTION, FUNCTION + "\nvoid wb_extra_set(int32_t extra);"),
    "field": (RESERVED, RESERVED + "    uint64_t more;\n"),
    "meaning of a reserved field": (RESERVED, "    uint64_t more;\n    uint64_t reserved[1];\n"),
    "constant": (ONE, ONE + "#define WB_EXTRA_TWO 2\n"),
}


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    """The headers of the library and one more, and their frozen interface: compiling takes time."""
    folder = tmp_path_factory.mktemp("once")
    shutil.copytree(ROOT / "include", folder / "include")
    (folder / "include" / "weighbridge").mkdir(exist_ok=True)
    (folder / "include" / "weighbridge" / "extra.h").write_text(EXTRA)
    abi.freeze(folder / "include", folder / "abi")
    return folder


@pytest.fixture
def include(once, tmp_path):
    """Headers that a test may change."""
    return shutil.copytree(once / "include", tmp_path / "include")


@pytest.fixture
def frozen(once, tmp_path):
    """The folder of their interface."""
    shutil.copytree(once / "abi", tmp_path / "abi")
    (folder,) = (tmp_path / "abi").glob("v*")
    return folder


def change(include, old, new):
    header = include / "weighbridge" / "extra.h"
    assert old in header.read_text()
    header.write_text(header.read_text().replace(old, new))


def test_unchanged_headers_pass(include, tmp_path):
    frozen = tmp_path / "abi"
    assert "no interface is frozen" in abi.check(include, frozen)
    folder = abi.freeze(include, frozen)
    assert "wb_extra_get\n" in (folder / "symbols.txt").read_text()
    assert abi.check(include, frozen).endswith(f"compared with {folder.name}")


@pytest.mark.parametrize("old, new", BREAKS.values(), ids=BREAKS)
def test_breaks_are_found(include, frozen, tmp_path, old, new):
    change(include, old, new)
    with pytest.raises(abi.Broken, match="breaks programs"):
        abi.check(include, tmp_path / "abi")
    with pytest.raises(abi.Broken, match="breaks programs"):
        abi.freeze(include, tmp_path / "abi")
    assert "wb_extra_get\n" in (frozen / "symbols.txt").read_text()


def test_a_header_that_is_gone_is_a_break(include, frozen, tmp_path):
    (include / "weighbridge" / "extra.h").unlink()
    with pytest.raises(abi.Broken, match="breaks programs"):
        abi.check(include, tmp_path / "abi")


@pytest.mark.parametrize("old, new", EXTENSIONS.values(), ids=EXTENSIONS)
def test_extensions_pass(include, frozen, tmp_path, old, new):
    change(include, old, new)
    abi.check(include, tmp_path / "abi")
    abi.freeze(include, tmp_path / "abi")


def test_a_new_line_of_versions_may_break(include, frozen, tmp_path):
    for header in include.rglob("*.h"):
        text = header.read_text()
        header.write_text(text.replace("WB_VERSION_MINOR 1\n", "WB_VERSION_MINOR 99\n"))
    change(include, *BREAKS["value"])
    abi.check(include, tmp_path / "abi")
    assert "99" in (abi.freeze(include, tmp_path / "abi") / "interface.c").read_text()


def test_a_changed_frozen_file_is_found(include, frozen, tmp_path):
    (frozen / "interface.c").write_text("")
    with pytest.raises(abi.Broken, match="not generated"):
        abi.check(include, tmp_path / "abi")


def test_padding_is_refused(include, tmp_path):
    change(include, KIND, "")
    with pytest.raises(abi.Broken, match="wb_extra has padding before bytes"):
        abi.freeze(include, tmp_path / "abi")


def test_a_declaration_that_cannot_be_read_is_refused(include, tmp_path):
    change(
        include, "typedef int32_t wb_extra_kind;", "enum { WB_A };\ntypedef int32_t wb_extra_kind;"
    )
    with pytest.raises(abi.Broken, match="cannot read: enum"):
        abi.freeze(include, tmp_path / "abi")


def test_frozen_programs_compile_with_the_frozen_headers(frozen):
    programs = list((frozen / "programs").glob("*.c"))
    assert programs
    for program in programs:
        command = ["cc", "-std=c11", "-fsyntax-only", "-I", frozen / "include", program]
        subprocess.run(command, check=True)

"""The ctypes declarations agree with the headers, and with what a C compiler makes of them."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess

import pytest
from conftest import ROOT

from weighbridge import Dtype, Status, _abi, _enums, _library, _prototypes
from weighbridge.dtypes import OPAQUE

INCLUDE = ROOT / "include"
HEADERS = [INCLUDE / "weighbridge.h", *sorted((INCLUDE / "weighbridge").glob("*.h"))]


def _text() -> str:
    text = "\n".join(header.read_text() for header in HEADERS)
    return re.sub(r"/\*.*?\*/", "", text, flags=re.S)


def _constants(prefix: str) -> dict[str, int]:
    found = re.findall(rf"^#define {prefix}(\w+) (-?\d+)$", _text(), re.M)
    return {name: int(value) for name, value in found}


def test_structs_have_the_layout_and_the_initial_value_of_c(tmp_path):
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    expected, lines = [], []
    for struct in _abi.STRUCTS:
        name = struct.__name__
        expected.append((name, ctypes.sizeof(struct)))
        lines.append(f'printf("{name} %zu\\n", sizeof({name}));')
        for field, _ in struct._fields_:
            descriptor = getattr(struct, field)
            for what, value in (("offset", descriptor.offset), ("size", descriptor.size)):
                expected.append((f"{name}.{field}.{what}", value))
            offset, size = f"offsetof({name}, {field})", f"sizeof((({name} *)0)->{field})"
            lines.append(f'printf("{name}.{field}.offset %zu\\n", {offset});')
            lines.append(f'printf("{name}.{field}.size %zu\\n", {size});')
        initial = f"{name.upper()}_INIT"
        if initial in _text():
            expected.append((initial, int.from_bytes(bytes(struct())[:8], "little")))
            expected.append((f"{initial}.sum", sum(bytes(struct()))))
            lines.append("{")
            lines.append(f"{name} made = {initial}; unsigned char bytes[sizeof made];")
            lines.append("unsigned long long first, sum = 0; size_t at;")
            lines.append("memcpy(bytes, &made, sizeof made); memcpy(&first, bytes, 8);")
            lines.append("for (at = 0; at < sizeof made; at++) sum += bytes[at];")
            lines.append(f'printf("{initial} %llu\\n{initial}.sum %llu\\n", first, sum);')
            lines.append("}")
    includes = "".join(f'#include "{header}"\n' for header in HEADERS)
    source = tmp_path / "layout.c"
    source.write_text(
        f"#include <stdio.h>\n#include <string.h>\n{includes}int main(void) {{\n"
        + "\n".join(lines)
        + "\nreturn 0;\n}\n"
    )
    program = tmp_path / "layout"
    subprocess.run([compiler, "-I", INCLUDE, source, "-o", program], check=True)
    output = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    found = [(name, int(value)) for name, value in map(str.split, output.splitlines())]
    assert found == expected
    assert len([name for name, _ in found if name.endswith("_INIT")]) > 15


def test_every_struct_of_the_headers_is_declared():
    structs = set(re.findall(r"^} (wb_\w+);$", _text(), re.M))
    assert structs == {struct.__name__ for struct in _abi.STRUCTS}


def test_every_function_of_the_headers_is_declared_with_its_arguments():
    found = {}
    for result, name, arguments in re.findall(
        r"^([a-z][\w ]*?[ *]+)(wb_\w+)\(([^;{]*?)\);$", _text(), re.M
    ):
        count = 0 if arguments.strip() == "void" else arguments.count(",") + 1
        found[name] = (count, result.strip() == "void")
    declared = {
        name: (len(arguments), result is None)
        for name, (result, arguments) in _prototypes.PROTOTYPES.items()
    }
    assert len(found) > 40
    assert declared == found


def test_pointers_are_declared_as_pointers_and_numbers_by_their_width():
    widths = {"uint64_t": 8, "int32_t": 4, "wb_status": 4, "wb_accessor": 4, "uint32_t": 4}
    widths["wb_grouping"] = widths["wb_dtype"] = 4
    for name, arguments in re.findall(r"(wb_\w+)\(([^;{]*?)\);$", _text(), re.M):
        if name not in _prototypes.PROTOTYPES or arguments.strip() == "void":
            continue
        for argument, declared in zip(arguments.split(","), _prototypes.PROTOTYPES[name][1]):
            words = argument.split()
            kind = next((word for word in words if word in widths), None)
            is_number = kind is not None and "*" not in argument
            simple = getattr(declared, "_type_", None)
            assert is_number == (isinstance(simple, str) and simple in "iIqQlL"), (name, argument)
            if is_number:
                assert ctypes.sizeof(declared) == widths[kind], (name, argument)


def test_every_struct_is_in_the_test_of_defaults():
    tested = (ROOT / "tests" / "c" / "defaults.c").read_text()
    structs = re.findall(r"^#define (WB_\w+_INIT)\b", _text(), re.M)
    assert len(structs) > 30
    assert [name for name in structs if not re.search(rf"\b{name}\b", tested)] == []


def test_statuses_and_dtypes_are_the_constants_of_the_headers():
    assert {f"{status.name}": int(status) for status in Status if status} == _constants("WB_ERR_")
    dtypes = {dtype.name: int(dtype) for dtype in Dtype}
    assert {**dtypes, "OPAQUE": OPAQUE} == _constants("WB_DTYPE_")
    for status in Status:
        name = _library.lib.wb_status_name(status).decode()
        assert name == ("WB_OK" if status == 0 else f"WB_ERR_{status.name}")


@pytest.mark.parametrize(
    ("words", "prefix"),
    [
        (_enums.DEVICE_KIND, "WB_DEVICE_"),
        (_enums.HUGE_PAGES, "WB_HUGE_PAGES_"),
        (_enums.NUMA_POLICY, "WB_NUMA_"),
        (_enums.FILE_MODE, "WB_FILE_MODE_"),
        (_enums.ORIGIN, "WB_ORIGIN_"),
        (_enums.PINNING, "WB_PINNING_"),
        (_enums.PHASE, "WB_PHASE_"),
        (_enums.ACCESSOR, "WB_ACCESSOR_"),
        (_enums.ACCESS_PATTERN, "WB_ACCESS_PATTERN_"),
        (_enums.TRANSFER_MODE, "WB_TRANSFER_MODE_"),
        (_enums.PLACEMENT, "WB_PLACEMENT_"),
        (_enums.GROUPING, "WB_GROUPING_"),
        (_enums.HOST_STORE, "WB_HOST_STORE_"),
        (_enums.COMPRESS, "WB_COMPRESS_"),
        (_enums.ORDER, "WB_ORDER_"),
        (_enums.BUDGET_KIND, "WB_BUDGET_"),
        (_enums.ALLOW, "WB_ALLOW_"),
        (_enums.ADDRESS_STATE, "WB_ADDRESS_"),
        (_enums.CODE_DOMAIN, "WB_CODE_"),
        (_enums.TRISTATE, "WB_TRISTATE_"),
    ],
)
def test_words_are_the_names_of_the_constants(words, prefix):
    found = {word.upper().replace("-", "_"): words.code(word) for word in words.words}
    assert found == _constants(prefix)
    assert [words.word(words.code(word)) for word in words.words] == list(words.words)
    with pytest.raises(ValueError, match="use one of"):
        words.code("nonsense")


def test_the_version_is_that_of_the_headers():
    version = _constants("WB_VERSION_")
    assert _abi.VERSION == (version["MAJOR"], version["MINOR"], version["PATCH"])


def test_a_library_of_another_version_is_refused(run_python, tmp_path):
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    other = tmp_path / "libweighbridge.so"
    source = tmp_path / "other.c"
    source.write_text("unsigned wb_version(void) { return 9 << 16 | 8 << 8 | 7; }\n")
    subprocess.run([compiler, "-shared", "-fPIC", source, "-o", other], check=True)
    for library, message in [
        (str(other), "is weighbridge 9.8.7 and this package needs 0.1"),
        (str(tmp_path / "missing.so"), "is not a file"),
        (str(source), "cannot be loaded"),
    ]:
        code, _, errors = run_python("-c", "import weighbridge", WEIGHBRIDGE_LIBRARY=library)
        assert code == 1
        assert "ImportError" in errors
        assert message in errors

"""Freezes the C interface of a release, so that the tests see what later changes do to it.

    python tools/abi.py            writes tests/abi/v<major>/ from include/weighbridge.h, unless it
                                   breaks what is frozen there and the version does not say so
    python tools/abi.py --check    fails when interface.c or symbols.txt there is not what the
                                   frozen header gives

``weighbridge.h`` there is the header as it was released, ``symbols.txt`` its functions, and
``interface.c`` says everything of it that a compiled program relies on: a C compiler checks it
against today's header.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEADER = ROOT / "include" / "weighbridge.h"
FOLDERS = ROOT / "tests" / "abi"

PREAMBLE = """\
/* What a program that was compiled with weighbridge {version} relies on, checked against today's
 * header. Written by tools/abi.py from weighbridge.h beside it; `make abi-freeze` at a release.
 *
 * A function is declared again as it was: a prototype that differs does not compile. A field is
 * where it was, of the type that it had; a struct is at least as large. Reserved fields may have a
 * meaning by now: only their room is looked at. */
#include <stddef.h>

#include <weighbridge.h> /* today's: in quotes it would be the frozen one, which lies beside this */

#define TYPE(type, was) \\
    _Static_assert(__builtin_types_compatible_p(type, was), #type " is no longer " #was)
#define SIZE(type, bytes) _Static_assert(sizeof(type) >= (bytes), #type " has shrunk")
#define FIELD(type, field, offset, was)                                                \\
    _Static_assert(offsetof(type, field) == (offset), #type "." #field " has moved");  \\
    _Static_assert(__builtin_types_compatible_p(__typeof__(((type *)0)->field), was),  \\
                   #type "." #field " is no longer " #was)
#define VALUE(name, was) _Static_assert((name) == (was), #name " is no longer " #was)
"""


class Interface:
    """What a header declares."""

    def __init__(self, text: str) -> None:
        text = re.sub(r"/\*.*?\*/|//[^\n]*", "", text, flags=re.DOTALL).replace("\\\n", " ")
        number = {part: self._one(rf"#define WB_VERSION_{part} (\d+)", text) for part in PARTS}
        self.version = ".".join(number.values())
        self.major = number["MAJOR"]
        # Versions that are alike in it must not break each other.
        self.line = (self.major, number["MINOR"] if self.major == "0" else "")
        self.initials = re.findall(r"^#define (WB_\w+_INIT) ", text, re.MULTILINE)
        self.constants = [
            name
            for name in re.findall(r"^#define (WB_\w+) \S", text, re.MULTILINE)
            if name not in self.initials and not name.startswith("WB_VERSION")
        ]
        text = re.sub(r"^#.*$", "", text, flags=re.MULTILINE)
        text = re.sub(r'extern "C" \{', "", text)
        self.structs = {
            name: [self._field(line) for line in body.split(";") if line.strip()]
            for body, name in re.findall(r"typedef struct \{(.*?)\} (\w+);", text, re.DOTALL)
        }
        text = re.sub(r"typedef struct \{.*?\} \w+;", "", text, flags=re.DOTALL)
        declared = [" ".join(each.split()) for each in text.split(";")]
        function = re.compile(r"(?!typedef)[^(]*\bwb_\w+\(")
        self.functions = [each for each in declared if function.match(each)]
        self.types = []
        for each in declared:
            plain = re.match(r"typedef (\w+) (\w+)$", each)
            pointer = re.match(r"typedef (.*\(\*)(\w+)(\).*)$", each)
            if plain:
                self.types.append((plain[2], plain[1]))
            elif pointer:
                self.types.append((pointer[2], pointer[1] + pointer[3]))
        known = len(self.functions) + len(self.types)
        opaque = [each for each in declared if re.match(r"(typedef )?struct \w+( \w+)?$", each)]
        rest = [each for each in declared if each and each != "}"]
        if known + len(opaque) != len(rest):
            raise SystemExit(f"{len(rest)} declarations, of which {known + len(opaque)} were read")

    @property
    def symbols(self) -> list[str]:
        return sorted(re.search(r"\b(wb_\w+)\(", each)[1] for each in self.functions)  # type: ignore[index]

    @staticmethod
    def _one(pattern: str, text: str) -> str:
        found = re.search(pattern, text)
        if found is None:
            raise SystemExit(f"the header has no {pattern}")
        return found[1]

    @staticmethod
    def _field(text: str) -> tuple[str, str]:
        """A field's name and its type."""
        found = re.fullmatch(r"(.*?)(\w+)((?:\[\w+\])*)", " ".join(text.split()))
        if found is None:
            raise SystemExit(f"no field: {text}")
        return found[2], (found[1].strip() + found[3])


PARTS = ("MAJOR", "MINOR", "PATCH")


def numbers(header: Path, interface: Interface) -> dict[str, int]:
    """Sizes, offsets and values, as the C compiler has them."""
    asked = {f"sizeof {name}": f"sizeof({name})" for name in interface.structs}
    for name, fields in interface.structs.items():
        for field, _ in fields:
            asked[f"{name}.{field}"] = f"offsetof({name}, {field})"
            asked[f"sizeof {name}.{field}"] = f"sizeof((({name} *)0)->{field})"
    asked.update({name: name for name in interface.constants})
    lines = [f'    printf("%lld\\n", (long long)({expression}));' for expression in asked.values()]
    source = "\n".join(
        ["#include <stdio.h>", f'#include "{header}"', "int main(void)", "{", *lines, "}", ""]
    )
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "numbers"
        command = ["cc", "-std=c11", "-x", "c", "-", "-o", str(program)]
        subprocess.run(command, input=source, text=True, check=True)
        output = subprocess.run([str(program)], capture_output=True, text=True, check=True).stdout
    return dict(zip(asked, map(int, output.split())))


def check_no_padding(interface: Interface, number: dict[str, int]) -> None:
    """A field that is added later may lie in what is padding now, which older programs leave."""
    for name, fields in interface.structs.items():
        end = 0
        for field, _ in fields:
            if number[f"{name}.{field}"] != end:
                raise SystemExit(f"{name} has padding before {field}: name it as a reserved field")
            end += number[f"sizeof {name}.{field}"]
        if number[f"sizeof {name}"] != end:
            raise SystemExit(f"{name} has padding at its end: name it as a reserved field")


def interface_c(header: Path, interface: Interface) -> str:
    number = numbers(header, interface)
    check_no_padding(interface, number)
    lines = [PREAMBLE.format(version=interface.version)]
    lines += [f"TYPE({name}, {was.replace('( *', '(*')});" for name, was in interface.types]
    for name, fields in interface.structs.items():
        lines += ["", f"SIZE({name}, {number[f'sizeof {name}']});"]
        lines += [
            f"FIELD({name}, {field}, {number[f'{name}.{field}']}, {kind});"
            for field, kind in fields
            if not field.startswith("reserved")
        ]
    lines.append("")
    for name in interface.constants:
        value = number[name]
        lines.append(f"VALUE({name}, {'UINT64_MAX' if name == 'WB_UNSET' else value});")
    lines.append("")
    lines += [f"#ifndef {name}\n#error {name} is gone\n#endif" for name in interface.initials]
    lines.append("")
    lines += [f"{each};" for each in interface.functions]
    return "\n".join(lines) + "\n"


def files(header: Path) -> dict[str, str]:
    interface = Interface(header.read_text())
    symbols = "".join(f"{name}\n" for name in interface.symbols)
    return {"symbols.txt": symbols, "interface.c": interface_c(header, interface)}


def check_no_break(folder: Path, now: Interface) -> None:
    """Ends the program where today's header breaks the frozen one in the same line of versions."""
    if not (folder / "weighbridge.h").exists():
        return
    before = Interface((folder / "weighbridge.h").read_text())
    gone = sorted(set(before.symbols) - set(now.symbols))
    compiler = ["cc", "-std=c11", "-fsyntax-only", "-I", str(HEADER.parent)]
    compiled = subprocess.run([*compiler, str(folder / "interface.c")]).returncode == 0
    if before.line == now.line and (gone or not compiled):
        what = f"{gone} are gone" if gone else "see above"
        raise SystemExit(f"{now.version} breaks programs of {before.version}: {what}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--check", action="store_true")
    if not parser.parse_args().check:
        now = Interface(HEADER.read_text())
        folder = FOLDERS / f"v{now.major}"
        check_no_break(folder, now)
        folder.mkdir(exist_ok=True)
        (folder / "weighbridge.h").write_text(HEADER.read_text())
        for name, content in files(HEADER).items():
            (folder / name).write_text(content)
        print(f"frozen in {folder.relative_to(ROOT)}")
        return 0
    frozen = sorted(FOLDERS.glob("v*/weighbridge.h"))
    for header in frozen:
        for name, content in files(header).items():
            if (header.parent / name).read_text() != content:
                print(f"{header.parent / name} is not what the frozen header gives")
                return 1
    return 0 if frozen else 1


if __name__ == "__main__":
    sys.exit(main())

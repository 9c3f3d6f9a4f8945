"""Checks the layers: no file imports from a floor above its own, and no files form a circle.

Reads the imports of src, of the Python package, and of the C and C++ headers. Tests may use one
floor more than the code that they test, and may be part of a circle; production code may not.

    python tools/layers.py --check      fails if an import breaks a rule
    python tools/layers.py --self-test  checks that each kind of violation is found
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path

from rust_imports import LITERAL, Crate, Import, blank

ROOT = Path(__file__).resolve().parent.parent

# The floors of src from top to bottom, each a folder or a file of src. A floor may use those below
# it; two on one line may not use each other.
FLOORS = [
    {"capi"},
    {"offload"},
    {"cache"},
    {"plan", "quant", "codec"},
    {"memory"},
    {"device"},
    {"os"},
    {"tensor"},
    {"error"},
    {"status"},
]
# Floors that may use only some of those below them.
ONLY = {"plan": {"os", "tensor", "error", "status"}}
# The only folders and files that may allow unsafe code.
UNSAFE = ("capi", "device/cuda", "os", "device/host/kernels.rs", "device/host/codec.rs")

LEVEL = {name: level for level, names in enumerate(FLOORS) for name in names}


def floor_of(file: Path, src: Path) -> str:
    """The floor that a file of src belongs to."""
    return file.relative_to(src).parts[0].removesuffix(".rs")


def may_use(floor: str, target: str, test: bool) -> bool:
    """Whether a floor may import from another; its tests may go one floor further up."""
    if floor == target or floor == "lib":
        return True
    if test:
        return LEVEL[target] >= LEVEL[floor] - 1
    return LEVEL[target] > LEVEL[floor] and target in ONLY.get(floor, LEVEL)


def rust(root: Path) -> tuple[list[str], list[str], set[Import]]:
    """What is wrong in src, the imports that only tests may make, and all of production code."""
    src = (root / "src").resolve()
    crate = Crate(src / "lib.rs")
    wrong, wider, production = [], set(), set()
    for file in sorted(src.rglob("*.rs")):
        name, text = file.relative_to(src).as_posix(), file.read_text()
        if floor_of(file, src) not in {*LEVEL, "lib"}:
            wrong.append(f"{show(file, root)}: is on no floor: name it in FLOORS or move it")
        if file not in {module.file for module in crate.modules}:
            wrong.append(f"{show(file, root)}: no file declares this module")
        code = LITERAL.sub(blank, text)
        if re.search(r"\b(allow|expect|warn)\s*\([^)]*\bunsafe_code\b", code) and not any(
            name == place or name.startswith((place + "/", place + ".rs")) for place in UNSAFE
        ):
            wrong.append(f"{show(file, root)}: allows unsafe code: only {', '.join(UNSAFE)} may")
        for match in re.finditer(r'\binclude(?:_str|_bytes)?!\s*\(\s*"([^"]+)"', text):
            if code[match.start()] == "i" and src not in (file.parent / match[1]).resolve().parents:
                crate.outside.append((file, text.count("\n", 0, match.start()) + 1, match[1]))
    for file, line, path in crate.outside:
        wrong.append(f"{show(file, root)}:{line}: takes {path} into src from outside of src")
    seen = set()
    for edge in sorted(crate.imports()):
        floor, target = floor_of(edge.file, src), floor_of(edge.target, src)
        if not edge.test:
            production.add(edge)
        pair = (edge.file, edge.target, edge.test)
        if pair in seen or floor not in {*LEVEL, "lib"} or target not in LEVEL:
            continue
        seen.add(pair)
        text = f"{show(edge.file, root)}:{edge.line}: {floor} imports {show(edge.target, root)}"
        if not may_use(floor, target, edge.test):
            allowed = ONLY.get(floor) or {name for name in LEVEL if LEVEL[name] > LEVEL[floor]}
            below = ", ".join(sorted(allowed, key=LEVEL.__getitem__)) or "no other floor"
            wrong.append(
                f"{text}: {'tests of ' * edge.test}{floor} may use {below}"
                + " and one floor more" * edge.test
            )
        elif edge.test and not may_use(floor, target, False):
            wider.add(text)
    for file, line, path in crate.unresolved:
        wrong.append(f"{show(file, root)}:{line}: cannot find where {path} is defined")
    return wrong, sorted(wider), production


def python(package: Path) -> Iterator[Import]:
    """The imports between the files of a Python package, within functions too."""
    package = package.resolve()
    files = {}
    for file in sorted(package.rglob("*.py")):
        parts = file.relative_to(package.parent).with_suffix("").parts
        files[parts[:-1] if parts[-1] == "__init__" else parts] = file
    for name, file in files.items():
        tree = ast.parse(file.read_text())
        typing_only = {
            id(below)
            for node in ast.walk(tree)
            if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
            for statement in node.body
            for below in ast.walk(statement)
        }
        for node in ast.walk(tree):
            if not isinstance(node, (ast.Import, ast.ImportFrom)) or id(node) in typing_only:
                continue
            if isinstance(node, ast.Import):
                targets = [tuple(alias.name.split(".")) for alias in node.names]
            else:
                here = name if file.name == "__init__.py" else name[:-1]
                base = here[: len(here) + 1 - node.level] if node.level else ()
                base += tuple(node.module.split(".")) if node.module else ()
                modules = [(*base, alias.name) for alias in node.names]
                targets = [module if module in files else base for module in modules]
            for target in targets:
                if files.get(target, file) != file:
                    yield Import(file, node.lineno, files[target], False)


def headers(folders: Iterable[Path]) -> Iterator[Import]:
    """The includes between the headers of some folders, found from any of them."""
    folders = [folder.resolve() for folder in folders]
    for folder in folders:
        for file in sorted([*folder.rglob("*.h"), *folder.rglob("*.hpp")]):
            text = re.sub(r"/\*.*?\*/|//[^\n]*", blank, file.read_text(), flags=re.DOTALL)
            for match in re.finditer(r'^\s*#\s*include\s*["<]([^">]+)[">]', text, re.MULTILINE):
                for place in [file.parent, *folders]:
                    if (target := (place / match[1]).resolve()).is_file():
                        line = text.count("\n", 0, match.start(1)) + 1
                        yield Import(file, line, target, False)
                        break


def circles(edges: Iterable[Import], root: Path) -> Iterator[str]:
    """For each file that imports itself through others, a shortest circle, once."""
    uses: dict[Path, dict[Path, int]] = {}
    for edge in sorted(edges, reverse=True):
        uses.setdefault(edge.file, {})[edge.target] = edge.line
    done: set[Path] = set()
    for start in sorted(uses):
        came_from: dict[Path, Path] = {}
        queue = deque([start])
        while queue and start not in came_from:
            file = queue.popleft()
            for target in uses.get(file, {}):
                if target not in came_from:
                    came_from[target] = file
                    queue.append(target)
        if start not in came_from or start in done:
            continue
        circle = [start, came_from[start]]
        while circle[-1] != start:
            circle.append(came_from[circle[-1]])
        circle.reverse()
        done.update(circle)
        steps = [
            f"    {show(file, root)}:{uses[file][target]} imports {show(target, root)}"
            for file, target in zip(circle, circle[1:])
        ]
        yield "\n".join(["files import each other in a circle:", *steps])


def show(file: Path, root: Path) -> str:
    """A file's path in the repository."""
    return file.relative_to(root.resolve()).as_posix()


def check(root: Path) -> tuple[list[str], list[str]]:
    """What is wrong in a repository, and the imports that only tests may make."""
    wrong, wider, edges = rust(root)
    wrong += circles(edges, root)
    wrong += circles(python(root / "bindings/python/src/weighbridge"), root)
    wrong += circles(headers([root / "include", root / "bindings/cpp"]), root)
    return wrong, wider


def main() -> int:
    """Prints what is wrong; 1 if anything is."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="check the repository (the default)")
    parser.add_argument("--self-test", action="store_true", help="check the check itself")
    parser.add_argument("--root", type=Path, default=ROOT, help="another checkout")
    given = parser.parse_args()
    if given.self_test:
        import layers_cases

        return layers_cases.run(check)
    wrong, wider = check(given.root)
    if wider:
        print("tests that use one floor more than their code may:", *wider, sep="\n    ")
    for line in wrong:
        print(line)
    print(f"layers: {len(wrong)} violations" if wrong else "layers: every import looks down")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

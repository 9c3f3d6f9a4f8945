"""Which file of a Rust crate imports which other: what tools/layers.py checks.

Reads ``mod``, ``use`` and paths in code and resolves them as the compiler does, as far as that
needs no types: a path leads to the file that defines the item, through every re-export. A file that
only declares modules and re-exports defines nothing, so no import ends there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Optional

LITERAL = re.compile(
    r'//[^\n]*|/\*.*?\*/|\bb?r(#*)".*?"\1|"(?:\\.|[^"\\])*"|\'(?:\\.[^\n\']*|[^\'\\\n])\'',
    re.DOTALL,
)
MODULE = re.compile(
    r"(?P<attributes>(?:#\[[^\]]*\]\s*)*)(?:pub\s*(?:\([^)]*\)\s*)?)?"
    r"\bmod\s+(?P<name>\w+)\s*(?P<end>[;{])"
)
USE = re.compile(r"(?<![\w:])use\s+(?P<tree>[^;]+);")
ITEM = re.compile(
    r"(?:\b(?:fn|struct|enum|union|trait|type|static(?:\s+mut)?|const)|\bmacro_rules!)\s+(?:r#)?(\w+)"
)
PATH = re.compile(r"(?<![\w:.])[a-z_]\w*(?:\s*::\s*\w+)+")
TEST = re.compile(r"#\[cfg\((?:test\b|all\([^\]]*\btest\b)[^\]]*\]")
ATTRIBUTE_OR_PUB = re.compile(r"#!?\[[^\]]*\]|\bpub\s*(?:\([^)]*\))?")

Files = Optional[set[Path]]
Seen = frozenset[tuple[int, str]]


class Import(NamedTuple):
    """A file names something that another file defines."""

    file: Path
    line: int
    target: Path
    test: bool


@dataclass
class Module:
    """A module: a file, or a block within one."""

    file: Path
    parent: Module | None
    test: bool
    children: dict[str, list[Module]] = field(default_factory=dict)
    items: set[str] = field(default_factory=set)
    names: dict[str, list[list[str]]] = field(default_factory=dict)
    globs: list[list[str]] = field(default_factory=list)
    paths: list[tuple[int, bool, list[str]]] = field(default_factory=list)
    has_code: bool = False


def blank(match: re.Match[str]) -> str:
    """Spaces in place of a match; its lines stay."""
    return re.sub(r"[^\n]", " ", match.group())


def closing(code: str, start: int) -> int:
    """The position after the bracket that closes the one at ``start``."""
    depth = 0
    for match in re.compile(r"[][(){}]").finditer(code, start):
        depth += 1 if match.group() in "([{" else -1
        if depth == 0:
            return match.end()
    return len(code)


def item_end(code: str, at: int) -> int:
    """The position after the item that begins at ``at``, with its attributes."""
    while match := re.compile(r"[;{(\[]").search(code, at):
        if match.group() == ";":
            return match.end()
        at = closing(code, match.start())
        if match.group() == "{":
            return at
    return len(code)


def outermost(code: str) -> str:
    """The code without what is in braces."""
    kept, at = "", 0
    while (brace := code.find("{", at)) >= 0:
        kept += code[at:brace] + ";"
        at = closing(code, brace)
    return kept + code[at:]


def leaves(tree: str) -> list[list[str]]:
    """The paths of a use tree; the last part is a new name, or ``*``."""
    prefix, brace, rest = tree.strip().partition("{")
    if not brace:
        path, _, alias = prefix.partition(" as ")
        parts = [part.strip().removeprefix("r#") for part in path.split("::") if part.strip()]
        if parts[-1] == "self" and len(parts) > 1:
            parts.pop()
        return [[*parts, alias.strip() or parts[-1]]] if parts[-1] != "*" else [parts]
    found, start, depth = [], 0, 0
    for at, character in enumerate(rest):
        if character in ",}" and depth == 0:
            if rest[start:at].strip():
                found += leaves(prefix + rest[start:at])
            start = at + 1
        depth += (character == "{") - (character == "}")
    return found


class Crate:
    """All modules of a crate."""

    def __init__(self, root: Path) -> None:
        self.folder = root.parent.resolve()
        self.modules: list[Module] = []
        self.outside: list[tuple[Path, int, str]] = []
        self.unresolved: list[tuple[Path, int, str]] = []
        self.root = self.read(root.resolve(), None, False)
        self.defining = {module.file for module in self.modules if module.has_code}

    def read(self, file: Path, parent: Module | None, test: bool) -> Module:
        """Reads the module of a file and all below it."""
        module = Module(file, parent, test or file.name == "tests.rs")
        own_folder = file.stem == "mod" or parent is None
        text = file.read_text()
        folder = file.parent if own_folder else file.parent / file.stem
        self.read_block(module, text, LITERAL.sub(blank, text), 0, folder)
        return module

    def read_block(self, module: Module, text: str, code: str, start: int, folder: Path) -> None:
        """Reads the code of a module, which is at ``start`` in the text of its file."""
        self.modules.append(module)
        parts = [(match.start(), item_end(code, match.end())) for match in TEST.finditer(code)]

        def place(at: int) -> tuple[int, bool]:
            test = module.test or any(begin <= at < end for begin, end in parts)
            return text.count("\n", 0, start + at) + 1, test

        while match := MODULE.search(code):
            name, begin, end = match["name"], match.start(), match.end()
            line, test = place(match.start("name"))
            below = module.children.setdefault(name, [])
            if match["end"] == "{":
                end = closing(code, end - 1)
                below.append(Module(module.file, module, test))
                inner = code[match.end() : end - 1]
                self.read_block(below[-1], text, inner, start + match.end(), folder / name)
            else:
                attributes = text[start + begin : start + match.start("name")]
                given = re.search(r'\bpath\s*=\s*"([^"]+)"', attributes)
                files = [folder / f"{name}.rs", folder / name / "mod.rs"]
                if given:
                    files = [(module.file.parent / given[1]).resolve()]
                    if self.folder not in files[0].parents:
                        self.outside.append((module.file, line, given[1]))
                        files = []
                below.extend(self.read(file, module, test) for file in files if file.is_file())
            code = code[:begin] + re.sub(r"[^\n]", " ", code[begin:end]) + code[end:]
        for match in USE.finditer(code):
            for *path, name in leaves(match["tree"]):
                if name == "*":
                    module.globs.append(path)
                else:
                    module.names.setdefault(name, []).append(path)
                module.paths.append((*place(match.start()), [*path, "*"] if name == "*" else path))
        code = USE.sub(blank, code)
        module.items = set(ITEM.findall(outermost(code)))
        module.has_code = not module.test and bool(ATTRIBUTE_OR_PUB.sub("", code).strip())
        for match in PATH.finditer(code):
            path = [part.strip() for part in match.group().split("::")]
            module.paths.append((*place(match.start()), path))

    def imports(self) -> set[Import]:
        """Every import of one file from another."""
        found = set()
        for module in self.modules:
            for line, test, path in module.paths:
                self.at = (module.file, line)
                for target in self.resolve(module, path, frozenset(), False) or ():
                    if target != module.file:
                        found.add(Import(module.file, line, target, test))
        return found

    def resolve(self, module: Module, path: list[str], seen: Seen, strict: bool) -> Files:
        """The files that define what a path in a module names; None for another crate's."""
        if path[0] not in {"crate", "self", "super"}:
            return self.member(module, path, seen, strict)
        anchor: Module | None = self.root if path[0] == "crate" else module
        while path and path[0] in {"crate", "self", "super"}:
            if path[0] == "super":
                anchor = anchor.parent if anchor else None
            path = path[1:]
        return self.within(anchor, path, seen, strict) if anchor else None

    def within(self, module: Module, path: list[str], seen: Seen, strict: bool) -> Files:
        """As ``member``; what a macro may define counts as the module's unless ``strict``."""
        found = self.member(module, path, seen, strict)
        if found is None and not strict:
            if module.file not in self.defining and not module.test:
                self.unresolved.append((*self.at, "::".join(path)))
            return {module.file}
        return found

    def member(self, module: Module, path: list[str], seen: Seen, strict: bool) -> Files:
        """The files that define what a path names in a module; None if nothing there does."""
        own = {module.file} if module.test else {module.file} & self.defining
        if not path:
            return own
        first, rest = path[0], path[1:]
        if (id(module), first) in seen:
            return None
        seen |= {(id(module), first)}
        if first == "*":
            named = [target for targets in module.names.values() for target in targets]
            return own or self.union(
                self.resolve(module, target, seen, strict) for target in named + module.globs
            )
        if first in module.children:
            inside = [self.within(child, rest, seen, strict) for child in module.children[first]]
            return None if inside and None in inside else self.union(inside)
        if first in module.items:
            return {module.file}
        if first in module.names:
            targets = module.names[first]
            found = self.union(
                self.resolve(module, [*target, *rest], seen, strict) for target in targets
            )
            return found or own
        for glob in module.globs:
            if by_glob := self.resolve(module, [*glob, *path], seen, True):
                return by_glob
        return None

    @staticmethod
    def union(parts: Iterable[Files]) -> set[Path]:
        """All files of the parts."""
        return {file for part in parts if part for file in part}

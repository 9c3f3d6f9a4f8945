"""Finds house idioms in comments, documents, messages and names, and names the plain term.

A reader who knows CUDA and memory allocators must not need a translation. The list, and how its
patterns are matched, is in idioms.py. Test names and other names of four words or more count as
text. What a document quotes from another file, and generated files, are not read.

``--check`` prints every finding as ``file:line`` and exits with 1 if there is one, ``--summary``
prints the number of findings in each file and of each pattern. Paths limit both to some files.
"""

from __future__ import annotations

import argparse
import bisect
import collections
import functools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from idioms import IDIOMS, Idiom, In

ROOT = Path(__file__).resolve().parent.parent


# Text that is not written here, or that repeats another file.
SKIPPED = re.compile(
    r"\.(ptx|lock|json|svg|png|whl|safetensors)$|(^|/)Cargo\.lock$|^LICENSE$|^THIRD-PARTY\.md$"
    r"|^tests/abi/v\d+/|^tools/(words|idioms)\.py$|^fuzz/(seeds|crashes|dictionaries)/"
)
PROSE = {".md", ".txt", ".in"}
C_LIKE = {".rs", ".c", ".h", ".hpp", ".cpp", ".cu"}

TOKENS_C = re.compile(
    r'(?P<comment>//[^\n]*|/\*.*?\*/)|(?P<string>r(?P<hashes>#*)".*?"(?P=hashes)|"(?:\\.|[^"\\])*")'
    r"|'(?:\\.[^\n']*|[^'\\\n])'",
    re.DOTALL,
)
TOKENS_PYTHON = re.compile(
    r"(?P<comment>#[^\n]*)|(?P<string>\b[rbfuRBFU]{0,2}"
    r"(?:\"\"\".*?\"\"\"|'''.*?'''|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*')"
    r"|\"\"\".*?\"\"\"|'''.*?'''|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*')",
    re.DOTALL,
)
TOKENS_HASH = re.compile(
    r'(?P<comment>(?:^|(?<=\s))#[^\n]*)|(?P<string>""".*?"""|"(?:\\.|[^"\\\n])*")', re.DOTALL | re.M
)
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


END_OF_PART = "\n\0\n"


class Finding(NamedTuple):
    """A phrase that a pattern matches, and where."""

    path: str
    line: int
    phrase: str
    idiom: Idiom


class Text:
    """Running text: lines joined by single spaces, with the line number of every position.

    Its parts, one after another, are searched at once; no pattern matches across their ends.
    """

    def __init__(self, where: In) -> None:
        self.where = where
        self.starts: list[int] = []
        self.numbers: list[int] = []
        self.content = ""

    def add(self, number: int, line: str) -> None:
        """Adds a line; an empty one ends a paragraph."""
        line = " ".join(line.split())
        if self.content and not self.content.endswith("\n"):
            self.content += " " if line else "\n"
        self.starts.append(len(self.content))
        self.numbers.append(number)
        self.content += line

    def end_part(self) -> None:
        """Ends a part, if it has text."""
        if self.content and not self.content.endswith(END_OF_PART):
            self.content += END_OF_PART

    def line(self, position: int) -> int:
        """The line number of a position."""
        return self.numbers[bisect.bisect_right(self.starts, position) - 1]


def words_of(name: str) -> str:
    """A name as its words: ``SlotRing`` and ``slot_ring`` are "slot ring"."""
    return " ".join(CAMEL.sub(" ", name).replace("_", " ").replace("-", " ").lower().split())


def prose(content: str, name: str) -> list[Text]:
    """A document's paragraphs and table rows, without what is quoted from other files."""
    text = Text(In.DOCUMENT)
    quoted = False
    for number, line in enumerate(content.splitlines(), 1):
        if line.startswith("<!-- quote:"):
            quoted = True
        quoted = quoted and not line.startswith("<!-- end")
        if quoted or (name == "CHANGELOG.md" and line.startswith("|")):
            continue
        if line.startswith(("|", "#", "- ", "* ")) or not line.strip():
            text.end_part()
        text.add(number, line)
    return [text]


def source(content: str, tokens: re.Pattern[str]) -> tuple[list[Text], dict[str, int]]:
    """The comments and strings of a source file, and the first line of each of its names."""
    newlines = [at for at, character in enumerate(content) if character == "\n"]
    texts = {In.COMMENT: Text(In.COMMENT), In.STRING: Text(In.STRING)}
    last: In | None = None
    names: dict[str, int] = {}
    end = 0

    def code(start: int, stop: int) -> None:
        for match in NAME.finditer(content, start, stop):
            if match.group() not in names:
                names[match.group()] = bisect.bisect_left(newlines, match.start()) + 1

    for match in tokens.finditer(content):
        where = In.COMMENT if match.lastgroup == "comment" else In.STRING
        gap = content[end : match.start()]
        code(end, match.start())
        end = match.end()
        if match.group("comment") is None and match.group("string") is None:
            continue
        first = bisect.bisect_left(newlines, match.start()) + 1
        if last is not where or gap.strip() or gap.count("\n") >= 2:
            texts[where].end_part()
        last = where
        for number, line in enumerate(match.group().split("\n"), first):
            if where is In.COMMENT:
                line = re.sub(r"^\s*(/\*+|//[/!]?|\*(?!/)|#+)|\*+/\s*$", "", line)
            else:
                line = re.sub(r"^\s*\* |^[rbfu]*#*\"+|\"+#*$|\\$|\\n", " ", line)
            texts[where].add(number, line)
    code(end, len(content))
    return list(texts.values()), names


def read(root: Path, path: str) -> tuple[list[Text], dict[str, int]]:
    """The texts and the names of a file."""
    file = root / path
    content = file.read_text(errors="replace")
    if file.suffix in PROSE and file.name != "CMakeLists.txt":
        return prose(content, path), {}
    if file.suffix in C_LIKE:
        return source(content, TOKENS_C)
    if file.suffix in {".py", ".pyi"}:
        return source(content, TOKENS_PYTHON)
    return source(content, TOKENS_HASH)


COMPILED = [(re.compile(idiom.pattern, re.IGNORECASE | re.MULTILINE), idiom) for idiom in IDIOMS]


@functools.cache
def idioms_in(name: str) -> tuple[Idiom, ...]:
    """The idioms in a name, which is used in many files."""
    spoken = words_of(name)
    where = In.NAME | In.COMMENT if spoken.count(" ") > 2 else In.NAME
    return tuple(
        idiom for pattern, idiom in COMPILED if idiom.where & where and pattern.search(spoken)
    )


def find(root: Path, path: str) -> Iterator[Finding]:
    """The findings of one file."""
    for part in Path(path).parts:
        for pattern, idiom in COMPILED:
            if idiom.where & In.FILE and pattern.search(words_of(part.split(".")[0])):
                yield Finding(path, 1, f"{part} (file name)", idiom)
    texts, names = read(root, path)
    for text in texts:
        for pattern, idiom in COMPILED:
            if idiom.where & text.where:
                for match in pattern.finditer(text.content):
                    yield Finding(path, text.line(match.start()), match.group(), idiom)
        for match in NAME.finditer(text.content):
            if "_" in match.group() or CAMEL.search(match.group()):
                names.setdefault(match.group(), text.line(match.start()))
    for name, line in names.items():
        for idiom in idioms_in(name):
            yield Finding(path, line, f"{name} (name)", idiom)


def tracked(root: Path, limits: list[str]) -> list[str]:
    """The repository's text files, of those paths if any are given."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--", *limits], cwd=root, check=True, capture_output=True
    ).stdout.decode()
    paths = [path for path in listed.split("\0") if path and not SKIPPED.search(path)]
    return [path for path in paths if (root / path).is_file() and is_text(root / path)]


def is_text(file: Path) -> bool:
    """Whether a file holds text."""
    with file.open("rb") as opened:
        return b"\0" not in opened.read(4096)


def main() -> int:
    """Prints the findings; 1 when there are any."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="print each finding (the default)")
    parser.add_argument("--summary", action="store_true", help="print counts only")
    parser.add_argument("paths", nargs="*", help="files or folders; all tracked files by default")
    parser.add_argument("--root", type=Path, default=ROOT, help="another checkout")
    given = parser.parse_args()
    paths = tracked(given.root, given.paths)
    findings = sorted(
        (finding for path in paths for finding in find(given.root, path)),
        key=lambda found: found[:3],
    )
    if given.summary:
        by_pattern = collections.Counter(found.idiom.pattern for found in findings)
        for pattern, count in by_pattern.most_common():
            print(f"{count:6}  {pattern}")
        by_file = collections.Counter(found.path for found in findings)
        for path, count in by_file.most_common():
            print(f"{count:6}  {path}")
    else:
        for found in findings:
            print(f'{found.path}:{found.line}: "{found.phrase}": write: {found.idiom.instead}')
    print(f"{len(findings)} findings in {len(paths)} files" if findings else "words: clean")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())

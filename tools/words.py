"""Finds house idioms in comments, documents, messages and names, and names the plain term.

A reader who knows CUDA and memory allocators must not need a translation. ``WORDS`` is the list: a
pattern, what to write instead, and where it applies. A pattern is matched without regard to case
against running text: line breaks within a comment, a paragraph or a string count as one space, and
a name is read as its words (``letGo``, ``LetGo`` and ``let_go`` are all "let go").

``--check`` prints every finding as ``file:line`` and exits with 1 if there is one, ``--summary``
prints the number of findings in each file and of each pattern. Paths limit both to some files.
"""

from __future__ import annotations

import argparse
import bisect
import collections
import enum
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent


class In(enum.Flag):
    """Where a pattern applies."""

    COMMENT = enum.auto()
    DOCUMENT = enum.auto()
    STRING = enum.auto()
    NAME = enum.auto()
    FILE = enum.auto()
    TEXT = COMMENT | DOCUMENT | STRING
    NAMES = NAME | FILE
    ALL = TEXT | NAMES


class Word(NamedTuple):
    """A pattern that is not used here, and what to write instead."""

    pattern: str
    instead: str
    where: In = In.TEXT


PARTICIPLES = (
    "acquired|added|allowed|captured|carried|copied|dense|due|exported|freed|given|kept|loaded"
    "|mapped|offloaded|pageable|pinned|refused|registered|released|replaced|resident|selected"
    "|sparse|tied"
)

WORDS = [
    # A sentence says who does what.
    Word(r"\banswer(s|ed|ing)\b", "returns, fills `info`, fails with WB_ERR_X"),
    Word(r"\btold\b(?! apart)", "is notified, receives, is passed; progress is reported"),
    Word(r"\b(asks?|asking) the (kernel|driver|platform|system)\b", "queries the kernel"),
    Word(r"\b(driver|kernel|platform|cgroup|group) is (not )?asked\b", "is queried"),
    Word(r"\basked of (the|it|a)\b", "queried from the driver, required of the caller"),
    Word(
        r"\b(say|says|said|tells?|knows?|known) of (a|an|the|it|its|them|this|each|every)\b",
        "describes, reports, is known about",
    ),
    Word(r"\b(no|some|any)body\b", "name the subject: no thread, another owner, the caller"),
    Word(r"\bwhoever\b", "name the subject: the caller that, the thread that"),
    Word(
        r"(^|(?<=[.:;,] ))who (calls?|gives?|holds?|locks|looks|makes?|needs?|owns?|unlocks"
        r"|waits?)\b",
        "name the subject: a caller that, the thread that, the owner",
    ),
    Word(
        r"\bwho (looks|(is|are) (told|looking|making|in it)|need not)\b",
        "name the subject; of a view: accessor, host or device",
    ),
    Word(rf"\bwhat (is|was|are|were) ({PARTICIPLES})\b", "name the thing: tied parameters"),
    Word(r"\bwhat (is|was) (already )?queued\b", "work queued on the stream, queued work"),
    Word(
        r"\bwhat (leaves|stays|moves|lies|lives|outgrows|outgrew|comes|goes)\b",
        "name the thing: parameters that stay",
    ),
    Word(r"\bwhat becomes of\b", "the planned placement of"),
    Word(
        r"\bwhat (an engine|a caller|a platform) (says|asks|wants|is)\b",
        "describes one model parameter, options of",
    ),
    Word(r"\b(what|that|which) (is|are|was|were) (not )?there\b", "exists, is present, existing"),
    Word(r"\bthat there (is|are)(?=[.,;:)]|$)", "existing, available"),
    Word(r"\bwhere there (is|are) (none|one)\b", "if there is none; name the thing"),
    Word(
        r"(?<!there )\b(is|are|was|were) no (?!longer|more|less|fewer|other|greater|larger|later"
        r"|earlier|faster|slower|different|further|worse|better)[a-z]\w*",
        "is not a",
    ),
    Word(r"\b(is|are|was|were) no more\b(?! than)", "no longer exists"),
    Word(r"\bthat (is|are|was|were) none\b", "that was not returned by, is not a"),
    Word(r"\bas (it is|they are|it was|it were)(?=[.,;:)]|$)", "unchanged"),
    Word(r"\bas (it|they|he) would be at best\b", "the reason for the fallback"),
    # Ownership and place.
    Word(
        r"\b(ours|theirs)\b",
        "owned by the offloader or the library; borrowed, the caller's",
        In.ALL,
    ),
    Word(r"\bof (its|their|our|one's) own\b", "its own X, a separate X"),
    Word(
        r"\b(ha(s|ve|d)|by|under) (its|their) own names?\b",
        "say which function: use an explicit copy",
    ),
    Word(r"\b(where|as) (it|they) (lies?|lay)\b", "in place; existing memory cannot be moved"),
    Word(r"\b(lies?|lay|lying) side by side\b", "is contiguous, is adjacent"),
    Word(r"\bone behind the other\b", "consecutive, contiguous"),
    Word(r"\bbehind (its|the) end\b|\baddress behind\b", "past the end"),
    Word(
        r"\b(runs?|ran|queued|set|copied|goes|go|filled) (it |them )?behind\b",
        "after, stream-ordered after",
    ),
    Word(r"\broom\b", "space, free space, capacity, budget", In.ALL),
    Word(r"\b(lent|lends?|lending)\b", "borrowed", In.ALL),
    Word(r"\bgiv(e|es|en|ing) back\b|\bgave back\b", "frees, releases, unregisters, returns"),
    Word(
        r"\b(give|gives|given|giving|gave) (it|them|one|memory|the \w+|a \w+|its \w+) back\b",
        "frees, releases, unregisters, returns",
    ),
    Word(
        r"\b(memory|mappings?|pages?|buffers?|it|they|references?|context) (goes|go|went) back\b",
        "is freed, is released",
    ),
    Word(
        r"\b(memory|buffer|reference|staging memory) goes(?=[.,;:)]| next|$)",
        "is freed, is released",
    ),
    Word(r"\b(let|lets|letting) go\b", "release, released", In.ALL),
    Word(r"\blet through\b", "NULL is a no-op, is accepted"),
    Word(r"\b(be|been) had\b", "is available, cannot be allocated"),
    Word(r"\bcame about\b", "origin"),
    Word(r"\bhangs on\b", "is attached to, is local to"),
    Word(r"\bin memory of the (engine|caller)'s own\b", "in the engine's memory"),
    # Movement of bytes.
    Word(
        r"\b(what|bytes?|numbers|rows|chunks?|tensors?|weights?) (that )?"
        r"(is|are|was|were|could not be|not) brought\b",
        "copied, loaded",
    ),
    Word(r"\bbrought (in|into|to|away|by|aside|back)\b", "copied, loaded, staged"),
    Word(
        r"\bbring(s|ing)? (the |its |their )?(bytes|tensors?|numbers|rows|chunks?|them there)\b",
        "copies, loads",
    ),
    Word(r"\bthe way back\b", "dequantizes, the reverse"),
    Word(r"\b(the|a|no|its|their) way (in|out)\b", "input, output, alternative, fallback"),
    Word(r"\bon (its|their|the) way\b", "in flight, being copied"),
    Word(r"'s (own )?way (in|into|to|through)\b", "the copy of a unit into its slot"),
    Word(r"\bunder way\b", "in flight, in progress"),
    Word(r"\bby way of\b", "through, staged through"),
    Word(r"\bcarriers?\b", "transfer mode", In.ALL),
    Word(r"\bbounced?\b", "staging", In.ALL),
    Word(
        r"\b(to|from) 8 bits\b|\bkept in 8 bits\b|\b8 bits and back\b",
        "quantized to FP8, dequantized",
    ),
    Word(r"\b(wide|narrow) (numbers?|side|types?|dtypes?)\b", "source type, FP8 values", In.ALL),
    Word(
        r"\bodd (numbers?|values?|ones?)\b|\b(refuse|refuses|count|counts) odd\b",
        "non-finite (NaN or infinity)",
        In.ALL,
    ),
    Word(r"\bso many (bytes|rows|groups|columns|of)\b", "`bytes` bytes, this many"),
    Word(r"\bthe most (bytes|of|that)\b", "peak, maximum"),
    Word(r"\bas many as (serve|help)\b", "0 selects a default"),
    Word(r"\b(be|are|were) as many\b(?! as)", "equal in number"),
    # The ring.
    Word(r"\b(seats?|seated|seating)\b", "slot, slot ring, slot packing, assigns slots", In.ALL),
    Word(r"\bguests?\b", "slot request", In.ALL),
    Word(r"\bsits? on (a|its|the) neighbou?r\b", "units that are in flight together never overlap"),
    Word(r"\bsettl(e|es|ed|ing)\b", "best_effort; decides, resolves", In.ALL),
    Word(r"\bdrafts?\b", "placement, candidate", In.NAMES),
    Word(r"\b(scheme|schemes)\b", "QuantizeOptions", In.NAMES),
    Word(r"\b(keeping)\b", "commit", In.FILE),
    Word(r"\bpictures?\b", "svg, chart", In.NAMES),
    # Riddles.
    Word(
        r"\b(platform|driver|device|kernel|machine)'s truth\b", "capabilities and effective policy"
    ),
    Word(r"\b(offloaded|nothing|device) is a warning\b", "downgrades WB_ERR_X to a warning"),
    Word(r"^0\.$", "Reserved; must be zero."),
    Word(r"\bouts?gr(ow|ows|ew)\b", "does not fit, is oversized"),
    Word(r"\b(can|cannot|can't) be meant\b", "is certainly a mistake"),
    Word(r"\b(is|are|was|were) meant(?=[.,;:)]|$)", "is selected, matches"),
    Word(r"\bsees? fit\b", "chosen automatically"),
    Word(r"\bas (the )?\w+( and (the )?\w+)? ha(s|ve) it\b", "as configured by"),
    Word(r"\bgoes by\b", "uses"),
    Word(r"\ball the same\b", "anyway, still"),
    Word(r"\b(wished|without a wish|the wish)\b", "requested, the request"),
    Word(r"\blook(s|ed|ing)? through\b", "scans, reads through"),
    Word(r"\bjudged\b", "validated, checked"),
    Word(r"\bthe words? for it\b", "its name"),
    Word(r"\bdawdles?\b", "is delayed", In.ALL),
    Word(r"\b(streams?|waits?|one|ones) that (is|are) over\b", "that have finished"),
    Word(r"\b(is|are) (not )?taken here\b", "is accepted, is not supported"),
    Word(r"\bfor want of\b", "because there is no"),
]

# Text that is not written here, or that repeats another file.
SKIPPED = re.compile(
    r"\.(ptx|lock|json|svg|png|whl|safetensors)$|(^|/)Cargo\.lock$|^LICENSE$|^THIRD-PARTY\.md$"
    r"|^tests/abi/v\d+/|^tools/words\.py$|^fuzz/(seeds|found|corpus)/"
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


class Finding(NamedTuple):
    """A phrase that a pattern matches, and where."""

    path: str
    line: int
    phrase: str
    word: Word


class Text:
    """Running text: lines joined by single spaces, with the line number of every position."""

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

    def line(self, position: int) -> int:
        """The line number of a position."""
        return self.numbers[bisect.bisect_right(self.starts, position) - 1]


def words_of(name: str) -> str:
    """A name as its words: ``SlotRing`` and ``slot_ring`` are "slot ring"."""
    return " ".join(CAMEL.sub(" ", name).replace("_", " ").replace("-", " ").lower().split())


def prose(content: str, name: str) -> list[Text]:
    """A document's paragraphs and table rows, without what is quoted from other files."""
    texts = [Text(In.DOCUMENT)]
    quoted = False
    for number, line in enumerate(content.splitlines(), 1):
        if line.startswith("<!-- quote:"):
            quoted = True
        quoted = quoted and not line.startswith("<!-- end")
        if quoted or (name == "CHANGELOG.md" and line.startswith("|")):
            continue
        if line.startswith(("|", "#", "- ", "* ")) or not line.strip():
            texts.append(Text(In.DOCUMENT))
        texts[-1].add(number, line)
    return texts


def source(content: str, tokens: re.Pattern[str]) -> tuple[list[Text], dict[str, int]]:
    """The comments and strings of a source file, and the first line of each of its names."""
    newlines = [at for at, character in enumerate(content) if character == "\n"]
    texts: list[Text] = []
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
        joined = texts and texts[-1].where is where and not gap.strip() and gap.count("\n") < 2
        if not joined:
            texts.append(Text(where))
        for number, line in enumerate(match.group().split("\n"), first):
            if where is In.COMMENT:
                line = re.sub(r"^\s*(/\*+|//[/!]?|\*(?!/)|#+)|\*+/\s*$", "", line)
            else:
                line = re.sub(r"^\s*\* |^[rbfu]*#*\"+|\"+#*$|\\$|\\n", " ", line)
            texts[-1].add(number, line)
    code(end, len(content))
    return texts, names


def read(path: str) -> tuple[list[Text], dict[str, int]]:
    """The texts and the names of a file."""
    file = ROOT / path
    content = file.read_text(errors="replace")
    if file.suffix in PROSE:
        return prose(content, path), {}
    if file.suffix in C_LIKE:
        return source(content, TOKENS_C)
    if file.suffix in {".py", ".pyi"}:
        return source(content, TOKENS_PYTHON)
    return source(content, TOKENS_HASH)


COMPILED = [(re.compile(word.pattern, re.IGNORECASE), word) for word in WORDS]


def find(path: str) -> Iterator[Finding]:
    """The findings of one file."""
    for part in Path(path).parts:
        for pattern, word in COMPILED:
            if word.where & In.FILE and pattern.search(words_of(part.split(".")[0])):
                yield Finding(path, 1, f"{part} (file name)", word)
    texts, names = read(path)
    for text in texts:
        for pattern, word in COMPILED:
            if word.where & text.where:
                for match in pattern.finditer(text.content):
                    yield Finding(path, text.line(match.start()), match.group(), word)
        for match in NAME.finditer(text.content):
            if "_" in match.group() or CAMEL.search(match.group()):
                names.setdefault(match.group(), text.line(match.start()))
    for name, line in names.items():
        spoken = words_of(name)
        for pattern, word in COMPILED:
            if word.where & In.NAME and pattern.search(spoken):
                yield Finding(path, line, f"{name} (name)", word)


def tracked(limits: list[str]) -> list[str]:
    """The repository's text files, of those paths if any are given."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--", *limits], cwd=ROOT, check=True, capture_output=True
    ).stdout.decode()
    paths = [path for path in listed.split("\0") if path and not SKIPPED.search(path)]
    return [path for path in paths if (ROOT / path).is_file() and is_text(ROOT / path)]


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
    given = parser.parse_args()
    paths = tracked(given.paths)
    findings = sorted(
        (finding for path in paths for finding in find(path)), key=lambda found: found[:3]
    )
    if given.summary:
        by_pattern = collections.Counter(found.word.pattern for found in findings)
        for pattern, count in by_pattern.most_common():
            print(f"{count:6}  {pattern}")
        by_file = collections.Counter(found.path for found in findings)
        for path, count in by_file.most_common():
            print(f"{count:6}  {path}")
    else:
        for found in findings:
            print(f'{found.path}:{found.line}: "{found.phrase}": write: {found.word.instead}')
    print(f"{len(findings)} findings in {len(paths)} files" if findings else "words: clean")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())

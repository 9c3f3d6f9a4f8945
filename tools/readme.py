"""Fills the quotations in README.md and docs/*.md: example programs and measured figures.

    python tools/readme.py            writes the documents
    python tools/readme.py --check    fails if a document is not what this would write, or links to
                                      a file or a heading that does not exist

What stands between ``<!-- quote: PATH ... -->`` and ``<!-- end -->`` is generated from PATH:

    quote: examples/c/ten_lines.c                      a program, as the tests compile and run it
    quote: benches/results/*-fp8.json                  a table of the bars
    quote: benches/results/*-fp8.json with A,B         the same, and a table of the figures A and B
    quote: benches/results/*-fp8.json says TEXT        TEXT, in which {A} is the value of figure A,
                                                       {device} and {date} say where it is from
    quote: benches/results/*-offload.svg says TEXT     a picture, with TEXT as its description

Where PATH has a ``*``, the newest result file of those that match is quoted, whatever its device.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benches"))

import report  # noqa: E402

QUOTE = re.compile(
    r"(?P<begin><!-- quote: (?P<path>\S+)(?: with (?P<figures>\S+)| says (?P<text>.*?))? -->\n)"
    r".*?(?P<end><!-- end -->)",
    re.DOTALL,
)
LANGUAGES = {".c": "c", ".cpp": "cpp", ".py": "python"}


def value(figure: dict[str, Any]) -> str:
    """The figure's median with its unit; a ratio has none."""
    unit = "" if figure["unit"] == "x" else f" {figure['unit']}"
    return f"{figure['value']:.4g}{unit}"


def table(result: dict[str, Any], figures: list[str], link: str) -> str:
    """The bars of a result file as a Markdown table, and a table of the named figures."""
    machine, library = result["machine"], result["library"]
    peers = ", ".join(f"{name} {version}" for name, version in result["peers"].items())
    lines = [
        f"{machine['device']}, {machine['link']}, driver {machine['driver']}, "
        f"{machine['cpu_cores']} cores, Linux {machine['kernel']}; {peers}; "
        f"weighbridge {library['version']} ({library['commit']}), {result['date']}: "
        f"`{result['command']}`",
        "",
        "| bar | figure | goal | |",
        "|---|---:|---:|---|",
    ]
    for bar in result["bars"]:
        holds = "holds" if bar["holds"] else "**missed**"
        sense = {">=": "≥", "<=": "≤"}[bar["sense"]]
        lines.append(f"| {bar['name']} | {bar['figure']:.4g} | {sense} {bar['goal']:g} | {holds} |")
    by_name = {figure["name"]: figure for figure in result["figures"]}
    if figures:
        lines += ["", "| figure | median | what is measured |", "|---|---:|---|"]
    lines += [f"| {name} | {value(by_name[name])} | {by_name[name]['what']} |" for name in figures]
    return "\n".join([*lines, "", f"All figures, with their spread: {link}."]) + "\n"


def sentence(result: dict[str, Any], text: str, link: str) -> str:
    """The text with figures in the place of their names."""
    values = {figure["name"]: value(figure) for figure in result["figures"]}
    machine = result["machine"]
    values |= {"device": f"{machine['device']}, {machine['link']}", "date": result["date"]}
    values |= {"command": f"`{result['command']}`", "file": link}
    return re.sub(r"\{([^{}]+)\}", lambda field: values[field[1]], " ".join(text.split())) + "\n"


def quoted(quote: re.Match[str], document: Path) -> str:
    """What a document shows of the quoted file."""
    path = ROOT / quote["path"]
    if "*" in path.name:
        # A picture has the name of the result file that it was made from.
        pattern = Path(quote["path"]).with_suffix(".json")
        path = report.newest(str(pattern)).with_suffix(path.suffix)
    relative = os.path.relpath(path, document.parent)
    if path.suffix == ".svg":
        return f"![{quote['text']}]({relative})\n"
    if path.suffix != ".json":
        return f"```{LANGUAGES[path.suffix]}\n{path.read_text().strip()}\n```\n"
    result, link = json.loads(path.read_text()), f"[{path.name}]({relative})"
    if quote["text"]:
        return sentence(result, quote["text"], link)
    return table(result, quote["figures"].split(",") if quote["figures"] else [], link)


def headings(text: str) -> set[str]:
    """The names by which links find the headings of a document."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def dead_links(document: Path) -> list[str]:
    """The links of a document to files or headings that do not exist."""
    dead = []
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", document.read_text()):
        file, _, heading = link.partition("#")
        target = document.parent / file if file else document
        if not target.exists() or (heading and heading not in headings(target.read_text())):
            dead.append(f"{document.relative_to(ROOT)}: {link}")
    return dead


def main() -> int:
    """Writes or checks the documents; 1 if a check finds a difference or a dead link."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    stale = []
    for document in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:

        def filled(quote: re.Match[str], document: Path = document) -> str:
            return quote["begin"] + quoted(quote, document) + quote["end"]

        text = document.read_text()
        written = QUOTE.sub(filled, text)
        if written != text and arguments.check:
            stale.append(str(document.relative_to(ROOT)))
        elif written != text:
            document.write_text(written)
    if stale:
        print(f"{', '.join(stale)}: stale; run `python tools/readme.py`", file=sys.stderr)
    folders = (ROOT, ROOT / "docs", ROOT / "bindings/python", ROOT / "tests/driver")
    documents = [
        *(path for folder in folders for path in sorted(folder.glob("*.md"))),
        *sorted((ROOT / "examples").rglob("*.md")),
    ]
    dead = [link for document in documents for link in dead_links(document)]
    for link in dead:
        print(f"{link}: there is no such file or heading", file=sys.stderr)
    return 1 if stale or dead else 0


if __name__ == "__main__":
    sys.exit(main())

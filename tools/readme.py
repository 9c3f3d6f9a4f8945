"""Fills what the README quotes: the ten-line examples and the measured tables.

    python tools/readme.py            writes README.md
    python tools/readme.py --check    fails when README.md is not what it would write

Between ``<!-- quote: PATH -->`` and ``<!-- end -->`` stands a file of the repository: a program as
it is compiled and run by the tests, or a result file's figures and bars as a table.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
QUOTE = re.compile(
    r"(<!-- quote: (?P<path>\S+)(?: with (?P<figures>\S+))? -->\n).*?(<!-- end -->)", re.DOTALL
)
LANGUAGES = {".c": "c", ".cpp": "cpp", ".py": "python"}


def table(path: Path, figures: list[str]) -> str:
    """A result file's bars in Markdown, and figures of these names."""
    result = json.loads(path.read_text())
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
        figure = f"{bar['figure']:.4g}"
        lines.append(f"| {bar['name']} | {figure} | {sense} {bar['goal']:g} | {holds} |")
    by_name = {figure["name"]: figure for figure in result["figures"]}
    if figures:
        lines += ["", "| figure | median | what |", "|---|---:|---|"]
    for name in figures:
        figure = by_name[name]
        value = f"{figure['value']:.4g} {figure['unit']}"
        lines.append(f"| {name} | {value} | {figure['what']} |")
    link = f"[{path.name}]({path.relative_to(ROOT)})"
    return "\n".join([*lines, "", f"Every figure behind them, with its spread: {link}."]) + "\n"


def quoted(path: Path, figures: str | None) -> str:
    """What the README says of a file."""
    if path.suffix == ".json":
        return table(path, figures.split(",") if figures else [])
    return f"```{LANGUAGES[path.suffix]}\n{path.read_text().strip()}\n```\n"


def main() -> int:
    """Writes or checks; 1 when a check finds a difference."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    text = README.read_text()
    filled = QUOTE.sub(
        lambda match: match[1] + quoted(ROOT / match["path"], match["figures"]) + match[4], text
    )
    if filled == text:
        return 0
    if arguments.check:
        print("README.md is stale: run `python tools/readme.py`", file=sys.stderr)
        return 1
    README.write_text(filled)
    return 0


if __name__ == "__main__":
    sys.exit(main())

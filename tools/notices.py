"""Writes THIRD-PARTY.md: the crates in libweighbridge.so and their licences.

    python tools/notices.py            writes it from Cargo.lock and the crates' own files
    python tools/notices.py --check    fails if it is stale

A crate that is available under Apache-2.0 is used under it; that text is in LICENSE. The licence
text of every other crate is copied.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
NOTICES = ROOT / "THIRD-PARTY.md"
TARGET = "x86_64-unknown-linux-gnu"

HEAD = """\
# Third-party notices

`libweighbridge.so` contains code of these crates, and of the Rust standard library (MIT OR
Apache-2.0). Ship this file and [LICENSE](LICENSE) with the library. A crate available under
Apache-2.0 is used under it; every other licence's text is below. Written by `make notices`.

| crate | version | licence |
|---|---|---|
"""


def cargo(*command: str) -> str:
    """The output of a cargo command."""
    return subprocess.run(
        ["cargo", *command, "--locked"], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    ).stdout


def linked() -> list[dict[str, Any]]:
    """The crates whose code is in the library: no build scripts, macros or tests."""
    edges = ("--edges", "normal,no-proc-macro", "--target", TARGET)
    tree = cargo("tree", *edges, "--prefix", "none", "--format", "{p}").splitlines()
    found = {tuple(line.split()[:2]) for line in tree[1:]}  # the first is the library
    metadata = cargo("metadata", "--format-version", "1", "--filter-platform", TARGET)
    crates = json.loads(metadata)["packages"]
    packages = {(each["name"], f"v{each['version']}"): each for each in crates}
    return [packages[each] for each in sorted(found)]


def text_of(package: dict[str, Any]) -> str:
    """The licence text of a crate that is not available under Apache-2.0."""
    folder = Path(package["manifest_path"]).parent
    for name in ("LICENSE-MIT", "LICENSE"):
        if (folder / name).exists():
            return (folder / name).read_text().strip()
    raise SystemExit(f"{package['name']} has no licence file known here: {package['license']}")


def notices() -> str:
    """The content of THIRD-PARTY.md."""
    packages = linked()
    if several := [each["name"] for each in packages if " AND " in each["license"]]:
        raise SystemExit(f"{several} are under several licences at once: copy each text")
    rows = [f"| {each['name']} | {each['version']} | {each['license']} |\n" for each in packages]
    texts = [
        f"\n## {package['name']}\n\n```\n{text_of(package)}\n```\n"
        for package in packages
        if "Apache-2.0" not in package["license"]
    ]
    return HEAD + "".join(rows + texts)


def main() -> int:
    """Writes or checks the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    written = notices()
    if not check:
        NOTICES.write_text(written)
    elif not NOTICES.exists() or NOTICES.read_text() != written:
        print("THIRD-PARTY.md is stale: run `make notices`")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

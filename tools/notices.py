"""Writes THIRD-PARTY.md: whose code is in libweighbridge.so, and under which licences.

    python tools/notices.py            writes it from Cargo.lock and the crates' own files
    python tools/notices.py --check    fails when it is not what would be written

A crate that may be had under Apache-2.0 is had under that, whose text is in LICENSE. The texts of
all others are copied.
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

HEAD = """\
# Third-party notices

`libweighbridge.so` holds code of these crates, and of the Rust standard library (MIT OR
Apache-2.0). Who ships the library ships this file and [LICENSE](LICENSE) with it. What may be had
under Apache-2.0 is; the text of every other licence is below. Written by `make notices`.

| crate | version | licence |
|---|---|---|
"""


def linked() -> list[dict[str, Any]]:
    """The packages whose code is in the library: no build scripts, no macros, no tests."""
    command = ["cargo", "metadata", "--locked", "--format-version", "1"]
    command += ["--filter-platform", "x86_64-unknown-linux-gnu"]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    metadata = json.loads(output)
    packages = {package["id"]: package for package in metadata["packages"]}
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    found, left = set(), [metadata["resolve"]["root"]]
    while left:
        node = nodes[left.pop()]
        for dependency in node["deps"]:
            package = dependency["pkg"]
            normal = any(kind["kind"] is None for kind in dependency["dep_kinds"])
            macro = any("proc-macro" in each["kind"] for each in packages[package]["targets"])
            if normal and not macro and package not in found:
                found.add(package)
                left.append(package)
    return sorted((packages[each] for each in found), key=lambda package: package["name"])


def text_of(package: dict[str, Any]) -> str:
    """The licence of a crate that is not to be had under Apache-2.0."""
    folder = Path(package["manifest_path"]).parent
    for name in ("LICENSE-MIT", "LICENSE"):
        if (folder / name).exists():
            return (folder / name).read_text().strip()
    raise SystemExit(f"{package['name']} has no licence that is known here: {package['license']}")


def notices() -> str:
    packages = linked()
    if both := [each["name"] for each in packages if " AND " in each["license"]]:
        raise SystemExit(f"{both} are under several licences at once: copy each text")
    rows = [f"| {each['name']} | {each['version']} | {each['license']} |\n" for each in packages]
    texts = [
        f"\n## {package['name']}\n\n```\n{text_of(package)}\n```\n"
        for package in packages
        if "Apache-2.0" not in package["license"]
    ]
    return HEAD + "".join(rows + texts)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", action="store_true")
    written = notices()
    if not parser.parse_args().check:
        NOTICES.write_text(written)
        return 0
    if NOTICES.exists() and NOTICES.read_text() == written:
        return 0
    print("THIRD-PARTY.md is not what Cargo.lock gives: run `make notices`")
    return 1


if __name__ == "__main__":
    sys.exit(main())

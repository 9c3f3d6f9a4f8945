"""Measures the time of ``import weighbridge`` with NumPy already imported: the best of several.

    python tests/python/import_time.py [limit in milliseconds]

Fails above the limit, by default 60 ms. It is a script and not a test, because a busy machine would
make the test fail at times.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RUNS = 10


def once() -> float:
    """Returns the milliseconds of one import, as the interpreter counts them."""
    library = ROOT / "target" / "release" / "libweighbridge.so"
    environment = {"WEIGHBRIDGE_LIBRARY": str(library), **os.environ}
    environment["PYTHONPATH"] = str(ROOT / "bindings" / "python" / "src")
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "import numpy, weighbridge"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    found = re.search(r"\|\s*(\d+) \| weighbridge$", done.stderr, re.M)
    if found is None:
        raise SystemExit(done.stderr)
    return int(found[1]) / 1000


def main() -> int:
    """Measures, and compares with the limit."""
    limit = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
    best = min(once() for _ in range(RUNS))
    print(f"import weighbridge: {best:.1f} ms, best of {RUNS}; limit {limit:.0f} ms")
    return 0 if best <= limit else 1


if __name__ == "__main__":
    sys.exit(main())

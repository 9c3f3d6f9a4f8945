"""Compares the models whose names it reads, one a line, and writes the results as JSON lines."""

from __future__ import annotations

import json
import logging
import sys
import warnings


def main(device: str) -> None:
    """Compares models until there are no names left."""
    warnings.simplefilter("ignore")  # frameworks warn about small models
    logging.disable(logging.WARNING)
    answers, sys.stdout = sys.stdout, sys.stderr  # models print, too
    from .compare import compare_everywhere

    for name in sys.stdin:
        results = compare_everywhere(name.strip(), device)
        print(json.dumps(results), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])

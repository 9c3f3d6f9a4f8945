"""The versions of vLLM whose interfaces the plug-in knows."""

from __future__ import annotations

import re

FIRST, LAST = (0, 26), (0, 33)


def check_version(found: str) -> None:
    """Raises RuntimeError for a version of vLLM that the plug-in has not been tried with."""
    match = re.match(r"(\d+)\.(\d+)", found)
    version = (int(match[1]), int(match[2])) if match else (0, 0)
    if not FIRST <= version <= LAST:
        low, high = (f"{major}.{minor}" for major, minor in (FIRST, LAST))
        raise RuntimeError(
            f"this weighbridge offloads the weights of vLLM {low} to {high}, and found {found}: "
            f"install one of these, or a weighbridge that knows vLLM {found}, or leave out "
            "--load-format weighbridge"
        )

"""The versions of SGLang whose interfaces the plug-in knows."""

from __future__ import annotations

import re

from ._options import SWITCH

FIRST, LAST = (0, 5, 17), (0, 5, 23)


def check_version(found: str) -> None:
    """Raises RuntimeError for a version of SGLang that the plug-in has not been tried with."""
    match = re.match(r"(\d+)\.(\d+)\.(\d+)", found)
    version = tuple(map(int, match.groups())) if match else ()
    if not FIRST <= version <= LAST:
        low, high = (".".join(map(str, version)) for version in (FIRST, LAST))
        raise RuntimeError(
            f"this weighbridge offloads the weights of SGLang {low} to {high}, and found {found}: "
            f"install one of these, or a weighbridge that knows SGLang {found}, or unset {SWITCH}"
        )

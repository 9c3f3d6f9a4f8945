"""vLLM's switches, honoured as if the ones of this library were set.

The library itself reads ``WEIGHBRIDGE_DISABLE_PIN_MEMORY`` and ``WEIGHBRIDGE_DISABLE_UVA`` only.
Options given in code win over both, and a variable of this library over the one of vLLM.
"""

from __future__ import annotations

import os

PIN = ("WEIGHBRIDGE_DISABLE_PIN_MEMORY", "VLLM_WEIGHT_OFFLOADING_DISABLE_PIN_MEMORY")
VIEWS = ("WEIGHBRIDGE_DISABLE_UVA", "VLLM_WEIGHT_OFFLOADING_DISABLE_UVA")

_YES = ("1", "true", "yes", "on")
_NO = ("", "0", "false", "no", "off")


def disabled(variables: tuple[str, str]) -> str | None:
    """``NAME=value`` of vLLM's variable where it switches the thing off, else None."""
    own, theirs = variables
    value = os.environ.get(theirs)
    if value is None or os.environ.get(own):
        return None
    if value.lower() in _NO:
        return None
    if value.lower() in _YES:
        return f"{theirs}={value}"
    raise ValueError(f"{theirs}={value!r}: use 1 or 0")

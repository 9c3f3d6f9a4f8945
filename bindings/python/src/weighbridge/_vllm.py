"""vLLM's environment switches, which have the effect of this library's own.

The library itself reads ``WEIGHBRIDGE_DISABLE_PIN_MEMORY`` and ``WEIGHBRIDGE_DISABLE_UVA`` only.
Options in code take precedence over both, and a variable of this library over vLLM's.
"""

from __future__ import annotations

import os

PIN = ("WEIGHBRIDGE_DISABLE_PIN_MEMORY", "VLLM_WEIGHT_OFFLOADING_DISABLE_PIN_MEMORY")
VIEWS = ("WEIGHBRIDGE_DISABLE_UVA", "VLLM_WEIGHT_OFFLOADING_DISABLE_UVA")

_YES = ("1", "true", "yes", "on")
_NO = ("", "0", "false", "no", "off")


def disabled(variables: tuple[str, str]) -> str | None:
    """Returns ``NAME=value`` if vLLM's variable of the pair disables the feature, else None."""
    own, vllm = variables
    value = os.environ.get(vllm)
    if value is None or os.environ.get(own):
        return None
    if value.lower() in _NO:
        return None
    if value.lower() in _YES:
        return f"{vllm}={value}"
    raise ValueError(f"{vllm}={value!r}: use 1 or 0")

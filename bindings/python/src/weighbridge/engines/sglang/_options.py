"""What the user asked for: by SGLang's own options for offloading, or by those of weighbridge."""

from __future__ import annotations

import json
import os
from typing import Any

from .._options import BUDGETS, LayerOptions, given_options, listed

SWITCH = "WEIGHBRIDGE_SGLANG"
"""The environment variable that turns the plug-in on: 1, or a JSON object of options."""


def given() -> dict[str, Any] | None:
    """Returns the options in the environment, None if the plug-in is off.

    Raises ValueError for what is neither a switch nor options.
    """
    text = os.environ.get(SWITCH, "").strip()
    if text.lower() in ("", "0", "false", "no", "off"):
        return None
    if text.lower() in ("1", "true", "yes", "on"):
        return {}
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ValueError(
            f"{SWITCH}={text!r}: use 1, 0, or a JSON object such as "
            '{"device_bytes": "12GiB", "exclude": ["shared_experts"]}'
        )
    return given_options(found, LayerOptions, SWITCH)


def options_of(own: dict[str, Any], offload: Any) -> LayerOptions:
    """Returns the options of an engine: the given ones and those of SGLang's ``exec.offload``.

    Raises ValueError for contradictory ones, and if there is no budget.
    """
    sglangs = _of_sglang(offload)
    budgets = [name for name in BUDGETS if name in {**own, **sglangs}]
    if own.keys() & sglangs.keys() or len(budgets) > 1:
        raise ValueError(
            f"{SWITCH} has {listed(own)}, and SGLang's options for offloading say "
            f"{listed(sglangs)}: give one budget, in one of these places"
        )
    if not budgets:
        raise ValueError(
            f"{SWITCH} needs a budget: --cpu-offload-gb, --offload-group-size, or offload_bytes or "
            f'device_bytes in {SWITCH}, such as \'{{"device_bytes": "12GiB"}}\''
        )
    return LayerOptions(**{**own, **sglangs})


def _of_sglang(offload: Any) -> dict[str, Any]:
    if offload.offload_group_size > 0 and offload.cpu_offload_gb > 0:
        raise ValueError("--cpu-offload-gb and --offload-group-size are two budgets: give one")
    if offload.offload_group_size > 0:
        if offload.offload_mode != "cpu":
            raise ValueError(
                f"--offload-mode {offload.offload_mode} keeps weights elsewhere: with {SWITCH} "
                "leave it out"
            )
        return {
            "group_size": offload.offload_group_size,
            "num_in_group": offload.offload_num_in_group,
            "depth": offload.offload_prefetch_step + 1,
        }
    if offload.cpu_offload_gb > 0:
        return {"offload_bytes": int(offload.cpu_offload_gb * 2**30)}
    return {}

"""What the platform can do and what is decided from it: ``python -m weighbridge doctor``."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict
from typing import Any

from . import _vllm
from ._library import PATH, VERSION
from ._text import in_words, print_table
from .errors import Status, WeighbridgeError
from .memory import Device

_VARIABLES = (*_vllm.PIN, *_vllm.VIEWS, "WEIGHBRIDGE_LIBRARY", "CUDA_VISIBLE_DEVICES")


def examine(name: str | None = None) -> dict[str, Any]:
    """Returns the properties and the policy of one device, or of all, as JSON values."""
    cuda: dict[str, Any] = {"count": 0, "error": None}
    try:
        cuda["count"] = Device.cuda_count()
    except WeighbridgeError as error:
        cuda["error"] = _failure(error)
    names = [name] if name else ["host", *(f"cuda:{at}" for at in range(cuda["count"]))]
    return {
        "version": VERSION,
        "library": PATH,
        "python": platform.python_version(),
        "environment": {key: os.environ[key] for key in _VARIABLES if key in os.environ},
        "cuda": cuda,
        "devices": [_device(name) for name in names],
    }


def _device(name: str) -> dict[str, Any]:
    try:
        with Device(name) as device:
            return {"device": name, "error": None, "info": asdict(device.info)}
    except WeighbridgeError as error:
        return {"device": name, "error": _failure(error), "info": None}
    except ValueError as error:
        failure = _failure(WeighbridgeError(Status.INVALID_ARGUMENT, str(error)))
        return {"device": name, "error": failure, "info": None}


def _failure(error: WeighbridgeError) -> dict[str, Any]:
    name = getattr(error.status, "name", str(error.status))
    return {
        "status": f"WB_ERR_{name}",
        "code": error.code,
        "code_domain": error.code_domain,
        "message": error.message,
    }


def run(name: str | None, as_json: bool) -> int:
    """Print the report; return 0 if every device in it could be opened."""
    found = examine(name)
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        _print(found)
    return 1 if any(device["error"] for device in found["devices"]) else 0


def _print(found: dict[str, Any]) -> None:
    print(f"weighbridge {found['version']}, {found['library']}, Python {found['python']}")
    for key, value in found["environment"].items():
        print(f"{key}={value}")
    if found["cuda"]["error"]:
        print(f"CUDA: {found['cuda']['error']['message']}")
    elif found["cuda"]["count"] == 0:
        print("CUDA: the driver is there, and no device")
    for device in found["devices"]:
        print()
        if device["error"]:
            print(f"{device['device']}: {device['error']['message']}")
        else:
            print_table(
                f"{device['device']}: {device['info']['name']}",
                ("", "here", "why, or what it means"),
                _rows(device["info"]),
                styles={"yes": "green", "no": "yellow"},
            )


def _rows(info: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What, how, and why or what for."""
    rows = [
        ("pin host memory", _yes(info["pin"]), info["pin_reason"]),
        ("views of host memory", _yes(info["views"]), info["views_reason"]),
        (
            "fixed addresses",
            _yes(info["address_granularity"] > 0),
            info["address_reason"] or "an offloader can be resized while it runs",
        ),
        ("memory", in_words(info["total_bytes"]), f"{in_words(info['free_bytes'])} free"),
        ("memory that may be locked", in_words(info["memlock_limit"]), "RLIMIT_MEMLOCK"),
        (
            "unified addressing",
            _yes(info["unified_addressing"]),
            "whether host and device share one address space",
        ),
        ("host registration", _yes(info["host_register"]), "whether existing memory can be pinned"),
        (
            "read-only registration",
            _yes(info["read_only_register"]),
            "whether read-only memory can be pinned, tried on a page; the driver's attribute says "
            + _yes(info["read_only_register_attribute"]),
        ),
        (
            "pageable access",
            _yes(info["pageable_access"]),
            "whether the device reads memory that is not pinned",
        ),
        ("integrated", _yes(info["integrated"]), "whether the device shares the host's memory"),
        ("NUMA node", "unknown" if info["numa_node"] is None else str(info["numa_node"]), ""),
    ]
    if info["kind"] == "cuda":
        version, capability = info["driver_version"], info["compute_capability"]
        rows.append(("driver", f"CUDA {version // 1000}.{version % 1000 // 10}", ""))
        rows.append(("compute capability", f"{capability // 10}.{capability % 10}", ""))
    return rows


def _yes(value: bool) -> str:
    return "yes" if value else "no"

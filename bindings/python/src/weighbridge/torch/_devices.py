"""The device that a model runs on, for PyTorch and for the library."""

from __future__ import annotations

import torch

from ..memory import Device


def runs_on(device: str | torch.device | None) -> torch.device:
    """Returns where a model runs: by default on the current CUDA device, or on the host.

    Raises ValueError for another kind of device.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    where = torch.device(device)
    if where.type not in ("cpu", "cuda"):
        raise ValueError(f'asked to run the model on {where}: it runs on "cpu" or on "cuda"')
    if where.type == "cuda" and where.index is None:
        # Without CUDA the library says what is missing, when it opens the first one.
        return torch.device("cuda", torch.cuda.current_device() if torch.cuda.is_available() else 0)
    return where


def open_device(where: torch.device, pin: bool | None = None) -> Device:
    """Opens the library's device of one that :func:`runs_on` returned."""
    return Device("host" if where.type == "cpu" else f"cuda:{where.index}", pin=pin)

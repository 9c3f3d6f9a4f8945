"""Compares one model, offloaded, with itself, resident."""

from __future__ import annotations

import sys
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "python"))

import weighbridge.torch as wt
from equivalence.twins import copied, equal, refusal
from weighbridge._enums import TransferMode
from weighbridge.torch._experts import fused_experts

from . import audio, diffusion, multimodal, pipelines, text, vision
from .model import Model
from .pipelines import Pipeline

MODELS: dict[str, Model | Pipeline] = {
    model.name: model
    for family in (text, vision, audio, multimodal, diffusion, pipelines)
    for model in family.MODELS
}
"""Every model of the tables."""
TRANSFER_MODES: tuple[TransferMode, ...] = typing.get_args(TransferMode)
SHARES = (0.6, 1.0)
"""The part of a model's bytes that is offloaded."""


OUTCOMES = ("wrong", "refused", "not built", "equal")
"""The worst first. A model that is not built is one that the installed frameworks cannot make, or
cannot run resident, so that there is nothing to compare."""


class Result(NamedTuple):
    """The outcome for one model in one transfer mode."""

    outcome: str
    """One of OUTCOMES."""
    reason: str = ""


def run(model: Model | Pipeline, network: Any) -> Any:
    """Runs a model, and lets it generate if it can."""
    with torch.no_grad():
        torch.manual_seed(1)
        found = [model.run(network)]
        if model.generate is not None:
            torch.manual_seed(1)
            found.append(model.generate(network))
    return copied(found)


def compare(
    model: Model | Pipeline, transfer_mode: TransferMode, share: float, device: torch.device
) -> Result:
    """Runs a model resident, offloaded, and after ``remove()``: the bits are the same.

    A weighbridge error at the offload or in a run is a refusal; every other error is wrong.
    """
    try:
        network = model.build(device)
        wanted = run(model, network)
    except Exception as error:
        return Result("not built", f"{type(error).__name__}: {error}")
    if not equal(run(model, network), wanted):
        return Result("wrong", "the resident model gives other numbers at every run")
    refused = ""
    handles: list[wt.OffloadHandle] = []
    try:
        for part in model.parts(network):
            share_of_it = max(1, int(bytes_of(part) * share))
            # Half of the fused experts that leave have slots in caches.
            caches = bytes_of_experts(part) // 2 if transfer_mode == "auto" and share < 1 else 0
            handles.append(
                wt.offload(
                    part,
                    offload_bytes=share_of_it,
                    transfer_mode=transfer_mode,
                    expert_bytes=caches,
                )
            )
        for step in ("first", "second"):
            if not equal(run(model, network), wanted):
                return Result("wrong", f"other numbers in the {step} run")
    except Exception as error:
        found = refusal(error)
        if found is None:
            return Result("wrong", f"{type(error).__name__}: {error}")
        refused = found
    try:
        for handle in handles:
            handle.remove()
        if not equal(run(model, network), wanted):
            return Result("wrong", "other numbers after remove()")
    except Exception as error:
        return Result("wrong", f"after the offload, {type(error).__name__}: {error}")
    return Result("refused", refused) if refused else Result("equal")


def bytes_of(network: torch.nn.Module) -> int:
    """Returns the bytes of a model's parameters, those of ties once."""
    return sum({p.data_ptr(): p.nbytes for p in network.parameters()}.values())


def bytes_of_experts(network: torch.nn.Module) -> int:
    """Returns the bytes of a model's fused experts that expert caches can carry."""
    experts = fused_experts(network)
    return sum(one.tensor(own).nbytes for one in experts for own in one.tensors)


def compare_everywhere(
    name: str, device: str = "cpu", modes: Sequence[TransferMode] = TRANSFER_MODES
) -> dict[str, Result]:
    """Compares a model in the transfer modes and for every share; the results by these."""
    results = {}
    for transfer_mode in modes:
        for share in SHARES:
            result = compare(MODELS[name], transfer_mode, share, torch.device(device))
            results[f"{transfer_mode} {share:.0%}"] = result
    return results

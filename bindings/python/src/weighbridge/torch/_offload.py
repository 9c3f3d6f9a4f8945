"""Plans and commits the offload of a model's weights."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch

from .._enums import Allow, Order, TransferMode
from .._progress import Callback
from ..memory import Device
from ..plan import Parameter, Plan
from ..quantizer import QuantizeOptions
from ..safetensors import Safetensors
from ._groups import enclosing, group_of_each
from ._handle import OffloadHandle
from ._tensors import put, weights_of
from ._weights import parameter_of


def offload(
    model: torch.nn.Module,
    *,
    offload_bytes: int | None = None,
    device_bytes: int | None = None,
    select: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    transfer_mode: TransferMode = "auto",
    order: Order = "spread",
    groups: Literal["auto"] | Sequence[str] = "auto",
    slot_bytes: int = 0,
    depth: int = 0,
    buffers: bool = False,
    quantize: QuantizeOptions | None = None,
    quantize_select: str | Sequence[str] | None = None,
    allow: Sequence[Allow] = (),
    checkpoint: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
    device: str | torch.device | None = None,
    pin: bool | None = None,
    link_bytes_per_second: float = 0.0,
    progress: Callback | None = None,
) -> OffloadHandle:
    """Moves weights of a model to host memory under a budget, and transfers them for their use.

    Budgets, selectors, transfer modes and orders are those of :class:`weighbridge.Plan`. ``groups``
    are names of modules that are transferred as a whole, by default the entries of the longest
    ``ModuleList`` and of those outside of it; a parameter outside of them is in the group of the
    largest module around it that contains none of them. The weights of embeddings are sparse.
    ``checkpoint`` is one safetensors file or several, from which weights are read, for a model on
    the meta device for instance: offloaded weights go into host memory, resident ones to the
    device. ``device`` is where the model runs, by default the device of its first weight: resident
    weights and buffers are moved there. Buffers are offloaded only with ``buffers``, which requires
    that no forward writes to them. ``quantize`` keeps weights in FP8, those of
    ``quantize_select``, by default the weights of ``Linear`` modules. A module then has ``weight``
    in FP8 and ``weight_scale``, or ``weight_scale_inv`` for blocks, for kernels that take them; the
    full weight is never on the device, unless it was. ``progress`` is called with the phase, the
    bytes done and the total bytes; it cancels by returning False or raising.
    """
    where = torch.device(device) if device is not None else _device_of(model)
    opened = Device("host" if where.type == "cpu" else f"cuda:{where.index or 0}", pin=pin)
    paths = [checkpoint] if isinstance(checkpoint, (str, os.PathLike)) else checkpoint
    files = [Safetensors(opened, path, file_mode="source") for path in paths]
    zero_copy = opened.info.views and pin is not False
    plan = Plan(
        opened,
        _parameters(model, groups, buffers, files, zero_copy),
        offload_bytes=offload_bytes,
        device_bytes=device_bytes,
        slot_bytes=slot_bytes,
        depth=depth,
        select=select,
        exclude=exclude,
        transfer_mode=transfer_mode,
        order=order,
        allow=allow,
        quantize=quantize,
        quantize_select=_linear_weights(model) if quantize_select is None else quantize_select,
        link_bytes_per_second=link_bytes_per_second,
    )
    handle = OffloadHandle(model, plan, where, groups, buffers, progress)
    for name, buffer in model.named_buffers():
        if not buffer.is_meta and buffer.device != where:
            path, _, own = name.rpartition(".")
            put(model.get_submodule(path), own, buffer.to(where))
    for file in files:
        file.close()
    return handle


def _device_of(model: torch.nn.Module) -> torch.device:
    for parameter in model.parameters():
        if not parameter.is_meta:
            return parameter.device
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def _linear_weights(model: torch.nn.Module) -> list[str]:
    return [
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    ]


def _parameters(
    model: torch.nn.Module,
    groups: Literal["auto"] | Sequence[str],
    buffers: bool,
    files: Sequence[Safetensors],
    zero_copy: bool,
) -> list[Parameter]:
    named = weights_of(model, buffers)
    group_of = group_of_each(model, groups, [name for name, _ in named])
    sparse = {
        f"{name}.weight" if name else "weight"
        for name, module in model.named_modules()
        if isinstance(module, (torch.nn.Embedding, torch.nn.EmbeddingBag))
    }
    # By the weight, not by its name: a file has tied weights once, under one of their names.
    in_file = {
        id(weight): file.parameter(name) for name, weight in named for file in files if name in file
    }
    around = enclosing(list(group_of.values()))
    # A group that encloses others runs while they use the slots: its weights have none.
    without_slot: dict[str, Any] = (
        {"transfer_mode": "zero-copy"} if zero_copy else {"placement": "resident"}
    )
    found = []
    for name, weight in named:
        group = group_of[name]
        given = in_file.get(id(weight)) or parameter_of(name, group, weight, storage_id=id(weight))
        found.append(
            replace(
                given,
                name=name,
                group=group,
                access_pattern="sparse" if name in sparse else "dense",
                **(without_slot if group in around else {}),
            )
        )
    return found

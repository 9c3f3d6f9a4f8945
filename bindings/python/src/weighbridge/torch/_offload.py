"""A model's weights as a plan takes them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from ..device import Device
from ..plan import Parameter, Plan
from ..safetensors import Safetensors
from ..scheme import Scheme
from ._groups import around_others, group_of_each
from ._handle import OffloadHandle
from ._tensors import address_of, dtype_of, put, weights_of

if TYPE_CHECKING:
    from typing_extensions import Literal

    from .._progress import Callback


def offload(
    model: torch.nn.Module,
    *,
    offload_bytes: int | None = None,
    device_bytes: int | None = None,
    select: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    carrier: Literal["auto", "view", "on-demand", "prefetch"] = "auto",
    order: Literal["spread", "declared", "largest"] = "spread",
    groups: Literal["auto"] | Sequence[str] = "auto",
    slot_bytes: int | None = None,
    depth: int = 0,
    buffers: bool = False,
    quantize: Mapping[str, Any] | None = None,
    allow: Sequence[str] = (),
    checkpoint: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
    device: str | torch.device | None = None,
    pin: bool | None = None,
    link_bytes_per_second: float = 0.0,
    progress: Callback | None = None,
) -> OffloadHandle:
    """Move weights of a model to host memory under a budget, and carry them from there.

    Budgets, selectors, carriers and orders are those of :class:`weighbridge.Plan`. ``groups`` are
    names of modules that are carried as one, by default the entries of the longest ``ModuleList``
    and of those beside it; a parameter outside of them goes with the largest module around it that
    holds none of them. Embeddings are taken as sparse.
    ``checkpoint`` is a safetensors file, or several, that weights are taken from, for a model on
    the meta device for instance: they go from the file into host memory, or to the device if they
    stay. ``device`` is where the model runs, by default where its first weight is: weights that
    stay, and buffers, are moved there. Buffers are not offloaded unless ``buffers`` asks for it:
    only where no forward writes to them. ``quantize`` keeps weights in 8 bits:
    ``{"format": "e4m3fn", "block": (128, 128)}``, with ``"scale"`` and ``"select"`` (by default the
    weights of ``Linear`` modules). A module then has ``weight`` in 8 bits and ``weight_scale``, or
    ``weight_scale_inv`` for blocks, for kernels that take them; the full weight is never on the
    device, unless it was. ``progress`` is called with what is done and how many of
    how many bytes; it cancels by returning False or raising.
    """
    where = torch.device(device) if device is not None else _device_of(model)
    opened = Device("host" if where.type == "cpu" else f"cuda:{where.index or 0}", pin=pin)
    paths = [checkpoint] if isinstance(checkpoint, (str, os.PathLike)) else checkpoint
    files = [Safetensors(opened, path, pin=False) for path in paths]
    views = opened.info.views and pin is not False
    parameters = _parameters(model, groups, buffers, files, views)
    plan = Plan(
        opened,
        parameters,
        offload_bytes=offload_bytes,
        device_bytes=device_bytes,
        slot_bytes=slot_bytes,
        depth=depth,
        select=select,
        exclude=exclude,
        carrier=carrier,
        order=order,
        allow=allow,
        link_bytes_per_second=link_bytes_per_second,
        **_quantize(model, quantize),
    )
    handle = OffloadHandle(model, plan, where, groups, buffers, progress)
    for name, buffer in model.named_buffers():
        if not buffer.is_meta and buffer.device != where:
            path, _, own = name.rpartition(".")
            put(model.get_submodule(path), own, buffer.to(where))
    for file in files:
        file.close()
    return handle


def _quantize(model: torch.nn.Module, asked: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a plan is told."""
    if asked is None:
        return {}
    known = {"format", "scale", "block", "select"}
    if not known.issuperset(asked):
        raise ValueError(f"quantize has {sorted(set(asked) - known)}; it may have {sorted(known)}")
    linear = [
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    ]
    scheme = Scheme(
        _fp8(asked.get("format", "e4m3fn")),  # type: ignore[arg-type]
        _fp8(asked.get("scale", "float32")),  # type: ignore[arg-type]
        tuple(asked.get("block", (128, 128))),
    )
    return {"quantize": scheme, "quantize_select": asked.get("select", linear)}


def _fp8(name: str) -> str:
    """``float8_e4m3fn`` of ``e4m3fn`` or ``torch.float8_e4m3fn``."""
    short = str(name).rpartition(".")[2]
    return f"float8_{short}" if short in ("e4m3fn", "e5m2", "e8m0fnu") else short


def _device_of(model: torch.nn.Module) -> torch.device:
    for parameter in model.parameters():
        if not parameter.is_meta:
            return parameter.device
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def _parameters(
    model: torch.nn.Module,
    groups: Literal["auto"] | Sequence[str],
    buffers: bool,
    files: Sequence[Safetensors],
    views: bool,
) -> list[Parameter]:
    named = weights_of(model, buffers)
    group_of = group_of_each(model, groups, [name for name, _ in named])
    sparse = {
        f"{name}.weight" if name else "weight"
        for name, module in model.named_modules()
        if isinstance(module, (torch.nn.Embedding, torch.nn.EmbeddingBag))
    }
    # By the parameter, not by its name: a file has what is tied once, by one of the names.
    in_file = {
        id(weight): file.parameter(name) for name, weight in named for file in files if name in file
    }
    around = around_others(list(group_of.values()))
    # What is used while other groups come and go is read in place, or stays.
    throughout: Any = "view" if views else "resident"
    found = []
    for name, weight in named:
        access: Any = "sparse" if name in sparse else "dense"
        given = in_file.get(id(weight)) or Parameter(
            name,
            "",
            dtype_of(weight),
            tuple(weight.shape),
            tuple(weight.stride()),
            source=address_of(weight),
            storage=id(weight),
            held=weight,
        )
        group = group_of[name]
        carrier: Any = throughout if group in around else "auto"
        found.append(replace(given, name=name, group=group, access=access, carrier=carrier))
    return found

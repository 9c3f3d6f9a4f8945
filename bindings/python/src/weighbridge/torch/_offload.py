"""Plans and commits the offload of a model's weights."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from typing import Any, Literal

import torch

from .._enums import HOST_STORE, AccessPattern, Allow, FileMode, HostStore, Order, TransferMode
from .._progress import Callback
from ..memory import Device
from ..plan import CParameters, Parameter, Plan
from ..quantizer import QuantizeOptions
from ._checkpoint import Checkpoint, Numbers
from ._devices import open_device, runs_on
from ._expert_caches import experts_of
from ._experts import FusedExperts, fused_experts
from ._groups import enclosing, group_of_each
from ._handle import OffloadHandle
from ._modules import check_not_offloaded
from ._steps import Verify
from ._tensors import parameter_of
from ._weight import Holder, Weight, weights_of


def offload(
    model: torch.nn.Module,
    *,
    offload_bytes: int | None = None,
    device_bytes: int | None = None,
    select: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    transfer_mode: TransferMode | Literal["experts"] = "auto",
    expert_bytes: int = 0,
    order: Order = "spread",
    groups: Literal["auto"] | Sequence[str] = "auto",
    slot_bytes: int = 0,
    depth: int = 0,
    buffers: bool = False,
    quantize: QuantizeOptions | None = None,
    quantize_select: str | Sequence[str] | None = None,
    allow: Sequence[Allow] = (),
    checkpoint: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Numbers = (),
    strict: bool = True,
    device: str | torch.device | None = None,
    pin: bool | None = None,
    link_bytes_per_second: float = 0.0,
    compute_bytes_per_second: float = 0.0,
    group_seconds: Mapping[str, float] | None = None,
    rows: int = 0,
    verify: Verify = "first-step",
    overlap_steps: bool = False,
    fixed_addresses: bool | None = None,
    keep_host_copy: bool = False,
    compress: bool | str | Sequence[str] = False,
    encode_on_device: bool | None = None,
    host_store: HostStore = "copy",
    verify_compressed: bool = False,
    progress: Callback | None = None,
) -> OffloadHandle:
    """Moves weights of a model to host memory under a budget, and transfers them for their use.

    Budgets, selectors, transfer modes and orders are those of :class:`weighbridge.Plan`, and so is
    what predicts a step's time; but ``group_seconds`` are by the names of the groups. ``groups``
    are names of modules that are transferred as a whole, by default the entries of the longest
    ``ModuleList`` and of those outside of it; a parameter outside of them is in the group of the
    largest module around it that contains none of them. The weights of embeddings are sparse, but
    for those whose memory another module uses, too, such as a tied head, which reads all of it.
    ``checkpoint`` is one safetensors file or several, from which weights are read, for a model on
    the meta device for instance: offloaded weights go into host memory, resident ones and buffers
    to the device. As with ``load_state_dict``, missing and unexpected names are errors unless
    ``strict`` is False, which lists them in ``handle.missing_keys`` and ``handle.unexpected_keys``;
    other types are cast; other shapes, and what would stay on the meta device, are errors.
    ``device`` is where the model runs, by default the device of its first weight: resident weights
    and buffers are moved there; ``pin`` is that of :class:`weighbridge.Device`. Buffers are
    offloaded only with ``buffers``; those that a forward writes to are copied back after it, if
    PyTorch counts that or their module is in training.
    ``quantize`` keeps weights in FP8, those of ``quantize_select``, by default the weights of
    ``Linear`` modules. A module then has ``weight`` in FP8 and ``weight_scale``, or
    ``weight_scale_inv`` for blocks, for kernels that take them; the full weight is never on the
    device, unless it was.

    With the transfer mode ``"experts"``, the weights of fused experts (3-D parameters of
    transformers' mixtures of experts) are carried by caches of the recently used ones, and all
    other weights as with ``"auto"``. The caches get ``expert_bytes`` of device memory, a part of
    ``device_bytes``; 0 is what the other weights leave of that. A call that may need more experts
    than a cache has slots reads them in place. Experts stay in slots from step to step: after
    their weights were changed in a way that PyTorch does not count, or if a graph is launched
    next, call :meth:`OffloadHandle.reset_experts`. ``"auto"`` does the same if ``expert_bytes`` is
    given.

    The model's outputs are those of the resident model with the same weights, bit for bit. A
    weight is in a slot during the forward of its group's module; a caller that uses it at another
    time reads, or changes, the bytes in host memory. With ``verify="first-step"``, the first run of
    each module, which is slower, finds weights that may not be in a slot; later runs check it and
    raise. A compiled model's first step does not use its compiled code. ``"always"`` makes every
    run like the first, for debugging; ``"off"`` checks nothing.
    A step copies every weight that it uses. With ``overlap_steps`` the copies for the first layers
    begin while the last layers of the step before compute; between steps, weights may then not be
    changed in ways that PyTorch does not count, which are in-place changes of ``weight.data``.
    With ``fixed_addresses`` the budget can be changed later: see :meth:`OffloadHandle.resize`;
    ``keep_host_copy`` as in :class:`weighbridge.Plan`.
    With ``compress``, which is ``"auto"`` or names weights, offloaded weights are compressed in
    host memory, without loss, and are decoded into their slots. Outside of the forward of its layer
    every use of such a weight's tensor raises RuntimeError. ``state_dict`` and ``handle.read`` give
    its bytes, ``load_state_dict`` and ``weight.data = ...`` change them; copies of the model,
    gradients and tracing raise.
    With the ``host_store`` ``"compressed"``, the weights that a compressed ``checkpoint`` has
    compressed, and that are carried so, stay in the file, which is pinned, and take no other host
    memory until they are changed. All others are copied; ``"source"`` is refused, since PyTorch may
    write to weights in place, and a mapped file is never written. ``verify_compressed`` and
    ``encode_on_device`` as in :class:`weighbridge.Plan`.
    ``progress`` is called with the phase, the bytes done and the total bytes; it cancels by
    returning False or raising.
    """
    given = {name: value for name, value in locals().items() if name != "model"}
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model is {model!r}; it must be a torch.nn.Module")
    if isinstance(groups, str) and groups != "auto":
        raise ValueError(f"groups is {groups!r}: it is 'auto' or a list of names of modules")
    if verify not in ("first-step", "always", "off"):
        raise ValueError(f"verify is {verify!r}: it is 'first-step', 'always' or 'off'")
    weights = weights_of(model, buffers)
    check_not_offloaded(model, weights)
    experts = experts_in(model, weights, given)
    where = runs_on(_device_of(model) if device is None else device)
    opened = open_device(where, pin)
    found: Numbers
    mode = mode_of_files(host_store)
    if isinstance(checkpoint, (str, os.PathLike)):
        found = Checkpoint(model, opened, [checkpoint], where, strict, buffers, mode)
    elif isinstance(checkpoint, Sequence):
        found = Checkpoint(model, opened, checkpoint, where, strict, buffers, mode)
    elif not hasattr(checkpoint, "sources"):
        raise TypeError(f"checkpoint is {checkpoint!r}; it must be a path or a list of paths")
    else:
        found = checkpoint
    parameters = planned_parameters(model, opened, weights, found.sources, experts, given)
    begun = getattr(found, "begun", None)
    if begun is not None and not begun.is_of(parameters):
        begun.cancel()
        begun = None
    plan = begun.plan if begun else planned(model, opened, weights, parameters, experts, given)
    offloader = begun.offloader() if begun else None
    handle = OffloadHandle(
        model, plan, where, buffers, verify, overlap_steps, progress, experts, offloader
    )
    for name, buffer in model.named_buffers():
        if not buffer.is_meta and buffer.device != where:
            path, _, own = name.rpartition(".")
            model.get_submodule(path)._buffers[own] = buffer.to(where)
    found.load_buffers()
    found.close()
    handle.missing_keys, handle.unexpected_keys = found.missing_keys, found.unexpected_keys
    return handle


OPTIONS = {
    name: one.default
    for name, one in inspect.signature(offload).parameters.items()
    if name not in ("model", "checkpoint", "strict")
}
"""The options of :func:`offload` that place weights, with their defaults."""


_OF_PLAN = (
    *("quantize", "quantize_select", "group_seconds", "allow", "select", "exclude", "order"),
    *("offload_bytes", "device_bytes", "slot_bytes", "depth", "rows", "compress"),
    *("link_bytes_per_second", "compute_bytes_per_second", "fixed_addresses"),
    *("keep_host_copy", "encode_on_device", "host_store", "verify_compressed"),
)
"""Those that a plan takes unchanged."""


def planned_parameters(
    model: torch.nn.Module,
    device: Device,
    weights: Sequence[Weight],
    sources: Mapping[int, Parameter],
    experts: Sequence[FusedExperts],
    given: Mapping[str, Any],
) -> list[Parameter]:
    """Returns the weights of a model as parameters of the plan that options of :func:`offload`
    ask for."""
    ids = experts_of(experts)
    return parameters_of(model, device, weights, sources, given["groups"], given["pin"], ids)


def planned(
    model: torch.nn.Module,
    device: Device,
    weights: Sequence[Weight],
    parameters: Sequence[Parameter],
    experts: Sequence[FusedExperts],
    given: Mapping[str, Any],
) -> Plan:
    """Returns the plan that options of :func:`offload` ask for."""
    options = {name: given[name] for name in _OF_PLAN}
    mode = given["transfer_mode"]
    return plan_of(
        model,
        device,
        CParameters(parameters, with_buffers=given["host_store"] != "copy"),
        transfer_mode="auto" if mode == "experts" else mode,
        expert_bytes=given["expert_bytes"] if experts else 0,
        compress_select=_compressible(weights) if given["compress"] in (True, "auto") else (),
        **options,
    )


def experts_in(
    model: torch.nn.Module, weights: Sequence[Weight], given: Mapping[str, Any]
) -> list[FusedExperts]:
    """Returns the modules whose weights expert caches carry, by options of :func:`offload`."""
    limits_device = given["device_bytes"] is not None
    return _experts(model, weights, given["transfer_mode"], given["expert_bytes"], limits_device)


def parameters_of(
    model: torch.nn.Module,
    device: Device,
    weights: Sequence[Weight],
    sources: Mapping[int, Parameter],
    groups: Literal["auto"] | Sequence[str] = "auto",
    pin: bool | None = None,
    experts: Set[int] = frozenset(),
) -> list[Parameter]:
    """Returns the weights of a model as parameters of a plan. ``experts`` are ids of the tensors
    that expert caches carry."""
    group_of = group_of_each(model, groups, _paths(weights))
    zero_copy = device.info.views and pin is not False
    return _parameters(weights, group_of, sources, zero_copy, experts)


def plan_of(
    model: torch.nn.Module,
    device: Device,
    parameters: CParameters,
    *,
    quantize: QuantizeOptions | None = None,
    quantize_select: str | Sequence[str] | None = None,
    group_seconds: Mapping[str, float] | None = None,
    **options: Any,
) -> Plan:
    """Returns the plan of a model's offload. ``options`` are those of :class:`weighbridge.Plan`."""
    if quantize_select is None:
        quantize_select = () if quantize is None else _linear_weights(model)
    return Plan(
        device,
        parameters,
        quantize=quantize,
        quantize_select=quantize_select,
        group_seconds=_in_order(group_seconds, parameters.given),
        **options,
    )


def mode_of_files(host_store: HostStore) -> FileMode:
    """Returns how the files of a checkpoint are opened: pinned, if weights may stay in them."""
    if host_store == "source":
        raise ValueError(
            "host_store is 'source': PyTorch may write to weights in place, and a mapped file is "
            "never written; 'compressed' leaves those there that have no tensor to write to"
        )
    return "auto" if HOST_STORE.code(host_store) != HOST_STORE.code("copy") else "source"


def _compressible(weights: Sequence[Weight]) -> list[str]:
    """Returns the names of the weights that may be compressed, or none if these are all: not those
    whose memory others use in another layout."""
    wholes = {id(weight.part_of) for weight in weights if weight.part_of is not None}
    if not wholes:
        return []
    free = [weight for weight in weights if weight.part_of is None and id(weight) not in wholes]
    return [holder.name for weight in free for holder in weight.holders]


def _device_of(model: torch.nn.Module) -> torch.device | None:
    return next((p.device for p in model.parameters() if not p.is_meta), None)


def _paths(weights: Sequence[Weight]) -> dict[str, str]:
    """Returns the name of the module that has each weight, by the weight's name."""
    return {holder.name: holder.path for weight in weights for holder in weight.holders}


def _in_order(seconds: Mapping[str, float] | None, parameters: Sequence[Parameter]) -> list[float]:
    """Returns the seconds of each group in the plan's order."""
    if seconds is None:
        return []
    groups = list(dict.fromkeys(parameter.group for parameter in parameters))
    missing = [name for name in groups if name not in seconds]
    unknown = [name for name in seconds if name not in groups]
    if missing or unknown:
        raise ValueError(
            f"group_seconds lacks the groups {missing} and has names of no group, {unknown}: "
            "give the seconds of each group, by the name of its module"
        )
    return [seconds[name] for name in groups]


def _linear_weights(model: torch.nn.Module) -> list[str]:
    return [
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and "weight" in module._parameters
    ]


def _parameters(
    weights: Sequence[Weight],
    group_of: dict[str, str],
    in_file: Mapping[int, Parameter],
    zero_copy: bool,
    experts: Set[int],
) -> list[Parameter]:
    around = enclosing(list(group_of.values()))
    # A group that encloses others runs while they use the slots: its weights have none.
    without_slot: dict[str, Any] = (
        {"transfer_mode": "zero-copy"} if zero_copy else {"placement": "resident"}
    )
    # A storage that another module uses, too, in this or another layout, is read as a whole.
    dense = {
        id((weight.part_of or weight.tied_to or weight).tensor)
        for weight in weights
        for holder in weight.holders
        if not _reads_rows(holder)
    }
    found = []
    for weight in weights:
        if weight.part_of is not None:
            continue
        storage = id((weight.tied_to or weight).tensor)
        for holder in weight.holders:
            group = group_of[holder.name]
            given = in_file.get(id(weight.tensor)) or parameter_of(
                holder.name, group, weight.tensor, storage_id=storage
            )
            pattern: AccessPattern = "dense" if storage in dense else "sparse"
            pattern = "experts" if id(weight.tensor) in experts else pattern
            needs_none = group in around and pattern != "experts"
            found.append(
                replace(
                    given,
                    name=holder.name,
                    group=group,
                    access_pattern=pattern,
                    **(without_slot if needs_none else {}),
                )
            )
    return found


def _experts(
    model: torch.nn.Module,
    weights: Sequence[Weight],
    transfer_mode: str,
    expert_bytes: int,
    limits_device: bool,
) -> list[FusedExperts]:
    """Returns the modules whose weights expert caches carry."""
    asked = transfer_mode == "experts"
    if not asked and not (transfer_mode == "auto" and expert_bytes > 0):
        return []
    if not limits_device and expert_bytes == 0:
        raise ValueError(
            "expert_bytes is 0 with a budget of host memory: say how many bytes of device memory "
            "the caches of experts may take"
        )
    shared = {id(one) for w in weights for one in (w.tied_to, w.part_of) if one is not None}
    alone = {
        id(weight.tensor)
        for weight in weights
        if len(weight.holders) == 1
        and id(weight) not in shared
        and weight.tied_to is None
        and weight.part_of is None
    }
    found = [
        one
        for one in fused_experts(model)
        if all(id(one.tensor(own)) in alone for own in one.tensors)
    ]
    if not found and (asked or expert_bytes > 0):
        raise ValueError(
            f"asked for caches of experts, and {type(model).__name__} has no fused experts that "
            "are known: modules of transformers' mixtures of experts, each with tensors of its own "
            "[experts, ...]. Experts that are modules are offloaded like all modules"
        )
    return found


def _reads_rows(holder: Holder) -> bool:
    """Returns whether a step reads only a few rows of a module's parameter."""
    embeddings = (torch.nn.Embedding, torch.nn.EmbeddingBag)
    return isinstance(holder.module, embeddings) and holder.own == "weight"

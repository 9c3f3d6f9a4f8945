"""Offloads the models of a pipeline under one budget."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch

from ...errors import WeighbridgeError, make
from ...memory import Device
from ...plan import CParameters, PlanInfo
from ...torch import OffloadHandle
from ...torch import offload as offload_model
from ...torch._devices import open_device, runs_on
from ...torch._offload import parameters_of, plan_of
from ...torch._weight import weights_of
from .._checks import check_plain
from .._options import check_budget, check_by_model, check_runs
from ._budget import Component, divide
from ._caches import let_caches_be_enabled
from ._groups import bytes_of, groups_of
from ._handle import PipelineHandle
from ._pipeline import is_attached

STEPS = 30
"""Of denoising, for a pipeline that has no default."""
DENOISERS = ("transformer", "unet", "controlnet", "prior", "decoder", "adapter")
"""What the names of models begin with that run in every step."""
LINK = 25e9
"""Bytes per second, to divide a budget by, if no other rate is given."""
ROWS = 2048
NOT_PLANNED = ("buffers", "pin", "verify", "overlap_steps", "progress")
OWN = {"model", "checkpoint", "strict", "device", "device_bytes", "offload_bytes", "groups"}
OWN |= {"quantize", "quantize_select", "group_seconds"}
"""Options of a model's offload that a pipeline's has itself or, since they are for one model, or no
model of diffusers runs with FP8, not at all."""


def offload(
    pipeline: Any,
    *,
    device_bytes: int,
    device: str | torch.device | None = None,
    runs: Mapping[str, float] | None = None,
    groups: Mapping[str, Literal["auto"] | Sequence[str]] | None = None,
    **options: Any,
) -> PipelineHandle:
    """Moves weights of a pipeline's models to host memory under one budget of device memory.

    The models run one after another, so the budget is divided by how often each runs in a call:
    ``runs``, by the names of models; by default those that denoise run as often as the pipeline's
    ``num_inference_steps``, the others once. A model that fits wholly into its part stays on the
    device, and so does an autoencoder in FP16 that the pipeline makes FP32 in every call.
    ``device`` is where the pipeline runs, by default the current CUDA device, or "cpu" without one;
    load the pipeline on the CPU, so that the device never holds all of it. ``groups`` are those of
    :func:`weighbridge.torch.offload`, by the names of models; by default blocks inside of large
    blocks are groups, too. ``options`` are those of :func:`weighbridge.torch.offload` for each
    model, such as ``compute_bytes_per_second``, by which the models' times are known better.

    The pipeline's outputs are those of the resident pipeline, bit for bit. Its schedulers and
    processors are untouched. What its own methods change is followed: adapters that are loaded,
    fused and unloaded, and another type. Weights of adapters belong to the budget, too.

    Raises ValueError if accelerate or a hook of diffusers places the weights.
    """
    unknown = set(options) - (set(inspect.signature(offload_model).parameters) - OWN)
    if unknown:
        raise TypeError(f"offload() got unknown options: {', '.join(sorted(unknown))}")
    check_budget("device_bytes", device_bytes)
    models = _models_of(pipeline)
    where = runs_on(device)
    check_by_model("groups", groups, models)
    check_by_model("runs", runs, models)
    check_runs(runs)
    grouped: dict[str, Any] = {
        name: (groups or {}).get(name) or groups_of(model) or "auto"
        for name, model in models.items()
    }
    opened = open_device(where, options.get("pin"))
    often = {**_runs_of(pipeline, models), **(runs or {})}
    whole = {name: 2 * bytes_of(model) for name, model in models.items() if _is_upcast(model)}
    components = {
        name: _component(name, model, opened, grouped[name], often[name], options)
        for name, model in models.items()
        if name not in whole
    }
    total = sum(component.nbytes for component in components.values()) + sum(whole.values())
    if total <= device_bytes:
        raise ValueError(
            f"asked to run the pipeline in {device_bytes} bytes of device memory, into which all "
            f"{total} bytes of its weights fit: call pipeline.to({str(where)!r}), or give fewer"
        )
    given = {**divide(device_bytes, components, whole), **whole}
    handles: dict[str, OffloadHandle] = {}
    try:
        for name, model in models.items():
            if name not in whole and given[name] < components[name].nbytes:
                handles[name] = offload_model(
                    model,
                    device_bytes=given[name],
                    device=where,
                    groups=grouped[name],
                    **options,
                )
                let_caches_be_enabled(model)
            else:
                model.to(where)
    except BaseException:
        for handle in handles.values():
            handle.remove("cpu")
        raise
    return PipelineHandle(pipeline, where, handles, given)


def _models_of(pipeline: Any) -> dict[str, torch.nn.Module]:
    """Returns the models of a pipeline; raises ValueError if they cannot be offloaded."""
    if not hasattr(pipeline, "components"):
        raise TypeError(f"asked to offload a {type(pipeline).__name__}, which has no components")
    if is_attached(pipeline):
        raise RuntimeError("the pipeline is offloaded already: call the handle's remove() first")
    if getattr(pipeline, "hf_device_map", None) is not None:
        raise ValueError(
            "the pipeline was loaded with a device_map, by which accelerate places its models: "
            "call pipeline.reset_device_map() first"
        )
    models: dict[str, torch.nn.Module] = {}
    for name, model in pipeline.components.items():
        if isinstance(model, torch.nn.Module) and not any(model is one for one in models.values()):
            if next(model.parameters(), None) is not None:
                check_plain(model, name)
                _check_hooks(model, name)
                models[name] = model
    if not models:
        raise ValueError(f"{type(pipeline).__name__} has no models: nothing can be offloaded")
    return models


def _check_hooks(model: torch.nn.Module, asked: str) -> None:
    for name, module in model.named_modules():
        registry = getattr(module, "_diffusers_hook", None)
        for hook in getattr(registry, "hooks", ()):
            where = f"{asked}.{name}" if name else asked
            what = (
                "which moves or casts its weights: load the model without it"
                if "offload" in hook or "casting" in hook
                else "which would run around the offload: enable it after the offload instead"
            )
            raise ValueError(f"{where} has the hook {hook!r} of diffusers, {what}")


def _is_upcast(model: Any) -> bool:
    """Returns whether a pipeline makes a model FP32 in every call, and FP16 again: then it stays on
    the device, with space for both."""
    config = getattr(model, "config", None)
    upcast = getattr(config, "force_upcast", False)
    return bool(upcast) and next(model.parameters()).dtype == torch.float16


def _runs_of(pipeline: Any, models: Mapping[str, torch.nn.Module]) -> dict[str, float]:
    """Returns how often each model runs in a call of the pipeline."""
    parameters = inspect.signature(type(pipeline).__call__).parameters
    steps = getattr(parameters.get("num_inference_steps"), "default", None)
    often = float(steps) if isinstance(steps, int) else STEPS
    return {name: often if name.startswith(DENOISERS) else 1.0 for name in models}


def _component(
    name: str,
    model: torch.nn.Module,
    device: Device,
    groups: Any,
    runs: float,
    options: Mapping[str, Any],
) -> Component:
    weights = weights_of(model, options.get("buffers", False))
    pin = options.get("pin")
    parameters = CParameters(parameters_of(model, device, weights, {}, groups, pin))
    planned = {key: value for key, value in options.items() if key not in NOT_PLANNED}
    planned["link_bytes_per_second"] = options.get("link_bytes_per_second") or LINK
    planned["rows"] = options.get("rows") or ROWS
    planned["allow"] = {*options.get("allow", ()), "everything-fits", "nothing-offloaded"}

    def plan(**budget: int) -> PlanInfo:
        try:
            with plan_of(model, device, parameters, **{**planned, **budget}) as made:
                return made.info
        except WeighbridgeError as error:
            said = f"{name}: {error.message}"
            raise make(error.status, said, error.code, error.code_domain) from error

    return Component(bytes_of(model), runs, plan)

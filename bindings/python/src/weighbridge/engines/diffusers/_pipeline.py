"""A pipeline whose models are offloaded: its class follows what is done to their weights."""

from __future__ import annotations

import copy
import functools
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Callable

import torch

if TYPE_CHECKING:
    from ._handle import PipelineHandle

ORIGINAL = "_weighbridge_original"
HANDLE = "_weighbridge_handle"
CHANGES = (
    "load_lora_weights",
    "unload_lora_weights",
    "fuse_lora",
    "unfuse_lora",
    "delete_adapters",
    "fuse_qkv_projections",
    "unfuse_qkv_projections",
    "load_ip_adapter",
    "unload_ip_adapter",
    "load_textual_inversion",
    "unload_textual_inversion",
)
"""Methods that add, change, replace or remove weights."""
PLACES = (
    "enable_model_cpu_offload",
    "enable_sequential_cpu_offload",
    "enable_group_offload",
    "reset_device_map",
)
"""Methods that place weights in another way."""


def attach(pipeline: Any, handle: PipelineHandle) -> None:
    """Gives a pipeline a class that follows changes of its weights.

    Another pipeline of that class, which ``from_pipe`` makes, does so while it has one of the
    offloaded models, and else is as one of its own class. A copy is one.
    """
    kind: Any = type(pipeline)

    def execution_device(self: Any) -> Any:
        return handle.device if follows(self, handle) else kind._execution_device.fget(self)

    members: dict[str, Any] = {
        ORIGINAL: kind,
        HANDLE: handle,
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
        "__doc__": kind.__doc__,
        "__deepcopy__": _copying(kind),
        "_execution_device": property(execution_device),
        "__call__": _calling(kind.__call__, handle),
        "to": _moving(kind.to, handle),
    }
    for name in CHANGES:
        if hasattr(kind, name):
            members[name] = _changing(getattr(kind, name), handle)
    for name in PLACES:
        if hasattr(kind, name):
            members[name] = _refusing(getattr(kind, name), handle)
    pipeline.__class__ = type(kind.__name__, (kind,), members)
    names = [*kind._exclude_from_cpu_offload, *handle.components]
    pipeline._exclude_from_cpu_offload = list(dict.fromkeys(names))


def detach(pipeline: Any) -> None:
    """Gives a pipeline its own class again."""
    kind = getattr(type(pipeline), ORIGINAL, None)
    if kind is not None:
        pipeline.__class__ = kind
        pipeline.__dict__.pop("_exclude_from_cpu_offload", None)


def is_attached(pipeline: Any) -> bool:
    """Returns whether the models of a pipeline are offloaded."""
    handle = getattr(type(pipeline), HANDLE, None)
    return handle is not None and follows(pipeline, handle)


def follows(pipeline: Any, handle: PipelineHandle) -> bool:
    """Returns whether a pipeline is the one of a handle, or has one of its offloaded models."""
    if pipeline is handle.pipeline:
        return True
    models = {id(component.model) for component in handle.components.values()}
    return any(id(one) in models for one in vars(pipeline).values())


def _copying(kind: Any) -> Callable[..., Any]:
    def deepcopy(self: Any, memo: dict[int, Any]) -> Any:
        copied = memo[id(self)] = kind.__new__(kind)
        own = {k: one for k, one in vars(self).items() if k != "_exclude_from_cpu_offload"}
        vars(copied).update(copy.deepcopy(own, memo))
        return copied

    return deepcopy


def _calling(method: Callable[..., Any], handle: PipelineHandle) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        with handle.steps() if follows(self, handle) else nullcontext():
            return method(self, *args, **kwargs)

    return call


def _changing(method: Callable[..., Any], handle: PipelineHandle) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return method(self, *args, **kwargs)
        finally:
            if follows(self, handle):
                handle.reconcile()

    return call


def _moving(method: Callable[..., Any], handle: PipelineHandle) -> Callable[..., Any]:
    @functools.wraps(method)
    def to(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not follows(self, handle):
            return method(self, *args, **kwargs)
        for asked in (*args, kwargs.get("device")):
            if asked is None or isinstance(asked, (torch.dtype, bool)):
                continue
            device = torch.device(asked)
            index = handle.device.index if device.index is None else device.index
            if (device.type, index) != (handle.device.type, handle.device.index):
                raise RuntimeError(
                    f"asked to move the pipeline to {device}; its models are offloaded from "
                    f"{handle.device}: call the handle's remove({str(device)!r}) first"
                )
        # All are asked before one is changed: models of two types cannot run.
        given = (*args, kwargs.get("dtype"), kwargs.get("torch_dtype"))
        dtype = next((one for one in given if isinstance(one, torch.dtype)), None)
        for component in handle.offloaded().values():
            component._weights.check_moved(functools.partial(_converted, dtype))
        moved = method(self, *args, **kwargs)
        handle.reconcile()
        return moved

    return to


def _converted(dtype: torch.dtype | None, tensor: torch.Tensor) -> torch.Tensor:
    floating = tensor.is_floating_point() or tensor.is_complex()
    return tensor if dtype is None or not floating else tensor.to(dtype)


def _refusing(method: Callable[..., Any], handle: PipelineHandle) -> Callable[..., Any]:
    @functools.wraps(method)
    def refuse(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not follows(self, handle):
            return method(self, *args, **kwargs)
        raise RuntimeError(
            f"asked for {method.__name__}(); the pipeline's models are offloaded by weighbridge: "
            "call the handle's remove() first"
        )

    return refuse

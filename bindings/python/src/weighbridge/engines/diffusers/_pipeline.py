"""A pipeline whose models are offloaded: its class follows what is done to their weights."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Callable

import torch

if TYPE_CHECKING:
    from ._handle import PipelineHandle

ORIGINAL = "_weighbridge_original"
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
    """Gives a pipeline a class that follows changes of its weights."""
    kind: Any = type(pipeline)
    members: dict[str, Any] = {
        ORIGINAL: kind,
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
        "__doc__": kind.__doc__,
        "_execution_device": property(lambda self: handle.device),
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
    return hasattr(type(pipeline), ORIGINAL)


def _calling(method: Callable[..., Any], handle: PipelineHandle) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        with handle.steps():
            return method(self, *args, **kwargs)

    return call


def _changing(method: Callable[..., Any], handle: PipelineHandle) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return method(self, *args, **kwargs)
        finally:
            handle.reconcile()

    return call


def _moving(method: Callable[..., Any], handle: PipelineHandle) -> Callable[..., Any]:
    @functools.wraps(method)
    def to(self: Any, *args: Any, **kwargs: Any) -> Any:
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
        moved = method(self, *args, **kwargs)
        handle.reconcile()
        return moved

    return to


def _refusing(method: Callable[..., Any], handle: PipelineHandle) -> Callable[..., Any]:
    @functools.wraps(method)
    def refuse(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(
            f"asked for {method.__name__}(); the pipeline's models are offloaded by weighbridge: "
            "call the handle's remove() first"
        )

    return refuse

"""Refuses what an offloaded model cannot do in vLLM, by name, before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

VLLM_COMPILE = 3
"""The compilation mode that splits a model into pieces."""


def check_supported(vllm_config: Any) -> None:
    """Raises ValueError if the engine is to do what does not work with offloaded weights."""
    found = list(_unsupported(vllm_config))
    if found:
        raise ValueError(
            "--load-format weighbridge does not work with " + "; nor with ".join(found)
        )


def check_experts(vllm_config: Any) -> None:
    """Raises ValueError if caches cannot carry the experts of the engine."""
    if vllm_config.parallel_config.enable_expert_parallel:
        raise ValueError(
            "asked for caches of experts with --enable-expert-parallel, which gives each rank some "
            "of a layer's experts, by a map of their numbers: leave that out, which divides each "
            'expert among the ranks, or use "experts": "views"'
        )
    if getattr(vllm_config, "weight_transfer_config", None) is not None:
        raise ValueError(
            "asked for caches of experts with weight_transfer_config, by which a trainer writes "
            'weights that are in slots: leave one of them out, or use "experts": "views"'
        )


def check_compilable(in_place: bool, why: str) -> None:
    """Raises ValueError if the device cannot read host memory in place: then the weights of a
    layer are the host's outside of its run, and a model is traced as a whole before it runs."""
    if not in_place:
        raise ValueError(
            "--load-format weighbridge does not work with a compiled model where the device cannot "
            f"read host memory in place ({why}): use --enforce-eager, or full graphs without "
            "compilation"
        )


def _unsupported(vllm_config: Any) -> Iterator[str]:
    parallel, compilation = vllm_config.parallel_config, vllm_config.compilation_config
    kind = str(vllm_config.device_config.device_type)
    if kind not in ("cuda", "cpu"):
        yield f"the device {kind}: it needs CUDA"
    if parallel.use_ubatching:
        yield (
            "ubatching (--enable-dbo), which interleaves two passes through the layers: leave it "
            "out"
        )
    if parallel.enable_eplb:
        yield "--enable-eplb, which moves experts in their device memory: leave it out"
    if getattr(vllm_config.model_config, "enable_sleep_mode", False):
        yield "--enable-sleep-mode, which frees and restores device memory by itself: leave it out"
    if _breakable_graphs():
        yield "VLLM_USE_BREAKABLE_CUDAGRAPH=1, whose captures end inside of a layer: unset it"
    if compilation.use_inductor_graph_partition:
        yield "use_inductor_graph_partition in --compilation-config: set it to false"
    mode = int(compilation.mode or 0)
    if mode not in (0, VLLM_COMPILE):
        yield f"compilation mode {mode}: use 0 (none) or {VLLM_COMPILE} (vLLM's own)"
    if mode == VLLM_COMPILE and not compilation.splitting_ops:
        yield (
            "a model that is compiled as one graph (splitting_ops is empty, as for fused attention "
            "quantization and sequence parallelism): turn these passes off, or --enforce-eager"
        )


def _breakable_graphs() -> bool:
    from vllm import envs

    return bool(getattr(envs, "VLLM_USE_BREAKABLE_CUDAGRAPH", False))

"""Refuses what an offloaded model cannot do in SGLang, by name, before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ._options import SWITCH

_WITHOUT = {
    ("exec", "overlap", "enable_two_batch_overlap"): (
        "--enable-two-batch-overlap, which runs parts of two layers in turn"
    ),
    ("exec", "moe", "enable_eplb"): "--enable-eplb, which moves experts in their device memory",
    ("exec", "moe", "elastic_ep_backend"): (
        "--elastic-ep-backend, which moves experts in their device memory"
    ),
    ("exec", "graph", "enable_torch_compile"): (
        "--enable-torch-compile, with which it was not tried"
    ),
    ("exec", "features", "enable_memory_saver"): (
        "--enable-memory-saver, which frees and restores device memory by itself"
    ),
    ("disagg", "enable_pdmux"): "--enable-pdmux, which runs two steps at a time",
    ("model", "is_startup_weight_load_overlap"): (
        "--startup-weight-load-mode overlap, which loads weights after the offload"
    ),
}
"""Switches by their places in SGLang's configuration."""


def check_supported(context: Any) -> None:
    """Raises ValueError if the engine is to do what does not work with offloaded weights.

    ``context`` is SGLang's module ``runtime_context``.
    """
    found = list(_unsupported(context))
    if found:
        raise ValueError(f"{SWITCH} does not work with " + "; nor with ".join(found))


def _unsupported(context: Any) -> Iterator[str]:
    kind = str(_value(context, ("device", "device")) or "cuda")
    if kind not in ("cuda", "cpu"):
        yield f"the device {kind}: it needs CUDA"
    for place, what in _WITHOUT.items():
        if _value(context, place):
            yield f"{what}: leave it out"
    mode = _value(context, ("model", "weight_cache_mode"))
    if mode not in (None, "off"):
        yield f"--weight-cache-mode {mode}, whose weights are another process's: leave it out"
    graphs = _value(context, ("exec", "graph", "cuda_graph_config"))
    if graphs is None or kind != "cuda":
        return
    for phase in ("prefill", "decode"):
        backend = getattr(graphs, phase).backend
        if backend not in ("full", "disabled"):
            yield (
                f"{backend} CUDA graphs of {phase}, which end inside of a layer: "
                f"--cuda-graph-backend-{phase} disabled"
            )


def _value(context: Any, place: tuple[str, ...]) -> Any:
    """Returns a setting; None in versions that do not have it."""
    bag = getattr(context, f"get_{place[0]}")()
    for name in place[1:]:
        bag = getattr(bag, name, None)
    return bag

"""The fused experts of vLLM's models, run on the slots of expert caches.

vLLM calls the experts of a layer by ``RoutedExperts.forward_modular``, with the numbers that the
router has chosen. It does so within an operator that it does not trace, so what happens there is
the same in compiled pieces, in CUDA graphs and in neither. A call is routed to slots there: the
numbers become those of slots, and the layer's own parameters use the slots meanwhile, so that the
kernel's references to scales, zero points and biases do, too.

A kernel may do anything with its tensors, so only known ones get slots; other layers are read in
place, and the log says why.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from vllm.logger import init_logger

from ..._text import in_words
from ...torch._expert_window import ID_TYPES, ExpertWindow
from ...torch._experts import FusedExperts
from ...torch._weights import Weights

logger = init_logger("vllm.weighbridge")

MODULE = "RoutedExperts"
CALL = "forward_modular"
METHODS = frozenset(
    {
        "AutoAWQMoEMethod",
        "AutoGPTQMoEMethod",
        "CompressedTensorsW4A4Nvfp4MoEMethod",
        "CompressedTensorsW8A8Fp8MoEMethod",
        "CompressedTensorsWNA16MarlinMoEMethod",
        "CompressedTensorsWNA16MoEMethod",
        "Fp8MoEMethod",
        "ModelOptFp8MoEMethod",
        "ModelOptNvFp4FusedMoE",
        "OnlineMoEMethodBase",
        "UnquantizedFusedMoEMethod",
    }
)
"""The classes whose ``apply`` gives the layer's parameters and the numbers to the kernel, and does
nothing else with them."""
KERNELS = frozenset({"MarlinExperts", "TritonExperts"})
"""Kernels that take any number of experts, in tensors that are the layer's parameters."""
_PREPARES = "MoEPrepareAndFinalizeNoDPEPModular"
"""It changes neither the order of tokens nor numbers."""


class ExpertLayers:
    """The layers of a model whose experts caches carry.

    ``device_bytes`` is what the caches may take; 0 is what a budget of device memory leaves.
    """

    def __init__(self, device_bytes: int) -> None:
        self.device_bytes = device_bytes
        self._decided: dict[torch.nn.Module, FusedExperts] | None = None
        self._carried: list[torch.nn.Module] = []

    def has(self, module: torch.nn.Module, own: str) -> bool:
        """Returns whether a cache carries a parameter; until the model is loaded, of any layer."""
        if self._decided is not None and module not in self._decided:
            return False
        return is_experts(module) and own in expert_tensors(module)

    def decide(self, model: torch.nn.Module) -> None:
        """Finds the layers that run on slots. Raises ValueError for a model without experts."""
        found = {module: name for name, module in model.named_modules() if is_experts(module)}
        if not found:
            raise ValueError(
                f"asked for caches of experts, and {type(model).__name__} has no fused experts: "
                "leave out experts and expert_bytes"
            )
        reasons = {module: obstacle(module) for module in found}
        self._decided = {
            module: FusedExperts(name, module, expert_tensors(module), "topk_ids", frozenset())
            for module, name in found.items()
            if not reasons[module]
        }
        _say(reason for reason in reasons.values() if reason)

    def fused(self, names: Collection[str]) -> Sequence[FusedExperts]:
        """Returns the experts whose tensors are all among the names of offloaded parameters."""
        decided = (self._decided or {}).values()
        found = [one for one in decided if all(name in names for name in one.names)]
        _say(
            "not all of their tensors are offloaded"
            for one in decided
            if one not in found and any(name in names for name in one.names)
        )
        return found

    def attach(self, weights: Weights) -> None:
        """Has the modules run on slots."""
        for window in weights.experts.values():
            module: Any = window.module
            module.__dict__[CALL] = _on_slots(window, weights, getattr(module, CALL))
            self._carried.append(module)
        for pool in weights.expert_pools:
            info = pool.cache.info
            logger.info(
                "weighbridge keeps %d of the %d experts of %d layers in slots, %s of device memory",
                info.slots,
                info.layers * info.experts,
                info.layers,
                in_words(info.slot_bytes + info.state_bytes),
            )

    def detach(self) -> None:
        """Restores the modules."""
        for module in self._carried:
            module.__dict__.pop(CALL, None)
        self._carried.clear()


def is_experts(module: torch.nn.Module) -> bool:
    """Returns whether a module has the fused experts of a layer."""
    return any(kind.__name__ == MODULE for kind in type(module).__mro__)


def expert_tensors(module: Any) -> tuple[str, ...]:
    """Returns the names of the parameters ``[experts, ...]``: weights, scales, biases and more."""
    found: dict[int, str] = {}  # some have a second name
    for own, tensor in module._parameters.items():
        if tensor is not None and _is_of_experts(tensor, module.local_num_experts):
            found.setdefault(id(tensor), own)
    return tuple(found.values())


def obstacle(module: Any) -> str:
    """Returns why the experts of a loaded layer cannot run on slots; "" if they can."""
    method, config = module.quant_method, module.moe_config
    kernel = getattr(method, "moe_kernel", None)
    applies = next(kind.__name__ for kind in type(method).__mro__ if "apply" in vars(kind))
    if module.expert_map is not None or module.local_num_experts != module.global_num_experts:
        return "expert parallelism: this rank has some of the experts, by an expert map"
    if getattr(config, "is_lora_enabled", False):
        return "adapters (--enable-lora), which have weights of their own for each expert"
    if type(module).__name__ != MODULE or applies not in METHODS or kernel is None:
        return f"{type(module).__name__} with {type(method).__name__} is not known"
    name, prepares = type(kernel.fused_experts).__name__, type(kernel.prepare_finalize).__name__
    if method.is_monolithic or name not in KERNELS or prepares != _PREPARES:
        return (
            f"the kernel {name} with {prepares} is not known; --moe-backend triton or marlin may "
            "choose one that is"
        )
    held = {own: module._parameters[own] for own in expert_tensors(module)}
    for prefix in ("w13_", "w2_"):
        if not any(own.startswith(prefix) and tensor.dim() == 3 for own, tensor in held.items()):
            return f"{prefix} has no tensor of {module.local_num_experts} experts"
    for own, tensor in held.items():
        if not tensor[0].is_contiguous():
            return f"an expert of {own} is not contiguous"
    known = set(map(id, held.values()))
    for where, tensor in _tensors_of(kernel.fused_experts, method):
        if id(tensor) not in known and _is_of_experts(tensor, module.local_num_experts):
            return f"the kernel {name} has {where} of all experts, which is not a parameter"
    return ""


def _on_slots(window: ExpertWindow, weights: Weights, forward: Any) -> Any:
    """Returns the call of a layer's experts, by their slots where it can be."""
    module: Any = window.module
    checked: list[Any] = [None, ""]

    def refused() -> bool:
        kernel = module.quant_method.moe_kernel
        if checked[0] is not kernel:  # weights that were processed again have another one
            checked[:] = kernel, obstacle(module)
            _say([checked[1]] if checked[1] else [])
        return bool(checked[1])

    def ready() -> bool:
        # What a capture finds out would be done again by each replay.
        return window.ready if weights.is_capturing() else window.follow()

    @functools.wraps(forward)
    def run(x: Any, topk_weights: Any, topk_ids: torch.Tensor, *args: Any, **more: Any) -> Any:
        # The number of ids decides, which a graph fixes: the others are read in place.
        fits = topk_ids.numel() and topk_ids.dtype in ID_TYPES and window.fits(topk_ids)
        if not fits or not ready() or refused():
            return forward(x, topk_weights, topk_ids, *args, **more)
        slots = window.route(topk_ids)
        with _as_if_resident(module, x, topk_ids), _with_experts(module, window.pool.slots):
            with window.on_slots():
                return forward(x, topk_weights, slots, *args, **more)

    return run


@contextmanager
def _with_experts(module: Any, count: int) -> Iterator[None]:
    before, module.global_num_experts = module.global_num_experts, count
    try:
        yield
    finally:
        module.global_num_experts = before


def _as_if_resident(module: Any, x: torch.Tensor, ids: torch.Tensor) -> Any:
    """Returns a context in which a Triton kernel has the tiles that it has for the layer's own
    experts: it chooses them by the number of experts, and roundings depend on them."""
    from vllm.model_executor.layers.fused_moe import get_config

    kernel = module.quant_method.moe_kernel.fused_experts
    if type(kernel).__name__ != "TritonExperts" or get_config():
        return nullcontext()
    from vllm.model_executor.layers.fused_moe.fused_moe import try_get_optimal_moe_config

    return _tiles(
        try_get_optimal_moe_config(
            module.w13_weight.size(),
            module.w2_weight.size(),
            ids.size(1),
            kernel.quant_config.config_name(x.dtype),
            x.size(0),
            block_shape=kernel.quant_config.block_shape,
        )
    )


@contextmanager
def _tiles(config: Any) -> Iterator[None]:
    from vllm.model_executor.layers.fused_moe import override_config

    override = override_config(config)
    override.__enter__()
    try:
        yield
    finally:
        override.__exit__(None, None, None)  # vLLM's does nothing after an exception


def _is_of_experts(tensor: torch.Tensor, experts: int) -> bool:
    return tensor.dim() > 0 and tensor.shape[0] == experts and tensor.numel() > 0


def _tensors_of(*owners: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields the tensors that objects have, also in the dataclasses that they have."""
    seen: set[int] = set()
    waiting = [(type(owner).__name__, owner) for owner in owners]
    while waiting:
        where, owner = waiting.pop()
        if id(owner) in seen:
            continue
        seen.add(id(owner))
        if isinstance(owner, torch.Tensor):
            yield where, owner
        elif isinstance(owner, (list, tuple)):
            waiting += [(where, value) for value in owner]
        elif is_dataclass(owner):
            waiting += [(f"{where}.{f.name}", getattr(owner, f.name, None)) for f in fields(owner)]
        elif any(owner is one for one in owners):
            waiting += [(f"{where}.{name}", value) for name, value in vars(owner).items()]


def _say(reasons: Iterator[str] | Sequence[str]) -> None:
    for reason, count in Counter(reasons).items():
        logger.warning("weighbridge reads the experts of %d layers in place: %s", count, reason)

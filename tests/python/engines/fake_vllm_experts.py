"""The classes of vLLM that run fused experts, as far as the plug-in touches them.

They have the shape of those of 0.26.0 and 0.33.0 in ``vllm/model_executor/layers/fused_moe``:
``RoutedExperts`` (routed_experts.py), ``UnquantizedFusedMoEMethod``, ``FusedMoEKernel``
(modular_kernel.py), ``FusedMoEQuantConfig`` (config.py), ``override_config`` (__init__.py), and
``Fp8MoEMethod`` (quantization/fp8.py). The kernels compute on the host. As those of vLLM, they
choose the tiles of their sums by the number of experts, and the numbers depend on the tiles.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

FUSED = "vllm.model_executor.layers.fused_moe"
_config: Any = None


@contextmanager
def override_config(config: Any) -> Any:
    global _config
    before, _config = _config, config
    yield
    _config = before


def get_config() -> Any:
    return _config


def try_get_optimal_moe_config(
    w1_shape: Any, w2_shape: Any, top_k: int, dtype: str | None, M: int, block_shape: Any = None
) -> dict[str, int]:
    if _config:
        return _config
    # A file of measured tiles exists for some numbers of experts.
    return {"BLOCK_SIZE_K": 8 if w2_shape[0] == EXPERTS else 3}


EXPERTS, USED, HIDDEN, INNER = 8, 2, 32, 16


@dataclass
class FusedMoEQuantDesc:
    dtype: Any = None
    shape: Any = None
    scale: Any = None
    alpha_or_gscale: Any = None
    zp: Any = None
    bias: Any = None


@dataclass
class FusedMoEQuantConfig:
    _a1: FusedMoEQuantDesc
    _a2: FusedMoEQuantDesc
    _w1: FusedMoEQuantDesc
    _w2: FusedMoEQuantDesc

    block_shape = None

    def config_name(self, dtype: torch.dtype) -> str | None:
        return None


def quant_config(**of_weights: Any) -> FusedMoEQuantConfig:
    """One with a pair of values, for both weights, by the names of a descriptor."""
    first = {name: pair[0] for name, pair in of_weights.items()}
    second = {name: pair[1] for name, pair in of_weights.items()}
    empty = FusedMoEQuantDesc()
    return FusedMoEQuantConfig(
        empty, empty, FusedMoEQuantDesc(**first), FusedMoEQuantDesc(**second)
    )


class MoEPrepareAndFinalizeNoDPEPModular:
    pass


class TritonExperts:
    """Multiplies the rows of each expert in tiles."""

    def __init__(self, moe_config: Any, quant_config: FusedMoEQuantConfig) -> None:
        self.moe_config = moe_config
        self.quant_config = quant_config

    def apply(self, x, w1, w2, topk_weights, topk_ids, global_num_experts, expert_map):
        assert expert_map is None and w1.shape[0] == w2.shape[0] == global_num_experts
        assert int(topk_ids.max()) < global_num_experts and int(topk_ids.min()) >= 0
        tiles = try_get_optimal_moe_config(w1.size(), w2.size(), USED, None, x.size(0))
        out = torch.zeros_like(x)
        for token in range(x.shape[0]):
            for weight, at in zip(topk_weights[token], topk_ids[token].tolist()):
                one = self.matrix(w1, self.quant_config._w1, at)
                two = self.matrix(w2, self.quant_config._w2, at)
                gate, up = multiply(x[token], one, tiles).chunk(2)
                out[token] += weight * multiply(torch.tanh(gate) * up, two, tiles)
        return out

    def matrix(self, weight: torch.Tensor, desc: FusedMoEQuantDesc, at: int) -> torch.Tensor:
        found = weight[at].float()
        if desc.scale is not None:
            found = found * desc.scale[at]
        return found if desc.bias is None else found + desc.bias[at][:, None]


class MarlinExperts(TritonExperts):
    def apply(self, x, w1, w2, topk_weights, topk_ids, global_num_experts, expert_map):
        with override_config({"BLOCK_SIZE_K": 4}):  # not one of Triton's
            return super().apply(x, w1, w2, topk_weights, topk_ids, global_num_experts, expert_map)


class TritonOrDeepGemmExperts(TritonExperts):
    pass


class FusedMoEKernel:
    is_monolithic = False

    def __init__(self, fused_experts: Any, prepare_finalize: Any = None) -> None:
        self.fused_experts = fused_experts
        self.prepare_finalize = prepare_finalize or MoEPrepareAndFinalizeNoDPEPModular()

    def apply(
        self, hidden_states, w1, w2, topk_weights, topk_ids, global_num_experts, expert_map, **more
    ):
        return self.fused_experts.apply(
            hidden_states, w1, w2, topk_weights, topk_ids, global_num_experts, expert_map
        )


def multiply(x: torch.Tensor, matrix: torch.Tensor, tiles: dict[str, int]) -> torch.Tensor:
    """The product, of which each tile of columns is added up by itself."""
    size = tiles["BLOCK_SIZE_K"]
    parts = [
        (matrix[:, at : at + size] * x[at : at + size]).sum(1) for at in range(0, len(x), size)
    ]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


class UnquantizedFusedMoEMethod:
    kernel: Any = TritonExperts
    bias = False

    def __init__(self) -> None:
        self.moe_kernel: Any = None
        self.moe_quant_config: Any = None

    @property
    def is_monolithic(self) -> bool:
        return self.moe_kernel.is_monolithic

    def create_weights(self, layer: Any) -> None:
        for own, shape in (("w13", (EXPERTS, 2 * INNER, HIDDEN)), ("w2", (EXPERTS, HIDDEN, INNER))):
            layer.register_parameter(f"{own}_weight", parameter(torch.empty(shape)))
            if self.bias:
                layer.register_parameter(f"{own}_bias", parameter(torch.empty(shape[:2])))

    def process_weights_after_loading(self, layer: Any) -> None:
        if self.moe_kernel is not None:
            return  # weights that are loaded again are where they were
        layer.w13_weight = parameter(layer.w13_weight.data.clone())
        pair = {"bias": (layer.w13_bias, layer.w2_bias)} if self.bias else {}
        self.make_kernel(layer, quant_config(**pair))

    def make_kernel(self, layer: Any, config: FusedMoEQuantConfig) -> None:
        self.moe_quant_config = config
        self.moe_kernel = FusedMoEKernel(self.kernel(layer.moe_config, config))

    def apply(self, layer, x, topk_weights, topk_ids, shared_experts, shared_experts_input):
        return self.moe_kernel.apply(
            hidden_states=x,
            w1=layer.w13_weight,
            w2=layer.w2_weight,
            topk_weights=topk_weights,
            topk_ids=topk_ids,
            global_num_experts=layer.global_num_experts,
            expert_map=layer.expert_map,
            shared_experts=shared_experts,
            shared_experts_input=shared_experts_input,
        )


class Biased(UnquantizedFusedMoEMethod):
    bias = True


class Fp8MoEMethod(UnquantizedFusedMoEMethod):
    """One scale for each expert, and new parameters and a new kernel whenever it processes."""

    def create_weights(self, layer: Any) -> None:
        super().create_weights(layer)
        for own in ("w13", "w2"):
            layer.register_parameter(f"{own}_weight_scale", parameter(torch.empty(EXPERTS)))
            layer.register_parameter(f"{own}_input_scale", parameter(torch.empty(EXPERTS)))

    def process_weights_after_loading(self, layer: Any) -> None:
        for own in ("w13", "w2"):
            weight = getattr(layer, f"{own}_weight").data.float()
            scale = weight.abs().amax((1, 2)) / 448
            quantized = (weight / scale[:, None, None]).to(torch.float8_e4m3fn)
            setattr(layer, f"{own}_weight", parameter(quantized))
            setattr(layer, f"{own}_weight_scale", parameter(scale))
            largest = getattr(layer, f"{own}_input_scale").data.max()
            setattr(layer, f"{own}_input_scale", parameter(largest.clone()))
        scales = (layer.w13_weight_scale, layer.w2_weight_scale)
        self.make_kernel(layer, quant_config(scale=scales))


class AutoGPTQMoEMethod(UnquantizedFusedMoEMethod):
    """Packed weights, which have a second name for the kernel, scales of rows, and empty tensors of
    all experts that the kernel ignores."""

    kernel = MarlinExperts

    def create_weights(self, layer: Any) -> None:
        super().create_weights(layer)
        for own in ("w13", "w2"):
            layer.register_parameter(f"{own}_qweight", layer._parameters.pop(f"{own}_weight"))
            layer.register_parameter(f"{own}_scales", parameter(torch.empty(EXPERTS, 1, 1)))
        layer.register_parameter("w13_g_idx", parameter(torch.empty(EXPERTS, 0)))

    def process_weights_after_loading(self, layer: Any) -> None:
        for own in ("w13", "w2"):
            weight = getattr(layer, f"{own}_qweight").data.float()
            scale = weight.abs().amax(2, keepdim=True) / 7
            packed = (weight / scale).round().to(torch.int32)
            setattr(layer, f"{own}_qweight", parameter(packed))
            setattr(layer, f"{own}_weight", getattr(layer, f"{own}_qweight"))
            setattr(layer, f"{own}_scales", parameter(scale))
        self.make_kernel(layer, quant_config(scale=(layer.w13_scales, layer.w2_scales)))
        self.moe_kernel.fused_experts.w13_g_idx = layer.w13_g_idx


class RoutedExperts(torch.nn.Module):
    """The expert tensors of a layer, and the call of its kernel."""

    def __init__(self, method: Any) -> None:
        super().__init__()
        self.moe_config = SimpleNamespace(is_lora_enabled=False, num_experts=EXPERTS)
        self.global_num_experts = self.local_num_experts = EXPERTS
        self.expert_map: torch.Tensor | None = None
        self.quant_method = method
        method.create_weights(self)

    def forward_modular(
        self, x, topk_weights, topk_ids, shared_experts=None, shared_experts_input=None
    ):
        return self.quant_method.apply(
            layer=self,
            x=x,
            topk_weights=topk_weights,
            topk_ids=topk_ids,
            shared_experts=shared_experts,
            shared_experts_input=shared_experts_input,
        )


class MoERunner(torch.nn.Module):
    """The router, and the experts that it chooses."""

    def __init__(self, method: Any, experts: Any = RoutedExperts) -> None:
        super().__init__()
        self.gate = parameter(torch.empty(EXPERTS, HIDDEN))
        self.routed_experts = experts(method)
        self.routed: list[torch.Tensor] = []

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        scores = torch.softmax(hidden @ self.gate.t(), -1)
        topk_weights, topk_ids = scores.topk(USED)
        self.routed.append(topk_ids)
        return self.routed_experts.forward_modular(
            x=hidden, topk_weights=topk_weights, topk_ids=topk_ids.int()
        )


def parameter(data: torch.Tensor) -> torch.nn.Parameter:
    return torch.nn.Parameter(data, requires_grad=False)


def install(module: Any) -> None:
    """Puts the modules into ``sys.modules`` by ``module``, which does that for one."""
    module("vllm.model_executor.layers")
    module(FUSED, get_config=get_config, override_config=override_config)
    module(f"{FUSED}.fused_moe", try_get_optimal_moe_config=try_get_optimal_moe_config)

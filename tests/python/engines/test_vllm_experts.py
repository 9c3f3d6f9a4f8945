"""The vLLM plug-in with experts in caches, over fakes of vLLM's fused experts."""

from __future__ import annotations

import ast
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from engines import fake_vllm, fake_vllm_experts
from engines.fake_vllm_experts import (
    EXPERTS,
    HIDDEN,
    INNER,
    USED,
    AutoGPTQMoEMethod,
    Biased,
    Fp8MoEMethod,
    MoERunner,
    RoutedExperts,
    TritonExperts,
    TritonOrDeepGemmExperts,
    UnquantizedFusedMoEMethod,
    parameter,
)

LAYERS = 4
EXPERT = 3 * INNER * HIDDEN * 4
"""Bytes of an expert that is not quantized."""
METHODS = {
    UnquantizedFusedMoEMethod: EXPERT,
    Biased: EXPERT + 4 * (2 * INNER + HIDDEN),
    Fp8MoEMethod: EXPERT // 4 + 2 * 4,
    AutoGPTQMoEMethod: EXPERT + 4 * (2 * INNER + HIDDEN),
}
"""With the bytes of their experts."""
FEW, MANY = EXPERTS - 1, 2 * EXPERTS + 3
"""Slots."""
TOKENS = torch.arange(3)  # may name as many experts as FEW slots hold


def space(slots, method=UnquantizedFusedMoEMethod):
    """Returns the bytes of slots and of what a cache has beside them."""
    return slots * METHODS[method] + 3600


class Layer(torch.nn.Module):
    def __init__(self, method, experts=RoutedExperts):
        super().__init__()
        self.norm = parameter(torch.empty(HIDDEN))
        self.mlp = MoERunner(method(), experts)

    def forward(self, hidden):
        return hidden + self.mlp(hidden * self.norm)


class Model(torch.nn.Module):
    def __init__(self, wrap, method, experts=RoutedExperts):
        super().__init__()
        self.embed = torch.nn.Embedding(64, HIDDEN).requires_grad_(False)
        self.layers = torch.nn.ModuleList(wrap(Layer(method, experts) for _ in range(LAYERS)))

    def forward(self, ids):
        hidden = self.embed(ids)
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden


def load(model, seed=11):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for own in model.parameters():
            values = torch.randn(own.shape, generator=generator) * max(own.dim(), 1) / 4
            own.data.copy_(values)


def model_config(method, experts=RoutedExperts):
    return SimpleNamespace(
        model="a model",
        dtype=torch.float32,
        hf_text_config=SimpleNamespace(tie_word_embeddings=True),
        get_num_layers=lambda parallel: LAYERS,
        get_vocab_size=lambda: 64,
        get_hidden_size=lambda: HIDDEN,
        build=lambda wrap: Model(wrap, method, experts),
        load=load,
    )


def process(model):
    for layer in model.layers:
        experts = layer.mlp.routed_experts
        experts.quant_method.process_weights_after_loading(experts)


def resident(method, experts=RoutedExperts):
    model = Model(list, method, experts)
    load(model)
    process(model)
    return model


def start(vllm, method, experts=RoutedExperts, /, budget=None, changes=None, **options):
    """Loads a model as vLLM does; returns it and its offloader."""
    given = {**(budget or {"offload_bytes": "1MiB"}), **options}
    config = fake_vllm.config(model_config(method, experts), given, **(changes or {}))
    loader = vllm.get_model_loader(config.load_config)
    model = loader.load_model(vllm_config=config, model_config=config.model_config)
    return model, vllm.get_offloader()


def caches(offloader):
    return [pool.cache for pool in offloader.weights.expert_pools]


def calls(offloader):
    return sum(cache.stats().calls for cache in caches(offloader))


def lines(vllm):
    return "\n".join(vllm.loggers["vllm.weighbridge"].lines)


def check_equal(model, expected, tokens=TOKENS):
    with torch.inference_mode():
        for at in range(4):
            assert torch.equal(model(tokens + 7 * at), expected(tokens + 7 * at))


@pytest.mark.parametrize("slots", [FEW, MANY])
@pytest.mark.parametrize("method", METHODS)
def test_outputs_are_those_of_the_resident_model_and_experts_are_in_slots(vllm, method, slots):
    model, offloader = start(vllm, method, expert_bytes=space(slots, method))
    expected = resident(method)
    check_equal(model, expected)
    for one, other in zip(model.parameters(), expected.parameters()):
        assert torch.equal(one, other)
    assert len(offloader.weights.experts) == LAYERS and calls(offloader) == 4 * LAYERS
    found = [cache.stats() for cache in caches(offloader)]
    assert sum(one.misses for one in found) > 0
    assert sum(one.hits for one in found) > 0 or slots == FEW
    used = sum(cache.info.slot_bytes + cache.info.state_bytes for cache in caches(offloader))
    assert slots * METHODS[method] <= used <= space(slots, method)
    count = sum(cache.info.slots for cache in caches(offloader))
    assert f"keeps {count} of the " in lines(vllm)


@pytest.mark.parametrize("method", METHODS)
def test_a_call_that_may_need_more_experts_than_slots_reads_in_place(vllm, method):
    model, offloader = start(vllm, method, expert_bytes=space(FEW - 2, method))
    expected = resident(method)
    slots = caches(offloader)[0].info.slots
    many = torch.arange(slots // USED + 1)
    check_equal(model, expected, many)
    assert calls(offloader) == 0
    check_equal(model, expected, many[:1])
    assert calls(offloader) == 4 * LAYERS


def test_with_slots_for_a_layer_any_number_of_tokens_runs_on_them(vllm):
    model, offloader = start(vllm, Fp8MoEMethod, expert_bytes=space(MANY, Fp8MoEMethod))
    check_equal(model, resident(Fp8MoEMethod), torch.arange(40))
    assert calls(offloader) == 4 * LAYERS


def test_a_budget_of_device_memory_is_kept_and_its_rest_is_slots(vllm):
    model, offloader = start(
        vllm, UnquantizedFusedMoEMethod, budget={"device_bytes": 80_000}, experts="cache"
    )
    check_equal(model, resident(UnquantizedFusedMoEMethod))
    stats = offloader.weights.offloader.stats
    infos = offloader.weights.offloader.parameter_infos()
    staying = sum(info.span_bytes for info in infos if info.placement == "resident")
    assert 5 * EXPERT < stats.expert_bytes
    assert staying + stats.slot_bytes + stats.expert_bytes + model.embed.weight.nbytes <= 80_000
    assert calls(offloader) == 4 * LAYERS


def test_experts_leave_as_whole_layers_within_the_budget_of_host_memory(vllm):
    budget = 5 * EXPERTS * EXPERT // 2
    model, offloader = start(
        vllm, UnquantizedFusedMoEMethod, budget={"offload_bytes": budget}, expert_bytes=space(FEW)
    )
    assert len(offloader.weights.experts) == 2
    assert offloader.weights.offloader.stats.mapped_bytes <= budget
    check_equal(model, resident(UnquantizedFusedMoEMethod))
    assert calls(offloader) == 4 * 2


@pytest.mark.parametrize("options", [{"experts": "views"}, {"expert_bytes": 50_000}])
def test_weights_with_a_second_name_are_in_host_memory_once(vllm, options):
    model, offloader = start(vllm, AutoGPTQMoEMethod, select=["routed_experts"], **options)
    check_equal(model, resident(AutoGPTQMoEMethod))
    experts = LAYERS * EXPERTS * METHODS[AutoGPTQMoEMethod]
    assert offloader.weights.offloader.stats.offloaded_bytes == experts
    routed = model.layers[0].mlp.routed_experts
    assert routed.w13_weight is routed.w13_qweight


def test_selected_parts_of_experts_are_read_in_place(vllm):
    model, offloader = start(
        vllm, UnquantizedFusedMoEMethod, expert_bytes=space(FEW), select=["w13_weight"]
    )
    check_equal(model, resident(UnquantizedFusedMoEMethod))
    assert not offloader.weights.experts
    assert "of 4 layers in place: not all of their tensors are offloaded" in lines(vllm)


@pytest.mark.parametrize("experts", ["cache", "views"])
def test_excluded_parts_of_experts_stay_under_a_budget_of_device_memory(vllm, experts):
    model, offloader = start(
        vllm,
        UnquantizedFusedMoEMethod,
        budget={"device_bytes": 150_000},
        experts=experts,
        exclude=["w2_weight"],
    )
    check_equal(model, resident(UnquantizedFusedMoEMethod))
    assert not offloader.weights.experts
    infos = offloader.weights.offloader.parameter_infos()
    left = {info.name.rpartition(".")[2] for info in infos if info.placement == "offloaded"}
    assert left == {"w13_weight"}


@pytest.mark.parametrize("options", [{}, {"experts": "views"}])
def test_without_a_budget_for_them_experts_are_read_in_place(vllm, options):
    model, offloader = start(vllm, UnquantizedFusedMoEMethod, select=["routed_experts"], **options)
    check_equal(model, resident(UnquantizedFusedMoEMethod))
    assert not offloader.weights.experts
    infos = offloader.weights.offloader.parameter_infos()
    assert {info.transfer_mode for info in infos} == {"zero-copy"}


# Weights that change.


def load_again(model, method, seed):
    """Loads other weights as vLLM does: into new parameters, which are processed and then copied
    into those that graphs know."""
    with torch.no_grad():
        other = Model(list, method)
        load(other, seed)
        for layer, new in zip(model.layers, other.layers):
            experts, raw = layer.mlp.routed_experts, new.mlp.routed_experts
            kept, experts._parameters = experts._parameters, dict(raw._parameters)
            experts.quant_method.process_weights_after_loading(experts)
            for name, tensor in kept.items():
                tensor.data.copy_(getattr(experts, name))
            experts._parameters = kept
            layer.norm.data.copy_(new.norm)
            layer.mlp.gate.data.copy_(new.mlp.gate)
        model.embed.weight.data.copy_(other.embed.weight)


@pytest.mark.parametrize("method", METHODS)
def test_weights_that_are_loaded_again_are_followed(vllm, method):
    model, offloader = start(vllm, method, expert_bytes=space(MANY, method))
    check_equal(model, resident(method))
    before = calls(offloader)
    load_again(model, method, 12)
    expected = Model(list, method)
    load(expected, 12)
    process(expected)
    check_equal(model, expected)
    if method in (UnquantizedFusedMoEMethod, Biased):
        assert calls(offloader) == before + 4 * LAYERS
    else:  # vLLM's new kernel has scales of its own
        assert calls(offloader) == before
        assert "of all experts, which is not a parameter" in lines(vllm)


def test_graphs_gather_experts_again_after_a_change_or_a_load(vllm):
    model, offloader = start(vllm, UnquantizedFusedMoEMethod, expert_bytes=space(MANY))
    check_equal(model, resident(UnquantizedFusedMoEMethod))
    window = offloader.weights.experts[max(offloader.weights.experts)]
    ids = torch.arange(EXPERTS, dtype=torch.int32)
    weight = window.module.w2_weight

    def replayed():
        offloader.sync_prev_onload()  # vLLM calls it before each replay
        return torch.equal(window.pool.tensors[1][window.route(ids).long()], weight)

    assert replayed()
    with torch.no_grad():
        weight.mul_(3)
    assert replayed()
    load_again(model, UnquantizedFusedMoEMethod, 12)
    assert replayed()


def test_changes_in_place_are_seen_by_the_next_step(vllm):
    model, _ = start(vllm, UnquantizedFusedMoEMethod, expert_bytes=space(MANY))
    expected = resident(UnquantizedFusedMoEMethod)
    check_equal(model, expected)
    for one in (model, expected):
        for layer in one.layers:
            with torch.no_grad():
                layer.mlp.routed_experts.w2_weight.mul_(-0.5)
    check_equal(model, expected)


def test_an_exception_in_a_kernel_leaves_everything_unchanged(vllm, monkeypatch):
    model, _ = start(vllm, UnquantizedFusedMoEMethod, expert_bytes=space(FEW))
    expected = resident(UnquantizedFusedMoEMethod)
    check_equal(model, expected)
    with monkeypatch.context() as patched:
        patched.setattr(TritonExperts, "matrix", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError), torch.inference_mode():
            model(TOKENS)
    assert fake_vllm_experts.get_config() is None
    routed = model.layers[0].mlp.routed_experts
    assert routed.global_num_experts == EXPERTS and len(routed.w13_weight) == EXPERTS
    check_equal(model, expected)


def test_a_closed_offloader_leaves_no_call_of_its_own(vllm):
    model, offloader = start(vllm, UnquantizedFusedMoEMethod, expert_bytes=space(FEW))
    assert all("forward_modular" in vars(layer.mlp.routed_experts) for layer in model.layers)
    offloader.close()
    assert not any("forward_modular" in vars(layer.mlp.routed_experts) for layer in model.layers)


# Compiled models, which call experts by an operator.

RUNNERS: dict[int, MoERunner] = {}


@torch.library.custom_op("weighbridge_test::moe_forward", mutates_args=())
def moe_forward(hidden: torch.Tensor, layer: int) -> torch.Tensor:
    """Calls the experts of a layer, as vLLM's operator does."""
    return MoERunner.forward(RUNNERS[layer], hidden)


@moe_forward.register_fake
def _(hidden, layer):
    return torch.empty_like(hidden)


@pytest.mark.parametrize("slots", [FEW, MANY])
def test_compiled_code_runs_on_slots_that_it_does_not_know(vllm, monkeypatch, slots):
    torch._dynamo.reset()
    model, offloader = start(
        vllm,
        Fp8MoEMethod,
        expert_bytes=space(slots, Fp8MoEMethod),
        changes={
            "compilation_config__mode": 3,
            "compilation_config__splitting_ops": ["vllm::unified_attention_with_output"],
        },
    )
    for layer in model.layers:
        runner = layer.mlp
        number = len(RUNNERS)
        RUNNERS[number] = runner
        runner.forward = lambda hidden, number=number: torch.ops.weighbridge_test.moe_forward(
            hidden, number
        )
    run = torch.compile(type(model).forward, fullgraph=True, backend="aot_eager", dynamic=False)
    monkeypatch.setattr(model, "forward", lambda ids: run(model, ids))
    expected = resident(Fp8MoEMethod)
    check_equal(model, expected)
    assert calls(offloader) == 4 * LAYERS
    many = torch.arange(EXPERTS)
    check_equal(model, expected, many)
    assert calls(offloader) == (8 if slots == MANY else 4) * LAYERS


# What cannot run on slots.


class WithConstants(RoutedExperts):
    """As vLLM's layers of pruned experts, which add what the numbers say."""


class DeepGemm(UnquantizedFusedMoEMethod):
    kernel = TritonOrDeepGemmExperts


class Monolithic(UnquantizedFusedMoEMethod):
    def make_kernel(self, layer, config):
        super().make_kernel(layer, config)
        self.moe_kernel.is_monolithic = True


class Derived(UnquantizedFusedMoEMethod):
    """A kernel with a tensor of all experts that it has computed itself."""

    def make_kernel(self, layer, config):
        config._w1.alpha_or_gscale = torch.ones(EXPERTS)
        super().make_kernel(layer, config)


class Strided(UnquantizedFusedMoEMethod):
    def process_weights_after_loading(self, layer):
        layer.w13_weight = parameter(layer.w13_weight.data.mT.contiguous().mT)
        self.make_kernel(layer, fake_vllm_experts.quant_config())


class Unknown(UnquantizedFusedMoEMethod):
    def apply(self, layer, x, topk_weights, topk_ids, *args, **more):
        one = super().apply(layer, x, topk_weights, topk_ids, *args, **more)
        return one + topk_ids.sum(1, keepdim=True)


OBSTACLES = {
    "a kernel": (DeepGemm, RoutedExperts, "the kernel TritonOrDeepGemmExperts with MoEPrepare"),
    "its own routing": (Monolithic, RoutedExperts, "is not known; --moe-backend triton"),
    "derived tensors": (Derived, RoutedExperts, "quant_config._w1.alpha_or_gscale of all experts"),
    "strides": (Strided, RoutedExperts, "an expert of w13_weight is not contiguous"),
    "a method": (Unknown, RoutedExperts, "RoutedExperts with Unknown is not known"),
    "a layer": (UnquantizedFusedMoEMethod, WithConstants, "WithConstants with Unquantized"),
}


@pytest.mark.parametrize("what", OBSTACLES)
def test_other_experts_are_read_in_place_and_the_log_says_why(vllm, what):
    method, experts, reason = OBSTACLES[what]
    model, offloader = start(vllm, method, experts, expert_bytes=space(FEW))
    check_equal(model, resident(method, experts))
    assert not offloader.weights.experts
    assert f"reads the experts of {LAYERS} layers in place: " in lines(vllm)
    assert reason in lines(vllm)
    matrices = [i for i in offloader.weights.offloader.parameter_infos() if i.span_bytes > EXPERT]
    assert len(matrices) == 2 * LAYERS and {i.transfer_mode for i in matrices} == {"zero-copy"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda experts: setattr(experts, "expert_map", torch.arange(EXPERTS)), "expert map"),
        (lambda experts: setattr(experts, "global_num_experts", 2 * EXPERTS), "expert map"),
        (lambda experts: setattr(experts.moe_config, "is_lora_enabled", True), "--enable-lora"),
    ],
)
def test_layers_of_which_numbers_mean_more_are_read_in_place(vllm, change, reason):
    class Changed(UnquantizedFusedMoEMethod):
        def process_weights_after_loading(self, layer):
            super().process_weights_after_loading(layer)
            change(layer)

    _, offloader = start(vllm, Changed, expert_bytes=space(FEW))
    assert not offloader.weights.experts and reason in lines(vllm)


def test_a_kernel_that_changes_later_is_checked_again(vllm):
    model, offloader = start(vllm, UnquantizedFusedMoEMethod, expert_bytes=space(FEW))
    experts = model.layers[1].mlp.routed_experts
    experts.quant_method.moe_kernel = fake_vllm_experts.FusedMoEKernel(
        TritonOrDeepGemmExperts(experts.moe_config, experts.quant_method.moe_quant_config)
    )
    check_equal(model, resident(UnquantizedFusedMoEMethod))
    assert calls(offloader) == 4 * (LAYERS - 1)
    assert "of 1 layers in place: the kernel TritonOrDeepGemmExperts" in lines(vllm)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"experts": "some"}, "experts is 'some': use auto or cache or views"),
        ({"experts": "views", "expert_bytes": 1}, "takes no expert_bytes"),
        ({"experts": "cache"}, "expert_bytes is 0 with a budget of host memory"),
        (
            {
                "budget": {"experts": "cache"},
                "changes": {"offload_config__prefetch__offload_group_size": 2},
            },
            "asked for caches of experts with --offload-group-size",
        ),
        (
            {"expert_bytes": "1MiB", "changes": {"parallel_config__enable_expert_parallel": True}},
            "with --enable-expert-parallel",
        ),
        (
            {"expert_bytes": space(FEW), "changes": {"weight_transfer_config": object()}},
            "with weight_transfer_config",
        ),
    ],
)
def test_what_caches_cannot_do_is_an_error_that_names_it(vllm, options, message):
    with pytest.raises(ValueError, match=message):
        start(vllm, UnquantizedFusedMoEMethod, **options)
    assert isinstance(vllm.get_offloader(), vllm.NoopOffloader)


def test_a_model_without_fused_experts_has_none_to_cache(vllm):
    with pytest.raises(ValueError, match="Model has no fused experts: leave out experts"):
        from .vllm_models import model_config as dense

        config = fake_vllm.config(dense(), {"offload_bytes": "1MiB", "expert_bytes": space(FEW)})
        vllm.get_model_loader(config.load_config).load_model(config, config.model_config)


# The interface of the real classes.

SOURCES = [Path(part) for part in os.environ.get("WEIGHBRIDGE_VLLM", "").split(":") if part]
LAYERS_OF_VLLM = "vllm/model_executor/layers"


def classes_of(path):
    found = ast.parse(path.read_text()).body
    return {node.name: node for node in found if isinstance(node, ast.ClassDef)}


def function(node, name):
    found = node.body if isinstance(node, ast.ClassDef) else node
    return next(n for n in found if isinstance(n, ast.FunctionDef) and n.name == name)


def arguments(node):
    return [one.arg for one in node.args.args]


@pytest.mark.skipif(not SOURCES, reason="WEIGHBRIDGE_VLLM names no folders with sources of vLLM")
@pytest.mark.parametrize("folder", SOURCES)
def test_the_fakes_have_the_interface_of_vllms_experts(vllm, folder):
    from weighbridge.engines.vllm import _experts

    fused = folder / LAYERS_OF_VLLM / "fused_moe"
    routed = classes_of(fused / "routed_experts.py")[_experts.MODULE]
    call = function(routed, _experts.CALL)
    assert arguments(call) == arguments_of(RoutedExperts.forward_modular)
    assert ast.unparse(call.body[-1]).startswith("return self.quant_method.apply(layer=self,")
    runner = ast.unparse(classes_of(fused / "runner/moe_runner.py")["MoERunner"])
    assert "self.routed_experts.forward_modular(x=hidden_states, topk_weights=" in runner
    package = ast.parse((fused / "__init__.py").read_text()).body
    assert arguments(function(package, "override_config")) == ["config"]
    tiles = function(ast.parse((fused / "fused_moe.py").read_text()).body, TILES.__name__)
    assert arguments(tiles) == arguments_of(TILES)
    experts = {**classes_of(fused / "experts/triton_moe.py")}
    experts |= classes_of(fused / "experts/marlin_moe.py")
    assert experts.keys() >= _experts.KERNELS
    assert f"config = {TILES.__name__}(w1.size(), w2.size(), top_k_num, self.quant_config" in (
        ast.unparse(experts["TritonExperts"])
    )
    methods = {}
    for path in (folder / LAYERS_OF_VLLM).rglob("*.py"):
        methods |= {
            name: node for name, node in classes_of(path).items() if name in _experts.METHODS
        }
    # 0.33 has one class in the place of two.
    assert methods.keys() >= _experts.METHODS - {"CompressedTensorsWNA16MarlinMoEMethod"}
    for name, node in methods.items():
        bodies = [n for n in node.body if getattr(n, "name", "") in ("apply", "forward_native")]
        text = "\n".join(map(ast.unparse, bodies))
        calls_kernel = "self.moe_kernel.apply(" in text
        # Without a kernel of its own a method's experts are read in place.
        assert calls_kernel or name == "CompressedTensorsWNA16MoEMethod", name
        if calls_kernel:
            # The numbers go to the kernel, with the number of experts, and nowhere else.
            assert "layer.global_num_experts" in text, name
            for body in bodies:
                used = [n for n in ast.walk(body) if getattr(n, "id", "") == "topk_ids"]
                assert len(used) == 1 and len(body.body) <= 4, name


TILES = fake_vllm_experts.try_get_optimal_moe_config


def arguments_of(function):
    code = function.__code__
    return list(code.co_varnames[: code.co_argcount])

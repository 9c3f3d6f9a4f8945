"""The vLLM plug-in where models are compiled, over fakes of vLLM."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from .vllm_models import (
    BUDGETS,
    HIDDEN,
    IDS,
    LAYERS,
    MATRIX,
    Layer,
    Linear,
    Model,
    load,
    model_config,
    start,
    stats,
)

COMPILED = {
    "compilation_config__mode": 3,
    "compilation_config__splitting_ops": ["vllm::unified_attention_with_output"],
}
ATTENTION = {}
"""The attention of each layer of the last model, by number."""


@torch.library.custom_op("weighbridge_test::attention", mutates_args=("out",))
def attention(x: torch.Tensor, out: torch.Tensor, layer: int) -> None:
    """Calls the attention of a layer, as vLLM's operator does."""
    out.copy_(ATTENTION[layer].impl.forward(x))


@attention.register_fake
def _(x, out, layer):
    pass


class Kernel:
    def forward(self, x):
        return torch.sin(x)


class Attention(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.number = len(ATTENTION)
        self.impl = Kernel()
        ATTENTION[self.number] = self

    def forward(self, x):
        out = torch.empty_like(x)
        torch.ops.weighbridge_test.attention(x, out, self.number)
        return out


class RowParallelLinear(Linear):
    pass


class SelfAttention(torch.nn.Module):
    def __init__(self, method):
        super().__init__()
        self.qkv = Linear(HIDDEN, 4 * HIDDEN, method)
        self.out = RowParallelLinear(4 * HIDDEN, HIDDEN, method)
        self.attn = Attention()

    def forward(self, x):
        return self.out(self.attn(self.qkv(x)))


class SplitLayer(Layer):
    """A layer that leaves compiled code in its attention."""

    def __init__(self, method):
        super().__init__(method)
        self.self_attn = SelfAttention(method())

    def forward(self, positions, hidden, residual=None):
        residual = hidden if residual is None else residual + hidden
        hidden = self.self_attn(residual * self.norm + positions[:, None])
        residual = residual + hidden
        return self.down(torch.tanh(self.up(residual))), residual


def split_config(layer=SplitLayer):
    config = model_config(layer=layer)

    def build(wrap):
        ATTENTION.clear()
        return Model(wrap, layer=layer)

    def load_all(model):
        load(model)
        for at, layer in enumerate(model.layers):
            generator = torch.Generator().manual_seed(100 + at)
            for part in (layer.self_attn.qkv, layer.self_attn.out):
                part.weight.data.copy_(torch.randn(part.weight.shape, generator=generator) / 16)

    config.build, config.load = build, load_all
    return config


def split_resident():
    config = split_config()
    model = config.build(list)
    config.load(model)
    return model


def results_of(model):
    return [model(IDS) for _ in range(3)]


class Pieces:
    """A backend of torch.compile that says where each weight was when it was read."""

    def __init__(self):
        self.targets = []
        self.read = {}
        """The addresses of the weights that a linear layer read, by the address of the object."""

    def __call__(self, graph, _):
        self.targets += [str(node.target) for node in graph.graph.nodes]
        read = self.read

        class Interpreter(torch.fx.Interpreter):
            def call_function(self, target, args, kwargs):
                if target is torch._C._nn.linear:
                    read[id(args[1])] = args[1].data_ptr()
                return super().call_function(target, args, kwargs)

        return Interpreter(graph).run


def compiled(model, backend):
    """Compiles what is within the hooks of a model, as vLLM does."""
    run = torch.compile(type(model).forward, fullgraph=True, backend=backend)
    model.forward = lambda ids: run(model, ids)


SPLIT_BUDGETS = {
    "half": {"weighbridge": {"offload_bytes": 2 * LAYERS * MATRIX}},
    "all": {"weighbridge": {"offload_bytes": 1 << 30}},
    "one group": {"weighbridge": {"offload_bytes": 1 << 30, "select": ["up", "down"]}},
    "device_bytes": {"weighbridge": {"device_bytes": 14 * MATRIX}},
    "prefetch": {
        "offload_config__prefetch__offload_group_size": 2,
        "offload_config__prefetch__offload_prefetch_step": 1,
    },
    "depth": {"weighbridge": {"offload_bytes": 1 << 30, "depth": 1}},
}


@pytest.mark.parametrize("budget", SPLIT_BUDGETS)
def test_the_weights_of_a_compiled_model_change_places_in_its_attention(vllm, budget):
    torch._dynamo.reset()
    with torch.inference_mode():
        expected = results_of(split_resident())
    model, offloader, config = start(
        vllm, model_config=split_config(), **COMPILED, **SPLIT_BUDGETS[budget]
    )
    pieces = Pieces()
    compiled(model, pieces)
    with torch.inference_mode():
        assert all(map(torch.equal, results_of(model), expected))
        before = stats(offloader).copies
        model(IDS)
    # The code is split, hashed and fused as without the plug-in.
    assert not [target for target in pieces.targets if "weighbridge." in target]
    assert config.compilation_config.splitting_ops == ["vllm::unified_attention_with_output"]
    assert "compiled" not in config.additional_config.get("weighbridge", {})
    carried = [weight for weight in offloader.weights.all if weight.slot_addresses]
    assert len(carried) >= LAYERS
    for weight in carried:
        if weight.tensor.dim() == 2:
            assert pieces.read[id(weight.tensor)] in weight.slot_addresses, weight.name
    groups = {i.group for i in offloader.weights.offloader.parameter_infos() if i.host_address}
    now = stats(offloader)
    # With a slot for each of a few groups nothing is copied again.
    assert now.copies - before == (len(groups) if now.slot_bytes < now.offloaded_bytes else 0)
    assert all(weight.in_slot == 0 and weight.is_at_home() for weight in offloader.weights.all)


class CrossLayer(SplitLayer):
    """A layer that attends twice, as that of a decoder with an encoder does."""

    def __init__(self, method):
        super().__init__(method)
        self.cross_attn = SelfAttention(method())

    def forward(self, positions, hidden, residual=None):
        hidden, residual = super().forward(positions, hidden, residual)
        return self.cross_attn(hidden), residual


def test_a_layer_may_attend_more_than_once(vllm):
    torch._dynamo.reset()
    config = split_config(CrossLayer)
    fill = config.load

    def load_all(model):
        fill(model)
        for layer in model.layers:
            layer.cross_attn.qkv.weight.data.copy_(layer.self_attn.qkv.weight.flip(0))
            layer.cross_attn.out.weight.data.copy_(layer.self_attn.out.weight.flip(0))

    config.load = load_all
    alone = config.build(list)
    load_all(alone)
    with torch.inference_mode():
        expected = results_of(alone)
    model, offloader, _ = start(
        vllm, model_config=config, weighbridge={"offload_bytes": 1 << 30}, **COMPILED
    )
    pieces = Pieces()
    compiled(model, pieces)
    with torch.inference_mode():
        assert all(map(torch.equal, results_of(model), expected))
    carried = [weight for weight in offloader.weights.all if weight.tensor.dim() == 2]
    in_slots = [w for w in carried if pieces.read.get(id(w.tensor)) in w.slot_addresses]
    assert len(in_slots) == 6 * LAYERS


@pytest.mark.parametrize("way", ["eager", "compiled"])
def test_a_capture_that_fails_leaves_the_next_step_right(vllm, way):
    """In a capture nothing can be reset: that is done at the next step."""
    options = COMPILED if way == "compiled" else {}
    model, offloader, _ = start(
        vllm, model_config=split_config(), **options, **SPLIT_BUDGETS["all"]
    )
    weights, down = offloader.weights, model.layers[3].down
    resets = []
    reset_all = weights.offloader.reset_all
    weights.offloader.reset_all = lambda stream: (resets.append(0), reset_all(stream))[1]
    method, down.quant_method = down.quant_method, None
    weights.is_capturing = lambda: True
    with torch.inference_mode(), pytest.raises(AttributeError, match="NoneType"):
        model(IDS)
    assert not resets and all(weight.in_slot == 0 for weight in weights.all)
    down.quant_method = method
    del weights.is_capturing
    with torch.inference_mode():
        found = [model(IDS) for _ in range(2)]
        expected = split_resident()(IDS)
    assert len(resets) == 1 and all(torch.equal(one, expected) for one in found)


def test_a_device_budget_is_kept_when_two_groups_are_used_at_a_time(vllm):
    for count in (9, 14, 20):
        limit = count * MATRIX
        model, offloader, _ = start(
            vllm, model_config=split_config(), weighbridge={"device_bytes": limit}, **COMPILED
        )
        infos = offloader.weights.offloader.parameter_infos()
        staying = sum(info.span_bytes for info in infos if info.placement == "resident")
        assert staying + stats(offloader).slot_bytes + model.embed.weight.nbytes <= limit
        with torch.inference_mode():
            assert torch.equal(model(IDS), split_resident()(IDS))
        offloader.close()


@pytest.mark.parametrize("options", [{}, COMPILED], ids=["eager", "compiled"])
def test_what_stayed_on_the_device_while_loading_is_not_offloaded(vllm, monkeypatch, options):
    """It has no memory there, as what has left would have for nothing."""
    from weighbridge.engines import _layers

    left = {at: {"up.weight", "self_attn.out.weight"} for at in range(0, LAYERS, 2)}
    monkeypatch.setattr(_layers.OffloadedLayers, "_estimate", lambda *_: left)
    limit = {"device_bytes": 23 * MATRIX}  # of 24 matrices
    _, offloader, _ = start(vllm, model_config=split_config(), weighbridge=limit, **options)
    infos = offloader.weights.offloader.parameter_infos()
    offloaded = [i for i in infos if i.host_address]
    assert offloaded and {i.host_store for i in offloaded} == {"source"}
    assert {i.name.partition(".")[2][2:] for i in offloaded} <= {
        "up.weight",
        "self_attn.out.weight",
    }


def test_a_compiled_step_that_fails_leaves_the_next_one_right(vllm):
    model, offloader, _ = start(
        vllm, model_config=split_config(), **COMPILED, **SPLIT_BUDGETS["all"]
    )
    down = model.layers[3].down
    method, down.quant_method = down.quant_method, None
    with torch.inference_mode(), pytest.raises(AttributeError):
        model(IDS)
    down.quant_method = method
    assert all(weight.in_slot == 0 for weight in offloader.weights.all)
    with torch.inference_mode():
        found = model(IDS)
    offloader.close()
    assert "forward" not in vars(ATTENTION[0].impl)
    with torch.inference_mode():
        assert torch.equal(found, split_resident()(IDS))


@pytest.mark.parametrize("why", ["unknown attention", "attention within a piece"])
def test_operators_split_a_compiled_model_that_attention_does_not_split(vllm, why):
    options = {**COMPILED, **BUDGETS["offload_bytes"]}
    if why != "unknown attention":
        options["model_config"] = split_config()
        options["compilation_config__splitting_ops"] = ["vllm::moe_forward"]
    _, _, config = start(vllm, **options)
    assert config.compilation_config.splitting_ops == [
        options["compilation_config__splitting_ops"][0],
        "weighbridge::enter_layer",
        "weighbridge::leave_layer",
    ]


def test_a_compiled_model_needs_memory_that_the_device_reads(vllm, monkeypatch):
    monkeypatch.setenv("VLLM_WEIGHT_OFFLOADING_DISABLE_UVA", "1")
    built = []
    config = split_config()
    build, config.build = config.build, lambda wrap: built.append(0) or build(wrap)
    with pytest.raises(ValueError, match=r"DISABLE_UVA.*use --enforce-eager"):
        start(vllm, model_config=config, **COMPILED, **BUDGETS["offload_bytes"])
    assert not built and isinstance(vllm.get_offloader(), vllm.NoopOffloader)


def test_memory_that_could_not_be_pinned_is_not_for_a_compiled_model(vllm, monkeypatch):
    from weighbridge.torch._weights import Weights

    set_ = Weights.set
    monkeypatch.setattr(
        Weights, "set", lambda self, w: (set_(self, w), setattr(self, "reads_in_place", False))
    )
    with pytest.raises(ValueError, match=r"could not be pinned.*use --enforce-eager"):
        start(vllm, model_config=split_config(), **COMPILED, **BUDGETS["offload_bytes"])
    assert isinstance(vllm.get_offloader(), vllm.NoopOffloader)
    assert "forward" not in vars(ATTENTION[0].impl)


def test_the_hash_tells_compiled_code_of_other_layers_apart(vllm):
    digests = []
    for count in (2, 4):
        budget = {"offload_bytes": count * MATRIX}
        _, offloader, config = start(vllm, weighbridge=budget, **COMPILED)
        digests.append(config.additional_config["weighbridge"]["compiled"])
        offloader.close()
    assert digests[0] != digests[1]
    _, offloader, config = start(vllm, weighbridge={"offload_bytes": 4 * MATRIX}, **COMPILED)
    # The operators find the model by another number than before.
    assert config.additional_config["weighbridge"]["compiled"] != digests[1]


def test_the_hash_is_the_same_in_another_process():
    program = (
        "import pytest, sys; sys.path.insert(0, sys.argv[1])\n"
        "from engines import fake_vllm, test_vllm_compiled as t\n"
        "fake = fake_vllm.install(pytest.MonkeyPatch(), '0.26.0')\n"
        "import weighbridge.engines.vllm as plugin; plugin.register()\n"
        "_, _, config = t.start(fake, **t.BUDGETS['offload_bytes'], **t.COMPILED)\n"
        "print(config.additional_config['weighbridge']['compiled'])\n"
    )
    command = [sys.executable, "-c", program, str(Path(__file__).parents[1])]
    found = {
        subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2)
    }
    assert len(found) == 1


def test_an_error_after_the_commit_ends_the_offload(vllm, monkeypatch):
    from weighbridge.engines.vllm import _loader

    closed = []
    close = _loader.WeighbridgeOffloader.close

    def refuse(vllm_config, hooked):
        raise RuntimeError("no hash")

    monkeypatch.setattr(_loader, "_enter_into_hash", refuse)
    monkeypatch.setattr(
        _loader.WeighbridgeOffloader, "close", lambda self: (closed.append(self), close(self))
    )
    with pytest.raises(RuntimeError, match="no hash"):
        start(vllm, **COMPILED, **BUDGETS["offload_bytes"])
    assert closed and isinstance(vllm.get_offloader(), vllm.NoopOffloader)

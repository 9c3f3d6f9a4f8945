"""The vLLM plug-in, over fakes with the interfaces of 0.26 and 0.33.

``tests/gpu/engines`` runs the real engine. With WEIGHBRIDGE_VLLM=DIR1:DIR2, folders with the
sources of vLLM, the fakes' interfaces are compared with those of vLLM.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, SOURCE

from engines import fake_vllm
from weighbridge import Status, WeighbridgeError

LAYERS, HIDDEN = 6, 128
MATRIX = 4 * HIDDEN * HIDDEN * 4  # bytes of each of the two matrices of a layer
IDS = torch.arange(7)
VERSIONS = ["0.26.0", "0.33.0"]

BUDGETS = {
    "offload_bytes": {"weighbridge": {"offload_bytes": LAYERS * MATRIX}},
    "gb": {"offload_config__uva__cpu_offload_gb": LAYERS * MATRIX / 2**30},
    "device_bytes": {"weighbridge": {"device_bytes": 7 * MATRIX}},
    "views": {"weighbridge": {"offload_bytes": "1MiB", "transfer_mode": "zero-copy"}},
    "prefetch": {"offload_config__prefetch__offload_group_size": 2},
    "every layer": {"offload_config__prefetch__offload_group_size": 1},
}


class Method:
    """How a linear layer's weight is processed; a subclass changes it."""

    def process_weights_after_loading(self, layer):
        pass

    def weight(self, layer):
        return layer.weight


class Halved(Method):
    """Replaces the weight by one of fewer bytes, as quantization does."""

    def process_weights_after_loading(self, layer):
        layer.weight = torch.nn.Parameter(layer.weight.data.half(), requires_grad=False)

    def weight(self, layer):
        return layer.weight.float()


class Renamed(Method):
    """Repacks the weight under another name, and adds scales."""

    def process_weights_after_loading(self, layer):
        packed = layer.weight.data.t().contiguous()
        del layer.weight
        layer.packed = torch.nn.Parameter(packed, requires_grad=False)
        layer.scale = torch.nn.Parameter(torch.ones(1), requires_grad=False)

    def weight(self, layer):
        return layer.packed.t() * layer.scale


class Online(Halved):
    """The weight has no memory until it has been loaded."""

    meta = True


class Linear(torch.nn.Module):
    def __init__(self, inputs, outputs, method):
        super().__init__()
        device = "meta" if getattr(method, "meta", False) else "cpu"
        self.weight = torch.nn.Parameter(
            torch.empty(outputs, inputs, device=device), requires_grad=False
        )
        self.quant_method = method

    def forward(self, x):
        return torch.nn.functional.linear(x, self.quant_method.weight(self))


class Layer(torch.nn.Module):
    def __init__(self, method):
        super().__init__()
        self.norm = torch.nn.Parameter(torch.empty(HIDDEN), requires_grad=False)
        self.up = Linear(HIDDEN, 4 * HIDDEN, method())
        self.down = Linear(4 * HIDDEN, HIDDEN, method())

    def forward(self, positions, hidden, residual=None):
        hidden = hidden * self.norm + positions[:, None]
        residual = hidden if residual is None else residual + hidden
        return self.down(torch.tanh(self.up(hidden))), residual


class Model(torch.nn.Module):
    def __init__(self, wrap, method=Method, built=lambda layers: None, layer=Layer):
        super().__init__()
        self.embed = torch.nn.Embedding(10, HIDDEN).requires_grad_(False)
        done = []

        def layers():
            for _ in range(LAYERS):
                done.append(layer(method))
                built(done)
                yield done[-1]

        self.layers = torch.nn.ModuleList(wrap(layers()))

    def forward(self, ids):
        hidden, residual = self.embed(ids), None
        for layer in self.layers:
            hidden, residual = layer(ids, hidden, residual)
        return hidden + residual


class Absorbed(torch.nn.Module):
    """Attention that keeps parts of another module's weight as parameters, as MLA does."""

    def __init__(self, source):
        super().__init__()
        self.source = [source]

    def process_weights_after_loading(self, dtype):
        parts = self.source[0].weight.data.view(HIDDEN, 2, 2 * HIDDEN).split([1, 1], 1)
        for name, part in zip(("first", "second"), parts):
            part = part.squeeze(1).transpose(0, 1)
            self.register_parameter(name, torch.nn.Parameter(part, requires_grad=False))

    def forward(self, hidden):
        return hidden @ self.first @ self.second.t()[:, :HIDDEN]


class WithAttention(Layer):
    def __init__(self, method):
        super().__init__(method)
        self.attention = Absorbed(self.down)

    def forward(self, positions, hidden, residual=None):
        spread = torch.cat([hidden, hidden], -1)
        hidden = hidden + self.attention(spread).tanh()
        return super().forward(positions, hidden, residual)


def load(model):
    """Fills a model, in another way in every layer; online ones are processed at once."""
    generator = torch.Generator().manual_seed(5)

    def values(shape):
        return torch.randn(shape, generator=generator) * shape[-1] ** -0.5

    model.embed.weight.data.copy_(values(model.embed.weight.shape))
    for layer in model.layers:
        layer.norm.data.copy_(values(layer.norm.shape))
        for part in (layer.up, layer.down):
            if part.weight.is_meta:
                made = values(part.weight.shape)
                part.weight = torch.nn.Parameter(made, requires_grad=False)
                part.quant_method.process_weights_after_loading(part)
                part.quant_method.__dict__["process_weights_after_loading"] = lambda layer: None
            else:
                part.weight.data.copy_(values(part.weight.shape))


def model_config(method=Method, layer=Layer, **members):
    return SimpleNamespace(
        model="a model",
        dtype=torch.float32,
        hf_text_config=SimpleNamespace(tie_word_embeddings=True),
        get_num_layers=lambda parallel: LAYERS,
        get_vocab_size=lambda: 10,
        get_hidden_size=lambda: HIDDEN,
        build=lambda wrap: Model(wrap, method, layer=layer),
        load=load,
        **members,
    )


def resident(method=Method, layer=Layer):
    config = model_config(method, layer)
    model = config.build(list)
    load(model)
    for layer in model.layers:
        for part in (layer.up, layer.down):
            part.quant_method.process_weights_after_loading(part)
        if hasattr(layer, "attention"):
            layer.attention.process_weights_after_loading(torch.float32)
    return model


@pytest.fixture(params=VERSIONS)
def vllm(request, monkeypatch):
    """A fake vLLM with the plug-in registered; its offloader is closed afterwards."""
    fake = fake_vllm.install(monkeypatch, request.param)
    import weighbridge.engines.vllm as plugin

    plugin.register()
    plugin.register()  # vLLM may
    yield fake
    close = getattr(fake.get_offloader(), "close", None)
    if close is not None:
        close()


def start(vllm, method=Method, **options):
    """Loads a model as vLLM's runners do; returns it, its offloader and the configuration."""
    options.setdefault("weighbridge", None)
    config = fake_vllm.config(options.pop("model_config", model_config(method)), **options)
    loader = vllm.get_model_loader(config.load_config)
    model = loader.load_model(vllm_config=config, model_config=config.model_config)
    return model, vllm.get_offloader(), config


def check_equal(model, expected):
    with torch.inference_mode():
        for _ in range(3):
            assert torch.equal(model(IDS), expected(IDS))


def stats(offloader):
    return offloader._weights.offloader.stats


@pytest.mark.parametrize("budget", BUDGETS)
def test_outputs_and_weights_are_those_of_the_resident_model(vllm, budget):
    model, offloader, _ = start(vllm, **BUDGETS[budget])
    expected = resident()
    check_equal(model, expected)
    for one, other in zip(model.parameters(), expected.parameters()):
        assert torch.equal(one, other)
    assert stats(offloader).offloaded_bytes > 0


@pytest.mark.parametrize("budget", BUDGETS)
def test_the_host_memory_of_loading_becomes_that_of_the_offloader(vllm, budget):
    _, offloader, _ = start(vllm, **BUDGETS[budget])
    infos = [i for i in offloader._weights.offloader.parameter_infos() if i.host_address]
    assert {info.host_store for info in infos} == {"source"}
    assert offloader.device.stats.asked_bytes <= stats(offloader).offloaded_bytes + 4096 * LAYERS


@pytest.mark.parametrize("method", [Method, Halved, Renamed, Online])
def test_a_budget_is_never_exceeded_and_used_as_far_as_weights_allow(vllm, method):
    each = MATRIX // 2 if method in (Halved, Online) else MATRIX
    for count in (1, 5, 2 * LAYERS + 1):
        for budget in (count * MATRIX, count * MATRIX + MATRIX - 4096):
            model, offloader, _ = start(vllm, method, weighbridge={"offload_bytes": budget})
            held = stats(offloader).mapped_bytes
            assert held <= budget
            whole = min(count, 2 * LAYERS)
            least = whole * each if method is not Online else min(2 * LAYERS, 2 * count) * each
            assert held >= least, (count, budget)
            check_equal(model, resident(method))
            offloader.close()


def test_a_budget_below_the_smallest_weight_is_an_error(vllm):
    with pytest.raises(WeighbridgeError, match="no weight is selected that fits") as caught:
        start(vllm, weighbridge={"offload_bytes": MATRIX - 1})
    assert caught.value.status == Status.NOTHING_OFFLOADED
    assert isinstance(vllm.get_offloader(), vllm.NoopOffloader)


def test_layers_give_as_much_each(vllm):
    _, offloader, _ = start(vllm, weighbridge={"offload_bytes": LAYERS * MATRIX})
    groups = [info.group for info in offloader._weights.offloader.parameter_infos()]
    assert sorted(groups) == list(range(LAYERS))


def test_vllms_groups_say_which_layers_are_prefetched(vllm):
    _, offloader, _ = start(
        vllm,
        offload_config__prefetch__offload_group_size=3,
        offload_config__prefetch__offload_num_in_group=2,
    )
    assert [name.partition(":")[2] for name in offloader._hooked.groups] == [
        f"layers.{at}" for at in (1, 2, 4, 5)
    ]
    infos = offloader._weights.offloader.parameter_infos()
    assert len(infos) == 4 * 3 and {info.transfer_mode for info in infos} == {"prefetch"}


@pytest.mark.parametrize(
    ("segments", "names"),
    [
        ({"up"}, {"up.weight"}),
        ({"up.weight", "norm"}, {"up.weight", "norm"}),
        ({"weight"}, {"up.weight", "down.weight"}),
    ],
)
def test_selectors_are_whole_segments(vllm, segments, names):
    uva = {
        "offload_config__uva__cpu_offload_gb": 1.0,
        "offload_config__uva__cpu_offload_params": segments,
    }
    _, offloader, _ = start(vllm, **uva)
    found = offloader._weights.offloader.parameter_infos()
    assert {".".join(info.name.split(".")[2:]) for info in found} == names


def test_a_part_of_a_segment_selects_nothing(vllm):
    with pytest.raises(WeighbridgeError, match="no weight is selected"):
        start(vllm, weighbridge={"offload_bytes": 1 << 30, "select": ["own", "wei"]})


def test_a_layer_is_in_host_memory_before_the_next_is_built(vllm):
    seen = []

    def built(layers):
        held = vllm.get_offloader().device.stats.asked_bytes
        seen.append(held)
        assert held == (len(layers) - 1) * 2 * MATRIX

    config = model_config()
    config.build = lambda wrap: Model(wrap, Method, built)
    start(vllm, weighbridge={"offload_bytes": 1 << 30}, model_config=config)
    assert len(seen) == LAYERS


@pytest.mark.parametrize("method", [Halved, Renamed, Online])
def test_processed_weights_are_in_host_memory_before_the_next_are_processed(vllm, method):
    held = []

    class Watched(method):
        def process_weights_after_loading(self, layer):
            staged = vllm.get_offloader()._staged
            if staged is not None:
                held.append(
                    [
                        place.whole.untyped_storage().data_ptr() <= tensor.data_ptr()
                        for one in staged.layers
                        for (module, own), place in one.places.items()
                        for tensor in [module._parameters.get(own)]
                        if tensor is not None
                        and not tensor.is_meta
                        and module is not layer
                        and tensor.data_ptr() == place.address
                    ]
                )
            method.process_weights_after_loading(self, layer)

    model, offloader, _ = start(vllm, Watched, weighbridge={"offload_bytes": 1 << 30})
    assert len(held) >= 2 * LAYERS
    matrices = [i for i in offloader._weights.offloader.parameter_infos() if i.span_bytes > 4096]
    assert len(matrices) == 2 * LAYERS and {i.host_store for i in matrices} == {"source"}
    if method is Online:
        assert [len(one) for one in held] == list(range(2 * LAYERS))
    else:
        assert all(len(one) == 2 * LAYERS - 1 for one in held)
    check_equal(model, resident(method))


@pytest.mark.parametrize("count", [LAYERS, 4 * LAYERS])
def test_parts_of_an_offloaded_weight_get_memory_of_their_own(vllm, count):
    config = model_config(layer=WithAttention)
    options = {"offload_bytes": count * MATRIX, "select": ["down", "first"]}
    model, offloader, _ = start(vllm, weighbridge=options, model_config=config)
    names = {
        info.name.partition("s.")[2] for info in offloader._weights.offloader.parameter_infos()
    }
    assert sum("down" in name for name in names) == LAYERS
    assert sum("first" in name for name in names) == (LAYERS if count > LAYERS else 0)
    for layer in model.layers:
        parts = {layer.attention.first.data_ptr(), layer.attention.second.data_ptr()}
        start_ = layer.down.weight.data_ptr()
        assert not any(start_ <= part < start_ + MATRIX for part in parts)
    check_equal(model, resident(layer=WithAttention))


def test_a_device_budget_is_kept_after_weights_have_changed(vllm):
    for method, limit in ((Method, 7 * MATRIX), (Halved, 4 * MATRIX), (Online, 4 * MATRIX)):
        model, offloader, _ = start(vllm, method, weighbridge={"device_bytes": limit})
        counters = stats(offloader)
        infos = offloader._weights.offloader.parameter_infos()
        staying = sum(info.span_bytes for info in infos if info.placement == "resident")
        embed = model.embed.weight.nbytes
        assert staying + counters.slot_bytes + embed <= limit
        check_equal(model, resident(method))
        offloader.close()


def test_a_device_budget_below_the_other_weights_names_them(vllm):
    with pytest.raises(WeighbridgeError, match=f"{10 * HIDDEN * 4} bytes: raise it"):
        start(vllm, weighbridge={"device_bytes": 4096})


@pytest.mark.parametrize("budget", ["offload_bytes", "views", "every layer"])
def test_weights_that_are_loaded_again_are_used_by_the_next_step(vllm, budget):
    model, _, config = start(vllm, **BUDGETS[budget])
    expected = resident()
    check_equal(model, expected)
    config.model_config.load = lambda model: [
        layer.down.weight.data.mul_(2) for layer in model.layers
    ]
    vllm.get_model_loader(config.load_config).load_weights(model, config.model_config)
    for layer in expected.layers:
        layer.down.weight.data.mul_(2)
    check_equal(model, expected)
    for one in (model, expected):  # as a trainer sends them
        for layer in one.layers:
            layer.up.weight.copy_(layer.up.weight.flip(0))
    check_equal(model, expected)


def test_what_only_the_other_format_has_is_found(vllm):
    model, _, config = start(vllm, weighbridge={"offload_bytes": "1MiB", "load_format": "dummy"})
    loader = vllm.get_model_loader(config.load_config)
    assert len(loader.get_all_weights(config.model_config, model)) == 1 + 3 * LAYERS
    loader.download_model(config.model_config)
    assert config.model_config.downloaded == "dummy"
    assert not hasattr(loader, "get_nothing")


def test_a_second_model_stays_on_the_device(vllm):
    _, offloader, config = start(vllm, **BUDGETS["offload_bytes"])
    before = stats(offloader)
    loader = vllm.get_model_loader(config.load_config)
    second = loader.load_model(vllm_config=config, model_config=model_config())
    assert vllm.get_offloader() is offloader and stats(offloader) == before
    check_equal(second, resident())


def test_a_step_that_fails_leaves_the_next_one_right(vllm):
    model, offloader, _ = start(vllm, **BUDGETS["offload_bytes"])
    down = model.layers[3].down
    method, down.quant_method = down.quant_method, None
    with torch.inference_mode(), pytest.raises(AttributeError):
        model(IDS)
    down.quant_method = method
    assert all(weight.in_slot == 0 for weight in offloader._weights.all)
    check_equal(model, resident())


def test_each_group_is_copied_once_a_step(vllm):
    model, offloader, _ = start(vllm, **BUDGETS["offload_bytes"])
    with torch.inference_mode():
        model(IDS)
        before = stats(offloader).copies
        model(IDS)
    assert stats(offloader).copies - before == LAYERS


def test_a_model_that_cannot_be_loaded_leaves_no_memory(vllm):
    def fail(model):
        held.append(vllm.get_offloader())
        raise OSError("no such file")

    held = []
    config = model_config()
    config.load = fail
    with pytest.raises(OSError, match="no such file"):
        start(vllm, weighbridge={"offload_bytes": 1 << 30}, model_config=config)
    assert isinstance(vllm.get_offloader(), vllm.NoopOffloader)
    assert not held[0].committed


def test_a_traced_model_has_the_operators_and_weights_read_by_others(vllm):
    model, offloader, _ = start(vllm, **BUDGETS["offload_bytes"])
    expected, targets = resident(), []

    def backend(graph, _):
        targets.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    def run(ids):
        hidden, residual = model.embed(ids), None
        for layer in model.layers:
            hidden, residual = layer(ids, hidden, residual)
        return hidden + residual

    compiled = torch.compile(run, fullgraph=True, backend=backend)
    with torch.inference_mode():
        for _ in range(3):
            assert torch.equal(compiled(IDS), expected(IDS))
    for name in ("enter_layer", "leave_layer"):
        assert sum(name in target for target in targets) == LAYERS
    before = stats(offloader).copies
    with torch.inference_mode():
        compiled(IDS)
    assert stats(offloader).copies - before == LAYERS


def test_the_operators_split_a_compiled_model(vllm):
    changes = {
        "compilation_config__mode": 3,
        "compilation_config__splitting_ops": ["vllm::unified_attention"],
    }
    _, _, config = start(vllm, **BUDGETS["offload_bytes"], **changes)
    found = config.compilation_config.splitting_ops
    assert found == [
        "vllm::unified_attention",
        "weighbridge::enter_layer",
        "weighbridge::leave_layer",
    ]


def test_the_hash_tells_compiled_code_of_other_layers_apart(vllm):
    digests = []
    for count in (2, 4):
        _, offloader, config = start(vllm, weighbridge={"offload_bytes": count * MATRIX})
        digests.append(config.additional_config["weighbridge"]["compiled"])
        offloader.close()
    assert digests[0] != digests[1]
    _, offloader, config = start(vllm, weighbridge={"offload_bytes": 4 * MATRIX})
    # The operators find the model by another number than before.
    assert config.additional_config["weighbridge"]["compiled"] != digests[1]


def test_the_hash_is_the_same_in_another_process():
    program = (
        "import pytest, sys; sys.path.insert(0, sys.argv[1])\n"
        "from engines import fake_vllm, test_vllm as t\n"
        "fake = fake_vllm.install(pytest.MonkeyPatch(), '0.26.0')\n"
        "import weighbridge.engines.vllm as plugin; plugin.register()\n"
        "_, _, config = t.start(fake, **t.BUDGETS['offload_bytes'])\n"
        "print(config.additional_config['weighbridge']['compiled'])\n"
    )
    command = [sys.executable, "-c", program, str(Path(__file__).parents[1])]
    found = {
        subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2)
    }
    assert len(found) == 1


REFUSED = {
    "ubatching": ({"parallel_config__use_ubatching": True}, "--enable-dbo"),
    "experts that move": ({"parallel_config__enable_eplb": True}, "--enable-eplb"),
    "sleep": ({"model_config__enable_sleep_mode": True}, "--enable-sleep-mode"),
    "another device": ({"device_config__device_type": "tpu"}, "the device tpu"),
    "Inductor's partitions": (
        {"compilation_config__use_inductor_graph_partition": True},
        "use_inductor_graph_partition",
    ),
    "another compiler": ({"compilation_config__mode": 1}, "compilation mode 1"),
    "one graph": ({"compilation_config__mode": 3}, "splitting_ops is empty"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_the_error_names_an_unsupported_feature(vllm, what):
    changes, named = REFUSED[what]
    with pytest.raises(ValueError, match=named):
        start(vllm, **BUDGETS["offload_bytes"], **changes)
    assert isinstance(vllm.get_offloader(), vllm.NoopOffloader)


def test_breakable_graphs_are_refused(vllm):
    vllm.envs.VLLM_USE_BREAKABLE_CUDAGRAPH = True
    with pytest.raises(ValueError, match=r"VLLM_USE_BREAKABLE_CUDAGRAPH=1.*unset it"):
        start(vllm, **BUDGETS["offload_bytes"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs a budget"),
        ({"additional_config": object()}, "additional_config is a object: pass a dictionary"),
        ({"weighbridge": {"offload_gb": 3}}, "unknown options offload_gb"),
        ({"weighbridge": {"offload_bytes": 1, "device_bytes": 1}}, "give one budget"),
        ({"weighbridge": {"offload_bytes": "much"}}, "is not a number of bytes"),
        ({"weighbridge": {"offload_bytes": 1, "select": "model.*"}}, "whole segments"),
        (
            {"weighbridge": {"device_bytes": 1}, "offload_config__uva__cpu_offload_gb": 1.0},
            "give one budget, in one of these places",
        ),
    ],
)
def test_options_that_cannot_be_followed_are_errors(vllm, options, message):
    with pytest.raises(ValueError, match=message):
        start(vllm, **options)


@pytest.mark.parametrize("version", ["0.25.1", "0.34.0", "1.0.0", "dev"])
def test_a_version_that_is_not_known_is_refused(monkeypatch, version):
    fake = fake_vllm.install(monkeypatch, "0.33.0")
    import weighbridge.engines.vllm as plugin

    plugin.register()
    fake.vllm.__version__ = version
    with pytest.raises(RuntimeError, match=rf"0\.26 to 0\.33, and found {version}: install"):
        start(fake, **BUDGETS["offload_bytes"])


@pytest.mark.parametrize("version", ["0.26.0", "0.30.2rc1", "0.33.0+cu130", "0.33.1.dev7"])
def test_the_known_versions_are_accepted(version):
    from weighbridge.engines.vllm._versions import check_version

    check_version(version)


@pytest.mark.parametrize("switch", ["DISABLE_PIN_MEMORY", "DISABLE_UVA"])
def test_vllms_switches_have_their_effect(vllm, monkeypatch, switch):
    monkeypatch.setenv(f"VLLM_WEIGHT_OFFLOADING_{switch}", "1")
    model, offloader, _ = start(vllm, **BUDGETS["offload_bytes"])
    info = offloader.device.info
    off = info.pin_reason if switch == "DISABLE_PIN_MEMORY" else info.views_reason
    assert switch in off
    check_equal(model, resident())


def test_what_was_planned_and_moved_is_logged(vllm):
    model, offloader, _ = start(vllm, **BUDGETS["offload_bytes"])
    with torch.inference_mode():
        model(IDS)
    offloader.close()
    lines = "\n".join(vllm.loggers["vllm.weighbridge"].lines)
    assert f"offloads {LAYERS * MATRIX / 2**20:.1f} MiB" in lines and "slots of" in lines
    moved = re.search(r"copied (\d\.\d) MiB in (\d+) copies", lines)
    # The end of the step copies for the next one.
    assert moved and LAYERS <= int(moved[2]) <= LAYERS + 2 and float(moved[1]) >= 1.5


def test_the_entry_point_is_light_and_quiet_without_vllm():
    program = (
        "import sys; sys.modules['vllm'] = None\n"
        "from weighbridge.engines.vllm import register; register(); register()\n"
        "assert 'torch' not in sys.modules, 'PyTorch was imported'\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)


def test_the_package_names_the_entry_point():
    text = (ROOT / "bindings/python/pyproject.toml").read_text()
    _, _, entry = text.partition('[project.entry-points."vllm.general_plugins"]')
    assert entry.split()[:3] == ["weighbridge", "=", '"weighbridge.engines.vllm:register"']
    from weighbridge.engines.vllm._versions import FIRST, LAST

    assert f'vllm = ["vllm>={FIRST[0]}.{FIRST[1]},<{LAST[0]}.{LAST[1] + 1}"]' in text


def _methods(path, name):
    """The methods of a class in a source file, with the names of their arguments."""
    tree = ast.parse(path.read_text())
    found = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name)
    functions = [node for node in found.body if isinstance(node, ast.FunctionDef)]
    return {node.name: [one.arg for one in node.args.args] for node in functions}


def test_the_fakes_have_the_interface_of_vllm(monkeypatch):
    given = [Path(part) for part in os.environ.get("WEIGHBRIDGE_VLLM", "").split(":") if part]
    if not given:
        pytest.skip("WEIGHBRIDGE_VLLM names no folders with the sources of vLLM")
    for folder, version in zip(given, VERSIONS):
        fake = fake_vllm.install(monkeypatch, version)
        base = folder / "vllm/model_executor/offloader/base.py"
        for name in ("BaseOffloader", "NoopOffloader"):
            methods = _methods(base, name)
            for method, arguments in methods.items():
                code = getattr(getattr(fake, name), method).__code__
                mine = list(code.co_varnames[: code.co_argcount])
                assert mine[: len(arguments)] == arguments, (version, name, method)
        loader = folder / "vllm/model_executor/model_loader/base_loader.py"
        methods = _methods(loader, "BaseModelLoader")
        assert ("create_model" in methods) == hasattr(fake.BaseModelLoader, "create_model")
        for method, arguments in methods.items():
            code = getattr(fake.BaseModelLoader, method).__code__
            assert list(code.co_varnames[: code.co_argcount]) == arguments, (version, method)

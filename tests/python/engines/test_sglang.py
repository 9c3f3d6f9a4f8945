"""The plug-in for SGLang, against fakes with its interfaces: outputs equal the resident model's."""

from __future__ import annotations

import importlib
import json
import sys

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from engines import fake_sglang as fake  # noqa: E402
from weighbridge.engines.sglang._options import SWITCH  # noqa: E402

LAYER = 128 * 128 * 4 * 5  # bytes of the matrices of a layer


@pytest.fixture(params=[fake.OLD, fake.NEW])
def sglang(request, monkeypatch):
    """SGLang, without weighbridge's modules that have imported another one."""
    found = fake.install(monkeypatch, request.param)
    package = "weighbridge.engines.sglang"
    for name in [name for name in sys.modules if name.startswith(package)]:
        monkeypatch.delitem(sys.modules, name)
    return found


def turn_on(sglang, monkeypatch, options="1"):
    """Sets the switch and loads the plug-in as SGLang does, in each process."""
    text = options if isinstance(options, str) else json.dumps(options)
    monkeypatch.setenv(SWITCH, text)
    importlib.import_module("weighbridge.engines.sglang").register()
    sglang.registry.apply_hooks()


def logits(model):
    tokens = torch.tensor([1, 5, 63, 0])
    with torch.inference_mode():
        return model.forward(tokens, torch.arange(4), None)


def expected(sglang, model_class=fake.Model):
    current = sglang.offloader.get_offloader()
    sglang.offloader.set_offloader(fake.NoopOffloader())
    model = fake.load(
        model_class=model_class,
        model_config=fake.model_config(),
        device="cpu",
        gpu_id=0,
        is_draft_worker=False,
    ).model
    sglang.offloader.set_offloader(current)
    return logits(model)


def offloaded(sglang):
    return sglang.offloader.get_offloader()._layers.weights.offloader


def names_offloaded(sglang):
    infos = offloaded(sglang).parameter_infos()
    return {info.name for info in infos if info.placement == "offloaded"}


class Replaced(fake.Model):
    replaces = True


@pytest.mark.parametrize("model_class", [fake.Model, Replaced])
@pytest.mark.parametrize("mode", ["prefetch", "on-demand", "zero-copy", "auto"])
def test_outputs_are_those_of_the_resident_model(sglang, monkeypatch, mode, model_class):
    turn_on(sglang, monkeypatch, {"offload_bytes": 3 * LAYER, "transfer_mode": mode})
    runner = fake.Runner(sglang, model_class, fake.model_config())
    right = expected(sglang, model_class)
    for _ in range(3):
        assert torch.equal(logits(runner.model), right)
    stats = offloaded(sglang).stats
    assert 2 * LAYER < stats.offloaded_bytes <= 3 * LAYER
    assert stats.mapped_bytes <= 3 * LAYER + 6 * 4096
    assert mode == "zero-copy" or stats.moved_bytes >= 3 * stats.offloaded_bytes


def test_cpu_offload_gb_is_a_budget(sglang, monkeypatch):
    sglang.config["exec"].offload.cpu_offload_gb = 1
    turn_on(sglang, monkeypatch)
    runner = fake.Runner(sglang, fake.Model, fake.model_config())
    assert torch.equal(logits(runner.model), expected(sglang))
    assert offloaded(sglang).stats.offloaded_bytes == 6 * LAYER


def test_device_bytes_are_a_ceiling_for_the_whole_model(sglang, monkeypatch):
    total = sum(p.nbytes for p in fake.Model(fake.model_config()).parameters())
    limit = total - 2 * LAYER
    turn_on(sglang, monkeypatch, {"device_bytes": limit})
    runner = fake.Runner(sglang, fake.Model, fake.model_config())
    assert torch.equal(logits(runner.model), expected(sglang))
    inside = set(map(id, runner.model.layers.parameters()))
    outside = sum(p.nbytes for p in runner.model.parameters() if id(p) not in inside)
    stats = offloaded(sglang).stats
    assert stats.offloaded_bytes >= 2 * LAYER
    assert outside + stats.resident_bytes + stats.slot_bytes <= limit


def test_groups_of_layers_leave_as_by_sglangs_options(sglang, monkeypatch):
    offload = sglang.config["exec"].offload
    offload.offload_group_size, offload.offload_num_in_group = 3, 1
    turn_on(sglang, monkeypatch)
    runner = fake.Runner(sglang, fake.Model, fake.model_config())
    assert torch.equal(logits(runner.model), expected(sglang))
    assert {name.split(".")[1] for name in names_offloaded(sglang)} == {"2", "5"}


def test_of_a_model_that_names_weights_groups_offload_those(sglang, monkeypatch):
    class Named(fake.Model):
        whitelist = ("up.weight",)

    offload = sglang.config["exec"].offload
    offload.offload_group_size, offload.offload_num_in_group = 2, 1
    turn_on(sglang, monkeypatch)
    runner = fake.Runner(sglang, Named, fake.model_config())
    assert torch.equal(logits(runner.model), expected(sglang))
    assert names_offloaded(sglang) == {f"layers.{n}.mlp.up.weight" for n in (1, 3, 5)}


def test_selected_weights_alone_leave(sglang, monkeypatch):
    turn_on(sglang, monkeypatch, {"offload_bytes": "1GiB", "select": "mlp", "exclude": ["down"]})
    runner = fake.Runner(sglang, fake.Model, fake.model_config())
    assert torch.equal(logits(runner.model), expected(sglang))
    assert names_offloaded(sglang) == {f"layers.{n}.mlp.up.weight" for n in range(6)}


@pytest.mark.parametrize("value", [None, "", "0", "off"])
def test_without_the_switch_nothing_is_touched(sglang, monkeypatch, value):
    monkeypatch.delenv(SWITCH, raising=False)
    if value is not None:
        monkeypatch.setenv(SWITCH, value)
    importlib.import_module("weighbridge.engines.sglang").register()
    assert sglang.registry.hooks == {}
    assert "weighbridge.engines.sglang._hooks" not in sys.modules


def test_a_draft_models_weights_stay(sglang, monkeypatch):
    turn_on(sglang, monkeypatch, {"offload_bytes": "1GiB"})
    target = fake.Runner(sglang, fake.Model, fake.model_config())
    before, asked = names_offloaded(sglang), sglang.offloader.get_offloader()._layers.device.stats
    second = fake.Runner(sglang, fake.Model, fake.model_config(2), is_draft_worker=True)
    assert names_offloaded(sglang) == before
    assert sglang.offloader.get_offloader()._layers.device.stats == asked
    assert "step" not in second.model.forward.__qualname__
    right = expected(sglang)
    for _ in range(2):
        logits(second.model)
        assert torch.equal(logits(target.model), right)
    assert sglang.offloader.get_offloader().forbid_copy_engine_usage


def test_a_second_model_in_the_process_is_refused(sglang, monkeypatch):
    turn_on(sglang, monkeypatch, {"offload_bytes": 3 * LAYER})
    fake.Runner(sglang, fake.Model, fake.model_config())
    with pytest.raises(RuntimeError, match="a second model in a process"):
        fake.Runner(sglang, fake.Model, fake.model_config())


def test_updates_of_weights_are_refused(sglang, monkeypatch):
    turn_on(sglang, monkeypatch, {"offload_bytes": 3 * LAYER})
    runner = fake.Runner(sglang, fake.Model, fake.model_config())
    calls = {
        "disk": ("path", "auto"),
        "distributed": (),
        "tensor": ([],),
        "ipc": (None,),
    }
    for source, arguments in calls.items():
        done, why = getattr(runner.updater, f"update_weights_from_{source}")(*arguments)
        assert not done and SWITCH in why
    assert runner.updater.updated == []


def test_a_step_that_failed_leaves_the_next_ones_right(sglang, monkeypatch):
    turn_on(sglang, monkeypatch, {"offload_bytes": 6 * LAYER, "transfer_mode": "prefetch"})
    runner = fake.Runner(sglang, fake.Model, fake.model_config())
    right = expected(sglang)
    runner.model.layers[3].fails = True
    for _ in range(2):
        with pytest.raises(RuntimeError, match="on purpose"):
            logits(runner.model)
    runner.model.layers[3].fails = False
    for _ in range(2):
        assert torch.equal(logits(runner.model), right)


REFUSED = {
    ("exec.overlap", "enable_two_batch_overlap", True): "--enable-two-batch-overlap",
    ("exec.moe", "enable_eplb", True): "--enable-eplb",
    ("exec.moe", "elastic_ep_backend", "mooncake"): "--elastic-ep-backend",
    ("exec.graph", "enable_torch_compile", True): "--enable-torch-compile",
    ("exec.features", "enable_memory_saver", True): "--enable-memory-saver",
    ("disagg", "enable_pdmux", True): "--enable-pdmux",
    ("model", "weight_cache_mode", "client"): "--weight-cache-mode client",
    ("model", "is_startup_weight_load_overlap", True): "--startup-weight-load-mode overlap",
    ("device", "device", "npu"): "the device npu",
}


@pytest.mark.parametrize("setting", REFUSED, ids=lambda setting: setting[1])
def test_unsupported_switches_are_refused(sglang, monkeypatch, setting):
    place, name, value = setting
    top, *rest = place.split(".")
    bag = sglang.config[top]
    for own in rest:
        bag = getattr(bag, own)
    setattr(bag, name, value)
    turn_on(sglang, monkeypatch, {"offload_bytes": 3 * LAYER})
    with pytest.raises(ValueError, match=REFUSED[setting]):
        fake.Runner(sglang, fake.Model, fake.model_config())


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("backend", ["breakable", "tc_piecewise"])
def test_graphs_that_end_inside_of_a_layer_are_refused(sglang, monkeypatch, phase, backend):
    sglang.config["device"].device = "cuda"
    getattr(sglang.config["exec"].graph.cuda_graph_config, phase).backend = backend
    turn_on(sglang, monkeypatch, {"offload_bytes": 3 * LAYER})
    with pytest.raises(ValueError, match=f"--cuda-graph-backend-{phase} disabled"):
        fake.Runner(sglang, fake.Model, fake.model_config())


@pytest.mark.parametrize(
    ("options", "gb", "group", "message"),
    [
        ("1", 0, -1, "needs a budget"),
        ({"offload_bytes": 1}, 1, -1, "give one budget"),
        ({"offload_bytes": 1, "device_bytes": 1}, 0, -1, "give one budget"),
        ({"depth": 3}, 0, 2, "give one budget"),
        ("1", 1, 2, "are two budgets"),
        ({"offload": 1}, 1, -1, "unknown options offload"),
        ({"select": "mlp.*"}, 1, -1, "whole segments"),
        ("[1]", 1, -1, "use 1, 0, or a JSON object"),
        ("yes please", 1, -1, "use 1, 0, or a JSON object"),
    ],
)
def test_contradictory_options_are_refused(sglang, monkeypatch, options, gb, group, message):
    offload = sglang.config["exec"].offload
    offload.cpu_offload_gb, offload.offload_group_size = gb, group
    with pytest.raises(ValueError, match=message):
        turn_on(sglang, monkeypatch, options)
        fake.Runner(sglang, fake.Model, fake.model_config())


def test_modes_that_keep_weights_elsewhere_are_refused(sglang, monkeypatch):
    offload = sglang.config["exec"].offload
    offload.offload_group_size, offload.offload_mode = 2, "sharded_gpu"
    turn_on(sglang, monkeypatch)
    with pytest.raises(ValueError, match="--offload-mode sharded_gpu"):
        fake.Runner(sglang, fake.Model, fake.model_config())


@pytest.mark.parametrize("version", ["0.5.16", "0.5.24", "0.6.0", "unknown"])
def test_other_versions_are_refused(sglang, monkeypatch, version):
    sys.modules["sglang"].__version__ = version
    turn_on(sglang, monkeypatch, {"offload_bytes": 3 * LAYER})
    with pytest.raises(RuntimeError, match=rf"0\.5\.17 to 0\.5\.23, and found {version}"):
        fake.Runner(sglang, fake.Model, fake.model_config())


def test_a_model_that_is_loaded_elsewhere_is_refused(sglang, monkeypatch):
    turn_on(sglang, monkeypatch, {"offload_bytes": 3 * LAYER})
    create = getattr(sglang.offloader, sglang.create)
    sglang.offloader.set_offloader(create(*((None, 0) if sglang.version == fake.OLD else ())))
    with pytest.raises(RuntimeError, match="did not see SGLang begin to load"):
        fake.Model(fake.model_config())
    with pytest.raises(RuntimeError, match="did not see SGLang load"):
        sglang.offloader.get_offloader().post_init()


def test_a_named_module_that_is_not_a_part_of_its_layer_is_an_error(sglang, monkeypatch):
    class Apart(fake.Model):
        whitelist = ("weight",)

    offload = sglang.config["exec"].offload
    offload.offload_group_size, offload.offload_num_in_group = 2, 1
    turn_on(sglang, monkeypatch)
    wrap = sglang.offloader.get_offloader
    with pytest.raises(RuntimeError, match=r"names a Linear .* not a part of its layer, a Layer"):
        monkeypatch.setattr(
            sglang.offloader,
            "get_offloader",
            lambda: _Elsewhere(wrap()),
        )
        fake.Runner(sglang, Apart, fake.model_config())


class _Elsewhere:
    """An offloader that is given an accessor of modules outside of the layers."""

    def __init__(self, offloader):
        self._offloader = offloader

    def __getattr__(self, name):
        return getattr(self._offloader, name)

    def wrap_modules(self, layers, submodule_accessor, whitelist_param_names_creator):
        other = torch.nn.Linear(2, 2)
        return self._offloader.wrap_modules(
            layers, lambda layer: other, whitelist_param_names_creator
        )

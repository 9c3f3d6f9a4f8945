"""The vLLM plug-in, over fakes with the interfaces of 0.26 and 0.33: loading, budgets and steps.

``tests/gpu/engines`` runs the real engine.
"""

from __future__ import annotations

import warnings
import weakref
from types import SimpleNamespace

import pytest
import torch

from weighbridge import Status, WeighbridgeError

from .vllm_models import (
    BUDGETS,
    HIDDEN,
    IDS,
    LAYERS,
    MATRIX,
    Halved,
    Layer,
    Linear,
    Method,
    Model,
    Online,
    Renamed,
    WithAttention,
    check_equal,
    load,
    model_config,
    resident,
    start,
    stats,
)


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


def test_a_speculative_model_with_its_own_configuration_stays_on_the_device(vllm):
    _, offloader, _ = start(vllm, **BUDGETS["offload_bytes"])
    proposer = model_config(runner_type="draft")
    second, active, _ = start(vllm, model_config=proposer, **BUDGETS["offload_bytes"])
    assert active is offloader
    check_equal(second, resident())


def test_a_speculative_model_of_another_format_stays_on_the_device(vllm):
    model, offloader, config = start(vllm, **BUDGETS["every layer"])
    offloader.device.drain(10)
    before = offloader.device.stats
    config.load_config = SimpleNamespace(load_format="auto", device=None)
    loader = vllm.get_model_loader(config.load_config)
    second = loader.load_model(vllm_config=config, model_config=model_config(runner_type="draft"))
    assert offloader.device.stats == before
    check_equal(second, resident())
    check_equal(model, resident())


def test_another_engine_in_the_process_is_offloaded_too(vllm):
    first, offloader, _ = start(vllm, **BUDGETS["offload_bytes"])
    second, other, _ = start(vllm, **BUDGETS["device_bytes"])
    assert other is not offloader and stats(other).offloaded_bytes > 0
    check_equal(first, resident())
    check_equal(second, resident())
    assert stats(offloader).copies > 0
    ended = weakref.ref(first)
    del first, offloader
    third, last, _ = start(vllm, **BUDGETS["offload_bytes"])
    del second, other
    assert ended() is None and stats(last).offloaded_bytes > 0
    check_equal(third, resident())


def test_an_engine_that_has_ended_is_freed_by_the_next(vllm):
    first, offloader, _ = start(vllm, **BUDGETS["offload_bytes"])
    check_equal(first, resident())
    ended = weakref.ref(first), weakref.ref(offloader)
    del first, offloader
    start(vllm, **BUDGETS["offload_bytes"])
    assert [one() for one in ended] == [None, None]


SHARED = []


class SharedLayer(Layer):
    """A layer with a part that all layers share."""

    def __init__(self, method):
        super().__init__(method)
        if not SHARED:
            SHARED.append(Linear(HIDDEN, HIDDEN, method()))
        self.both = SHARED[0]

    def forward(self, positions, hidden, residual=None):
        return super().forward(positions, self.both(hidden), residual)


def test_a_module_of_several_layers_has_one_place(vllm):
    def made(wrap):
        SHARED.clear()
        return Model(wrap, layer=SharedLayer)

    def load_all(model):
        load(model)
        model.layers[0].both.weight.data.copy_(torch.eye(HIDDEN).flip(0))

    config = model_config()
    config.build, config.load = made, load_all
    model, offloader, _ = start(vllm, weighbridge={"offload_bytes": 1 << 30}, model_config=config)
    names = [info.name for info in offloader.weights.offloader.parameter_infos()]
    assert [name for name in names if "both" in name] == ["layers.0.both.weight"]
    expected = made(list)
    load_all(expected)
    check_equal(model, expected)


class Taking(torch.nn.Module):
    """Attention that takes another module's weight, which that has no longer, as MLA may."""

    def __init__(self, source):
        super().__init__()
        self.source = [source]

    def process_weights_after_loading(self, dtype):
        taken = self.source[0].weight.data.half()
        del self.source[0].weight
        self.taken = torch.nn.Parameter(taken, requires_grad=False)
        self.source[0].quant_method.weight = lambda layer: self.taken.float()

    def forward(self, hidden):
        return hidden


class TakenLayer(Layer):
    def __init__(self, method):
        super().__init__(method)
        self.attention = Taking(self.down)


def test_a_weight_that_another_modules_processing_takes_is_followed(vllm):
    config = model_config(layer=TakenLayer)
    options = {"offload_bytes": 1 << 30}
    model, offloader, _ = start(vllm, weighbridge=options, model_config=config)
    names = {i.name.partition(".")[2][2:] for i in offloader.weights.offloader.parameter_infos()}
    assert names == {"up.weight", "attention.taken"}
    check_equal(model, resident(layer=TakenLayer))


def test_a_step_that_fails_leaves_the_next_one_right(vllm):
    model, offloader, _ = start(vllm, **BUDGETS["offload_bytes"])
    down = model.layers[3].down
    method, down.quant_method = down.quant_method, None
    with torch.inference_mode(), pytest.raises(AttributeError):
        model(IDS)
    down.quant_method = method
    assert all(weight.in_slot == 0 for weight in offloader._weights.all)
    check_equal(model, resident())


@pytest.mark.parametrize("budget", BUDGETS)
def test_loading_warns_of_nothing(vllm, budget):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        start(vllm, **BUDGETS[budget])


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

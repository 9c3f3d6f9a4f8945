"""weighbridge.engines.diffusers: uses of an offloaded pipeline beside calls."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

from weighbridge import WeighbridgeError  # noqa: E402
from weighbridge.engines.diffusers import offload  # noqa: E402
from weighbridge.engines.diffusers._groups import bytes_of  # noqa: E402

from .test_diffusers_engine import (  # noqa: E402
    PIPELINES,
    equal,
    models_of,
    run,
    size_of,
    states_of,
)

NAME = "flux"
"""Of the fastest of the pipelines."""


@pytest.fixture
def made(where):
    """Returns a pipeline, always with the same weights, on the device."""

    def build(name: str = NAME):
        return PIPELINES[name].build(where)

    return build


def offloaded(pipeline, where, part: float = 0.3, **options):
    return offload(pipeline, device_bytes=int(size_of(pipeline) * part), device=where, **options)


def test_textual_inversion_is_loaded_and_unloaded(made, where):
    """Which puts another module in the place of the embedding."""
    resident, pipeline = made("stable-diffusion"), made("stable-diffusion")
    handle = offloaded(pipeline, where)
    assert "text_encoder" in handle.components
    ids = torch.arange(6, device=where)[None]

    def check():
        with torch.no_grad():
            for _ in range(2):
                found = pipeline.text_encoder(ids)[0]
                assert torch.equal(found, resident.text_encoder(ids)[0])

    for _ in range(2):
        for one in (resident, pipeline):
            torch.manual_seed(3)
            one.load_textual_inversion({"<cat>": torch.ones(3, 16) * 0.1})
        check()
        for one in (resident, pipeline):
            one.unload_textual_inversion()
        check()
    stats = handle.stats
    assert stats.resident_bytes + stats.slot_bytes <= sum(handle.device_bytes.values())
    assert equal(states_of(pipeline), states_of(resident))
    handle.remove()
    assert equal(states_of(pipeline), states_of(resident))


def test_a_conversion_that_one_model_refuses_changes_none(made, where, monkeypatch):
    """Such as one with compressed weights. Models of two types could not run."""
    pipeline = made()
    handle = offloaded(pipeline, where)
    assert len(handle.components) > 1
    asked = []

    def refuse(function):
        asked.append(function(torch.empty(0, device=where)).dtype)
        raise RuntimeError("cannot be converted")

    monkeypatch.setattr([*handle.components.values()][-1]._weights, "check_moved", refuse)
    for given, options in (((torch.bfloat16,), {}), ((where,), {"dtype": torch.bfloat16})):
        with pytest.raises(RuntimeError, match="cannot be converted"):
            pipeline.to(*given, **options)
    assert asked == [torch.bfloat16] * 2
    for model in models_of(pipeline).values():
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_a_pipeline_runs_on_when_the_handle_of_one_of_its_models_is_removed(made, where):
    pipeline = made()
    kind, expected = type(pipeline), run(pipeline, NAME)
    handle = offloaded(pipeline, where)
    handle.components["vae"].remove()
    assert equal(run(pipeline, NAME), expected)
    assert handle.stats.offloaded_bytes > 0
    handle.reconcile()
    with handle.steps():
        pass
    handle.remove()
    assert type(pipeline) is kind and not handle.components
    assert equal(run(pipeline, NAME), expected)


def test_a_pipeline_whose_model_is_quantized_by_torchao_is_offloaded(made, where):
    torchao = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    resident, pipeline = made(), made()
    for one in (resident, pipeline):
        torchao.quantize_(one.transformer, torchao.Int8WeightOnlyConfig())
    inner = pipeline.transformer.transformer_blocks[0].attn.to_q.weight
    sizes = [getattr(inner, name).nbytes for name in inner.__tensor_flatten__()[0]]
    assert bytes_of(pipeline.transformer.transformer_blocks[0].attn.to_q) - sum(sizes) in (0, 128)
    for part in (0.3, 0.6):
        budget = int(size_of(pipeline) * part)
        handle = offload(pipeline, device_bytes=budget, device=where)
        stats = handle.stats
        assert handle.components
        assert stats.resident_bytes + stats.slot_bytes <= budget
        assert equal(run(pipeline, NAME), run(resident, NAME))
        handle.remove()


def test_a_copy_of_an_offloaded_pipeline_is_of_its_own_class_and_resident(made, where):
    pipeline = made()
    kind, expected = type(pipeline), run(pipeline, NAME)
    handle = offloaded(pipeline, where)
    copied = copy.deepcopy(pipeline)
    assert type(copied) is kind and "_exclude_from_cpu_offload" not in vars(copied)
    assert type(pipeline) is not kind
    assert equal(run(copied.to(where), NAME), expected)
    copied.to("meta")
    assert equal(run(pipeline, NAME), expected)
    handle.remove()


def test_a_pipeline_made_from_an_offloaded_one_shares_the_offload_until_it_ends(made, where):
    pipeline = made()
    expected = run(pipeline, NAME)
    handle = offloaded(pipeline, where)
    other = type(pipeline).from_pipe(pipeline)
    other.set_progress_bar_config(disable=True)
    assert other.transformer is pipeline.transformer and other._execution_device == where
    assert equal(run(other, NAME), expected)
    with pytest.raises(RuntimeError, match="offloaded already"):
        offload(other, device_bytes=1 << 20, device=where)
    handle.remove()
    assert equal(run(other, NAME), expected)
    another = offloaded(other, where)
    assert equal(run(other, NAME), expected)
    another.remove()
    other.to("meta")


@pytest.mark.parametrize("option", ["select", "exclude"])
def test_the_error_of_a_selector_names_the_model(made, where, option):
    pipeline = made()
    with pytest.raises(WeighbridgeError, match=r'^\w+: the selector "nothing" matches none'):
        offloaded(pipeline, where, **{option: "nothing"})


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        ({"device_bytes": "8GiB"}, TypeError, "device_bytes is '8GiB': give a whole number"),
        ({"runs": {"transformer": "x"}}, TypeError, "runs is 'x' for transformer"),
        ({"runs": {"transformer": -1}}, ValueError, "runs is -1 for transformer"),
        ({"runs": 3}, TypeError, "runs is 3: give a dictionary"),
        ({"groups": "auto"}, TypeError, "groups is 'auto': give a dictionary"),
    ],
)
def test_options_that_a_pipeline_does_not_take_are_errors(made, where, options, kind, said):
    with pytest.raises(kind, match=said):
        offload(made(), **{"device_bytes": 1 << 20, "device": where, **options})

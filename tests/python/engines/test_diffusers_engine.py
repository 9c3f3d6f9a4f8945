"""weighbridge.engines.diffusers: a pipeline's outputs are those of the resident pipeline."""

from __future__ import annotations

import gc
import itertools
import sys
import warnings
import weakref

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

from conftest import REPEATS, ROOT  # noqa: E402

sys.path.insert(0, str(ROOT / "tests"))

from equivalence.twins import copied, equal  # noqa: E402
from sweep import pipelines  # noqa: E402
from weighbridge import WeighbridgeError  # noqa: E402
from weighbridge.engines.diffusers import _budget, offload  # noqa: E402
from weighbridge.engines.diffusers._groups import bytes_of, groups_of  # noqa: E402

PIPELINES = {model.name.removeprefix("pipeline-"): model for model in pipelines.MODELS}
# One of each kind of denoising model, and one that a further model guides. The others repeat them,
# and a GPU runs them.
KINDS = ["stable-diffusion", "flux", "controlnet"]
BUDGETS = [
    *((name, 0.3) for name in KINDS),
    ("controlnet", 0.7),
    ("flux", 0.7),
    *(pytest.param(name, 0.3, marks=REPEATS) for name in PIPELINES if name not in KINDS),
]


@pytest.fixture
def made(where):
    """Returns a pipeline, always with the same weights, on the device."""

    def build(name: str = "stable-diffusion"):
        return PIPELINES[name].build(where)

    return build


def run(pipeline, name: str = "stable-diffusion", seed: int = 0):
    torch.manual_seed(seed)
    return copied(PIPELINES[name].run(pipeline))


def models_of(pipeline):
    found = pipeline.components.items()
    return {name: model for name, model in found if isinstance(model, torch.nn.Module)}


def size_of(pipeline):
    return sum(map(bytes_of, models_of(pipeline).values()))


def states_of(pipeline):
    found = models_of(pipeline).items()
    return {name: {k: t.cpu() for k, t in model.state_dict().items()} for name, model in found}


def offloaded(pipeline, where, part: float = 0.4, **options):
    return offload(pipeline, device_bytes=int(size_of(pipeline) * part), device=where, **options)


@pytest.mark.parametrize(("name", "part"), BUDGETS)
def test_outputs_are_those_of_the_resident_pipeline(made, where, name, part):
    pipeline = made(name)
    expected, states = run(pipeline, name), states_of(pipeline)
    budget = int(size_of(pipeline) * part)
    handle = offload(pipeline, device_bytes=budget, device=where)
    whole = sum(
        bytes_of(model)
        for model_name, model in models_of(pipeline).items()
        if model_name not in handle.components
    )
    stats = handle.stats
    assert stats.offloaded_bytes > 0
    assert whole + stats.resident_bytes + stats.slot_bytes <= budget
    assert sum(handle.device_bytes.values()) <= budget
    for _ in range(2):
        assert equal(run(pipeline, name), expected)
    assert handle.stats.moved_bytes > 0
    assert equal(states_of(pipeline), states)
    handle.remove()
    assert equal(run(pipeline, name), expected)
    assert not handle.components


def test_the_class_and_the_scheduler_stay(made, where):
    pipeline = made()
    kind, scheduler, config = type(pipeline), pipeline.scheduler, dict(pipeline.config)
    handle = offloaded(pipeline, where)
    assert isinstance(pipeline, kind) and type(pipeline).__name__ == kind.__name__
    assert pipeline.scheduler is scheduler and dict(pipeline.config) == config
    assert pipeline._execution_device == where
    assert set(handle.components) <= set(pipeline._exclude_from_cpu_offload)
    handle.remove()
    assert type(pipeline) is kind and "_exclude_from_cpu_offload" not in vars(pipeline)


def test_the_model_that_denoises_gets_what_the_others_can_do_without(made, where):
    pipeline = made()
    seldom = offload(pipeline, device_bytes=2_000_000, device=where, runs={"unet": 0.001})
    often = dict(seldom.device_bytes)
    seldom.remove()
    handle = offload(pipeline, device_bytes=2_000_000, device=where)
    assert handle.device_bytes["unet"] > often["unet"]
    assert handle.device_bytes["vae"] <= often["vae"]


def test_a_division_is_the_fastest_of_all():
    """Against all divisions, for curves that are not convex."""
    point = _budget.Point
    curves = [
        [point(2, 90.0), point(3, 89.0), point(9, 10.0), point(12, 0.0)],
        [point(1, 30.0), point(4, 12.0), point(5, 11.5), point(8, 0.0)],
        [point(1, 5.0), point(2, 1.0), point(6, 0.0)],
    ]
    for budget in range(4, 27):
        fitting = [
            chosen
            for chosen in itertools.product(*curves)
            if sum(one.nbytes for one in chosen) <= budget
        ]
        best = min(sum(one.seconds for one in chosen) for chosen in fitting)
        found = _budget._fastest(budget, curves)
        seconds = [next(p.seconds for p in c if p.nbytes == n) for c, n in zip(curves, found)]
        assert sum(found) <= budget and sum(seconds) == best


def test_blocks_inside_of_large_blocks_are_groups(made):
    unet = models_of(made())["unet"]
    names = groups_of(unet)
    limit = bytes_of(unet) / 24
    assert any(name.startswith("down_blocks.1.attentions.0.transformer_blocks.") for name in names)
    assert "down_blocks.1" not in names and bytes_of(unet.down_blocks[1]) > limit
    assert not any(a != b and a.startswith(f"{b}.") for a in names for b in names)


def test_encoding_and_decoding_with_tiles_and_slices(made, where):
    """Which call parts of the autoencoder, never itself."""
    pipeline = made()

    def use():
        vae, numbers = pipeline.vae, torch.linspace(-1, 1, 2 * 3 * 32 * 32, device=where)
        with torch.no_grad():
            latents = vae.encode(numbers.reshape(2, 3, 32, 32)).latent_dist.mean
            return copied([latents, vae.decode(latents).sample])

    def everything():
        found = [use()]
        for on, off in (("enable_tiling", "disable_tiling"), ("enable_slicing", "disable_slicing")):
            getattr(pipeline.vae, on)()
            found.append(use())
            getattr(pipeline.vae, off)()
        return found

    expected = everything()
    handle = offloaded(pipeline, where, 0.2)
    assert "vae" in handle.components
    for _ in range(2):
        assert equal(everything(), expected)


def test_an_autoencoder_that_the_pipeline_makes_fp32_stays_on_the_device(made, where):
    def fp16():
        pipeline = made("stable-diffusion-xl").to(torch.float16)
        pipeline.vae.register_to_config(force_upcast=True)
        return pipeline

    name, resident, pipeline = "stable-diffusion-xl", fp16(), fp16()
    budget = int(size_of(pipeline) * 0.5)
    handle = offload(pipeline, device_bytes=budget, device=where)
    assert "vae" not in handle.components
    assert handle.device_bytes["vae"] == 2 * bytes_of(pipeline.vae)
    assert sum(handle.device_bytes.values()) <= budget
    for _ in range(2):
        assert equal(run(pipeline, name), run(resident, name))


def lora_of(pipeline, rank: int = 2):
    torch.manual_seed(5)
    state = {}
    for name, module in pipeline.unet.named_modules():
        if name.endswith((".to_q", ".to_v", ".proj_in")) and "attn" in name + ".attn":
            inputs = module.weight.shape[1]
            if isinstance(module, torch.nn.Linear):
                state[f"unet.{name}.lora_A.weight"] = torch.randn(rank, inputs) * 0.1
                state[f"unet.{name}.lora_B.weight"] = torch.randn(len(module.weight), rank) * 0.1
    assert state
    return state


ADAPTERS = {
    "load": lambda p: p.load_lora_weights(lora_of(p), adapter_name="one"),
    "fuse": lambda p: p.fuse_lora(lora_scale=0.5),
    "unfuse": lambda p: p.unfuse_lora(),
    "scale": lambda p: p.set_adapters(["one"], [0.3]),
    "disable": lambda p: p.disable_lora(),
    "enable": lambda p: p.enable_lora(),
    "unload": lambda p: p.unload_lora_weights(),
}


def test_changes_that_pytorch_does_not_count_are_seen_in_steps_that_overlap(made, where):
    """Such as merging an adapter, after which the pipeline's methods call reconcile()."""
    resident, pipeline = made(), made()
    handle = offloaded(pipeline, where, 0.15, overlap_steps=True, transfer_mode="prefetch")
    for _ in range(2):
        assert equal(run(pipeline), run(resident))
        for one in (resident, pipeline):
            for model in models_of(one).values():
                for parameter in model.parameters():
                    parameter.data.mul_(0.9)
        handle.reconcile()
    assert equal(run(pipeline), run(resident))


def test_the_steps_of_a_call_overlap_and_no_others(made, where):
    """The second step finds its first groups; the first one of a call reads changed weights."""
    resident, pipeline = made(), made()
    handle = offloaded(pipeline, where, 0.15, transfer_mode="prefetch")
    weights = handle.components["unet"]._weights
    begun, begin_step = [], weights.begin_step
    weights.begin_step = lambda: (begun.append(0), begin_step())[1]
    for calls in (1, 2):
        assert equal(run(pipeline), run(resident))
        assert len(begun) == calls and not weights._overlap_steps
        for one in (resident, pipeline):
            for model in models_of(one).values():
                for parameter in model.parameters():
                    parameter.data.mul_(0.9)


@pytest.mark.parametrize(
    "steps",
    [
        # The first steps of others: what is new is that the pipeline is resident again after them.
        pytest.param("load", marks=REPEATS),
        pytest.param("load fuse", marks=REPEATS),
        "load scale",
        "load fuse unfuse",
        "load disable enable",
        "load unload",
    ],
)
def test_adapters_are_followed(made, where, steps):
    pytest.importorskip("peft", reason="peft is not installed")
    resident, pipeline = made(), made()
    handle = offloaded(pipeline, where, 0.5)
    before = handle.components["unet"].stats.parameters
    run(pipeline)
    for step in steps.split():
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # the budget has space for the adapter
            warnings.filterwarnings("default", module="peft|diffusers")
            ADAPTERS[step](pipeline)
        ADAPTERS[step](resident)
        for _ in range(2):
            assert equal(run(pipeline), run(resident)), step
        stats = handle.stats
        assert stats.resident_bytes + stats.slot_bytes <= sum(handle.device_bytes.values())
    count = handle.components["unet"].stats.parameters
    assert (count > before) == ("unload" not in steps)
    assert equal(states_of(pipeline), states_of(resident))
    handle.remove()
    assert equal(run(pipeline), run(resident))


def test_projections_are_fused_and_unfused(made, where):
    resident, pipeline = made(), made()
    handle = offloaded(pipeline, where)
    run(pipeline)
    for step in ("fuse_qkv_projections", "unfuse_qkv_projections"):
        for one in (resident, pipeline):
            getattr(one, step)()
        for _ in range(2):
            assert equal(run(pipeline), run(resident)), step
    handle.remove()
    assert equal(states_of(pipeline), states_of(resident))


def test_a_pipeline_is_not_moved_while_it_is_offloaded(made, where):
    pipeline = made()
    expected = run(pipeline)
    handle = offloaded(pipeline, where)
    pipeline.to(where)
    with pytest.raises(RuntimeError, match=r"asked to move the pipeline to meta.*remove\('meta'\)"):
        pipeline.to("meta")
    for name in ("enable_model_cpu_offload", "enable_sequential_cpu_offload"):
        with pytest.raises(RuntimeError, match=f"{name}.*remove"):
            getattr(pipeline, name)()
    assert equal(run(pipeline), expected)
    handle.close()
    assert all(p.is_cpu for model in models_of(pipeline).values() for p in model.parameters())
    assert equal(run(pipeline.to(where)), expected)
    handle.close()


def test_another_type_is_followed(made, where):
    resident, pipeline = made().to(torch.bfloat16), made()
    handle = offloaded(pipeline, where)
    run(pipeline)
    pipeline.to(torch.bfloat16)
    for _ in range(2):
        assert equal(run(pipeline), run(resident))
    handle.remove()
    assert equal(states_of(pipeline), states_of(resident))


def test_a_saved_pipeline_has_the_true_weights(made, where, tmp_path):
    pipeline = made()
    expected, states = run(pipeline), states_of(pipeline)
    offloaded(pipeline, where)
    run(pipeline)
    pipeline.save_pretrained(tmp_path)
    loaded = type(made()).from_pretrained(tmp_path, safety_checker=None).to(where)
    loaded.set_progress_bar_config(disable=True)
    assert equal(states_of(loaded), states)
    assert equal(run(loaded), expected)


def test_a_pipeline_works_after_an_error_in_the_middle(made, where):
    pipeline = made()
    expected = run(pipeline)
    offloaded(pipeline, where)
    run(pipeline)
    block = pipeline.unet.down_blocks[1].attentions[0]

    def interrupt(*_):
        raise KeyboardInterrupt

    for part in (pipeline.unet.mid_block, block, pipeline.vae.decoder, pipeline.text_encoder):
        hook = part.register_forward_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(pipeline)
        hook.remove()
        assert equal(run(pipeline), expected)


def test_a_pipeline_in_a_with_statement_is_resident_again(made, where):
    pipeline = made()
    expected = run(pipeline)
    with offloaded(pipeline, where) as handle:
        assert "unet" in repr(handle)
        assert equal(run(pipeline), expected)
    assert all(p.is_cpu for model in models_of(pipeline).values() for p in model.parameters())


def test_a_pipeline_that_is_no_longer_used_is_freed(made, where):
    pipeline = made("flux")
    offloaded(pipeline, where, 0.25, runs={"transformer": 0.01})
    pipeline.transformer.enable_cache(diffusers.FirstBlockCacheConfig(threshold=0.1))
    run(pipeline, "flux")
    models = [weakref.ref(model) for model in models_of(pipeline).values()]
    del pipeline
    gc.collect()
    assert not any(model() for model in models)


def test_a_cache_that_is_enabled_afterwards_skips_blocks(made, where):
    pipelines_of = [made("flux"), made("flux")]
    handle = offloaded(pipelines_of[1], where, 0.25)
    run(pipelines_of[1], "flux")
    for pipeline in pipelines_of:
        pipeline.transformer.enable_cache(diffusers.FirstBlockCacheConfig(threshold=10.0))
    acquired = []
    for enabled in (True, False):
        before = handle.components["transformer"].stats.acquires
        assert equal(run(pipelines_of[1], "flux"), run(pipelines_of[0], "flux"))
        acquired.append(handle.components["transformer"].stats.acquires - before)
        for pipeline in pipelines_of:
            if enabled:
                pipeline.transformer.disable_cache()
    assert acquired[0] < acquired[1], "blocks that the cache skips are not copied"
    handle.remove()


def test_hooks_that_place_weights_are_refused(made, where):
    pipeline = made("flux")
    pipeline.transformer.enable_cache(diffusers.FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(ValueError, match=r"transformer.*after the offload"):
        offloaded(pipeline, where)
    pipeline = made()
    pipeline.unet.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    with pytest.raises(ValueError, match=r"unet.*hook.*casting"):
        offloaded(pipeline, where)
    pipeline = made()
    pipeline.unet._hf_hook = object()
    with pytest.raises(ValueError, match=r"unet has accelerate's object"):
        offloaded(pipeline, where)
    pipeline = made()
    pipeline.hf_device_map = {"unet": "cpu"}
    with pytest.raises(ValueError, match="reset_device_map"):
        offloaded(pipeline, where)


@pytest.mark.gpu
def test_group_offloading_is_refused(made, where):
    if where.type != "cuda":
        pytest.skip("group offloading needs an accelerator")
    pipeline = made()
    pipeline.unet.enable_group_offload(where, num_blocks_per_group=1)
    with pytest.raises(ValueError, match=r"unet.*hook.*offload"):
        offloaded(pipeline, where)


def test_parameters_of_other_quantizers_are_refused(made, where):
    class Params4bit(torch.nn.Parameter):
        pass

    pipeline = made()
    weight = pipeline.unet.conv_in.weight
    pipeline.unet.conv_in.weight = Params4bit(weight.data, requires_grad=False)
    with pytest.raises(ValueError, match=r"unet\.conv_in\.weight is a .*Params4bit"):
        offloaded(pipeline, where)


def test_a_budget_that_cannot_be_met_changes_nothing(made, where):
    pipeline = made()
    expected = run(pipeline)
    with pytest.raises(ValueError, match="into which all"):
        offloaded(pipeline, where, 1.0)
    with pytest.raises(WeighbridgeError, match=r"at least \(.*unet \d+"):
        offloaded(pipeline, where, 0.0, pin=False)
    with pytest.raises(ValueError, match="no model 'transformer': it has"):
        offloaded(pipeline, where, runs={"transformer": 1})
    for option in ("offload_bytes", "quantize", "nonsense"):
        with pytest.raises(TypeError, match=option):
            offloaded(pipeline, where, **{option: 1})
    assert equal(run(pipeline), expected)
    handle = offloaded(pipeline, where)
    with pytest.raises(RuntimeError, match="offloaded already"):
        offloaded(pipeline, where)
    handle.remove()
    assert equal(run(pipeline), expected)


def test_a_failed_model_leaves_the_others_resident(made, where):
    pipeline = made()
    expected = run(pipeline)

    def fail(phase, done, total):
        calls.append(phase)
        if len(calls) > 20:
            raise KeyboardInterrupt

    calls: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        offloaded(pipeline, where, progress=fail)
    assert equal(run(pipeline.to(where)), expected)

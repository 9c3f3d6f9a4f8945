"""The plug-ins for diffusers and transformers at real size: equal, and within their memory."""

from __future__ import annotations

import gc
import sys
import time
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benches"))

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")

from engines_hf import LLAMA, AnonymousPeak, checkpoint  # noqa: E402

import weighbridge.torch as wt  # noqa: E402
from weighbridge.engines.diffusers import offload  # noqa: E402
from weighbridge.engines.transformers import from_pretrained  # noqa: E402

# diffusers' schedulers use NumPy as versions before 2 did.
pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning")

UNET = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 2,
    "transformer_layers_per_block": [1, 2, 10],
    "cross_attention_dim": 2048,
    "attention_head_dim": [5, 10, 20],
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "use_linear_projection": True,
}
VAE = {
    "sample_size": 1024,
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "scaling_factor": 0.13025,
    "force_upcast": False,
}
QWEN3_MOE = {
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_hidden_layers": 2,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "vocab_size": 32000,
    "dtype": "bfloat16",
}


@pytest.fixture(autouse=True)
def _deterministic():
    torch.backends.cudnn.deterministic = True
    yield
    torch.backends.cudnn.deterministic = False
    gc.collect()
    torch.cuda.empty_cache()


def filled(model):
    model = model.to(torch.bfloat16).to_empty(device="cuda").eval().requires_grad_(False)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, parameter[0].numel() ** -0.5)
            else:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)
    return model


def sdxl():
    """Returns a pipeline of SDXL's UNet and VAE, without text encoders, on the device."""
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(**UNET)
        vae = diffusers.AutoencoderKL(**VAE)
    pipeline = diffusers.StableDiffusionXLPipeline(
        filled(vae), None, None, None, None, filled(unet), diffusers.EulerDiscreteScheduler()
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def image(pipeline):
    torch.manual_seed(1)
    kind = {"dtype": torch.bfloat16, "device": "cuda"}
    text, pooled = torch.randn(2, 77, 2048, **kind), torch.randn(2, 1280, **kind)
    with torch.no_grad():
        return pipeline(
            prompt_embeds=text[:1],
            pooled_prompt_embeds=pooled[:1],
            negative_prompt_embeds=text[1:],
            negative_pooled_prompt_embeds=pooled[1:],
            num_inference_steps=3,
            generator=torch.Generator("cpu").manual_seed(2),
            output_type="pt",
        ).images.cpu()


def lora_of(unet):
    """Returns an adapter of rank 8 for the queries of every attention."""
    torch.manual_seed(4)
    state = {}
    for name, module in unet.named_modules():
        if name.endswith("attn1.to_q"):
            down, up = torch.randn(8, module.in_features), torch.randn(module.out_features, 8)
            state[f"unet.{name}.lora_A.weight"] = (down * 0.02).bfloat16()
            state[f"unet.{name}.lora_B.weight"] = (up * 0.02).bfloat16()
    return state


def test_a_pipeline_of_sdxls_shape_makes_the_resident_image():
    pipeline = sdxl()
    expected = image(pipeline)
    assert torch.equal(image(pipeline), expected), "the resident pipeline repeats itself"
    assert expected.isfinite().all()
    pipeline.vae.enable_tiling()
    tiled = image(pipeline)
    pipeline.vae.disable_tiling()
    nbytes = sum(p.nbytes for m in (pipeline.unet, pipeline.vae) for p in m.parameters())
    pipeline.to("cpu")
    torch.cuda.empty_cache()
    start = time.perf_counter()
    handle = offload(pipeline, device_bytes=nbytes // 4)
    print(f"{handle}: offloaded in {time.perf_counter() - start:.2f} s")
    stats = handle.stats
    assert stats.resident_bytes + stats.slot_bytes <= nbytes // 4
    for _ in range(2):
        assert torch.equal(image(pipeline), expected)
    pipeline.vae.enable_tiling()
    assert torch.equal(image(pipeline), tiled)
    pipeline.vae.disable_tiling()
    with pytest.raises(RuntimeError, match="remove"):
        pipeline.to("cpu")
    handle.remove()
    assert torch.equal(image(pipeline), expected)


def test_an_adapter_is_loaded_fused_and_unloaded():
    pytest.importorskip("peft", reason="peft is not installed")
    pipeline = sdxl()
    plain, lora = image(pipeline), lora_of(pipeline.unet)
    pipeline.load_lora_weights(lora)
    adapted = image(pipeline)
    pipeline.fuse_lora()
    fused = image(pipeline)
    pipeline.unfuse_lora()
    pipeline.unload_lora_weights()
    del pipeline
    gc.collect()
    torch.cuda.empty_cache()
    assert not torch.equal(plain, adapted)
    pipeline = sdxl()
    pipeline.to("cpu")
    handle = offload(pipeline, device_bytes=1_500_000_000)
    assert torch.equal(image(pipeline), plain)
    pipeline.load_lora_weights(lora)
    for _ in range(2):
        assert torch.equal(image(pipeline), adapted)
    pipeline.fuse_lora()
    for _ in range(2):
        assert torch.equal(image(pipeline), fused)
    pipeline.unfuse_lora()
    pipeline.unload_lora_weights()
    handle.remove("cpu")


def test_a_sharded_llama_is_loaded_as_transformers_does():
    with checkpoint({**LLAMA, "num_hidden_layers": 8, "vocab_size": 32000}) as (path, nbytes):
        resident = transformers.LlamaForCausalLM.from_pretrained(path, device_map="cuda")
        tokens = torch.arange(48, device="cuda").reshape(2, 24) * 131 % 32000
        options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
        with torch.no_grad():
            expected = resident(input_ids=tokens).logits
            text = resident.generate(tokens, **options)
        state = {name: tensor.cpu() for name, tensor in resident.state_dict().items()}
        del resident
        gc.collect()
        torch.cuda.empty_cache()
        with AnonymousPeak() as peak:
            start = time.perf_counter()
            model = from_pretrained(path, device_bytes=nbytes // 2)
            torch.cuda.synchronize()
            print(f"{nbytes / (time.perf_counter() - start) / 1e9:.1f} GB/s")
        handle = wt.handle_of(model)
        assert peak.nbytes <= handle.plan.info.arena_bytes + (256 << 20)
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor.cpu(), state[name]), name
        with torch.no_grad():
            for _ in range(2):
                assert torch.equal(model(input_ids=tokens).logits, expected)
            assert torch.equal(model.generate(tokens, **options), text)


@pytest.mark.parametrize("part", [0.2, 0.7])
def test_experts_are_fused_into_their_places(tmp_path, part):
    torch.manual_seed(0)
    with torch.device("cuda"):
        config = transformers.Qwen3MoeConfig(**QWEN3_MOE)
        made = transformers.Qwen3MoeForCausalLM._from_config(config, dtype=torch.bfloat16)
    made.eval().save_pretrained(tmp_path, max_shard_size="1GB")
    nbytes = sum(p.nbytes for p in made.parameters())
    state = {name: tensor.cpu() for name, tensor in made.state_dict().items()}
    tokens = torch.arange(24, device="cuda").reshape(2, 12) * 131 % 32000
    with torch.no_grad():
        expected = made(input_ids=tokens).logits
    del made
    gc.collect()
    torch.cuda.empty_cache()
    with AnonymousPeak() as peak:
        start = time.perf_counter()
        model = from_pretrained(tmp_path, device_bytes=int(nbytes * part))
        torch.cuda.synchronize()
        print(f"{nbytes / (time.perf_counter() - start) / 1e9:.1f} GB/s, fused")
    assert peak.nbytes <= wt.handle_of(model).plan.info.arena_bytes + (256 << 20)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor.cpu(), state[name]), name
    with torch.no_grad():
        for _ in range(2):
            assert torch.equal(model(input_ids=tokens).logits, expected)

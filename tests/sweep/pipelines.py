"""Pipelines of diffusers, whose ``__call__`` runs models in turn; each one is offloaded."""

from __future__ import annotations

import copy
import importlib
import string
from typing import Any, Callable, NamedTuple

import torch

from .diffusion import ATTENTION, AUTOENCODER, UNET
from .text import T5

CHARACTERS = string.ascii_lowercase + string.digits
CLIP = {
    "vocab_size": 76,
    "hidden_size": 16,
    "projection_dim": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": 77,
    "pad_token_id": 1,
    "bos_token_id": 72,
    "eos_token_id": 73,
}
TEXT_UNET = {
    **UNET,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
}

Part = tuple[str, str, str, dict[str, Any]]
"""A package, the class of a model, that of its configuration, if it has one, and the options."""


class Pipeline(NamedTuple):
    """A pipeline of models with few and random weights."""

    name: str
    kind: str
    """The pipeline's class."""
    components: dict[str, Part | Callable[[], Any] | None]
    """The models by their names in the pipeline, and what makes schedulers and tokenizers."""
    call: dict[str, Any]
    """The arguments of ``__call__``."""
    generate: None = None

    def build(self, device: torch.device) -> Any:
        """Returns the pipeline, always with the same weights."""
        diffusers = importlib.import_module("diffusers")
        torch.manual_seed(0)
        made = {
            name: _made(part) if isinstance(part, tuple) else part and part()
            for name, part in self.components.items()
        }
        pipeline = getattr(diffusers, self.kind)(**made)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline.to(device)

    def run(self, pipeline: Any) -> Any:
        """Calls the pipeline, and returns what it makes."""
        found = pipeline(
            **copy.deepcopy(self.call),
            generator=torch.Generator().manual_seed(3),
            num_inference_steps=2,
            output_type="np",
        )
        (made,) = (found[key] for key in ("images", "frames") if key in found)
        return torch.as_tensor(made)

    def parts(self, pipeline: Any) -> list[torch.nn.Module]:
        """Returns the models, which are offloaded one by one."""
        return [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]


def _made(part: Part) -> torch.nn.Module:
    package, kind, config, options = part
    source = importlib.import_module(package)
    options = copy.deepcopy(options)
    if config:
        return getattr(source, kind)(getattr(source, config)(**options)).eval()
    return getattr(source, kind)(**options).eval()


def diffuser(kind: str, **options: Any) -> Part:
    """Returns a model of diffusers."""
    return "diffusers", kind, "", options


def clip(kind: str = "CLIPTextModel") -> Part:
    """Returns a text encoder of CLIP."""
    return "transformers", kind, "CLIPTextConfig", CLIP


def t5() -> Part:
    """Returns the encoder of T5."""
    return "transformers", "T5EncoderModel", "T5Config", {**T5, "vocab_size": 150}


def clip_tokenizer() -> Any:
    """Returns a tokenizer that knows characters alone."""
    pieces = [*CHARACTERS, *(f"{piece}</w>" for piece in CHARACTERS)]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    transformers = importlib.import_module("transformers")
    return transformers.CLIPTokenizer(
        vocab={piece: number for number, piece in enumerate(pieces)},
        merges=[],
        model_max_length=77,
    )


def t5_tokenizer() -> Any:
    """Returns a tokenizer that knows characters alone."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -1.0)]
    pieces += [(piece, -2.0) for piece in CHARACTERS]
    return importlib.import_module("transformers").T5Tokenizer(vocab=pieces, model_max_length=16)


def scheduler(kind: str, **options: Any) -> Callable[[], Any]:
    """Returns what makes a scheduler."""
    return lambda: getattr(importlib.import_module("diffusers"), kind)(**options)


def pixels(*shape: int) -> torch.Tensor:
    """Returns an image with numbers from 0 to 1."""
    return torch.linspace(0, 1, torch.Size(shape).numel()).reshape(shape)


PROMPT = {"prompt": "a boat at sea", "negative_prompt": "fog", "height": 16, "width": 16}
STABLE = {
    "vae": diffuser("AutoencoderKL", **AUTOENCODER),
    "text_encoder": clip(),
    "tokenizer": clip_tokenizer,
    "unet": diffuser("UNet2DConditionModel", **TEXT_UNET),
    "scheduler": scheduler("DDIMScheduler", clip_sample=False, steps_offset=1),
    "safety_checker": None,
    "feature_extractor": None,
}
FLOW = scheduler("FlowMatchEulerDiscreteScheduler")

MODELS = [
    Pipeline(
        "pipeline-ddpm",
        "DDPMPipeline",
        {
            "unet": diffuser(
                "UNet2DModel",
                block_out_channels=(32, 64),
                layers_per_block=1,
                sample_size=8,
                norm_num_groups=8,
                attention_head_dim=8,
                down_block_types=("DownBlock2D", "AttnDownBlock2D"),
                up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            ),
            "scheduler": scheduler("DDPMScheduler"),
        },
        {"batch_size": 2},
    ),
    Pipeline(
        "pipeline-dit",
        "DiTPipeline",
        {
            "transformer": diffuser(
                "DiTTransformer2DModel",
                **ATTENTION,
                in_channels=4,
                out_channels=8,
                num_layers=2,
                sample_size=8,
                num_embeds_ada_norm=1000,
            ),
            "vae": diffuser("AutoencoderKL", **AUTOENCODER),
            "scheduler": scheduler("DDIMScheduler", clip_sample=False, steps_offset=1),
        },
        {"class_labels": [1, 3]},
    ),
    Pipeline("pipeline-stable-diffusion", "StableDiffusionPipeline", STABLE, PROMPT),
    Pipeline(
        "pipeline-img2img",
        "StableDiffusionImg2ImgPipeline",
        STABLE,
        {"prompt": "a boat", "image": pixels(1, 3, 16, 16), "strength": 1.0},
    ),
    Pipeline(
        "pipeline-controlnet",
        "StableDiffusionControlNetPipeline",
        {
            **STABLE,
            "controlnet": diffuser(
                "ControlNetModel",
                **{key: value for key, value in UNET.items() if key != "sample_size"},
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
                conditioning_embedding_out_channels=(8, 16),
            ),
        },
        {**PROMPT, "image": pixels(1, 3, 16, 16)},
    ),
    Pipeline(
        "pipeline-stable-diffusion-xl",
        "StableDiffusionXLPipeline",
        {
            "vae": diffuser("AutoencoderKL", **AUTOENCODER),
            "text_encoder": clip(),
            "text_encoder_2": clip("CLIPTextModelWithProjection"),
            "tokenizer": clip_tokenizer,
            "tokenizer_2": clip_tokenizer,
            "unet": diffuser(
                "UNet2DConditionModel",
                **{**TEXT_UNET, "cross_attention_dim": 32},
                addition_embed_type="text_time",
                addition_time_embed_dim=8,
                projection_class_embeddings_input_dim=64,
            ),
            "scheduler": scheduler("EulerDiscreteScheduler"),
        },
        PROMPT,
    ),
    Pipeline(
        "pipeline-stable-diffusion-3",
        "StableDiffusion3Pipeline",
        {
            "transformer": diffuser(
                "SD3Transformer2DModel",
                **ATTENTION,
                sample_size=8,
                patch_size=1,
                in_channels=4,
                out_channels=4,
                num_layers=2,
                joint_attention_dim=32,
                caption_projection_dim=32,
                pooled_projection_dim=32,
            ),
            "scheduler": FLOW,
            "vae": diffuser("AutoencoderKL", **AUTOENCODER, shift_factor=0.0),
            "text_encoder": clip("CLIPTextModelWithProjection"),
            "tokenizer": clip_tokenizer,
            "text_encoder_2": clip("CLIPTextModelWithProjection"),
            "tokenizer_2": clip_tokenizer,
            "text_encoder_3": t5(),
            "tokenizer_3": t5_tokenizer,
        },
        PROMPT,
    ),
    Pipeline(
        "pipeline-flux",
        "FluxPipeline",
        {
            "transformer": diffuser(
                "FluxTransformer2DModel",
                **ATTENTION,
                patch_size=1,
                in_channels=16,
                num_layers=1,
                num_single_layers=2,
                joint_attention_dim=32,
                pooled_projection_dim=16,
                axes_dims_rope=[4, 4, 8],
            ),
            "scheduler": FLOW,
            "vae": diffuser("AutoencoderKL", **AUTOENCODER, shift_factor=0.0),
            "text_encoder": clip(),
            "tokenizer": clip_tokenizer,
            "text_encoder_2": t5(),
            "tokenizer_2": t5_tokenizer,
        },
        {"prompt": "a boat at sea", "height": 16, "width": 16, "max_sequence_length": 16},
    ),
    Pipeline(
        "pipeline-pixart-sigma",
        "PixArtSigmaPipeline",
        {
            "transformer": diffuser(
                "PixArtTransformer2DModel",
                **ATTENTION,
                sample_size=8,
                num_layers=2,
                patch_size=2,
                in_channels=4,
                out_channels=8,
                cross_attention_dim=32,
                caption_channels=32,
                norm_type="ada_norm_single",
                norm_elementwise_affine=False,
                use_additional_conditions=False,
            ),
            "vae": diffuser("AutoencoderKL", **AUTOENCODER),
            "scheduler": scheduler("DDIMScheduler", clip_sample=False, steps_offset=1),
            "text_encoder": t5(),
            "tokenizer": t5_tokenizer,
        },
        {
            **PROMPT,
            "clean_caption": False,
            "use_resolution_binning": False,
            "max_sequence_length": 16,
        },
    ),
    Pipeline(
        "pipeline-wan",
        "WanPipeline",
        {
            "transformer": diffuser(
                "WanTransformer3DModel",
                **ATTENTION,
                in_channels=16,
                out_channels=16,
                text_dim=32,
                freq_dim=16,
                ffn_dim=64,
                num_layers=2,
                rope_max_seq_len=32,
            ),
            "vae": diffuser(
                "AutoencoderKLWan",
                base_dim=8,
                z_dim=16,
                dim_mult=[1, 1, 1, 1],
                num_res_blocks=1,
                temperal_downsample=[False, True, True],
            ),
            "scheduler": FLOW,
            "text_encoder": t5(),
            "tokenizer": t5_tokenizer,
        },
        {
            "prompt": "a boat",
            "negative_prompt": "fog",
            "height": 16,
            "width": 16,
            "num_frames": 5,
            "max_sequence_length": 16,
        },
    ),
]

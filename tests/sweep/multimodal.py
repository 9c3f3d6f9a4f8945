"""Models of images together with text."""

from __future__ import annotations

import torch

from .model import Model, numbers, ramp, tokens
from .text import ENCODER, GREEDY, LAYERED
from .vision import PATCHES, image

CLIP = {"text_config": ENCODER, "vision_config": PATCHES, "projection_dim": 16}
IMAGE = 5
"""The token in whose place an image is put."""


def scores(model):
    return model(input_ids=tokens(model), pixel_values=image(model)).logits_per_image


def logits(model):
    return model(input_ids=tokens(model), pixel_values=image(model)).logits


def hidden(model):
    return model(input_ids=tokens(model), pixel_values=image(model))[0]


def text_features(model):
    found = model.get_text_features(input_ids=tokens(model))
    return found if isinstance(found, torch.Tensor) else found.pooler_output


def image_features(model):
    found = model.get_image_features(pixel_values=image(model))
    return found if isinstance(found, torch.Tensor) else found.pooler_output


def one_image(model):
    return {
        "input_ids": numbers(model, [[1] + [IMAGE] * 16 + [7, 8]]),
        "pixel_values": image(model, 1),
    }


def tiled_image(model):
    return {
        "input_ids": numbers(model, [[1] + [IMAGE] * 4 + [7, 8]]),
        "pixel_values": image(model, 1)[:, None],
    }


def crossed(model):
    return {
        "input_ids": tokens(model, 1, 12),
        "pixel_values": ramp(model, 1, 1, 1, 3, 32, 32),
        "aspect_ratio_ids": numbers(model, [[1]]),
        "aspect_ratio_mask": numbers(model, [[[1]]]),
        "cross_attention_mask": torch.ones_like(ramp(model, 1, 12, 1, 1)),
    }


def qwen(model):
    text = numbers(model, [[1, 7, IMAGE, IMAGE, IMAGE, IMAGE, 8, 9]])
    return {
        "input_ids": text,
        "pixel_values": ramp(model, 16, 48),
        "image_grid_thw": numbers(model, [[1, 4, 4]]),
        "mm_token_type_ids": (text == IMAGE).int(),
    }


def describes(name, kind, options, inputs):
    """Returns a model that writes a text about an image: its numbers, and what it generates."""
    return Model(
        name,
        f"{kind}ForConditionalGeneration",
        f"{kind}Config",
        options,
        lambda model: model(**inputs(model)).logits,
        lambda model: model.generate(**inputs(model), **GREEDY),
    )


MODELS = [
    Model("clip", "CLIPModel", "CLIPConfig", CLIP, scores),
    Model("clip-text", "CLIPModel", "CLIPConfig", CLIP, text_features),
    Model("clip-image", "CLIPModel", "CLIPConfig", CLIP, image_features),
    Model(
        "siglip",
        "SiglipModel",
        "SiglipConfig",
        {"text_config": {**ENCODER, "projection_size": 32}, "vision_config": PATCHES},
        scores,
    ),
    Model(
        "owlvit", "OwlViTForObjectDetection", "OwlViTConfig", {**CLIP, "projection_dim": 32}, logits
    ),
    Model(
        "groupvit",
        "GroupViTModel",
        "GroupViTConfig",
        {
            "text_config": ENCODER,
            "vision_config": {
                "hidden_size": 32,
                "intermediate_size": 64,
                "depths": [1, 1, 1],
                "num_group_tokens": [8, 4, 0],
                "num_output_groups": [8, 4, 8],
                "num_attention_heads": 4,
                "image_size": 32,
                "patch_size": 8,
            },
            "projection_dim": 16,
            "projection_intermediate_dim": 16,
        },
        scores,
    ),
    Model(
        "flava",
        "FlavaModel",
        "FlavaConfig",
        {
            "text_config": ENCODER,
            "image_config": PATCHES,
            "multimodal_config": {**PATCHES, "num_hidden_layers": 2},
            "image_codebook_config": {},
            "hidden_size": 32,
            "projection_dim": 16,
            "init_codebook": False,
        },
        lambda model: (
            model(input_ids=tokens(model), pixel_values=image(model)).multimodal_embeddings
        ),
    ),
    Model(
        "vilt",
        "ViltModel",
        "ViltConfig",
        {
            **PATCHES,
            "vocab_size": 96,
            "max_position_embeddings": 40,
            "modality_type_vocab_size": 2,
        },
        hidden,
    ),
    Model(
        "layoutlmv3",
        "LayoutLMv3Model",
        "LayoutLMv3Config",
        {
            **ENCODER,
            "hidden_size": 48,
            "input_size": 32,
            "patch_size": 8,
            "coordinate_size": 8,
            "shape_size": 8,
            "max_2d_position_embeddings": 64,
            "has_relative_attention_bias": True,
            "max_position_embeddings": 70,
        },
        lambda model: model(
            input_ids=tokens(model),
            bbox=torch.ones_like(tokens(model, 2, 12, 4)),
            pixel_values=image(model),
        )[0],
    ),
    Model(
        "tapas",
        "TapasModel",
        "TapasConfig",
        ENCODER,
        lambda model: model(
            input_ids=tokens(model), token_type_ids=torch.zeros_like(tokens(model, 2, 12, 7))
        )[0],
    ),
    Model(
        "lxmert",
        "LxmertModel",
        "LxmertConfig",
        {
            "vocab_size": 96,
            "hidden_size": 32,
            "num_attention_heads": 4,
            "intermediate_size": 64,
            "l_layers": 2,
            "x_layers": 2,
            "r_layers": 2,
            "visual_feat_dim": 8,
            "visual_pos_dim": 4,
        },
        lambda model: model(
            input_ids=tokens(model),
            visual_feats=ramp(model, 2, 3, 8),
            visual_pos=ramp(model, 2, 3, 4),
        )[0],
    ),
    describes(
        "llava",
        "Llava",
        {
            "vision_config": {**PATCHES, "model_type": "clip_vision_model"},
            "text_config": {**LAYERED, "model_type": "llama"},
            "image_token_index": IMAGE,
            "vision_feature_select_strategy": "default",
            "vision_feature_layer": -2,
        },
        one_image,
    ),
    Model(
        "blip",
        "BlipForConditionalGeneration",
        "BlipConfig",
        {
            "text_config": {
                **ENCODER,
                "encoder_hidden_size": 32,
                "projection_dim": 16,
                "sep_token_id": 2,
            },
            "vision_config": PATCHES,
            "projection_dim": 16,
        },
        logits,
        lambda model: model.generate(image(model), max_new_tokens=8, do_sample=False),
    ),
    Model(
        "blip2-qformer",
        "Blip2QFormerModel",
        "Blip2QFormerConfig",
        {**ENCODER, "encoder_hidden_size": 32, "cross_attention_frequency": 2},
        lambda model: model(
            query_embeds=ramp(model, 1, 4, 32), encoder_hidden_states=ramp(model, 1, 5, 32)
        )[0],
    ),
    Model(
        "instructblip-qformer",
        "InstructBlipQFormerModel",
        "InstructBlipQFormerConfig",
        {**ENCODER, "encoder_hidden_size": 32},
        lambda model: model(
            input_ids=tokens(model),
            query_embeds=ramp(model, 2, 4, 32),
            encoder_hidden_states=ramp(model, 2, 5, 32),
        )[0],
    ),
    describes(
        "qwen2-vl",
        "Qwen2VL",
        {
            "text_config": {
                **LAYERED,
                "rope_scaling": {
                    "type": "mrope",
                    "rope_type": "default",
                    "mrope_section": [1, 1, 2],
                },
            },
            "vision_config": {
                "depth": 2,
                "embed_dim": 32,
                "hidden_size": 32,
                "num_heads": 4,
                "patch_size": 4,
                "spatial_merge_size": 2,
                "temporal_patch_size": 1,
                "mlp_ratio": 2,
            },
            "image_token_id": IMAGE,
            "video_token_id": 6,
            "vision_start_token_id": 7,
            "vision_end_token_id": 8,
        },
        qwen,
    ),
    describes(
        "idefics3",
        "Idefics3",
        {
            "text_config": {**LAYERED, "model_type": "llama"},
            "vision_config": {**PATCHES, "num_hidden_layers": 2},
            "image_token_id": IMAGE,
            "scale_factor": 2,
        },
        tiled_image,
    ),
    describes(
        "mllama",
        "Mllama",
        {
            "text_config": {
                **LAYERED,
                "cross_attention_layers": [1, 3],
                "rope_scaling": {"rope_type": "default"},
            },
            "vision_config": {
                "hidden_size": 32,
                "num_hidden_layers": 2,
                "num_global_layers": 1,
                "attention_heads": 4,
                "intermediate_size": 64,
                "vision_output_dim": 64,
                "image_size": 32,
                "patch_size": 8,
                "intermediate_layers_indices": [0],
                "max_num_tiles": 1,
                "supported_aspect_ratios": [[1, 1]],
            },
            "image_token_index": 95,
        },
        crossed,
    ),
]

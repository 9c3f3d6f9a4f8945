"""Models of images: backbones, detection, segmentation, depth."""

from __future__ import annotations

from typing import Any

from .model import Model, numbers, ramp

PATCHES = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
}
SWIN = {
    "image_size": 32,
    "patch_size": 2,
    "embed_dim": 16,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "window_size": 4,
}
CONVNEXT = {"hidden_sizes": [8, 16], "depths": [2, 2], "num_stages": 2}
RESNET = {
    "model_type": "resnet",
    "embedding_size": 8,
    "hidden_sizes": [8, 16, 16, 16],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
}
DETECTION = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "num_queries": 5,
}


def image(model, count=2, size=32):
    return ramp(model, count, 3, size, size)


def hidden(model):
    return model(pixel_values=image(model))[0]


def logits(model):
    return model(pixel_values=image(model)).logits


def boxes(model):
    found = model(pixel_values=image(model, 2, 64))
    return found.logits, found.pred_boxes


def backbone(name: str, kind: str, **options: Any) -> Model:
    """Returns a vision transformer."""
    return Model(name, f"{kind}Model", f"{kind}Config", {**PATCHES, **options}, hidden)


def masks(model):
    points = numbers(model, [[[[4.0, 5.0]]], [[[9.0, 9.0]]]])
    return model(pixel_values=image(model), input_points=points).pred_masks


MODELS = [
    backbone("vit", "ViT"),
    backbone("deit", "DeiT"),
    backbone("beit", "Beit", use_relative_position_bias=True),
    backbone("data2vec-vision", "Data2VecVision", use_relative_position_bias=True),
    backbone("dinov2", "Dinov2"),
    backbone("dinov3", "DINOv3ViT", num_register_tokens=2),
    backbone("siglip-vision", "SiglipVision"),
    backbone("clip-vision", "CLIPVision"),
    backbone("vit-mae", "ViTMAE", mask_ratio=0.0),
    backbone("resnet", "ResNet", **{k: v for k, v in RESNET.items() if k != "model_type"}),
    backbone("poolformer", "PoolFormer", depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 16, 16]),
    backbone(
        "mobilevit",
        "MobileViT",
        hidden_sizes=[16, 16, 16],
        neck_hidden_sizes=[8, 8, 8, 16, 16, 16, 16],
    ),
    Model("swin", "SwinModel", "SwinConfig", SWIN, hidden),
    Model("swin-v2", "Swinv2Model", "Swinv2Config", SWIN, hidden),
    Model("convnext", "ConvNextModel", "ConvNextConfig", CONVNEXT, hidden),
    Model("convnext-v2", "ConvNextV2Model", "ConvNextV2Config", CONVNEXT, hidden),
    Model(
        "hiera",
        "HieraModel",
        "HieraConfig",
        {
            "patch_size": [7, 7],
            "image_size": [32, 32],
            "embed_dim": 16,
            "depths": [1, 1, 1],
            "num_heads": [1, 2, 4],
            "num_query_pool": 2,
        },
        hidden,
    ),
    Model(
        "timesformer",
        "TimesformerModel",
        "TimesformerConfig",
        {**PATCHES, "num_frames": 2},
        lambda model: model(ramp(model, 1, 2, 3, 32, 32))[0],
    ),
    Model(
        "detr",
        "DetrForObjectDetection",
        "DetrConfig",
        {**DETECTION, "backbone_config": {**RESNET, "out_features": ["stage4"]}},
        boxes,
    ),
    Model(
        "conditional-detr",
        "ConditionalDetrForObjectDetection",
        "ConditionalDetrConfig",
        {**DETECTION, "backbone_config": {**RESNET, "out_features": ["stage4"]}},
        boxes,
    ),
    Model(
        "deformable-detr",
        "DeformableDetrForObjectDetection",
        "DeformableDetrConfig",
        {
            **DETECTION,
            "backbone_config": {**RESNET, "out_features": ["stage2", "stage3", "stage4"]},
            "with_box_refine": True,
            "two_stage": True,
            "two_stage_num_proposals": 5,
        },
        boxes,
    ),
    Model(
        "table-transformer",
        "TableTransformerForObjectDetection",
        "TableTransformerConfig",
        {**DETECTION, "backbone_config": {**RESNET, "out_features": ["stage4"]}},
        boxes,
    ),
    Model(
        "yolos",
        "YolosForObjectDetection",
        "YolosConfig",
        {**PATCHES, "image_size": [32, 32], "num_detection_tokens": 4},
        logits,
    ),
    Model(
        "sam",
        "SamModel",
        "SamConfig",
        {
            "vision_config": {
                **PATCHES,
                "output_channels": 16,
                "num_pos_feats": 8,
                "global_attn_indexes": [1],
                "window_size": 2,
                "mlp_dim": 64,
            },
            "prompt_encoder_config": {
                "hidden_size": 16,
                "image_size": 32,
                "patch_size": 8,
                "mask_input_channels": 4,
                "image_embedding_size": 4,
            },
            "mask_decoder_config": {
                "hidden_size": 16,
                "mlp_dim": 32,
                "num_attention_heads": 2,
                "iou_head_hidden_dim": 16,
            },
        },
        masks,
    ),
    Model(
        "mask2former",
        "Mask2FormerForUniversalSegmentation",
        "Mask2FormerConfig",
        {
            "backbone_config": {
                **SWIN,
                "model_type": "swin",
                "depths": [1, 1, 1, 1],
                "num_heads": [1, 2, 2, 4],
                "window_size": 2,
                "out_features": ["stage1", "stage2", "stage3", "stage4"],
            },
            "feature_size": 32,
            "mask_feature_size": 32,
            "hidden_dim": 32,
            "encoder_feedforward_dim": 32,
            "encoder_layers": 2,
            "decoder_layers": 3,
            "num_attention_heads": 2,
            "dim_feedforward": 32,
            "num_queries": 4,
        },
        lambda model: model(pixel_values=image(model)).masks_queries_logits,
    ),
    Model(
        "upernet",
        "UperNetForSemanticSegmentation",
        "UperNetConfig",
        {
            "backbone_config": {
                "model_type": "convnext",
                "hidden_sizes": [8, 16],
                "depths": [1, 1],
                "num_stages": 2,
                "out_features": ["stage1", "stage2"],
            },
            "hidden_size": 16,
            "pool_scales": [1, 2],
            "use_auxiliary_head": False,
            "auxiliary_in_channels": 8,
        },
        logits,
    ),
    Model(
        "segformer",
        "SegformerForSemanticSegmentation",
        "SegformerConfig",
        {
            "num_encoder_blocks": 2,
            "depths": [1, 1],
            "sr_ratios": [2, 1],
            "hidden_sizes": [8, 16],
            "patch_sizes": [3, 3],
            "strides": [2, 2],
            "num_attention_heads": [1, 2],
            "mlp_ratios": [2, 2],
            "decoder_hidden_size": 16,
        },
        logits,
    ),
    Model(
        "dpt",
        "DPTForDepthEstimation",
        "DPTConfig",
        {
            **PATCHES,
            "backbone_out_indices": [0, 1, 2, 3],
            "neck_hidden_sizes": [8, 8, 8, 8],
            "fusion_hidden_size": 8,
            "reassemble_factors": [1, 1, 1, 1],
        },
        lambda model: model(pixel_values=image(model)).predicted_depth,
    ),
]

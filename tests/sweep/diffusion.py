"""Diffusion models: autoencoders, U-Nets and transformers of images, video and sound."""

from __future__ import annotations

from typing import Any, Callable

from .model import Model, numbers, ramp, tokens

DOWN, UP = ("DownEncoderBlock2D",) * 2, ("UpDecoderBlock2D",) * 2
AUTOENCODER = {
    "block_out_channels": (16, 32),
    "down_block_types": DOWN,
    "up_block_types": UP,
    "norm_num_groups": 8,
    "latent_channels": 4,
    "sample_size": 16,
}
UNET = {
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "sample_size": 8,
    "cross_attention_dim": 16,
    "attention_head_dim": 8,
    "norm_num_groups": 8,
}
ATTENTION = {"attention_head_dim": 16, "num_attention_heads": 2}


def diffuser(name: str, kind: str, run: Callable[[Any], Any], **options: Any) -> Model:
    """Returns a model of diffusers, which takes its options itself."""
    return Model(name, kind, "", options, run, package="diffusers")


def step(model, value=5):
    return numbers(model, [value])


def sampled(*shape):
    """Returns a run of a model of latents alone."""
    return lambda model: model(ramp(model, *shape), step(model)).sample


def conditioned(*shape, width=16):
    """Returns a run of a model of latents and a text."""
    return lambda model: (
        model(ramp(model, *shape), step(model), ramp(model, shape[0], 5, width)).sample
    )


def conditioned_by_name(*shape, text_width=32, **more):
    """Returns a run of a transformer whose arguments are named."""

    def run(model):
        return model(
            hidden_states=ramp(model, *shape),
            encoder_hidden_states=ramp(model, shape[0], 6, text_width),
            timestep=step(model).expand(shape[0]),
            **{key: value(model) for key, value in more.items()},
        ).sample

    return run


def encoded_and_decoded(*shape):
    """Returns a run that calls encode and decode, never forward."""

    def run(model):
        latents = model.encode(ramp(model, *shape)).latent_dist.mean
        return model.decode(latents).sample

    return run


def tiled(model):
    model.enable_tiling()
    model.enable_slicing()
    return encoded_and_decoded(2, 3, 32, 32)(model)


def through(*shape):
    """Returns a run of a whole autoencoder."""
    return lambda model: model(ramp(model, *shape)).sample


def temporal(model):
    latents = model.encode(ramp(model, 2, 3, 16, 16)).latent_dist.mean
    return model.decode(latents, num_frames=2).sample


def mask(count):
    return lambda model: ramp(model, 1, count) > -2


def floats(*values):
    return lambda model: numbers(model, [list(values)])


def flux(model):
    return model(
        hidden_states=ramp(model, 1, 16, 4),
        encoder_hidden_states=ramp(model, 1, 6, 32),
        pooled_projections=ramp(model, 1, 32),
        timestep=numbers(model, [0.5]),
        img_ids=ramp(model, 16, 3),
        txt_ids=ramp(model, 6, 3),
    ).sample


def chroma(model):
    return model(
        hidden_states=ramp(model, 1, 16, 4),
        encoder_hidden_states=ramp(model, 1, 6, 32),
        timestep=numbers(model, [0.5]),
        img_ids=ramp(model, 16, 3),
        txt_ids=ramp(model, 6, 3),
    ).sample


def hunyuan(model):
    return model(
        ramp(model, 1, 4, 8, 8),
        numbers(model, [5.0]),
        encoder_hidden_states=ramp(model, 1, 6, 32),
        text_embedding_mask=ramp(model, 1, 6) > -2,
        encoder_hidden_states_t5=ramp(model, 1, 6, 32),
        text_embedding_mask_t5=ramp(model, 1, 6) > -2,
        image_meta_size=ramp(model, 1, 6),
        style=numbers(model, [0]),
        image_rotary_emb=[ramp(model, 16, 16), ramp(model, 16, 16)],
    ).sample


def controls(model):
    found = model(
        ramp(model, 1, 4, 8, 8),
        step(model),
        ramp(model, 1, 5, 16),
        controlnet_cond=ramp(model, 1, 3, 64, 64),
    )
    return [*found.down_block_res_samples, found.mid_block_res_sample]


def classes(model):
    return model(
        ramp(model, 2, 4, 8, 8), timestep=step(model), class_labels=numbers(model, [3, 7])
    ).sample


def prior(model):
    return model(
        ramp(model, 1, 16), step(model), ramp(model, 1, 16), ramp(model, 1, 7, 16)
    ).predicted_image_embedding


def uvit(model):
    return model(
        tokens(model, 1, 4, 4, limit=30),
        ramp(model, 1, 5, 32),
        ramp(model, 1, 32),
        numbers(model, [[8.0, 8.0, 0.0, 0.0, 6.0]]),
    )


def qwen_image(model):
    return model(
        hidden_states=ramp(model, 1, 16, 16),
        encoder_hidden_states=ramp(model, 1, 6, 32),
        encoder_hidden_states_mask=ramp(model, 1, 6) > -2,
        timestep=numbers(model, [0.5]),
        img_shapes=[(1, 4, 4)],
    ).sample


def cogview(model):
    return model(
        hidden_states=ramp(model, 1, 4, 8, 8),
        encoder_hidden_states=ramp(model, 1, 6, 32),
        timestep=step(model),
        original_size=numbers(model, [[8, 8]]),
        target_size=numbers(model, [[8, 8]]),
        crop_coords=numbers(model, [[0, 0]]),
    ).sample


def stable_audio(model):
    return model(
        ramp(model, 1, 4, 8),
        timestep=step(model),
        encoder_hidden_states=ramp(model, 1, 6, 16),
        global_hidden_states=ramp(model, 1, 1, 16),
        rotary_embedding=(ramp(model, 9, 8), ramp(model, 9, 8)),
    ).sample


TEXT_MASK = {"encoder_attention_mask": mask(6)}

MODELS = [
    diffuser("kl", "AutoencoderKL", encoded_and_decoded(1, 3, 16, 16), **AUTOENCODER),
    diffuser("kl-forward", "AutoencoderKL", through(1, 3, 16, 16), **AUTOENCODER),
    diffuser("kl-tiled", "AutoencoderKL", tiled, **AUTOENCODER),
    diffuser(
        "kl-temporal",
        "AutoencoderKLTemporalDecoder",
        temporal,
        block_out_channels=(32, 32),
        down_block_types=DOWN,
    ),
    diffuser(
        "kl-wan",
        "AutoencoderKLWan",
        encoded_and_decoded(1, 3, 5, 16, 16),
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    ),
    diffuser(
        "kl-cogvideox",
        "AutoencoderKLCogVideoX",
        encoded_and_decoded(1, 3, 5, 16, 16),
        block_out_channels=(8, 8),
        down_block_types=("CogVideoXDownBlock3D",) * 2,
        up_block_types=("CogVideoXUpBlock3D",) * 2,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=4,
        sample_height=16,
        sample_width=16,
    ),
    diffuser(
        "tiny",
        "AutoencoderTiny",
        through(1, 3, 16, 16),
        encoder_block_out_channels=(16, 16),
        decoder_block_out_channels=(16, 16),
        num_encoder_blocks=(1, 2),
        num_decoder_blocks=(2, 1),
    ),
    diffuser(
        "oobleck",
        "AutoencoderOobleck",
        encoded_and_decoded(1, 2, 64),
        encoder_hidden_size=8,
        downsampling_ratios=[2, 4],
        channel_multiples=[1, 2],
        decoder_channels=8,
        decoder_input_channels=4,
    ),
    diffuser(
        "vq",
        "VQModel",
        through(1, 3, 16, 16),
        block_out_channels=(16, 32),
        down_block_types=DOWN,
        up_block_types=UP,
        norm_num_groups=8,
        num_vq_embeddings=16,
    ),
    diffuser(
        "unet-1d",
        "UNet1DModel",
        sampled(1, 8, 32),
        in_channels=8,
        out_channels=8,
        block_out_channels=(32, 32, 64),
        use_timestep_embedding=False,
        extra_in_channels=64,
    ),
    diffuser(
        "unet-2d",
        "UNet2DModel",
        sampled(1, 3, 16, 16),
        sample_size=16,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        attention_head_dim=8,
    ),
    diffuser(
        "unet",
        "UNet2DConditionModel",
        conditioned(2, 4, 8, 8),
        **UNET,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    ),
    diffuser(
        "unet-3d",
        "UNet3DConditionModel",
        conditioned(1, 4, 2, 8, 8),
        **UNET,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
    ),
    diffuser(
        "unet-spatio-temporal",
        "UNetSpatioTemporalConditionModel",
        lambda model: (
            model(
                ramp(model, 1, 2, 8, 8, 8),
                step(model),
                ramp(model, 1, 1, 16),
                added_time_ids=ramp(model, 1, 3),
            ).sample
        ),
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        num_attention_heads=(2, 4),
        cross_attention_dim=16,
        addition_time_embed_dim=16,
        projection_class_embeddings_input_dim=48,
        num_frames=2,
    ),
    diffuser(
        "controlnet",
        "ControlNetModel",
        controls,
        **{key: value for key, value in UNET.items() if key != "sample_size"},
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        conditioning_embedding_out_channels=(8, 16, 32, 32),
    ),
    diffuser(
        "t2i-adapter",
        "T2IAdapter",
        lambda model: model(ramp(model, 1, 3, 32, 32)),
        channels=[16, 32],
        num_res_blocks=1,
        downscale_factor=4,
    ),
    diffuser(
        "dit",
        "DiTTransformer2DModel",
        classes,
        **ATTENTION,
        num_layers=3,
        sample_size=8,
        norm_num_groups=8,
        num_embeds_ada_norm=10,
    ),
    diffuser(
        "transformer-2d",
        "Transformer2DModel",
        classes,
        **ATTENTION,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        sample_size=8,
        patch_size=2,
        norm_type="ada_norm_zero",
        num_embeds_ada_norm=10,
        attention_bias=True,
        norm_elementwise_affine=False,
    ),
    diffuser(
        "transformer-2d-continuous",
        "Transformer2DModel",
        lambda model: model(ramp(model, 1, 32, 4, 4), ramp(model, 1, 5, 16)).sample,
        **ATTENTION,
        in_channels=32,
        num_layers=2,
        norm_num_groups=8,
        cross_attention_dim=16,
    ),
    diffuser(
        "transformer-temporal",
        "TransformerTemporalModel",
        lambda model: model(ramp(model, 2, 32, 4, 4), num_frames=2).sample,
        **ATTENTION,
        in_channels=32,
        num_layers=2,
        norm_num_groups=8,
    ),
    diffuser(
        "pixart",
        "PixArtTransformer2DModel",
        conditioned_by_name(
            1,
            4,
            8,
            8,
            text_width=16,
            added_cond_kwargs=lambda model: {"resolution": None, "aspect_ratio": None},
        ),
        **ATTENTION,
        num_layers=3,
        sample_size=8,
        cross_attention_dim=32,
        caption_channels=16,
        norm_num_groups=8,
        use_additional_conditions=False,
    ),
    diffuser(
        "sd3",
        "SD3Transformer2DModel",
        conditioned_by_name(1, 4, 8, 8, pooled_projections=lambda model: ramp(model, 1, 32)),
        **ATTENTION,
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pooled_projection_dim=32,
        pos_embed_max_size=8,
    ),
    diffuser(
        "flux",
        "FluxTransformer2DModel",
        flux,
        **ATTENTION,
        patch_size=1,
        in_channels=4,
        num_layers=2,
        num_single_layers=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=[4, 4, 8],
    ),
    diffuser(
        "chroma",
        "ChromaTransformer2DModel",
        chroma,
        **ATTENTION,
        patch_size=1,
        in_channels=4,
        num_layers=2,
        num_single_layers=2,
        joint_attention_dim=32,
        axes_dims_rope=[4, 4, 8],
        approximator_num_channels=8,
        approximator_hidden_dim=32,
        approximator_layers=1,
    ),
    diffuser(
        "auraflow",
        "AuraFlowTransformer2DModel",
        conditioned_by_name(1, 4, 8, 8),
        **ATTENTION,
        sample_size=8,
        num_mmdit_layers=2,
        num_single_dit_layers=2,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pos_embed_max_size=16,
    ),
    diffuser(
        "hunyuan-dit",
        "HunyuanDiT2DModel",
        hunyuan,
        **ATTENTION,
        sample_size=8,
        patch_size=2,
        in_channels=4,
        hidden_size=32,
        num_layers=4,
        cross_attention_dim=32,
        cross_attention_dim_t5=32,
        pooled_projection_dim=16,
        text_len=6,
        text_len_t5=6,
    ),
    diffuser(
        "lumina2",
        "Lumina2Transformer2DModel",
        conditioned_by_name(1, 4, 8, 8, **TEXT_MASK),
        sample_size=8,
        in_channels=4,
        hidden_size=32,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=(4, 4, 8),
        axes_lens=(32, 16, 16),
        cap_feat_dim=32,
    ),
    diffuser(
        "sana",
        "SanaTransformer2DModel",
        conditioned_by_name(1, 4, 8, 8),
        **ATTENTION,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=16,
        cross_attention_dim=32,
        caption_channels=32,
        sample_size=8,
    ),
    diffuser(
        "cogview3",
        "CogView3PlusTransformer2DModel",
        cogview,
        **ATTENTION,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        text_embed_dim=32,
        time_embed_dim=16,
        condition_dim=8,
        pos_embed_max_size=16,
        sample_size=8,
    ),
    diffuser(
        "cogvideox",
        "CogVideoXTransformer3DModel",
        conditioned_by_name(1, 2, 4, 8, 8),
        **ATTENTION,
        in_channels=4,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=32,
        num_layers=2,
        sample_width=8,
        sample_height=8,
        sample_frames=5,
        max_text_seq_length=6,
    ),
    diffuser(
        "ltx-video",
        "LTXVideoTransformer3DModel",
        conditioned_by_name(
            1,
            32,
            4,
            **TEXT_MASK,
            num_frames=lambda model: 2,
            height=lambda model: 4,
            width=lambda model: 4,
        ),
        **ATTENTION,
        in_channels=4,
        out_channels=4,
        cross_attention_dim=32,
        num_layers=2,
        caption_channels=32,
    ),
    diffuser(
        "wan",
        "WanTransformer3DModel",
        conditioned_by_name(1, 4, 2, 8, 8),
        **ATTENTION,
        in_channels=4,
        out_channels=4,
        text_dim=32,
        freq_dim=16,
        ffn_dim=64,
        num_layers=2,
        rope_max_seq_len=32,
    ),
    diffuser(
        "mochi",
        "MochiTransformer3DModel",
        conditioned_by_name(1, 4, 2, 8, 8, encoder_attention_mask=mask(6)),
        **ATTENTION,
        num_layers=2,
        pooled_projection_dim=16,
        in_channels=4,
        text_embed_dim=32,
        time_embed_dim=16,
        max_sequence_length=6,
    ),
    diffuser(
        "qwen-image",
        "QwenImageTransformer2DModel",
        qwen_image,
        **ATTENTION,
        in_channels=16,
        out_channels=4,
        num_layers=2,
        joint_attention_dim=32,
        axes_dims_rope=(4, 4, 8),
    ),
    diffuser(
        "latte",
        "LatteTransformer3DModel",
        conditioned_by_name(1, 4, 2, 8, 8),
        **ATTENTION,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        cross_attention_dim=32,
        caption_channels=32,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=10,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        attention_bias=True,
        video_length=2,
    ),
    diffuser(
        "stable-audio",
        "StableAudioDiTModel",
        stable_audio,
        **ATTENTION,
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_key_value_attention_heads=2,
        cross_attention_dim=16,
        time_proj_dim=8,
        global_states_input_dim=16,
        cross_attention_input_dim=16,
    ),
    diffuser(
        "uvit",
        "UVit2DModel",
        uvit,
        hidden_size=32,
        cond_embed_dim=32,
        micro_cond_encode_dim=8,
        micro_cond_embed_dim=40,
        encoder_hidden_size=32,
        vocab_size=40,
        codebook_size=32,
        in_channels=32,
        block_out_channels=32,
        num_res_blocks=1,
        block_num_heads=2,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=64,
        sample_size=4,
    ),
    diffuser(
        "prior",
        "PriorTransformer",
        prior,
        **ATTENTION,
        num_layers=2,
        embedding_dim=16,
        num_embeddings=7,
        additional_embeddings=4,
    ),
]

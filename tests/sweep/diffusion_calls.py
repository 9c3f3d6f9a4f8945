"""How the diffusion models are called: functions of a model, with inputs of their shapes."""

from __future__ import annotations

from .model import numbers, ramp, tokens


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

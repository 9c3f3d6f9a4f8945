"""Models of speech, music and time series."""

from __future__ import annotations

from typing import Any

import torch

from .model import Model, numbers, ramp, tokens
from .text import BOTH, GREEDY

SPEECH = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "conv_dim": [16, 16],
    "conv_kernel": [10, 3],
    "conv_stride": [5, 2],
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "vocab_size": 32,
    "feat_extract_norm": "layer",
    "num_codevectors_per_group": 4,
    "codevector_dim": 16,
    "proj_codevector_dim": 16,
}
ENCODEC = {
    "num_filters": 4,
    "hidden_size": 16,
    "codebook_size": 16,
    "codebook_dim": 16,
    "num_lstm_layers": 1,
    "upsampling_ratios": [4, 2],
    "target_bandwidths": [12.0],
    "sampling_rate": 16000,
    "num_residual_layers": 1,
}


def sound(model):
    return torch.sin(ramp(model, 2, 4000) * 570)


def short_sound(model):
    return sound(model)[:, None, :400]


def hidden(model):
    return model(sound(model))[0]


def speech(name: str, kind: str, model: str = "Model", **options: Any) -> Model:
    """Returns a model of the wav2vec family."""
    return Model(name, f"{kind}{model}", f"{kind}Config", {**SPEECH, **options}, hidden)


def decoded(model):
    encoded = model.encode(short_sound(model))
    return model.decode(encoded.audio_codes, encoded.audio_scales)[0]


def decisions(model):
    return model(
        states=ramp(model, 1, 4, 3),
        actions=ramp(model, 1, 4, 2),
        rewards=ramp(model, 1, 4, 1),
        returns_to_go=ramp(model, 1, 4, 1),
        timesteps=numbers(model, [[0, 1, 2, 3]]),
        attention_mask=numbers(model, [[1.0, 1.0, 1.0, 1.0]]),
    )[1]


def spoken(model):
    return model(
        input_ids=tokens(model),
        decoder_input_values=ramp(model, 2, 6, 8),
        speaker_embeddings=ramp(model, 2, 8),
    ).spectrogram


MODELS = [
    speech("wav2vec2", "Wav2Vec2"),
    speech("wav2vec2-ctc", "Wav2Vec2", "ForCTC"),
    speech("hubert", "Hubert"),
    speech("wavlm", "WavLM"),
    speech("unispeech", "UniSpeech"),
    speech("sew", "SEW", squeeze_factor=1),
    speech("sew-d", "SEWD", squeeze_factor=1),
    speech("data2vec-audio", "Data2VecAudio", conv_pos_kernel_size=3),
    Model(
        "wav2vec2-bert",
        "Wav2Vec2BertModel",
        "Wav2Vec2BertConfig",
        {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 64,
            "feature_projection_input_dim": 8,
            "conv_depthwise_kernel_size": 3,
        },
        lambda model: model(input_features=ramp(model, 2, 10, 8))[0],
    ),
    Model(
        "whisper",
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        {
            **BOTH,
            "encoder_layers": 3,
            "decoder_layers": 3,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 64,
            "decoder_ffn_dim": 64,
            "num_mel_bins": 8,
            "max_source_positions": 20,
            "max_target_positions": 30,
            "suppress_tokens": None,
            "begin_suppress_tokens": None,
        },
        lambda model: (
            model(
                input_features=ramp(model, 1, 8, 40), decoder_input_ids=tokens(model, 1, 5)
            ).logits
        ),
        lambda model: model.generate(ramp(model, 1, 8, 40), num_beams=2, **GREEDY),
    ),
    Model(
        "moonshine",
        "MoonshineForConditionalGeneration",
        "MoonshineConfig",
        {
            "vocab_size": 96,
            "hidden_size": 32,
            "intermediate_size": 64,
            "encoder_num_hidden_layers": 2,
            "decoder_num_hidden_layers": 2,
            "encoder_num_attention_heads": 4,
            "decoder_num_attention_heads": 4,
            "decoder_start_token_id": 1,
            "pad_token_id": 0,
        },
        lambda model: model(sound(model)[:1], decoder_input_ids=tokens(model, 1, 5)).logits,
    ),
    Model(
        "speecht5",
        "SpeechT5ForTextToSpeech",
        "SpeechT5Config",
        {
            "vocab_size": 96,
            "hidden_size": 32,
            "encoder_layers": 2,
            "encoder_attention_heads": 4,
            "encoder_ffn_dim": 64,
            "decoder_layers": 2,
            "decoder_attention_heads": 4,
            "decoder_ffn_dim": 64,
            "num_mel_bins": 8,
            "speech_decoder_prenet_units": 16,
            "speech_decoder_prenet_dropout": 0.0,
            "speaker_embedding_dim": 8,
            "speech_decoder_postnet_units": 16,
            "reduction_factor": 2,
            "max_text_positions": 64,
            "max_speech_positions": 64,
            "max_length": 64,
        },
        spoken,
    ),
    Model(
        "hifi-gan",
        "SpeechT5HifiGan",
        "SpeechT5HifiGanConfig",
        {
            "model_in_dim": 8,
            "upsample_initial_channel": 16,
            "upsample_rates": [2, 2],
            "upsample_kernel_sizes": [4, 4],
            "resblock_kernel_sizes": [3],
            "resblock_dilation_sizes": [[1, 3]],
        },
        lambda model: model(ramp(model, 10, 8)),
    ),
    Model(
        "vits",
        "VitsModel",
        "VitsConfig",
        {
            "vocab_size": 38,
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "ffn_dim": 32,
            "flow_size": 16,
            "spectrogram_bins": 9,
            "upsample_initial_channel": 16,
            "upsample_rates": [4, 2],
            "upsample_kernel_sizes": [8, 4],
            "resblock_kernel_sizes": [3],
            "resblock_dilation_sizes": [[1, 3]],
            "prior_encoder_num_flows": 2,
            "posterior_encoder_num_wavenet_layers": 2,
            "prior_encoder_num_wavenet_layers": 2,
            "duration_predictor_num_flows": 2,
            "duration_predictor_filter_channels": 16,
            "noise_scale": 0.0,
            "noise_scale_duration": 0.0,
        },
        lambda model: model(input_ids=tokens(model, 1, 6, limit=30)).waveform,
    ),
    Model(
        "univnet",
        "UnivNetModel",
        "UnivNetConfig",
        {
            "model_in_channels": 8,
            "model_hidden_channels": 8,
            "num_mel_bins": 8,
            "resblock_kernel_sizes": [3, 3],
            "resblock_stride_sizes": [2, 2],
            "resblock_dilation_sizes": [[1, 3], [1, 3]],
            "kernel_predictor_hidden_channels": 8,
        },
        lambda model: (
            model(
                input_features=ramp(model, 1, 10, 8), noise_sequence=ramp(model, 1, 10, 8)
            ).waveforms
        ),
    ),
    Model(
        "encodec",
        "EncodecModel",
        "EncodecConfig",
        ENCODEC,
        lambda model: model(short_sound(model))[1],
    ),
    Model("encodec-parts", "EncodecModel", "EncodecConfig", ENCODEC, decoded),
    Model(
        "dac",
        "DacModel",
        "DacConfig",
        {
            "encoder_hidden_size": 8,
            "downsampling_ratios": [2, 4],
            "decoder_hidden_size": 16,
            "n_codebooks": 2,
            "codebook_size": 16,
            "codebook_dim": 4,
            "upsampling_ratios": [4, 2],
        },
        lambda model: model(short_sound(model))[1],
    ),
    Model(
        "mimi",
        "MimiModel",
        "MimiConfig",
        {
            "hidden_size": 32,
            "num_filters": 4,
            "upsampling_ratios": [4, 2],
            "num_residual_layers": 1,
            "codebook_size": 16,
            "codebook_dim": 16,
            "num_quantizers": 4,
            "num_semantic_quantizers": 1,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "intermediate_size": 64,
            "vector_quantization_hidden_dimension": 16,
            "head_dim": 8,
            "sampling_rate": 16000,
            "frame_rate": 1000,
            "upsample_groups": 32,
        },
        lambda model: model(short_sound(model)).audio_values,
    ),
    Model(
        "musicgen",
        "MusicgenForCausalLM",
        "MusicgenDecoderConfig",
        {
            "vocab_size": 32,
            "hidden_size": 32,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "ffn_dim": 64,
            "num_codebooks": 2,
            "max_position_embeddings": 64,
        },
        lambda model: model(input_ids=tokens(model, 4, 8, limit=27), use_cache=False).logits,
    ),
    Model(
        "bark",
        "BarkFineModel",
        "BarkFineConfig",
        {
            "hidden_size": 32,
            "num_layers": 3,
            "num_heads": 4,
            "block_size": 64,
            "input_vocab_size": 40,
            "output_vocab_size": 40,
            "n_codes_total": 4,
            "n_codes_given": 1,
        },
        lambda model: model(2, input_ids=tokens(model, 2, 8, 4, limit=37)).logits,
    ),
    Model(
        "patchtst",
        "PatchTSTModel",
        "PatchTSTConfig",
        {
            "context_length": 16,
            "patch_length": 4,
            "patch_stride": 4,
            "num_input_channels": 2,
            "d_model": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "ffn_dim": 32,
        },
        lambda model: model(past_values=ramp(model, 2, 16, 2))[0],
    ),
    Model(
        "decision-transformer",
        "DecisionTransformerModel",
        "DecisionTransformerConfig",
        {
            "state_dim": 3,
            "act_dim": 2,
            "hidden_size": 32,
            "n_layer": 3,
            "n_head": 4,
            "max_ep_len": 32,
        },
        decisions,
    ),
]

"""Language models: decoders, encoders, and both."""

from __future__ import annotations

from typing import Any

from .model import Model, ramp, tokens

LAYERED = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ENCODER = {key: value for key, value in LAYERED.items() if key != "num_key_value_heads"}
GPT = {"vocab_size": 96, "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 64}
BOTH = {
    "vocab_size": 96,
    "d_model": 32,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
T5 = {**BOTH, "d_kv": 8, "d_ff": 64, "num_layers": 3, "num_heads": 4}
BART = {
    **BOTH,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 64,
}


def logits(model):
    return model(input_ids=tokens(model), use_cache=False).logits


def plain_logits(model):
    return model(input_ids=tokens(model)).logits


def hidden(model):
    return model(input_ids=tokens(model))[0]


def translated(model):
    return model(input_ids=tokens(model), decoder_input_ids=tokens(model, 2, 6)).logits


GREEDY = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "pad_token_id": 0}


def generate(model):
    return model.generate(tokens(model, 1, 5), **GREEDY)


def search(model):
    found = model.generate(
        tokens(model, 2, 5),
        **GREEDY,
        num_beams=3,
        num_return_sequences=2,
        output_scores=True,
        return_dict_in_generate=True,
    )
    return [found.sequences, found.sequences_scores]


def decoder(name: str, kind: str, config: str = "", **options: Any) -> Model:
    """Returns a causal language model."""
    config = config or f"{kind}Config"
    return Model(name, f"{kind}ForCausalLM", config, {**LAYERED, **options}, logits, generate)


def encoder(name: str, kind: str, model: str = "Model", **options: Any) -> Model:
    """Returns a model that encodes tokens."""
    return Model(name, f"{kind}{model}", f"{kind}Config", {**ENCODER, **options}, hidden)


def both(name: str, kind: str, options: dict[str, Any], generates: bool = False) -> Model:
    """Returns a model that encodes tokens and decodes others."""
    model = f"{kind}ForConditionalGeneration"
    return Model(name, model, f"{kind}Config", options, translated, generate if generates else None)


EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
XLNET = {"vocab_size": 96, "d_model": 32, "n_layer": 4, "n_head": 4, "d_inner": 64}
SLIDING = ["sliding_attention", "full_attention"] * 2

DECODERS = [
    decoder("llama", "Llama"),
    decoder("mistral", "Mistral"),
    decoder("mixtral", "Mixtral", **LOCAL_EXPERTS),
    decoder(
        "qwen3-moe",
        "Qwen3Moe",
        **EXPERTS,
        moe_intermediate_size=16,
        head_dim=8,
        decoder_sparse_step=2,
    ),
    decoder(
        "qwen2-moe",
        "Qwen2Moe",
        **EXPERTS,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
    ),
    decoder(
        "qwen3-next",
        "Qwen3Next",
        **EXPERTS,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
        head_dim=8,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
    ),
    decoder("gemma2", "Gemma2", head_dim=8),
    decoder("gemma3", "Gemma3", "Gemma3TextConfig", head_dim=8, sliding_window=4),
    decoder(
        "gemma3n",
        "Gemma3n",
        "Gemma3nTextConfig",
        head_dim=8,
        vocab_size_per_layer_input=96,
        hidden_size_per_layer_input=8,
        num_kv_shared_layers=2,
        laurel_rank=4,
        altup_num_inputs=2,
        layer_types=SLIDING,
        activation_sparsity_pattern=[0.0] * 4,
    ),
    decoder("phi", "Phi"),
    decoder("phi3", "Phi3"),
    decoder(
        "deepseek-v3",
        "DeepseekV3",
        moe_intermediate_size=16,
        n_routed_experts=8,
        num_experts_per_tok=2,
        n_group=2,
        topk_group=1,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        v_head_dim=8,
        qk_nope_head_dim=8,
        first_k_dense_replace=1,
        num_key_value_heads=4,
    ),
    decoder(
        "gpt-oss",
        "GptOss",
        **LOCAL_EXPERTS,
        head_dim=8,
        sliding_window=8,
        layer_types=SLIDING,
    ),
    decoder(
        "llama4",
        "Llama4",
        "Llama4TextConfig",
        num_local_experts=4,
        num_experts_per_tok=1,
        intermediate_size_mlp=64,
        head_dim=8,
    ),
    decoder(
        "falcon", "Falcon", ffn_hidden_size=64, new_decoder_architecture=False, multi_query=True
    ),
    decoder("bloom", "Bloom", n_layer=4, n_head=4),
    decoder("opt", "OPT", ffn_dim=64, word_embed_proj_dim=16),
    decoder("gpt-neox", "GPTNeoX"),
    decoder("gpt-j", "GPTJ", n_embd=32, n_layer=4, n_head=4, rotary_dim=4, n_positions=64),
    decoder("mpt", "Mpt", d_model=32, n_heads=4, n_layers=4, expansion_ratio=2, max_seq_len=64),
    decoder("olmoe", "Olmoe", **EXPERTS),
    decoder("cohere", "Cohere"),
    decoder("stablelm", "StableLm"),
    decoder("granite-moe", "GraniteMoe", **LOCAL_EXPERTS),
    decoder(
        "codegen",
        "CodeGen",
        n_embd=32,
        n_layer=4,
        n_head=4,
        rotary_dim=4,
        n_positions=64,
        n_ctx=64,
    ),
    decoder("xglm", "XGLM", d_model=32, ffn_dim=64, num_layers=4, attention_heads=4),
    decoder("mamba", "Mamba", state_size=8, expand=2, conv_kernel=4),
    decoder("mamba2", "Mamba2", num_heads=8, head_dim=8, state_size=8, n_groups=2, chunk_size=8),
    decoder("falcon-mamba", "FalconMamba", state_size=8),
    decoder(
        "jamba",
        "Jamba",
        **EXPERTS,
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=2,
        expert_layer_offset=1,
        mamba_d_state=8,
        mamba_dt_rank=4,
        use_mamba_kernels=False,
    ),
    decoder(
        "zamba2",
        "Zamba2",
        num_hidden_layers=6,
        hybrid_layer_ids=[1, 3, 5],
        layers_block_type=["mamba", "hybrid"] * 3,
        num_mem_blocks=2,
        mamba_d_state=8,
        mamba_headdim=8,
        n_mamba_heads=8,
        mamba_ngroups=1,
        attention_head_dim=16,
        use_mamba_kernels=False,
        adapter_rank=4,
        num_key_value_heads=4,
        chunk_size=8,
    ),
    decoder(
        "bamba",
        "Bamba",
        attn_layer_indices=[1, 3],
        mamba_n_heads=8,
        mamba_d_head=8,
        mamba_n_groups=1,
        mamba_d_state=8,
        mamba_chunk_size=8,
    ),
    decoder("rwkv", "Rwkv", attention_hidden_size=32, context_length=64),
    decoder("recurrent-gemma", "RecurrentGemma", lru_width=32, attention_window_size=8),
    Model(
        "dbrx",
        "DbrxForCausalLM",
        "DbrxConfig",
        {
            "vocab_size": 96,
            "d_model": 32,
            "n_heads": 4,
            "n_layers": 2,
            "max_seq_len": 64,
            "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4},
            "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
        },
        logits,
        generate,
    ),
    Model("gpt2", "GPT2LMHeadModel", "GPT2Config", GPT, logits, generate),
    Model("gpt-bigcode", "GPTBigCodeForCausalLM", "GPTBigCodeConfig", GPT, logits, generate),
    Model(
        "gpt-neo",
        "GPTNeoForCausalLM",
        "GPTNeoConfig",
        {
            "vocab_size": 96,
            "hidden_size": 32,
            "num_layers": 4,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 2]],
            "max_position_embeddings": 64,
        },
        logits,
        generate,
    ),
    Model("ctrl", "CTRLLMHeadModel", "CTRLConfig", {**GPT, "dff": 64}, logits),
    Model("gpt", "OpenAIGPTLMHeadModel", "OpenAIGPTConfig", GPT, plain_logits),
    Model(
        "cpm-ant",
        "CpmAntForCausalLM",
        "CpmAntConfig",
        {
            "vocab_size": 96,
            "hidden_size": 32,
            "num_attention_heads": 4,
            "dim_head": 8,
            "dim_ff": 64,
            "num_hidden_layers": 2,
            "position_bias_num_buckets": 8,
            "prompt_types": 4,
            "prompt_length": 4,
            "segment_types": 4,
            "position_bias_max_distance": 32,
        },
        plain_logits,
    ),
]

RELATIVE = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}
BOTTLENECK = {"embedding_size": 16, "intra_bottleneck_size": 16, "true_hidden_size": 16}

ENCODERS = [
    encoder("bert", "Bert"),
    encoder("bert-masked", "Bert", "ForMaskedLM"),
    encoder("roberta", "Roberta", max_position_embeddings=70),
    encoder("albert", "Albert", embedding_size=16, num_hidden_groups=1, inner_group_num=1),
    encoder("albert-groups", "Albert", embedding_size=16, num_hidden_groups=2, inner_group_num=2),
    encoder("albert-masked", "Albert", "ForMaskedLM", embedding_size=16),
    encoder("deberta", "Deberta", **RELATIVE),
    encoder(
        "deberta-v2",
        "DebertaV2",
        **RELATIVE,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        position_buckets=8,
    ),
    encoder("electra", "Electra", embedding_size=16),
    encoder("mobilebert", "MobileBert", **BOTTLENECK),
    encoder("mobilebert-masked", "MobileBert", "ForMaskedLM", **BOTTLENECK),
    encoder("modernbert", "ModernBert"),
    encoder("distilbert", "DistilBert", dim=32, n_layers=4, n_heads=4, hidden_dim=64),
    encoder("xmod", "Xmod", languages=["en_XX"], default_language="en_XX"),
    encoder("nystromformer", "Nystromformer", segment_means_seq_len=12, num_landmarks=4),
    encoder("canine", "Canine", num_hash_buckets=64, num_hash_functions=4),
    encoder("longformer", "Longformer", attention_window=4, max_position_embeddings=70),
    encoder(
        "reformer",
        "Reformer",
        attn_layers=["local"] * 2,
        axial_pos_embds_dim=[8, 24],
        axial_pos_shape=[4, 4],
        attention_head_size=8,
        feed_forward_size=64,
        local_attn_chunk_length=4,
        is_decoder=False,
    ),
    encoder("squeezebert", "SqueezeBert", embedding_size=32),
    encoder("ibert", "IBert"),
    encoder("esm", "Esm", position_embedding_type="rotary", mask_token_id=3),
    encoder("convbert", "ConvBert", embedding_size=32),
    encoder("bigbird", "BigBird", attention_type="original_full"),
    encoder("fnet", "FNet", use_tpu_fourier_optimizations=False),
    encoder("roformer", "RoFormer", embedding_size=32),
    Model("xlnet", "XLNetModel", "XLNetConfig", XLNET, hidden),
    Model("xlnet-causal", "XLNetLMHeadModel", "XLNetConfig", XLNET, hidden),
    Model(
        "funnel",
        "FunnelModel",
        "FunnelConfig",
        {
            "vocab_size": 96,
            "d_model": 32,
            "n_head": 4,
            "d_head": 8,
            "d_inner": 64,
            "block_sizes": [1, 1],
        },
        hidden,
    ),
    Model(
        "perceiver",
        "PerceiverModel",
        "PerceiverConfig",
        {
            "num_latents": 8,
            "d_latents": 16,
            "d_model": 16,
            "num_blocks": 2,
            "num_self_attends_per_block": 2,
            "num_self_attention_heads": 2,
            "num_cross_attention_heads": 1,
        },
        lambda model: model(inputs=ramp(model, 1, 10, 16))[0],
    ),
]

ENCODERS_AND_DECODERS = [
    both("t5", "T5", T5, generates=True),
    both("umt5", "UMT5", T5, generates=True),
    both(
        "long-t5",
        "LongT5",
        {**T5, "local_radius": 4, "global_block_size": 4}
        | {"encoder_attention_type": "transient-global"},
    ),
    both(
        "switch",
        "SwitchTransformers",
        {**T5, "num_layers": 4, "num_decoder_layers": 4, "num_experts": 4}
        | {"num_sparse_encoder_layers": 2, "num_sparse_decoder_layers": 2},
    ),
    both("bart", "Bart", {**BART, "forced_eos_token_id": 2}, generates=True),
    both("pegasus", "Pegasus", BART, generates=True),
    Model("marian", "MarianMTModel", "MarianConfig", BART, translated, generate),
    both(
        "led",
        "LED",
        {**BART, "max_encoder_position_embeddings": 64, "attention_window": 4}
        | {"max_decoder_position_embeddings": 64},
    ),
    both(
        "nllb-moe",
        "NllbMoe",
        {**BART, "num_experts": 4, "encoder_sparse_step": 2, "decoder_sparse_step": 2}
        | {"expert_capacity": 16},
    ),
    both(
        "fsmt",
        "FSMT",
        {**BART, "langs": ["en", "de"], "src_vocab_size": 96, "tgt_vocab_size": 96},
    ),
    both(
        "prophetnet",
        "ProphetNet",
        {
            "vocab_size": 96,
            "hidden_size": 32,
            "encoder_ffn_dim": 64,
            "decoder_ffn_dim": 64,
            "num_encoder_layers": 2,
            "num_decoder_layers": 2,
            "num_encoder_attention_heads": 4,
            "num_decoder_attention_heads": 4,
            "max_position_embeddings": 64,
            "pad_token_id": 0,
        },
    ),
    Model(
        "seamless-m4t",
        "SeamlessM4TForTextToText",
        "SeamlessM4TConfig",
        {
            **{key: value for key, value in BART.items() if key != "d_model"},
            "hidden_size": 32,
            "speech_encoder_layers": 1,
            "speech_encoder_attention_heads": 4,
            "speech_encoder_intermediate_size": 32,
        },
        translated,
    ),
]

# Beams reorder the cache, and its entries outlive the layers.
SEARCHED = ("llama", "gemma2", "mixtral", "gpt2", "t5", "bart", "marian")
SEARCHES = [
    model._replace(name=f"{model.name}-beams", run=search, generate=None)
    for model in DECODERS + ENCODERS_AND_DECODERS
    if model.name in SEARCHED
]

MODELS = DECODERS + ENCODERS + ENCODERS_AND_DECODERS + SEARCHES

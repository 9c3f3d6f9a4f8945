"""A small Qwen3-MoE of transformers whose experts a cache carries, beside the resident model."""

from __future__ import annotations

import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

import weighbridge.torch

config = Qwen3MoeConfig(
    vocab_size=256,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    num_experts=32,
    num_experts_per_tok=4,
    moe_intermediate_size=32,
)
where = torch.device("cuda" if torch.cuda.is_available() else "cpu")
torch.manual_seed(0)
model = Qwen3MoeForCausalLM(config).to(where, torch.bfloat16).eval()
prompt = torch.tensor([[1, 2, 3]], device=where)
options = {"max_new_tokens": 40, "min_new_tokens": 40, "do_sample": False, "pad_token_id": 0}
with torch.inference_mode():
    resident = model.generate(prompt, **options)

# Everything but the experts stays on the device, and caches get what is left of the budget.
every = sum(parameter.nbytes for parameter in model.parameters())
handle = weighbridge.torch.offload(model, device_bytes=every * 6 // 10, transfer_mode="experts")
with torch.inference_mode():
    assert torch.equal(model.generate(prompt, **options), resident)
for cache in handle.expert_caches:
    info, stats = cache.info, cache.stats()
    print(f"{info.slots} of {info.experts} experts in slots, {stats.hit_rate:.0%} found there")
handle.remove()

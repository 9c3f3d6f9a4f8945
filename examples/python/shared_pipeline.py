"""Three models of a pipeline that share less memory than they need together.

The text encoder, the transformer and the decoder run one after another, as in diffusion; what is
used next gets memory, and what is idle gives it. Outputs are those of resident models.
"""

from __future__ import annotations

import torch

import weighbridge.torch

WIDTH, PIECE = 512, 2 << 20
where = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def layers(count: int) -> torch.nn.Sequential:
    """Stands for a model."""
    blocks = [
        torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH), torch.nn.Tanh()) for _ in range(count)
    ]
    return torch.nn.Sequential(*blocks).to(where).eval().requires_grad_(False)


torch.manual_seed(0)
encoder, transformer, decoder = models = layers(8), layers(16), layers(4)
x = torch.randn(2, WIDTH, device=where)


def run(use=lambda model: None):
    use(encoder)
    prompt = encoder(x)
    use(transformer)
    latent = torch.zeros_like(x)
    for _ in range(4):
        latent = transformer(latent + prompt)
    use(decoder)
    return decoder(latent)


expected = run()
handles = {
    model: weighbridge.torch.offload(
        model, offload_bytes=1 << 40, transfer_mode="prefetch", depth=2, fixed_addresses=True
    )
    for model in models
}
shared = weighbridge.torch.Arbiter(24 * PIECE)  # of 40 that all would take, with their slots
for priority, handle in enumerate(handles.values()):
    shared.add(handle, priority=priority)
held = []


def use(model):
    shared.use(handles[model])
    held.append([shared.member_info(each).device_bytes // PIECE for each in handles.values()])


for image in range(3):
    held.clear()
    assert torch.equal(run(use), expected)
    print(f"image {image}: pieces of encoder, transformer and decoder: {held}")

"""A PyTorch model with its weights in host memory under a budget, and the same outputs."""

import torch

import weighbridge.torch

device = "cuda" if torch.cuda.is_available() else "cpu"
layers = [torch.nn.Linear(1024, 1024) for _ in range(8)]
model = torch.nn.Sequential(*layers).to(device).eval()
x = torch.randn(4, 1024, device=device)
with torch.no_grad():
    wanted = model(x)
    handle = weighbridge.torch.offload(model, offload_bytes=24 << 20)  # as many as fit
    assert torch.equal(model(x), wanted)  # eager, in a CUDA graph or compiled
    print(handle.stats())
    handle.remove()  # resident again, bit for bit

"""Keeps part of a PyTorch model in host memory; its outputs stay the same, bit for bit."""

import torch

import weighbridge.torch

device = "cuda" if torch.cuda.is_available() else "cpu"
layers = [torch.nn.Linear(1024, 1024) for _ in range(8)]
model = torch.nn.Sequential(*layers).to(device).eval()
x = torch.randn(4, 1024, device=device)
with torch.no_grad():
    expected = model(x)
    handle = weighbridge.torch.offload(model, offload_bytes=24 << 20)  # at most 24 MiB
    assert torch.equal(model(x), expected)  # eager, in a CUDA graph, or compiled
    print(handle.stats)
    handle.remove()  # every weight is back on the device

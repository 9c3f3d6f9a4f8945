"""A mixture of experts whose kernel reads slots of a cache; results are those of all experts."""

from __future__ import annotations

import torch

from weighbridge import Device, ExpertCache, ExpertTensor

LAYERS, EXPERTS, USED, HIDDEN, MIDDLE = 4, 16, 2, 64, 32
cuda = torch.cuda.is_available()
where = torch.device("cuda:0" if cuda else "cpu")


def fused_experts(x, w13, w2, rows, weights):
    """Stands for the engine's kernel: row rows[t, i] of both tensors for use i of token t."""
    gate, up = torch.einsum("td,tked->tke", x, w13[rows]).chunk(2, dim=-1)
    out = torch.einsum("tke,tkde->tkd", torch.nn.functional.silu(gate) * up, w2[rows])
    return (out * weights[..., None]).sum(1)


with Device("cuda:0" if cuda else "host") as device:
    stream = torch.cuda.current_stream() if cuda else device.stream()
    tensors, host = [], []
    for layer in range(LAYERS):
        for name, shape in (
            ("w13", (EXPERTS, 2 * MIDDLE, HIDDEN)),
            ("w2", (EXPERTS, HIDDEN, MIDDLE)),
        ):
            buffer = device.buffer(4 * torch.Size(shape).numel())
            host.append(torch.from_dlpack(buffer.view("float32", shape, accessor="host")))
            host[-1].copy_(torch.randn(shape))
            tensors.append(ExpertTensor(layer, name, buffer, "float32", shape))

    # A quarter of all experts has a slot. The kernel gets the slots in place of the weights.
    cache = ExpertCache(device, tensors, slots=LAYERS * EXPERTS // 4)
    w13, w2 = (torch.from_dlpack(cache.view(index)) for index in range(2))
    slots = torch.empty((2, USED), dtype=torch.int64, device=where)
    for _ in range(20):
        x = torch.randn((2, HIDDEN), device=where)
        for layer in range(LAYERS):
            scores = torch.randn((2, EXPERTS), device=where)  # of the router
            weights, ids = scores.softmax(-1).topk(USED)
            at, to = ids.data_ptr(), slots.data_ptr()
            cache.route(layer, at, ids.numel(), to, dtype="int64", stream=stream)
            if not cuda:
                stream.synchronize()  # PyTorch computes on the host, which is in no stream
            found = fused_experts(x, w13, w2, slots, weights)
            whole = [tensor.to(where) for tensor in host[2 * layer : 2 * layer + 2]]
            assert torch.equal(found, fused_experts(x, *whole, ids, weights))
    stats = cache.stats()
    print(
        f"{stats.hit_rate:.0%} of the experts were in slots, {stats.gathered_bytes} bytes gathered"
    )

"""The CUDA kernels against the host's, which are compared with the definition: the same bytes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from weighbridge import Device, Quantizer, Scheme

FORMATS = ["float8_e4m3fn", "float8_e5m2"]


def codes_of(device: Device, numbers: torch.Tensor, dtype: str, scheme: Scheme) -> np.ndarray:
    """Numbers as they are, by scales of 1."""
    count = numbers.numel()
    codes = torch.empty(count, dtype=torch.uint8, device=numbers.device)
    one = torch.ones(1, dtype=torch.float32, device=numbers.device)
    with Quantizer(device) as quantizer:
        quantizer.quantize(
            numbers.data_ptr(),
            dtype,
            (1, count),
            codes.data_ptr(),
            one.data_ptr(),
            scheme,
            given_scales=True,
        )
    return codes.cpu().numpy()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("format", FORMATS)
def test_every_number_of_16_bits(format, dtype):
    bits = torch.arange(65536, dtype=torch.int32).to(torch.int16)
    with Device("cuda:0") as cuda, Device("host") as host:
        ours = codes_of(cuda, bits.cuda(), dtype, Scheme(format))
        assert np.array_equal(ours, codes_of(host, bits, dtype, Scheme(format)))
    numbers = bits.view(getattr(torch, dtype)).float()
    most = torch.finfo(getattr(torch, format)).max
    wanted = numbers.clamp(-most, most).to(getattr(torch, format)).view(torch.uint8).numpy().copy()
    wanted[torch.isnan(numbers).numpy()] = 0x7F
    assert np.array_equal(ours, wanted)


@pytest.mark.parametrize("format", FORMATS)
def test_every_number_of_32_bits(format):
    """All 2^32, a sixteenth of them at a time."""
    with Device("cuda:0") as cuda, Device("host") as host:
        for part in range(16):
            start = part << 28
            bits = torch.arange(start, start + (1 << 28), device="cuda", dtype=torch.int64)
            bits = bits.to(torch.int32)
            ours = codes_of(cuda, bits, "float32", Scheme(format))
            theirs = codes_of(host, bits.cpu(), "float32", Scheme(format))
            assert np.array_equal(ours, theirs), part


@pytest.mark.parametrize("scale", ["float32", "float8_e8m0fnu"])
@pytest.mark.parametrize("block", [(0, 0), (1, 0), (0, 1), (128, 128), (1, 128), (1, 32), (48, 80)])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_large_tensors(dtype, block, scale):
    """More chunks than lanes, and rows that no vector divides."""
    torch.manual_seed(0)
    scheme = Scheme(block=block, scale=scale)
    with Device("cuda:0") as cuda, Device("host") as host:
        for shape in [(3000, 4096), (1001, 1003)]:
            x = (torch.randn(shape) * torch.randn(shape).exp2()).to(getattr(torch, dtype))
            pinned, found = x.pin_memory(), []
            for device, source, staging in (
                (host, x, 1 << 30),
                (cuda, pinned, 4 << 20),
                (cuda, pinned, 1 << 30),
                (cuda, x, 8 << 20),
                (cuda, x.cuda(), 64 << 20),
            ):
                where = "cpu" if device is host else "cuda"
                codes = torch.empty(shape, dtype=torch.uint8, device=where)
                scales = torch.full((x.numel() + 1,), 7, dtype=torch.float32, device=where)
                with Quantizer(device, staging) as quantizer:
                    done = quantizer.quantize(
                        source.data_ptr(),
                        dtype,
                        shape,
                        codes.data_ptr(),
                        scales.data_ptr(),
                        scheme,
                    )
                assert done.staging_bytes <= staging
                found.append((codes.cpu(), scales.cpu()))
            for codes, scales in found[1:]:
                assert torch.equal(codes, found[0][0])
                assert torch.equal(scales, found[0][1])

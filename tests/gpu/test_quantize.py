"""The CUDA kernels against the host's, which are compared with the definition: the same bytes."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest
import torch

from weighbridge import Device, Quantizer, QuantizeOptions

KERNELS = Path(__file__).resolve().parents[2] / "kernels"
FORMATS = ["float8_e4m3fn", "float8_e5m2"]


def codes_of(device: Device, numbers: torch.Tensor, dtype: str, scheme: QuantizeOptions) -> np.ndarray:
    """Numbers as they are, by scales of 1."""
    count = numbers.numel()
    codes = torch.empty(count, dtype=torch.uint8, device=numbers.device)
    one = torch.ones(1, dtype=torch.float32, device=numbers.device)
    torch.cuda.synchronize()  # what is queued elsewhere is not waited for
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
        ours = codes_of(cuda, bits.cuda(), dtype, QuantizeOptions(format))
        assert np.array_equal(ours, codes_of(host, bits, dtype, QuantizeOptions(format)))
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
            ours = codes_of(cuda, bits, "float32", QuantizeOptions(format))
            theirs = codes_of(host, bits.cpu(), "float32", QuantizeOptions(format))
            assert np.array_equal(ours, theirs), part


def kernel_of(architecture: str, name: str):
    """A kernel of the PTX for an architecture, to be launched on one row with a scale of 1."""
    cuda = ctypes.CDLL("libcuda.so.1")
    image = (KERNELS / f"quantize.{architecture}.ptx").read_bytes()
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    assert cuda.cuModuleLoadData(ctypes.byref(module), image) == 0
    assert cuda.cuModuleGetFunction(ctypes.byref(function), module, name.encode()) == 0

    def launch(source: torch.Tensor, target: torch.Tensor, vectors: int) -> None:
        one, count = torch.ones(1, device="cuda"), source.numel()
        blocks = (ctypes.c_uint64 * 8)(1, count, count, 1, 1, count, 1, 0)
        given = [
            ctypes.c_uint64(source.data_ptr()),
            blocks,
            ctypes.c_uint64(one.data_ptr()),
            ctypes.c_uint64(target.data_ptr()),
            ctypes.c_uint32(vectors),
        ]
        pointers = [ctypes.cast(ctypes.byref(value), ctypes.c_void_p) for value in given]
        array = (ctypes.c_void_p * 5)(*pointers)
        grid = -(-count // (256 * (16 if vectors else 1)))
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        launched = cuda.cuLaunchKernel(function, grid, 1, 1, 256, 1, 1, 0, stream, array, None)
        assert launched == 0
        torch.cuda.synchronize()

    return launch


@pytest.mark.parametrize("vectors", [0, 1])
@pytest.mark.parametrize("architecture", ["sm_75", "sm_90"])
@pytest.mark.parametrize("format", FORMATS)
def test_the_kernels_of_both_architectures(format, architecture, vectors):
    """The one for every chip converts by integers, the other by instructions of its own."""
    torch.cuda.current_stream().synchronize()
    short = {"float8_e4m3fn": "e4m3", "float8_e5m2": "e5m2"}[format]
    with Device("host") as host:
        for dtype, kind in [("bfloat16", "bf16"), ("float16", "f16")]:
            bits = torch.arange(65536, dtype=torch.int32).to(torch.int16)
            codes = torch.empty(65536, dtype=torch.uint8, device="cuda")
            launch = kernel_of(architecture, f"wb_quantize_{kind}_{short}")
            launch(bits.cuda(), codes, vectors)
            theirs = codes_of(host, bits, dtype, QuantizeOptions(format))
            assert np.array_equal(codes.cpu().numpy(), theirs)
        launch = kernel_of(architecture, f"wb_quantize_f32_{short}")
        for part in range(0, 16, 3):
            start = part << 28
            bits = torch.arange(start, start + (1 << 26), device="cuda", dtype=torch.int64)
            bits = bits.to(torch.int32) * 4 + part
            codes = torch.empty(bits.numel(), dtype=torch.uint8, device="cuda")
            launch(bits, codes, vectors)
            theirs = codes_of(host, bits.cpu(), "float32", QuantizeOptions(format))
            assert np.array_equal(codes.cpu().numpy(), theirs), part


@pytest.mark.parametrize("scale", ["float32", "float8_e8m0fnu"])
@pytest.mark.parametrize("block", [(0, 0), (1, 0), (0, 1), (128, 128), (1, 128), (1, 32), (48, 80)])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_large_tensors(dtype, block, scale):
    """More chunks than lanes, and rows that no vector divides."""
    torch.manual_seed(0)
    scheme = QuantizeOptions(block=block, scale=scale)
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

"""The CUDA kernels give the host kernels' bytes, which other tests compare with the definition."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest
import torch

from weighbridge import Device, QuantizeOptions, Quantizer

KERNELS = Path(__file__).resolve().parents[2] / "kernels"
FORMATS = ["float8_e4m3fn", "float8_e5m2"]


def codes_of(device: Device, numbers: torch.Tensor, dtype: str, format: str) -> np.ndarray:
    """Quantizes numbers with a scale of 1."""
    count = numbers.numel()
    codes = torch.empty(count, dtype=torch.uint8, device=numbers.device)
    one = torch.ones(1, dtype=torch.float32, device=numbers.device)
    torch.cuda.synchronize()  # the quantizer does not wait for PyTorch's stream
    with Quantizer(device) as quantizer:
        quantizer.quantize(
            numbers.data_ptr(),
            dtype,
            (1, count),
            codes.data_ptr(),
            one.data_ptr(),
            QuantizeOptions(format, use_given_scales=True),
        )
    return codes.cpu().numpy()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("format", FORMATS)
def test_every_16_bit_number_is_quantized_as_on_the_host(format, dtype):
    bits = torch.arange(65536, dtype=torch.int32).to(torch.int16)
    with Device("cuda:0") as cuda, Device("host") as host:
        found = codes_of(cuda, bits.cuda(), dtype, format)
        assert np.array_equal(found, codes_of(host, bits, dtype, format))
    numbers = bits.view(getattr(torch, dtype)).float()
    largest = torch.finfo(getattr(torch, format)).max
    wanted = (
        numbers.clamp(-largest, largest).to(getattr(torch, format)).view(torch.uint8).numpy().copy()
    )
    wanted[torch.isnan(numbers).numpy()] = 0x7F
    assert np.array_equal(found, wanted)


@pytest.mark.parametrize("format", FORMATS)
def test_every_32_bit_number_is_quantized_as_on_the_host(format):
    """All 2^32 of them, in 16 parts."""
    with Device("cuda:0") as cuda, Device("host") as host:
        for part in range(16):
            start = part << 28
            bits = torch.arange(start, start + (1 << 28), device="cuda", dtype=torch.int64)
            bits = bits.to(torch.int32)
            found = codes_of(cuda, bits, "float32", format)
            wanted = codes_of(host, bits.cpu(), "float32", format)
            assert np.array_equal(found, wanted), part


def kernel_of(architecture: str, name: str):
    """Returns a launcher of a kernel of an architecture's PTX, on one row with a scale of 1."""
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
def test_the_kernels_of_both_architectures_quantize_as_the_host(format, architecture, vectors):
    """sm_75's convert with integer arithmetic, sm_90's with the chip's conversion instructions."""
    torch.cuda.current_stream().synchronize()
    short = {"float8_e4m3fn": "e4m3", "float8_e5m2": "e5m2"}[format]
    with Device("host") as host:
        for dtype, kind in [("bfloat16", "bf16"), ("float16", "f16")]:
            bits = torch.arange(65536, dtype=torch.int32).to(torch.int16)
            codes = torch.empty(65536, dtype=torch.uint8, device="cuda")
            launch = kernel_of(architecture, f"wb_quantize_{kind}_{short}")
            launch(bits.cuda(), codes, vectors)
            wanted = codes_of(host, bits, dtype, format)
            assert np.array_equal(codes.cpu().numpy(), wanted)
        launch = kernel_of(architecture, f"wb_quantize_f32_{short}")
        for part in range(0, 16, 3):
            start = part << 28
            bits = torch.arange(start, start + (1 << 26), device="cuda", dtype=torch.int64)
            bits = bits.to(torch.int32) * 4 + part
            codes = torch.empty(bits.numel(), dtype=torch.uint8, device="cuda")
            launch(bits, codes, vectors)
            wanted = codes_of(host, bits.cpu(), "float32", format)
            assert np.array_equal(codes.cpu().numpy(), wanted), part


@pytest.mark.parametrize("scale_dtype", ["float32", "float8_e8m0fnu"])
@pytest.mark.parametrize("block", [(0, 0), (1, 0), (0, 1), (128, 128), (1, 128), (1, 32), (48, 80)])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_large_tensors_are_quantized_as_on_the_host(dtype, block, scale_dtype):
    """With more chunks than pipeline lanes, and rows that no vector size divides."""
    torch.manual_seed(0)
    options = QuantizeOptions("float8_e4m3fn", scale_dtype, *block)
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
                    result = quantizer.quantize(
                        source.data_ptr(),
                        dtype,
                        shape,
                        codes.data_ptr(),
                        scales.data_ptr(),
                        options,
                    )
                assert result.staging_bytes <= staging
                found.append((codes.cpu(), scales.cpu()))
            for codes, scales in found[1:]:
                assert torch.equal(codes, found[0][0])
                assert torch.equal(scales, found[0][1])

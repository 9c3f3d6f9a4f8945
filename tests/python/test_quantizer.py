"""Quantization: the same bytes in every memory, in one pass or two, rounded as PyTorch rounds."""

from __future__ import annotations

import itertools

import ml_dtypes
import numpy as np
import pytest

from fp8_reference import LARGEST, blocks, expand, numbers, reference, scale_type
from weighbridge import QuantizeOptions, Quantizer, Status, WeighbridgeError

OPTIONS = [
    blocks(*block, format=format, scale_dtype=scale_dtype)
    for format, scale_dtype, block in itertools.product(
        LARGEST,
        ["float32", "float8_e8m0fnu"],
        [(0, 0), (1, 0), (0, 1), (128, 128), (1, 128), (1, 32)],
    )
]
ALL_OPTIONS = pytest.mark.parametrize(
    "options",
    OPTIONS,
    ids=lambda o: f"{o.format}-{o.scale_dtype}-{o.block_rows}x{o.block_cols}",
)
ALL_DTYPES = pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])


class Bench:
    """A quantizer on a device, and memory of every kind there."""

    def __init__(self, device, staging_bytes=0) -> None:
        self.device = device
        self.quantizer = Quantizer(device, staging_bytes)
        self.held: list = []

    def hold(self, array: np.ndarray, place: str) -> int:
        """Returns the address of a copy of the array in pageable, pinned or device memory."""
        if place == "pageable":
            copy = array.copy()
            self.held.append(copy)
            return copy.ctypes.data
        buffer = self.device.buffer(max(array.nbytes, 1))
        buffer.memoryview()[: array.nbytes] = array.tobytes()
        self.held.append(buffer)
        if place == "pinned":
            return buffer.address
        address = self.device.alloc(max(array.nbytes, 1))
        self.held.append(address)
        with self.device.stream() as stream:
            self.device.copy(address, buffer, stream=stream)
            stream.synchronize()
        return address

    def read(self, address: int, nbytes: int) -> np.ndarray:
        with self.device.buffer(max(nbytes, 1)) as back, self.device.stream() as stream:
            self.device.copy(back.address, address, nbytes, stream=stream)
            stream.synchronize()
            return np.frombuffer(bytes(back.memoryview()[:nbytes]), np.uint8)

    def run(self, x, options, source="pinned", target="device", **more):
        """Quantizes; returns the codes, the scales and the result."""
        grid = Quantizer.scales_info(x.dtype, x.shape, options)
        at = self.hold(x, source)
        codes = self.hold(np.full(x.size, 0xAA, np.uint8), target)
        scales = self.hold(np.full(grid.nbytes, 0xAA, np.uint8), target)
        result = self.quantizer.quantize(at, x.dtype, x.shape, codes, scales, options, **more)
        found = self.read(scales, grid.nbytes).view(scale_type(options)).astype(np.float32)
        return self.read(codes, x.size).reshape(x.shape), found.reshape(grid.shape), result

    def close(self) -> None:
        self.quantizer.close()
        for held in self.held:
            if isinstance(held, int):
                self.device.free(held)
            elif not isinstance(held, np.ndarray):
                held.close()
        self.held.clear()


@pytest.fixture
def bench(device):
    made = Bench(device)
    yield made
    made.close()


@ALL_OPTIONS
@ALL_DTYPES
def test_quantizing_equals_numpy_and_ml_dtypes(bench, dtype, options):
    for shape in [(300, 272), (130, 33), (3, 40, 64)]:
        x = numbers(shape, dtype)
        codes, scales, result = bench.run(x, options)
        wanted_scales, wanted = reference(x, options)
        assert np.array_equal(scales, wanted_scales)
        assert np.array_equal(codes, wanted)
        assert result.nonfinite == np.count_nonzero(~np.isfinite(x.astype(np.float32)))


PLACES = ["pageable", "pinned", "device"]


@pytest.mark.parametrize("block", [(0, 0), (1, 0), (0, 1), (128, 128)])
@pytest.mark.parametrize("target", PLACES)
@pytest.mark.parametrize("source", PLACES)
def test_the_bytes_depend_neither_on_memory_nor_on_staging(device, source, target, block):
    x, options = numbers((700, 256), "bfloat16"), blocks(*block)
    wanted_scales, wanted = reference(x, options)
    for staging in (0, 300_000, 60_000):
        bench = Bench(device, staging)
        codes, scales, result = bench.run(x, options, source, target)
        assert np.array_equal(codes, wanted) and np.array_equal(scales, wanted_scales)
        assert result.staging_bytes <= (staging or 128 << 20)
        if source == "pinned" and device.info.kind == "cuda" and staging == 60_000:
            assert result.passes == (2 if block[0] in (0, 128) else 1)
        bench.close()


def test_a_source_may_have_strides_and_gaps(bench):
    wide = numbers((96, 130), "float32")
    for x in (
        wide.T,
        wide[::3, 1::2],
        wide[::-1, ::-2],
        wide[5:6],
        np.broadcast_to(wide[0], (4, 130)),
    ):
        strides = [stride // x.itemsize for stride in x.strides]
        for options in (blocks(1, 0), blocks(7, 5)):
            grid = Quantizer.scales_info(x.dtype, x.shape, options)
            codes = bench.hold(np.zeros(x.size, np.uint8), "device")
            scales = bench.hold(np.zeros(grid.nbytes, np.uint8), "device")
            at = x.__array_interface__["data"][0]
            bench.quantizer.quantize(at, x.dtype, x.shape, codes, scales, options, strides=strides)
            found = bench.read(codes, x.size).reshape(x.shape)
            assert np.array_equal(found, reference(x, options)[1])


@ALL_DTYPES
@ALL_OPTIONS
def test_dequantizing_equals_numpy_and_ml_dtypes(bench, options, dtype):
    x, kind = numbers((160, 96), "float32"), np.dtype(getattr(ml_dtypes, dtype, dtype))
    for target in PLACES:
        codes, scales, _ = bench.run(x, options)
        stored = scales.astype(scale_type(options))
        assert Quantizer.scales_info(x.dtype, x.shape, options).nbytes == stored.nbytes
        at = bench.hold(codes, "pinned")
        scales_at = bench.hold(stored, "pageable")
        back = bench.hold(np.zeros(x.shape, kind), target)
        bench.quantizer.dequantize(at, scales_at, back, kind, x.shape, options)
        found = bench.read(back, x.size * kind.itemsize).view(kind).reshape(x.shape)
        with np.errstate(over="ignore"):
            numbers_of_codes = codes.view(getattr(ml_dtypes, options.format)).astype(np.float32)
            wanted = numbers_of_codes * expand(scales[0], options, x.shape)
            assert np.array_equal(found, wanted.astype(kind))


def test_given_scales_are_used_and_left_unchanged(bench):
    x, options = numbers((64, 48), "bfloat16"), blocks(16, 16, use_given_scales=True)
    given = np.exp2(np.arange(12).reshape(4, 3) - 3).astype(np.float32)
    codes = bench.hold(np.zeros(x.size, np.uint8), "device")
    at, scales = bench.hold(x, "pinned"), bench.hold(given, "pinned")
    bench.quantizer.quantize(at, x.dtype, x.shape, codes, scales, options)
    scaled = x.astype(np.float32) / expand(given, options, x.shape)
    wanted = np.clip(scaled, -448, 448).astype(ml_dtypes.float8_e4m3fn)
    assert np.array_equal(bench.read(codes, x.size).reshape(x.shape), wanted.view(np.uint8))
    assert np.array_equal(bench.read(scales, 48).view(np.float32), given.ravel())


def test_rounding_is_pytorchs(bench):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    x = torch.randn(257, 512, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    array = x.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    codes, scales, _ = bench.run(array, blocks(1, 128))
    inverse = (1 / torch.from_numpy(scales[0])).repeat_interleave(128, 1)
    wanted = (x.float() * inverse).to(torch.float8_e4m3fn).view(torch.uint8)
    assert np.array_equal(codes, wanted.numpy())


def test_zeros_and_nonfinite_elements_have_defined_codes(bench):
    x = np.array([[0, -0.0, 1, -1], [np.nan, 2, np.inf, -np.inf], [0, 0, 0, 0]], np.float32)
    codes, scales, result = bench.run(x, blocks(1, 0))
    assert np.array_equal(scales[0, :, 0], np.float32([1 / 448, 2 / 448, 1]))
    assert codes.tolist() == [[0, 0x80, 0x7E, 0xFE], [0x7F, 0x7E, 0x7E, 0xFE], [0, 0, 0, 0]]
    assert result.nonfinite == 3
    with pytest.raises(WeighbridgeError, match="3 of 12") as caught:
        bench.run(x, QuantizeOptions(reject_nonfinite=True))
    assert caught.value.status == Status.NOT_FINITE


def test_empty_and_small_tensors_are_quantized(bench):
    for shape in [(), (0,), (3, 0), (1,), (2, 1, 1, 5)]:
        x = np.full(shape, 3, np.float32)
        codes, _, _ = bench.run(x, blocks(2, 2))
        assert (codes == 0x7E).all()


def test_invalid_arguments_raise(device):
    bench, x = Bench(device, 4000), numbers((8, 4096), "float32")
    if device.info.kind == "cuda":
        with pytest.raises(WeighbridgeError, match="row of 4096 elements") as caught:
            bench.run(x, blocks(1, 0))
        assert caught.value.status == Status.STAGING
    with pytest.raises(WeighbridgeError, match="int32"):
        bench.run(x.astype(np.int32), QuantizeOptions())
    with pytest.raises(ValueError, match="float8_e8m0fnu"):
        Quantizer.scales_info("float32", (2, 2), QuantizeOptions(format="float8_e8m0fnu"))
    with pytest.raises(ValueError, match="scale_dtype"):
        Quantizer.scales_info("float32", (2, 2), QuantizeOptions(scale_dtype="float16"))
    with pytest.raises(WeighbridgeError):
        bench.quantizer.quantize(x.ctypes.data, "float32", x.shape, 0, 0)
    with pytest.raises(ValueError, match="8 x 32 scales of 4 bytes take 1024"):
        options = blocks(1, 128, scale_bytes=96)
        bench.quantizer.quantize(x.ctypes.data, "float32", x.shape, 1, 1, options)
    address = x.ctypes.data
    for name in ("source", "target", "scales"):
        given = {"source": address, "target": address, "scales": address, name: address + 2**64}
        for call in (bench.quantizer.quantize, bench.quantizer.dequantize):
            with pytest.raises(ValueError, match=f"{name} is"):
                call(**given, dtype="float32", shape=x.shape)
    bench.close()


def test_progress_is_reported_and_can_cancel(device):
    bench, calls = Bench(device, 200_000), []
    x, options = numbers((600, 256), "float32"), blocks(1, 0)

    def progress(*call):
        calls.append(call)
        return len(calls) < 3

    bench.run(x, options, progress=lambda *call: calls.append(call))
    assert calls[-1] == ("quantize", x.nbytes, x.nbytes)
    calls.clear()
    if device.info.kind == "cuda":
        with pytest.raises(WeighbridgeError) as caught:
            bench.run(x, options, progress=progress)
        assert caught.value.status == Status.CANCELLED
    codes, _, _ = bench.run(x, options)
    assert np.array_equal(codes, reference(x, options)[1])
    bench.close()

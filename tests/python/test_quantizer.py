"""Quantizing: the same bytes wherever things lie, in one pass or two, as PyTorch rounds."""

from __future__ import annotations

import itertools

import ml_dtypes
import numpy as np
import pytest

from weighbridge import Quantizer, Scheme, Status, WeighbridgeError, scales_of

MOST = {"float8_e4m3fn": 448.0, "float8_e5m2": 57344.0}
SCHEMES = [
    Scheme(format, scale, block)
    for format, scale, block in itertools.product(
        MOST, ["float32", "float8_e8m0fnu"], [(0, 0), (1, 0), (0, 1), (128, 128), (1, 128), (1, 32)]
    )
]


def numbers(shape, dtype="bfloat16", seed=0) -> np.ndarray:
    random = np.random.default_rng(seed)
    spread = np.exp2(random.integers(-12, 12, shape))
    return (random.standard_normal(shape) * spread).astype(
        np.dtype(getattr(ml_dtypes, dtype, dtype))
    )


def reference(x: np.ndarray, scheme: Scheme):
    """Scales and codes by NumPy and ml_dtypes, a matrix at a time."""
    matrices = x.astype(np.float32).reshape(-1, *x.shape[-2:])
    rows, cols = (b or n for b, n in zip(scheme.block, x.shape[-2:]))
    most = np.float32(MOST[scheme.format])
    kind = getattr(ml_dtypes, scheme.format)
    scales, codes = [], []
    for matrix in matrices:
        up = [-(-n // b) for n, b in zip(matrix.shape, (rows, cols))]
        found = np.ones(up, np.float32)
        for i, j in np.ndindex(*up):
            part = matrix[i * rows : (i + 1) * rows, j * cols : (j + 1) * cols]
            largest = np.abs(part[np.isfinite(part)]).max(initial=0)
            if largest > 0:
                found[i, j] = max(np.float32(largest) / most, np.finfo(np.float32).tiny)
        if scheme.scale == "float8_e8m0fnu":
            found = np.exp2(np.ceil(np.log2(found.astype(np.float64)))).astype(np.float32)
        inverse = np.float32(1) / found
        wide = np.repeat(np.repeat(inverse, rows, 0), cols, 1)[: matrix.shape[0], : matrix.shape[1]]
        scaled = np.clip(matrix * wide, -most, most)
        code = scaled.astype(kind).view(np.uint8)
        code[np.isnan(matrix)] = 0x7F
        scales.append(found)
        codes.append(code)
    return np.stack(scales), np.stack(codes).reshape(x.shape)


class Bench:
    """A quantizer on a device, and memory of every kind there."""

    def __init__(self, device, staging_bytes=128 << 20) -> None:
        self.device = device
        self.quantizer = Quantizer(device, staging_bytes)
        self.kept: list = []

    def hold(self, array: np.ndarray, where: str) -> int:
        """The address of a copy of the array's memory: pageable, pinned or on the device."""
        if where == "pageable":
            copy = array.copy()
            self.kept.append(copy)
            return copy.ctypes.data
        buffer = self.device.buffer(max(array.nbytes, 1))
        buffer.memoryview()[: array.nbytes] = array.tobytes()
        self.kept.append(buffer)
        if where == "pinned":
            return buffer.address
        address = self.device.alloc(max(array.nbytes, 1))
        self.kept.append(address)
        with self.device.stream() as stream:
            self.device.copy(address, buffer, stream=stream)
            stream.synchronize()
        return address

    def read(self, address: int, nbytes: int) -> np.ndarray:
        with self.device.buffer(max(nbytes, 1)) as back, self.device.stream() as stream:
            self.device.copy(back.address, address, nbytes, stream=stream)
            stream.synchronize()
            return np.frombuffer(bytes(back.memoryview()[:nbytes]), np.uint8)

    def run(self, x, scheme, source="pinned", target="device", **more):
        """Codes, scales and the report."""
        wide = scales_of(x.dtype, x.shape, scheme)
        at = self.hold(x, source)
        codes = self.hold(np.full(x.size, 0xAA, np.uint8), target)
        scales = self.hold(np.full(wide.nbytes, 0xAA, np.uint8), target)
        done = self.quantizer.quantize(at, x.dtype, x.shape, codes, scales, scheme, **more)
        kind = np.float32 if scheme.scale == "float32" else ml_dtypes.float8_e8m0fnu
        found = self.read(scales, wide.nbytes).view(kind).astype(np.float32)
        return self.read(codes, x.size).reshape(x.shape), found.reshape(wide.shape), done

    def close(self) -> None:
        self.quantizer.close()
        for kept in self.kept:
            if isinstance(kept, int):
                self.device.free(kept)
            elif not isinstance(kept, np.ndarray):
                kept.close()
        self.kept.clear()


@pytest.fixture
def bench(device):
    made = Bench(device)
    yield made
    made.close()


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: f"{s.format}-{s.scale}-{s.block}")
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_as_numpy_and_ml_dtypes_have_it(bench, dtype, scheme):
    for shape in [(300, 272), (130, 33), (3, 40, 64)]:
        x = numbers(shape, dtype)
        codes, scales, done = bench.run(x, scheme)
        wanted_scales, wanted = reference(x, scheme)
        assert np.array_equal(scales, wanted_scales)
        assert np.array_equal(codes, wanted)
        assert done.nonfinite == np.count_nonzero(~np.isfinite(x.astype(np.float32)))


PLACES = ["pageable", "pinned", "device"]


@pytest.mark.parametrize("block", [(0, 0), (1, 0), (0, 1), (128, 128)])
@pytest.mark.parametrize("target", PLACES)
@pytest.mark.parametrize("source", PLACES)
def test_wherever_things_lie_and_however_little_staging_there_is(device, source, target, block):
    x, scheme = numbers((700, 256), "bfloat16"), Scheme(block=block)
    wanted_scales, wanted = reference(x, scheme)
    for staging in (128 << 20, 300_000, 60_000):
        bench = Bench(device, staging)
        codes, scales, done = bench.run(x, scheme, source, target)
        assert np.array_equal(codes, wanted) and np.array_equal(scales, wanted_scales)
        assert done.staging_bytes <= staging
        if source == "pinned" and device.info.kind == "cuda" and staging < 200_000:
            assert done.passes == (2 if block[0] in (0, 128) else 1)
        bench.close()


def test_strides_and_gaps(bench):
    wide = numbers((96, 130), "float32")
    for x in (
        wide.T,
        wide[::3, 1::2],
        wide[::-1, ::-2],
        wide[5:6],
        np.broadcast_to(wide[0], (4, 130)),
    ):
        strides = [stride // x.itemsize for stride in x.strides]
        for scheme in (Scheme(block=(1, 0)), Scheme(block=(7, 5))):
            scale = scales_of(x.dtype, x.shape, scheme)
            codes = bench.hold(np.zeros(x.size, np.uint8), "device")
            scales = bench.hold(np.zeros(scale.nbytes, np.uint8), "device")
            at = x.__array_interface__["data"][0]
            bench.quantizer.quantize(at, x.dtype, x.shape, codes, scales, scheme, strides=strides)
            found = bench.read(codes, x.size).reshape(x.shape)
            assert np.array_equal(found, reference(x, scheme)[1])


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: f"{s.format}-{s.scale}-{s.block}")
def test_and_back(bench, scheme, dtype):
    x = numbers((160, 96), "float32")
    for target in PLACES:
        codes, scales, _ = bench.run(x, scheme)
        wide, kind = scales_of(x.dtype, x.shape, scheme), np.dtype(getattr(ml_dtypes, dtype, dtype))
        stored = scales.astype(
            np.float32 if scheme.scale == "float32" else ml_dtypes.float8_e8m0fnu
        )
        at = bench.hold(codes, "pinned")
        scales_at = bench.hold(stored, "pageable")
        back = bench.hold(np.zeros(x.shape, kind), target)
        bench.quantizer.dequantize(at, scales_at, back, kind, x.shape, scheme)
        found = bench.read(back, x.size * kind.itemsize).view(kind).reshape(x.shape)
        rows, cols = (b or n for b, n in zip(scheme.block, x.shape))
        spread = np.repeat(np.repeat(scales[0], rows, 0), cols, 1)[:160, :96]
        with np.errstate(over="ignore"):
            wanted = codes.view(getattr(ml_dtypes, scheme.format)).astype(np.float32) * spread
            assert np.array_equal(found, wanted.astype(kind))
        assert wide.nbytes == stored.nbytes


def test_scales_that_are_given(bench):
    x, scheme = numbers((64, 48), "bfloat16"), Scheme(block=(16, 16))
    given = np.exp2(np.arange(12).reshape(4, 3) - 3).astype(np.float32)
    codes = bench.hold(np.zeros(x.size, np.uint8), "device")
    at, scales = bench.hold(x, "pinned"), bench.hold(given, "pinned")
    bench.quantizer.quantize(at, x.dtype, x.shape, codes, scales, scheme, given_scales=True)
    spread = np.repeat(np.repeat(given, 16, 0), 16, 1)
    wanted = np.clip(x.astype(np.float32) / spread, -448, 448).astype(ml_dtypes.float8_e4m3fn)
    assert np.array_equal(bench.read(codes, x.size).reshape(x.shape), wanted.view(np.uint8))
    assert np.array_equal(bench.read(scales, 48).view(np.float32), given.ravel()), "left alone"


def test_as_torch_rounds(bench):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    x = torch.randn(257, 512, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    array = x.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    codes, scales, _ = bench.run(array, Scheme(block=(1, 128)))
    inverse = (1 / torch.from_numpy(scales[0])).repeat_interleave(128, 1)
    wanted = (x.float() * inverse).to(torch.float8_e4m3fn).view(torch.uint8)
    assert np.array_equal(codes, wanted.numpy())


def test_what_is_odd(bench):
    x = np.array([[0, -0.0, 1, -1], [np.nan, 2, np.inf, -np.inf], [0, 0, 0, 0]], np.float32)
    codes, scales, done = bench.run(x, Scheme(block=(1, 0)))
    assert np.array_equal(scales[0, :, 0], np.float32([1 / 448, 2 / 448, 1]))
    assert codes.tolist() == [[0, 0x80, 0x7E, 0xFE], [0x7F, 0x7E, 0x7E, 0xFE], [0, 0, 0, 0]]
    assert done.nonfinite == 3
    with pytest.raises(WeighbridgeError, match="3 of 12") as caught:
        bench.run(x, Scheme(), refuse_nonfinite=True)
    assert caught.value.status == Status.NOT_FINITE
    for shape in [(), (0,), (3, 0), (1,), (2, 1, 1, 5)]:
        x = np.full(shape, 3, np.float32)
        codes, scales, _ = bench.run(x, Scheme(block=(2, 2)))
        assert (codes == 0x7E).all()


def test_what_cannot_be(device):
    bench, x = Bench(device, 4000), numbers((8, 4096), "float32")
    if device.info.kind == "cuda":
        with pytest.raises(WeighbridgeError, match="one row of 4096 elements") as caught:
            bench.run(x, Scheme(block=(1, 0)))
        assert caught.value.status == Status.STAGING
    with pytest.raises(WeighbridgeError, match="int32 is not quantized"):
        bench.run(x.astype(np.int32), Scheme())
    with pytest.raises(WeighbridgeError, match="float8_e8m0fnu is not quantized to"):
        scales_of("float32", (2, 2), Scheme(format="float8_e8m0fnu"))
    with pytest.raises(ValueError, match="scale_type"):
        scales_of("float32", (2, 2), Scheme(scale="float16"))
    with pytest.raises(WeighbridgeError):
        bench.quantizer.quantize(x.ctypes.data, "float32", x.shape, 0, 0)
    with pytest.raises(ValueError, match="8 x 32 scales of 4 bytes take 1024") as caught:
        scheme = Scheme(block=(1, 128))
        bench.quantizer.quantize(x.ctypes.data, "float32", x.shape, 1, 1, scheme, scales_nbytes=96)
    address = x.ctypes.data
    for name in ("source", "target", "scales"):
        given = {"source": address, "target": address, "scales": address, name: address + 2**64}
        for call in (bench.quantizer.quantize, bench.quantizer.dequantize):
            with pytest.raises(ValueError, match=f"{name} is"):
                call(**given, dtype="float32", shape=x.shape)
    bench.close()


def test_progress_and_cancelling(device):
    bench, told = Bench(device, 200_000), []
    x = numbers((600, 256), "float32")

    def tell(phase, done, total):
        told.append((phase, done, total))
        return len(told) < 3

    bench.run(x, Scheme(block=(1, 0)), progress=lambda *what: told.append(what))
    assert told[-1] == ("quantize", x.nbytes, x.nbytes)
    told.clear()
    if device.info.kind == "cuda":
        with pytest.raises(WeighbridgeError) as caught:
            bench.run(x, Scheme(block=(1, 0)), progress=tell)
        assert caught.value.status == Status.CANCELLED
    codes, _, _ = bench.run(x, Scheme(block=(1, 0)))
    assert np.array_equal(codes, reference(x, Scheme(block=(1, 0)))[1])
    bench.close()

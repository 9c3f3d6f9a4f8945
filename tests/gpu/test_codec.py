"""The CUDA codec gives the host codec's bytes, which other tests compare with the format."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from weighbridge import Codec, Device

TILE = 8192
DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
    "float8_e4m3fn": torch.float8_e4m3fn,
    "float8_e5m2": torch.float8_e5m2,
}
SIZES = [1, 2, 7, 8, TILE - 1, TILE, TILE + 1, 4 * TILE, 5 * TILE + 9, 1100 * TILE + 3]


def values(kind: str, dtype: str, count: int) -> np.ndarray:
    """Returns ``count`` values as bytes."""
    random = np.random.default_rng(7)
    size = DTYPES[dtype].itemsize
    bits = random.integers(0, 256, count * size, np.uint8)
    if kind == "random bits":
        return bits
    if kind == "zeros":
        return np.zeros(count * size, np.uint8)
    if kind == "constant":
        return np.tile(bits[:size], count)
    scale = 100.0 if dtype == "float8_e4m3fn" else 0.02
    numbers = torch.from_numpy(random.standard_normal(count, np.float32) * np.float32(scale))
    if kind == "wide":
        numbers = (numbers / scale * 6).exp()
    coded = numbers.to(DTYPES[dtype]).contiguous().view(torch.uint8).numpy().copy()
    if kind == "one outlier a tile":
        for at in range(0, count * size, TILE):
            coded[at : at + size] = 0xFF
    return coded


def on_device(content: np.ndarray | bytes, capacity: int = 0) -> torch.Tensor:
    """Returns the bytes on the device, and capacity behind them, of a known content."""
    array = np.frombuffer(content, np.uint8)
    made = torch.full((max(len(array), capacity) + 256,), 0xA5, dtype=torch.uint8, device="cuda")
    made[: len(array)] = torch.from_numpy(array.copy()).cuda()
    return made


def decode(device: Device, codec: Codec, encoded: torch.Tensor, capacity: int, count: int) -> bytes:
    """Decodes on the device; checks that nothing behind the target was written."""
    target = on_device(b"", count)
    codec.queue_decode(device, encoded.data_ptr(), capacity, count, target.data_ptr())
    torch.cuda.synchronize()
    assert bool((target[count:] == 0xA5).all()), "bytes behind the target were written"
    return target[:count].cpu().numpy().tobytes()


def mismatches(
    device: Device,
    codec: Codec,
    encoded: torch.Tensor,
    capacity: int,
    decoded: torch.Tensor,
    count: int,
) -> int:
    found = torch.zeros(1, dtype=torch.int64, device="cuda")
    torch.cuda.synchronize()
    codec.queue_verify(
        device, encoded.data_ptr(), capacity, count, decoded.data_ptr(), found.data_ptr()
    )
    return int(found)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "kind", ["weights", "wide", "random bits", "zeros", "constant", "one outlier a tile"]
)
def test_the_device_encodes_as_the_host_does_and_decodes_what_it_encodes(device, dtype, kind):
    codec = Codec(dtype)
    for count in SIZES:
        source = values(kind, dtype, count)
        wanted = codec.encode(source)
        given, capacity = on_device(source), codec.max_bytes(len(source))
        target = on_device(b"", capacity)
        torch.cuda.synchronize()
        codec.queue_encode(device, given.data_ptr(), len(source), target.data_ptr(), capacity)
        torch.cuda.synchronize()
        found = target[: len(wanted)].cpu().numpy().tobytes()
        assert found == wanted, (dtype, kind, count)
        assert bool((target[capacity:] == 0xA5).all()), "bytes behind the target were written"
        back = decode(device, codec, target, len(wanted), len(source))
        assert back == source.tobytes(), (dtype, kind, count)
        assert mismatches(device, codec, target, len(wanted), given, len(source)) == 0
        given[len(source) // 2] ^= 1
        assert mismatches(device, codec, target, len(wanted), given, len(source)) == 1


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_every_16_bit_pattern_survives(device, dtype):
    source, codec = np.arange(65536, dtype=np.uint16), Codec(dtype)
    for order in (source, source * np.uint16(40503)):
        encoded = codec.encode(order)
        found = decode(device, codec, on_device(encoded), len(encoded), order.nbytes)
        assert found == order.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_ranges_of_tiles_are_decoded_alone(device, dtype):
    source, codec = values("weights", dtype, 9 * TILE + 24), Codec(dtype)
    encoded = codec.encode(source)
    given, end = on_device(encoded), len(source)
    for begin, to in [(0, TILE), (TILE, 4 * TILE), (end // TILE * TILE, end), (2 * TILE, end)]:
        target = on_device(b"", to - begin)
        codec.queue_decode(
            device,
            given.data_ptr(),
            len(encoded),
            end,
            target.data_ptr(),
            to - begin,
            offset=begin,
        )
        torch.cuda.synchronize()
        assert target[: to - begin].cpu().numpy().tobytes() == source[begin:to].tobytes()
        assert bool((target[to - begin :] == 0xA5).all())


@pytest.mark.parametrize("dtype", DTYPES)
def test_damaged_bytes_are_decoded_within_their_memory(device, dtype):
    """An access outside of an allocation would end the context; most are inside of one."""
    codec, random = Codec(dtype), np.random.default_rng(3)
    source = np.concatenate(
        [values(kind, dtype, 6 * TILE) for kind in ("weights", "wide", "random bits", "zeros")]
    )
    encoded = np.frombuffer(codec.encode(source), np.uint8)
    for at in range(60):
        damaged = encoded.copy()
        reach = 64 + 16 * (len(source) // TILE) if at % 2 else len(damaged)
        for _ in range(1 + at):
            damaged[random.integers(24, reach)] = random.integers(0, 256)
        capacity = len(damaged) if at % 3 else int(random.integers(1600, len(damaged)))
        # At the end of an allocation of its own, which other bytes do not follow.
        decode(device, codec, on_device(damaged[:capacity]), capacity, len(source))
    assert decode(device, codec, on_device(encoded), len(encoded), len(source)) == source.tobytes()


def test_a_replayed_graph_decodes_the_current_bytes(device):
    codec = Codec("bfloat16")
    first, second = (values(kind, "bfloat16", 40 * TILE) for kind in ("weights", "wide"))
    capacity = codec.max_bytes(len(first))
    encoded, target = on_device(codec.encode(first), capacity), on_device(b"", len(first))
    stream = torch.cuda.Stream()
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    codec.queue_decode(device, encoded.data_ptr(), capacity, len(first), target.data_ptr())
    with torch.cuda.graph(graph, stream=stream):
        codec.queue_decode(
            device, encoded.data_ptr(), capacity, len(first), target.data_ptr(), stream=stream
        )
    for source in (second, first):
        content = torch.from_numpy(np.frombuffer(codec.encode(source), np.uint8).copy())
        encoded[: len(content)] = content.cuda()
        target.fill_(0)
        graph.replay()
        torch.cuda.synchronize()
        assert target[: len(source)].cpu().numpy().tobytes() == source.tobytes()

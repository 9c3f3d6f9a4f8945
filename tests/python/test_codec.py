"""The codec: values survive, in host memory and on the device, and damage is an error."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from weighbridge import Codec, Dtype, Status, WeighbridgeError

TILE = 8192
TYPES = {
    "bfloat16": ml_dtypes.bfloat16,
    "float16": np.float16,
    "float32": np.float32,
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8_e5m2": ml_dtypes.float8_e5m2,
}
ALL_TYPES = pytest.mark.parametrize("dtype", TYPES)


def weights(dtype: str, count: int) -> np.ndarray:
    """Returns normally distributed values, as bytes."""
    scale = 100 if dtype == "float8_e4m3fn" else 0.02
    numbers = np.random.default_rng(3).standard_normal(count) * scale
    return numbers.astype(TYPES[dtype]).view(np.uint8)


@ALL_TYPES
@pytest.mark.parametrize("count", [0, 1, TILE - 1, TILE, 4 * TILE + 5])
def test_values_survive(dtype, count):
    codec, source = Codec(dtype), weights(dtype, count)
    encoded = codec.encode(source)
    info = codec.info(encoded)
    assert (info.dtype, info.decoded_bytes) == (Dtype.of(dtype), source.nbytes)
    assert info.encoded_bytes == len(encoded) <= codec.max_bytes(source.nbytes)
    assert info == codec.measure(source)
    assert codec.decode(encoded, verify=True) == source.tobytes()
    # More memory than there are compressed bytes, as in an arena.
    assert codec.decode(encoded + b"more", verify=True) == source.tobytes()


@ALL_TYPES
def test_ranges_of_tiles_are_decoded_alone(dtype):
    codec, source = Codec(dtype, threads=1), weights(dtype, 4 * TILE + 8)
    encoded = codec.encode(source)
    target = np.empty(TILE, np.uint8)
    codec.decode_into(encoded, target, offset=TILE)
    assert np.array_equal(target, source[TILE : 2 * TILE])
    with pytest.raises(WeighbridgeError, match="multiples of 8192") as caught:
        codec.decode_into(encoded, target, offset=8)
    assert caught.value.status == Status.UNALIGNED


@ALL_TYPES
def test_a_device_gives_the_bytes_of_the_host(device, dtype):
    codec, source = Codec(dtype), weights(dtype, 5 * TILE + 3)
    wanted, capacity = codec.encode(source), codec.max_bytes(source.nbytes)
    with device.buffer(5 << 18) as buffer, device.stream() as stream:
        memory = np.frombuffer(buffer.memoryview(), np.uint8)
        values, encoded, decoded, count, part = (buffer.address + (at << 18) for at in range(5))
        memory[: source.nbytes] = source
        memory[3 << 18 : (3 << 18) + 8] = 0
        codec.queue_encode(device, values, source.nbytes, encoded, capacity, stream)
        codec.queue_decode(device, encoded, capacity, source.nbytes, decoded, stream=stream)
        codec.queue_decode(
            device, encoded, capacity, source.nbytes, part, TILE, offset=TILE, stream=stream
        )
        codec.queue_verify(device, encoded, capacity, source.nbytes, decoded, count, stream=stream)
        codec.queue_verify(
            device, encoded, capacity, source.nbytes, values + 16, count, TILE, stream=stream
        )
        stream.synchronize()
        assert bytes(memory[1 << 18 :][: len(wanted)]) == wanted
        assert np.array_equal(memory[2 << 18 :][: source.nbytes], source)
        assert np.array_equal(memory[4 << 18 :][:TILE], source[TILE : 2 * TILE])
        assert memory[3 << 18 :][:8].view(np.uint64)[0] == 1
        del memory


def test_damage_is_an_error():
    codec, source = Codec("bfloat16"), weights("bfloat16", 3 * TILE)
    encoded = bytearray(codec.encode(source))
    encoded[len(encoded) // 2] ^= 1
    with pytest.raises(WeighbridgeError, match=r"1 of 6|damaged") as caught:
        codec.decode(encoded, verify=True)
    assert caught.value.status == Status.DAMAGED
    with pytest.raises(WeighbridgeError, match="truncated"):
        codec.info(encoded[:-1])
    with pytest.raises(ValueError, match=r"not <Dtype\.F16"):
        Codec("float16").decode(encoded)


def test_arguments_are_checked():
    with pytest.raises(WeighbridgeError, match="int32 is not compressed"):
        Codec("int32")
    codec = Codec("float32")
    with pytest.raises(WeighbridgeError, match="not a whole number"):
        codec.encode(b"abc")
    with pytest.raises(TypeError, match="read-only"):
        codec.encode_into(bytes(8), bytes(1000))
    with pytest.raises(WeighbridgeError, match="may take 96"):
        codec.encode_into(bytes(8), bytearray(8))
    with pytest.raises(ValueError, match="gaps"):
        codec.encode(np.zeros((4, 4), np.float32)[:, ::2])
    with pytest.raises(ValueError, match="threads"):
        Codec("float32", threads=-1)

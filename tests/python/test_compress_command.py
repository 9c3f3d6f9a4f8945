"""``compress`` and ``decompress`` of the command line give files back bit for bit, or none."""

from __future__ import annotations

import json
import os
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from weighbridge import Codec, Device, Safetensors, WeighbridgeError
from weighbridge.compress_file import compress_file, decompress_file

TILE = 8192
TYPES = {
    "BF16": ml_dtypes.bfloat16,
    "F16": np.float16,
    "F32": np.float32,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
}


def write(path: Path, tensors: dict, metadata=None, space: str = "") -> bytes:
    """Writes a safetensors file, whose header has some white space; returns its bytes."""
    header: dict = {} if metadata is None else {"__metadata__": metadata}
    at = 0
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {
            "dtype": dtype,
            "shape": shape,
            "data_offsets": [at, at + len(content)],
        }
        at += len(content)
    text = json.dumps(header, indent=2).encode() + space.encode()
    text += b" " * (-len(text) % 8)
    whole = len(text).to_bytes(8, "little") + text
    whole += b"".join(content for _, _, content in tensors.values())
    path.write_bytes(whole)
    return whole


def tensors() -> dict:
    """Returns tensors of every type that is compressed, and some that are not."""
    random, found = np.random.default_rng(5), {}
    for name, dtype in TYPES.items():
        scale = 100 if name == "F8_E4M3" else 0.02
        values = (random.standard_normal((96, 257)) * scale).astype(dtype)
        found[f"layer.{name}.weight"] = (name, [96, 257], values.tobytes())
    found["layer.norm"] = ("F32", [3], np.ones(3, np.float32).tobytes())
    found["ids"] = ("I64", [4096], np.arange(4096).tobytes())
    found["random"] = ("BF16", [3, TILE], random.bytes(6 * TILE))
    found["odd"] = ("U8", [7], b"seven..")
    found["empty"] = ("F32", [0, 4], b"")
    return found


def test_a_file_comes_back_bit_for_bit(run_python, tmp_path):
    source, packed, back = (tmp_path / name for name in ("in", "packed", "out"))
    whole = write(source, tensors(), {"format": "pt", "näme": "ü"}, "\n\n   ")
    status, printed, errors = run_python(
        "-m", "weighbridge", "compress", str(source), str(packed), "--verify"
    )
    assert (status, errors.strip()) == (0, "") and "5 tensors compressed, 5 as they were" in printed
    assert packed.stat().st_size < 0.95 * len(whole)
    status, printed, errors = run_python(
        "-m", "weighbridge", "decompress", str(packed), str(back), "--verify", "--threads", "2"
    )
    assert (status, errors.strip()) == (0, "") and "5 tensors decompressed" in printed
    assert back.read_bytes() == whole


def test_compressed_tensors_are_found_where_a_device_can_decode_them(tmp_path):
    source, packed = tmp_path / "in", tmp_path / "packed"
    given = tensors()
    write(source, given)
    compress_file(source, packed)
    with Device("host") as device, Safetensors(device, packed) as file:
        assert sum(file.tensor_info(name).encoded_bytes > 0 for name in given) == len(TYPES)
        for name, (dtype, shape, content) in given.items():
            info = file.tensor_info(name)
            assert (info.dtype.safetensors, list(info.shape)) == (dtype, shape)
            if info.encoded_bytes > 0:
                assert info.offset_bytes % 16 == 0
                body = file.buffer.memoryview()[info.offset_bytes :][: info.nbytes]
                found = Codec.info(body)
                assert Codec(found.dtype).decode(body, verify=True) == content
            elif content:
                body = file.buffer.memoryview()[info.offset_bytes :][: info.nbytes]
                assert bytes(body) == content


@pytest.mark.parametrize("names", [[], ["none"]])
def test_a_file_without_tensors_to_compress_comes_back(tmp_path, names):
    source, packed, back = (tmp_path / name for name in ("in", "packed", "out"))
    whole = write(source, {name: ("U8", [3], b"abc") for name in names})
    assert compress_file(source, packed).tensors == 0
    decompress_file(packed, back)
    assert back.read_bytes() == whole


def test_a_sharded_checkpoint_comes_back_with_its_index(tmp_path):
    folder, packed, back = (tmp_path / name for name in ("in", "packed", "out"))
    folder.mkdir()
    given = list(tensors().items())
    shards = {"a.safetensors": dict(given[:4]), "b.safetensors": dict(given[4:])}
    wholes = {name: write(folder / name, part) for name, part in shards.items()}
    weight_map = {tensor: name for name, part in shards.items() for tensor in part}
    index = json.dumps({"metadata": {"total_size": 5}, "weight_map": weight_map}).encode()
    name = "model.safetensors.index.json"
    (folder / name).write_bytes(index)
    seen = []
    done = compress_file(
        folder / name,
        packed / name,
        verify=True,
        progress=lambda phase, at, total: seen.append((at, total)),
    )
    assert done.tensors == 5 and seen == sorted(seen)
    assert seen[-1] == (sum(map(len, wholes.values())),) * 2
    decompress_file(packed / name, back / name, verify=True)
    for shard, whole in wholes.items():
        assert (back / shard).read_bytes() == whole
    assert (packed / name).read_bytes() == (back / name).read_bytes() == index
    with pytest.raises(ValueError, match="name two files, or two indexes"):
        compress_file(folder / name, packed / "other")
    (folder / name).write_text('{"weight_map": {"a": "../a.safetensors"}}')
    with pytest.raises(ValueError, match="not a file beside it"):
        compress_file(folder / name, packed / name)


def test_nothing_is_written_if_it_is_cancelled_or_fails(run_python, tmp_path):
    source, packed = tmp_path / "in", tmp_path / "packed"
    write(source, tensors())
    with pytest.raises(WeighbridgeError, match="cancelled"):
        compress_file(source, packed, progress=lambda phase, at, total: at < 1e5)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    status, _, errors = run_python("-m", "weighbridge", "decompress", str(source), str(packed))
    assert status == 1 and "is not a compressed file" in errors
    with pytest.raises(ValueError, match="source itself"):
        compress_file(source, source)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    compress_file(source, packed)
    with pytest.raises(ValueError, match="compressed already"):
        compress_file(packed, tmp_path / "twice")


def test_damage_is_found_and_no_file_is_written(tmp_path):
    source, packed, back = (tmp_path / name for name in ("in", "packed", "out"))
    write(source, tensors())
    compress_file(source, packed)
    whole = bytearray(packed.read_bytes())
    length = int.from_bytes(whole[:8], "little")
    begin, end = json.loads(whole[8 : 8 + length])["layer.BF16.weight"]["data_offsets"]
    whole[8 + length + (begin + end) // 2] ^= 4
    packed.write_bytes(whole)
    with pytest.raises(WeighbridgeError, match="damaged"):
        decompress_file(packed, back)
    assert not back.exists()


def test_only_regular_files_are_replaced(tmp_path):
    source, pipe, folder, link = (tmp_path / name for name in ("in", "pipe", "folder", "link"))
    write(source, tensors())
    os.mkfifo(pipe)
    folder.mkdir()
    link.symlink_to(pipe)
    for target in (pipe, folder, link):
        with pytest.raises(FileExistsError, match="not a regular file"):
            compress_file(source, target)
    assert pipe.is_fifo() and link.is_symlink()
    link.unlink()
    link.symlink_to(tmp_path / "nowhere")
    compress_file(source, link)
    assert link.is_file()

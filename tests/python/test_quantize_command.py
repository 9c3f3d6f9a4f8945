"""``python -m weighbridge quantize`` writes a complete FP8 checkpoint, or no file."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from fp8_reference import blocks, numbers, reference, scale_type
from weighbridge import Device, QuantizeOptions, Safetensors, WeighbridgeError
from weighbridge.quantize_file import quantize_file

NAMES = ["model.layers.0.up.weight", "model.layers.1.up.weight", "lm_head.weight"]


@pytest.fixture
def tensors():
    found = {name: numbers((200, 160), "float32", seed) for seed, name in enumerate(NAMES)}
    found["model.experts"] = numbers((3, 40, 64), "float16")
    found["model.norm.weight"] = numbers((160,), "float32")
    found["model.ids"] = np.arange(12, dtype=np.int64).reshape(3, 4)
    return found


@pytest.fixture
def path(tmp_path, tensors):
    save_file(tensors, tmp_path / "in.safetensors", metadata={"format": "pt"})
    return str(tmp_path / "in.safetensors")


def quantize(run_python, *arguments, **environment):
    return run_python("-m", "weighbridge", "quantize", *arguments, **environment)


def read(path):
    """Returns every tensor's type, shape and bytes, and the metadata of the file."""
    with safe_open(path, "numpy") as file:
        metadata = file.metadata()
    raw = open(path, "rb").read()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    header.pop("__metadata__")
    found = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        data = np.frombuffer(raw[8 + length + begin : 8 + length + end], np.uint8)
        found[name] = (entry["dtype"], entry["shape"], data)
    return found, metadata


@pytest.mark.parametrize(
    ("arguments", "options", "suffix"),
    [
        ([], blocks(128, 128), "_scale_inv"),
        (["--block", "row"], blocks(1, 0), "_scale"),
        (
            ["--block", "tensor", "--format", "e5m2"],
            QuantizeOptions("float8_e5m2"),
            "_scale",
        ),
        (
            ["--block", "1x32", "--scale-dtype", "e8m0"],
            blocks(1, 32, scale_dtype="float8_e8m0fnu"),
            "_scale",
        ),
    ],
)
def test_matrices_are_quantized_and_the_rest_is_copied(
    run_python, path, tensors, tmp_path, device, arguments, options, suffix
):
    out = str(tmp_path / "out.safetensors")
    name = "host" if device.info.kind == "host" else "cuda:0"
    more = ["--exclude", "lm_head", "--device", name, "--staging-bytes", "100KB"]
    code, output, errors = quantize(run_python, path, out, *arguments, *more)
    assert code == 0, errors
    assert "3 tensors quantized" in output
    found, metadata = read(out)
    written = json.loads(metadata.pop("weighbridge"))
    assert metadata == {"format": "pt"}
    assert written["format"] == options.format
    assert written["block"] == [options.block_rows, options.block_cols]
    chosen = {*NAMES[:2], "model.experts"}
    assert set(found) == {*tensors, *(weight + suffix for weight in chosen)}
    for weight, array in tensors.items():
        dtype, shape, data = found[weight]
        assert shape == list(array.shape)
        if weight not in chosen:
            assert data.tobytes() == array.tobytes()
            continue
        scales, codes = reference(array, options)
        assert dtype == ("F8_E4M3" if options.format == "float8_e4m3fn" else "F8_E5M2")
        assert np.array_equal(data, codes.ravel())
        assert np.array_equal(
            found[weight + suffix][2].view(scale_type(options)).astype(np.float32), scales.ravel()
        )
        assert np.prod(found[weight + suffix][1]) == scales.size


def file_of(path, tensors):
    """Writes a safetensors file with types that NumPy lacks."""
    entries, data = {}, b""
    for name, dtype, shape, bytes_ in tensors:
        offsets = [len(data), len(data) + len(bytes_)]
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        data += bytes_
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def test_packed_tensors_keep_the_shape_of_the_file(tmp_path, device):
    """Two 4-bit floats are one element here, and two in a file."""
    given, out = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    tensors = [
        ("w", "F32", [8, 8], np.arange(64, dtype=np.float32).tobytes()),
        ("matrix", "F4", [3, 8], bytes(range(12))),
        ("row", "F4", [2], bytes(1)),
        ("none", "F4", [4, 0], b""),
        ("scale", "F8_E8M0", [3, 1], bytes(3)),
    ]
    file_of(given, tensors)
    quantize_file(device, given, out, QuantizeOptions())
    raw = out.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    with Safetensors(device, out, pin=False) as written:
        for name, dtype, shape, bytes_ in tensors[1:]:
            assert (header[name]["dtype"], header[name]["shape"]) == (dtype, shape)
            with written.view(name, accessor="host", alignment=0) as view:
                assert view.numpy(bits=True).tobytes() == bytes_


def test_tensors_of_types_without_a_dtype_are_copied(tmp_path, device):
    """The last one's rows are not whole bytes."""
    given, out = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    tensors = [
        ("w", "F32", [2, 2], bytes(16)),
        ("six", "F6_E2M3", [2, 4], bytes(range(6))),
        ("fnuz", "F8_E4M3FNUZ", [3], bytes(range(3))),
        ("odd", "F6_E3M2", [4, 1], bytes(range(3))),
    ]
    file_of(given, tensors)
    quantize_file(device, given, out, QuantizeOptions())
    raw = out.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    for name, dtype, shape, bytes_ in tensors[1:]:
        begin, end = (8 + length + at for at in header[name]["data_offsets"])
        assert (header[name]["dtype"], header[name]["shape"]) == (dtype, shape)
        assert raw[begin:end] == bytes_


def test_a_quantized_checkpoint_keeps_its_scales(run_python, path, tmp_path):
    first, second = str(tmp_path / "first.safetensors"), str(tmp_path / "second.safetensors")
    exclude = ["--exclude", "model.experts"]
    assert quantize(run_python, path, first, *exclude)[0] == 0
    # Only the experts are left to quantize.
    code, output, errors = quantize(run_python, first, second)
    assert code == 0 and "1 tensors quantized" in output, errors
    before, after = read(first)[0], read(second)[0]
    assert after["model.experts"][0] == "F8_E4M3"
    for name in before.keys() - {"model.experts"}:
        assert before[name][:2] == after[name][:2], name
        assert np.array_equal(before[name][2], after[name][2]), name
    third, fourth = str(tmp_path / "third.safetensors"), str(tmp_path / "fourth.safetensors")
    code, _, errors = quantize(run_python, second, third, "--exclude", "lm_head")
    assert code == 1 and "'lm_head.weight', is excluded" in errors, errors
    assert quantize(run_python, second, third, "--no-default-exclude")[0] == 0
    code, _, errors = quantize(run_python, third, fourth, "--no-default-exclude")
    assert code == 1 and "quantized already" in errors, errors
    assert not os.path.exists(fourth)


SENSITIVE = [
    "model.embed_tokens.weight",
    "transformer.wte.weight",
    "transformer.wpe.weight",
    "bert.embeddings.word_embeddings.weight",
    "lm_head.weight",
    "output.weight",
    "score.weight",
    "model.layers.0.mlp.gate.weight",
    "model.layers.0.block_sparse_moe.gate.weight",
    "model.layers.0.mlp.shared_expert_gate.weight",
    "model.layers.0.mlp.router.weight",
    "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
]
LINEAR = [
    "model.layers.0.mlp.gate_proj.weight",
    "model.layers.0.mlp.gate_up_proj.weight",
    "model.layers.0.attention.output.dense.weight",
    "model.layers.0.self_attn.o_proj.weight",
    "model.layers.0.mlp.experts.0.w1.weight",
]


def test_embeddings_heads_routers_and_gates_are_kept_by_default(tmp_path, device, run_python):
    given, out = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    save_file({name: np.ones((4, 4), np.float32) for name in SENSITIVE + LINEAR}, given)
    done = quantize_file(device, given, out, QuantizeOptions())
    assert (done.quantized, done.kept) == (tuple(sorted(LINEAR)), tuple(sorted(SENSITIVE)))
    found = read(out)[0]
    assert {name for name in found if found[name][0] == "F8_E4M3"} == set(LINEAR)
    done = quantize_file(device, given, out, QuantizeOptions(), default_exclude=False)
    assert (set(done.quantized), done.kept) == (set(SENSITIVE + LINEAR), ())
    # Selected by name, they are refused, and the message says how to quantize them.
    with pytest.raises(ValueError, match=r"^of \d+ tensors \d+ are in FP8 .*default_exclude=False"):
        quantize_file(device, given, out, QuantizeOptions(), select=["lm_head"])
    code, output, errors = quantize(
        run_python, str(given), str(out), "--select", "lm_head", "--no-default-exclude"
    )
    assert code == 0 and "1 tensors quantized" in output, errors


@pytest.mark.parametrize("name_length", range(0, 64, 7))
def test_every_tensor_is_aligned(tmp_path, device, name_length):
    given, out = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    tensors = {f"w{'x' * name_length}.{at}": numbers((40, 64), "float32", at) for at in range(3)}
    tensors |= {
        "a.norm": np.ones(40, np.float16),
        "b.ids": np.arange(5),
        "c.bytes": np.ones(3, "u1"),
    }
    save_file(tensors, given)
    quantize_file(device, given, out, QuantizeOptions())
    with Safetensors(device, out, pin=False) as file:
        assert len(file) == 9
        for name in file:
            info = file.tensor_info(name)
            alignment = next(at for at in (64, 32, 16, 8, 4, 2, 1) if info.nbytes % at == 0)
            assert info.offset_bytes % alignment == 0, info
            file.view(name, accessor="host").close()


@pytest.mark.parametrize("dimensions", [2, 3])
def test_a_row_of_a_convolution_is_its_output_channel(tmp_path, device, dimensions):
    given, out = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    kernel = numbers((6, 5, *[3] * dimensions), "float32")
    save_file({"conv.weight": kernel}, given)
    options = blocks(1, 0)
    quantize_file(device, given, out, options)
    found = read(out)[0]
    scales, codes = reference(kernel.reshape(6, -1), options)
    dtype, shape, data = found["conv.weight"]
    assert (dtype, shape) == ("F8_E4M3", list(kernel.shape))
    assert np.array_equal(data, codes.ravel())
    dtype, shape, data = found["conv.weight_scale"]
    assert (dtype, shape) == ("F32", [6] + [1] * (dimensions + 1))
    assert np.array_equal(data.view(np.float32), scales.ravel())


KILLED = """
import os, signal, sys
if {named}:
    os.O_TMPFILE = 0  # as on a file system that has no files without a name
process, os.getpid = os.getpid(), lambda: 1
if {kill}:
    os.fsync = lambda descriptor: os.kill(process, signal.SIGKILL)
sys.argv = ["weighbridge", "quantize", {path!r}, {out!r}]
from weighbridge.__main__ import main
sys.exit(main())
"""


def test_a_killed_process_leaves_no_file(run_python, path, tmp_path):
    """The system deletes the file. If it cannot, the name does not hinder the next process."""
    out = str(tmp_path / "out.safetensors")

    def run(named, kill):
        return run_python("-c", KILLED.format(named=named, kill=kill, path=path, out=out))

    assert run(False, True)[0] == -9
    assert os.listdir(tmp_path) == ["in.safetensors"]
    assert run(True, True)[0] == -9
    assert len(os.listdir(tmp_path)) == 2
    code, _, errors = run(True, False)
    assert code == 0, errors
    assert len(os.listdir(tmp_path)) == 3 and os.path.exists(out)


def test_an_interrupt_leaves_no_file(path, tmp_path, device, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    for without_name in (True, False):
        if not without_name:
            monkeypatch.setattr("weighbridge._new_file._anonymous_file", lambda path: None)
        with pytest.raises(KeyboardInterrupt):
            quantize_file(device, path, tmp_path / "out", blocks(1, 0), progress=interrupt)
        assert os.listdir(tmp_path) == ["in.safetensors"]


def test_an_error_leaves_no_file(run_python, path, tmp_path):
    out = tmp_path / "out.safetensors"
    save_file({"a": np.zeros(3, np.float32)}, tmp_path / "vectors.safetensors")
    save_file(
        {"w": np.zeros((4, 4), np.float32), "w_scale": np.zeros(4, np.float32)},
        tmp_path / "twice.safetensors",
    )
    before, source = sorted(os.listdir(tmp_path)), Path(path).read_bytes()
    for arguments, status, text in [
        ([str(tmp_path / "none"), str(out)], 1, "none"),
        ([path, str(tmp_path / "no" / "where")], 1, "where"),
        ([path, str(out), "--select", "nothing"], 1, "nothing"),
        ([path, str(out), "--block", "3"], 2, "128x128"),
        ([path, str(out), "--device", "tpu"], 1, "tpu"),
        ([str(tmp_path / "vectors.safetensors"), str(out)], 1, "two dimensions"),
        ([str(tmp_path / "twice.safetensors"), str(out), "--block", "row"], 1, "w_scale"),
        ([path], 2, "OUT"),
        ([path, path], 1, "the source itself"),
    ]:
        code, _, errors = quantize(run_python, *arguments)
        assert code == status, (arguments, errors)
        assert text in errors and "Traceback" not in errors, errors
        assert sorted(os.listdir(tmp_path)) == before
    assert Path(path).read_bytes() == source


def test_a_full_disk_leaves_no_file(run_python, path, tmp_path):
    out = str(tmp_path / "out.safetensors")
    script = (
        "import resource, runpy, sys\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"
        f"sys.argv = ['weighbridge', 'quantize', {path!r}, {out!r}]\n"
        "runpy.run_module('weighbridge', run_name='__main__')\n"
    )
    code, _, errors = run_python("-c", script)
    assert code == 1 and "File too large" in errors, errors
    assert os.listdir(tmp_path) == ["in.safetensors"]


def test_cancelling_leaves_the_old_file(path, tmp_path, device):
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"old")
    calls = []

    def stop(phase, done, total):
        calls.append((done, total))
        return len(calls) < 2

    opened = Device("host") if device.info.kind == "host" else Device("cuda:0")
    with opened, pytest.raises(WeighbridgeError, match="cancelled"):
        quantize_file(opened, path, out, blocks(1, 0), progress=stop)
    assert out.read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == ["in.safetensors", "out.safetensors"]
    assert len(calls) == 2


def test_a_new_file_has_the_users_permissions(run_python, path, tmp_path):
    out = tmp_path / "out.safetensors"
    before = os.umask(0o077)
    try:
        code, _, errors = quantize(run_python, path, str(out))
    finally:
        os.umask(before)
    assert code == 0, errors
    assert out.stat().st_mode & 0o777 == 0o600

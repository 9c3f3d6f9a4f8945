"""Parameters of files that ``compress`` wrote: taken unchanged, in as many bytes."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from parameters import read, replace
from weighbridge import (
    Codec,
    Device,
    Dtype,
    Offloader,
    Parameter,
    Plan,
    QuantizeOptions,
    Safetensors,
    Status,
    WeighbridgeError,
)
from weighbridge.compress_file import compress_file
from weighbridge.quantize_file import quantize_file

LAYERS = 4
SHAPE = (1024, 1664)
PAGE = 4096


def save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes arrays of bfloat16 as a safetensors file."""
    header, at = {}, 0
    for name, array in arrays.items():
        offsets = [at, at + array.nbytes]
        header[name] = {"dtype": "BF16", "shape": list(array.shape), "data_offsets": offsets}
        at += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in arrays.values():
            file.write(array.tobytes())


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Returns arrays by name, and the path of their compressed file."""
    random, arrays = np.random.default_rng(2), {}
    for layer in range(LAYERS):
        for name, shape in (("up", SHAPE), ("down", SHAPE[::-1]), ("norm", (1664,))):
            values = random.normal(0, 0.02, shape).astype(ml_dtypes.bfloat16)
            arrays[f"layers.{layer}.{name}"] = values
    folder = tmp_path_factory.mktemp("compressed")
    save(folder / "raw.safetensors", arrays)
    compress_file(folder / "raw.safetensors", folder / "packed.safetensors")
    return arrays, folder / "packed.safetensors"


@pytest.fixture
def stream(device):
    with device.stream() as made:
        yield made


def plan_of(device, file, **options) -> Plan:
    if "device_bytes" not in options:
        options.setdefault("offload_bytes", 1 << 26)
    options.setdefault("compress", "auto")
    options.setdefault("transfer_mode", "prefetch")
    return Plan(device, file.parameters(), allow=["everything-fits"], **options)


def check(device, offloader, arrays, stream) -> None:
    for number, group in enumerate(offloader.plan.groups):
        with offloader.acquired(number, stream):
            for name, array in arrays.items():
                if not name.startswith(group.name + "."):
                    continue
                if offloader.parameter_info(name).placement == "resident":
                    continue
                got = read(device, offloader.view(name), stream)
                assert got.tobytes() == array.tobytes(), name
    for name, array in arrays.items():
        if offloader.parameter_info(name).placement == "offloaded":
            assert bytes(offloader.read(name)) == array.tobytes(), name


def test_tensors_have_the_type_and_shape_of_their_values(model):
    arrays, path = model
    with Device("host") as device, Safetensors(device, path) as file:
        for name, array in arrays.items():
            info = file.tensor_info(name)
            assert (info.dtype, info.shape) == (Dtype.BF16, array.shape)
            assert (info.encoded_bytes == info.nbytes) == (array.ndim == 2), name
            assert (info.nbytes < 0.7 * array.nbytes) == (array.ndim == 2), name
            assert file.read(name) == array.tobytes()
        for view in (file.view, file.load_view):
            with pytest.raises(WeighbridgeError, match=r"layers\.0\.up.*compressed to") as caught:
                view("layers.0.up")
            assert caught.value.status == Status.NOT_SUPPORTED
        assert file.view("layers.0.norm").info.shape == (1664,)


@pytest.mark.parametrize("host_store", ["copy", "source"])
def test_host_memory_is_that_of_the_compressed_bytes(device, stream, model, host_store):
    arrays, path = model
    with Safetensors(device, path) as file:
        encoded = sum(file.tensor_info(name).encoded_bytes for name in arrays)
        small = sum(array.nbytes for array in arrays.values() if array.ndim == 1)
        plan = plan_of(device, file, host_store=host_store)
        assert plan.info.encoded_bytes == encoded
        assert abs(plan.info.arena_bytes - encoded - small) < 2 * PAGE + 256 * len(arrays)
        assert plan.info.arena_bytes < 0.68 * plan.info.offloaded_bytes
        reasons = {one.name: one.reason for one in plan.parameters}
        assert "compressed in its file to 67 %" in reasons["layers.1.up"]
        assert "not compressed" in reasons["layers.1.norm"]
        seen = set()

        def note(phase, *_):
            seen.add(phase)

        with Offloader(plan, stream, progress=note) as offloader:
            assert "compress" not in seen
            check(device, offloader, arrays, stream)
            stats = offloader.stats
            assert stats.encoded_bytes == encoded
            in_file = file.buffer.nbytes if host_store == "source" else 0
            held = small if host_store == "source" else encoded + small
            assert stats.asked_bytes - in_file < held + 2 * PAGE + 256 * len(arrays)
            for name, array in arrays.items():
                info = offloader.parameter_info(name)
                if array.ndim == 2:
                    assert info.host_store == host_store and not info.host_store_reason
            # The space of any bytes is taken by the one that is replaced.
            arrays = dict(arrays)
            arrays["layers.2.up"] = arrays["layers.2.up"][::-1].copy()
            as_bits = arrays["layers.2.up"].view(np.uint16)
            offloader.replace(
                "layers.2.up", as_bits.ctypes.data, "bfloat16", SHAPE, (SHAPE[1], 1), stream
            )
            check(device, offloader, arrays, stream)
            more = offloader.stats.asked_bytes - stats.asked_bytes
            assert as_bits.nbytes <= more < 1.01 * as_bits.nbytes + PAGE
            # In a unit with a gap, and without.
            offloader.remove("layers.1.up", stream)
            del arrays["layers.1.up"]
            check(device, offloader, arrays, stream)
            offloader.compact(stream)
            check(device, offloader, arrays, stream)


def test_the_device_keeps_what_the_file_has(device, stream, model):
    arrays, path = model
    total = sum(array.nbytes for array in arrays.values())
    with Safetensors(device, path) as file:
        plan = plan_of(
            device,
            file,
            device_bytes=int(0.93 * total),
            transfer_mode="auto",
            host_store="source",
            link_bytes_per_second=1e9,
            depth=1,
        )
        kept = [one for one in plan.parameters if one.device_encoded_bytes]
        assert kept, [one.reason for one in plan.parameters]
        for one in kept:
            assert one.device_encoded_bytes == -(-file.tensor_info(one.name).nbytes // 256) * 256
        with Offloader(plan, stream) as offloader:
            check(device, offloader, arrays, stream)
            for one in kept:
                info = offloader.parameter_info(one.name)
                assert info.device_encoded_bytes == one.device_encoded_bytes
                assert info.host_store == "source"
            replaced = kept[0].name
            arrays = dict(arrays)
            # Bits that do not compress: the device follows a link to host memory.
            bits = np.random.default_rng(3).integers(0, 1 << 16, arrays[replaced].shape, np.uint16)
            arrays[replaced] = bits.view(ml_dtypes.bfloat16)
            offloader.replace(
                replaced, bits.ctypes.data, "bfloat16", bits.shape, (bits.shape[1], 1), stream
            )
            info = offloader.parameter_info(replaced)
            assert info.device_encoded_bytes == 0 and "replacement" in info.device_encoded_reason
            check(device, offloader, arrays, stream)


def test_without_compress_and_in_fp8_they_are_decoded(device, stream, model):
    arrays, path = model
    with Safetensors(device, path, file_mode="source") as file:
        with Offloader(plan_of(device, file, compress=False), stream) as offloader:
            assert offloader.stats.encoded_bytes == 0
            check(device, offloader, arrays, stream)
        names = list(arrays)
        raw = [
            Parameter(
                name,
                name.rpartition(".")[0],
                "bfloat16",
                array.shape,
                held=array,
                source=array.view(np.uint16).ctypes.data,
            )
            for name, array in arrays.items()
        ]
        found = []
        for parameters in (raw, file.parameters()):
            plan = Plan(
                device,
                parameters,
                offload_bytes=1 << 26,
                quantize=QuantizeOptions(),
                allow=["everything-fits"],
            )
            with Offloader(plan, stream) as offloader:
                found.append({name: bytes(offloader.read(name)) for name in names})
        assert found[0] == found[1]


def test_files_that_lie_are_refused(device, model, tmp_path):
    _, path = model
    whole = bytearray(path.read_bytes())
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    start = 8 + length + header["layers.0.up"]["data_offsets"][0]

    def written(change) -> Path:
        changed = bytearray(whole)
        change(changed)
        (tmp_path / "lies.safetensors").write_bytes(changed)
        return tmp_path / "lies.safetensors"

    def note(change):
        """Changes the note in the metadata, whose length stays."""

        def to(changed: bytearray) -> None:
            given = json.loads(bytes(changed[8 : 8 + length]))
            found = json.loads(given["__metadata__"]["weighbridge_codec"])
            change(found)
            given["__metadata__"]["weighbridge_codec"] = json.dumps(found)
            text = json.dumps(given, separators=(",", ":")).encode()
            changed[8 : 8 + length] = text.ljust(length)

        return to

    def other_shape(found):
        found["header"] = found["header"].replace("[1024, 1664]", "[1024, 16]")

    def other_type(found):
        found["header"] = found["header"].replace("BF16", "I16")

    def other_name(found):
        found["compressed"][0] = "layers.9.up"

    for change in (other_shape, other_type, other_name):
        with pytest.raises(WeighbridgeError, match="metadata of a compressed file") as caught:
            Safetensors(device, written(note(change)))
        assert caught.value.status == Status.FORMAT
    with pytest.raises(WeighbridgeError, match="format 2"):
        Safetensors(device, written(note(lambda found: found.update(format=2))))

    def half_the_rows(found):
        found["header"] = found["header"].replace("[1024, 1664]", "[832, 1664]")

    def other_values(changed):
        changed[start + 5] = 3  # f32

    for change in (note(half_the_rows), other_values):
        with Safetensors(device, written(change)) as file:
            with pytest.raises(WeighbridgeError, match=r"layers\.\d\.up") as caught:
                plan_of(device, file)
            assert caught.value.status == Status.DAMAGED

    def other_directory(changed):
        changed[start + 64 + 16 * 5] ^= 1

    for host_store in ("copy", "source"):
        with Safetensors(device, written(other_directory)) as file:
            plan = plan_of(device, file, host_store=host_store)
            with pytest.raises(WeighbridgeError, match=r"layers\.0\.up.*tile 5") as caught:
                Offloader(plan)
            assert caught.value.status == Status.DAMAGED


def test_a_checkpoint_of_pytorch_may_be_compressed(where, model, tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    import weighbridge.torch as wt

    class Layer(torch.nn.Module):
        def __init__(self, dtype) -> None:
            super().__init__()
            for name, shape in (("up", SHAPE), ("down", SHAPE[::-1]), ("norm", (1664,))):
                empty = torch.empty(shape, dtype=dtype, device="meta")
                self.register_parameter(name, torch.nn.Parameter(empty, requires_grad=False))

        def forward(self, x):
            return (x @ self.up * self.norm) @ self.down

    def net(dtype):
        made = torch.nn.Module()
        made.layers = torch.nn.ModuleList(Layer(dtype) for _ in range(LAYERS))
        made.forward = lambda x: [layer(x) for layer in made.layers]
        return made

    arrays, path = model
    x = torch.randn(2, SHAPE[0]).to(where)
    for dtype in (torch.bfloat16, torch.float32):
        expected = []
        for layer in range(LAYERS):
            up, down, norm = (
                torch.from_numpy(arrays[f"layers.{layer}.{name}"].astype(np.float32))
                .to(where)
                .to(dtype)
                for name in ("up", "down", "norm")
            )
            expected.append((x.to(dtype) @ up * norm) @ down)
        for compress in (False, "auto"):
            offloaded = net(dtype)
            handle = wt.offload(
                offloaded, checkpoint=path, device=where, offload_bytes=1 << 27, compress=compress
            )
            in_file = [one for one in handle.plan.parameters if "in its file" in one.reason]
            # Others are cast, from decoded values.
            as_given = compress == "auto" and dtype == torch.bfloat16
            assert len(in_file) == (2 * LAYERS if as_given else 0)
            if as_given:
                assert handle.plan.info.arena_bytes < 0.68 * handle.plan.info.offloaded_bytes
            for got, wanted in zip(offloaded.forward(x.to(dtype)), expected):
                assert torch.equal(got, wanted)
            handle.remove()


def test_a_compressed_file_is_not_quantized(host, model, tmp_path):
    with pytest.raises(ValueError, match="decompress it first"):
        quantize_file(host, model[1], tmp_path / "fp8.safetensors", QuantizeOptions())
    assert not (tmp_path / "fp8.safetensors").exists()


def test_encoded_bytes_are_taken_from_any_memory(device, stream):
    values = np.random.default_rng(1).normal(0, 1, (64, 1024)).astype(np.float32)
    encoded = Codec("float32").encode(values)
    with device.buffer(len(encoded)) as buffer:
        with buffer.memoryview() as memory:
            memory[:] = encoded
        one = Parameter(
            "w",
            "g",
            "float32",
            values.shape,
            source=buffer.address,
            held=buffer,
            encoded_bytes=len(encoded),
        )
        plan = Plan(device, [one], offload_bytes=1 << 20, compress="w", transfer_mode="prefetch")
        assert "in its file" in plan.parameters[0].reason
        with Offloader(plan, stream) as offloader:
            assert bytes(offloader.read("w")) == values.tobytes()
            replace(offloader, "w", values[::-1].copy(), stream)
            assert bytes(offloader.read("w")) == values[::-1].tobytes()

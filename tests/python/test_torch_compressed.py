"""PyTorch models with compressed weights: outputs and weights are the resident model's bits."""

from __future__ import annotations

import copy
import random

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from test_torch import Block  # noqa: E402

import weighbridge.torch as wt  # noqa: E402
from weighbridge import (  # noqa: E402
    Device,
    QuantizeOptions,
    Safetensors,
    Status,
    WeighbridgeError,
)
from weighbridge.compress_file import compress_file  # noqa: E402

WIDTH = 64  # 64 x 192 numbers of float32: six tiles


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList([Block(WIDTH) for _ in range(6)])

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.fixture
def nets(where):
    """A resident model, and its copy to be offloaded."""
    torch.manual_seed(1)
    resident = Net().to(where).eval()
    return resident, copy.deepcopy(resident)


def offload(model, **options):
    options.setdefault("compress", ["layers"])
    return wt.offload(
        model, offload_bytes=1 << 24, transfer_mode="prefetch", depth=2, select="layers", **options
    )


def same(one, other):
    return torch.equal(one.cpu().view(torch.uint8), other.cpu().view(torch.uint8))


def compressed(handle):
    return {info.name for info in handle.offloader.parameter_infos() if info.encoded_bytes}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_outputs_are_those_of_the_resident_model(nets, where, dtype):
    resident, model = (net.to(dtype) for net in nets)
    x = torch.randn(3, WIDTH, device=where, dtype=dtype)
    handle = offload(model)
    assert {"layers.0.up.weight", "layers.5.down.weight"} <= compressed(handle)
    assert not {name for name in compressed(handle) if "norm" in name or "bias" in name}
    with torch.no_grad():
        expected = resident(x)
        for _ in range(3):
            assert same(model(x), expected)
    stats = handle.stats
    assert 0 < stats.moved_encoded_bytes < stats.moved_decoded_bytes
    handle.remove()
    for (name, one), (_, other) in zip(resident.named_parameters(), model.named_parameters()):
        assert same(one, other) and one.stride() == other.stride(), name
    with torch.no_grad():
        assert same(model(x), expected)


def test_the_state_dict_has_the_bytes_and_the_tensors_have_not(nets, where):
    resident, model = nets
    handle = offload(model)
    saved, expected = model.state_dict(), resident.state_dict()
    assert saved.keys() == expected.keys()
    for name, value in expected.items():
        assert same(saved[name], value), name
    weight = model.layers[2].up.weight
    before = resident.layers[2].up.weight
    assert (weight.shape, weight.stride()) == (before.shape, before.stride())
    assert weight.device == before.device
    for use in (weight.sum, weight.clone, weight.tolist, weight.data_ptr, weight.double):
        with pytest.raises(RuntimeError, match="is compressed: state_dict"):
            use()
    assert same(handle.read("layers.2.up.weight"), resident.layers[2].up.weight)
    assert same(handle.read("layers.2.norm.weight"), resident.layers[2].norm.weight)
    with pytest.raises(KeyError):
        handle.read("layers.9.up.weight")
    with torch.no_grad(), pytest.raises(RuntimeError, match="is compressed: state_dict"):
        weight.mul_(2)
    handle.remove()


def test_loaded_and_replaced_weights_are_compressed_again(nets, where):
    resident, model = nets
    handle = offload(model)
    x = torch.randn(3, WIDTH, device=where)
    generation = handle.offloader.generation
    with torch.no_grad():
        model(x)
        for name, parameter in resident.named_parameters():
            # Random bits, of which no exponent is more frequent, in one weight.
            if name == "layers.1.up.weight":
                parameter.copy_(
                    torch.randint(-(2**31), 2**31 - 1, parameter.shape, dtype=torch.int32)
                    .view(torch.float32)
                    .nan_to_num(0.5, 0.5, -0.5)
                    .clamp(-1, 1)
                )
            else:
                parameter.mul_(-1.5)
        model.load_state_dict(resident.state_dict())
        assert same(model(x), resident(x))
        resident.layers[3].down.weight.data = torch.randn(WIDTH, 3 * WIDTH, device=where)
        model.layers[3].down.weight.data = resident.layers[3].down.weight.data.clone()
        assert same(model(x), resident(x))
        resident.layers[4].up.weight = torch.nn.Parameter(torch.randn(3 * WIDTH, WIDTH))
        resident.layers[4].to(where)
        model.layers[4].up.weight = torch.nn.Parameter(resident.layers[4].up.weight.data.clone())
        assert same(model(x), resident(x))
    assert handle.offloader.generation == generation
    handle.remove()
    for (name, one), (_, other) in zip(resident.named_parameters(), model.named_parameters()):
        assert same(one, other), name


def test_repacking_sees_the_bytes(nets, where):
    resident, model = nets
    handle = offload(model)
    with handle.repack() as modules:
        for name, module in modules:
            for own, parameter in module.named_parameters():
                assert same(parameter, dict(resident.named_parameters())[f"{name}.{own}"])
                with torch.no_grad():
                    parameter.mul_(2)
    with torch.no_grad():
        for parameter in resident.parameters():
            parameter.mul_(2)
        x = torch.randn(3, WIDTH, device=where)
        assert same(model(x), resident(x))
    handle.remove()


def test_what_would_read_them_outside_of_their_layers_raises(nets, where):
    _, model = nets
    handle = offload(model)
    x = torch.randn(3, WIDTH, device=where)
    with pytest.raises(RuntimeError, match="gradients"):
        model(x)
    for convert in (copy.deepcopy, lambda net: net.half(), lambda net: net.to(torch.float64)):
        with pytest.raises(RuntimeError, match="compressed weights"):
            convert(model)
    with torch.no_grad(), pytest.raises(RuntimeError, match="compressed"):
        torch.jit.trace(model, x)
    with torch.no_grad():
        model(x)
    handle.remove()


def test_a_kept_weight_raises_every_time(nets, where):
    _, model = nets
    kept = []
    model.layers[1].up.register_forward_hook(lambda module, *_: kept.append(module.weight.detach()))
    handle = offload(model)
    x = torch.randn(3, WIDTH, device=where)
    with torch.no_grad():
        for _ in range(2):
            with pytest.raises(RuntimeError, match=r"layers\.1\.up\.weight.*still uses"):
                model(x)
            kept.clear()
    assert handle.in_place == {}
    handle.remove()


def test_a_change_in_a_forward_is_kept(nets, where):
    resident, model = nets

    def double(module, _):
        with torch.no_grad():
            module.weight.mul_(2)

    for net in nets:
        net.layers[1].up.register_forward_pre_hook(double)
    handle = offload(model)
    x = torch.randn(3, WIDTH, device=where)
    with torch.no_grad():
        for _ in range(3):
            assert same(model(x), resident(x))
    assert same(model.state_dict()["layers.1.up.weight"], resident.layers[1].up.weight)
    handle.remove()


def test_quantized_weights_are_those_without_compression(nets, where):
    models = [nets[0], nets[1]]
    found = []
    for model, compress in zip(models, (False, ["layers"])):
        handle = offload(model, quantize=QuantizeOptions(block_rows=1), compress=compress)
        found.append({name: value.clone() for name, value in model.state_dict().items()})
        assert ("layers.0.up.weight" in compressed(handle)) is bool(compress)
        handle.remove()
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        assert value.dtype == found[1][name].dtype and same(value, found[1][name]), name


def test_a_weight_that_another_views_is_not_compressed_by_itself(where):
    torch.manual_seed(2)
    model = Net().to(where).eval()
    whole = torch.randn(1 << 18, device=where)
    model.layers[0].whole = torch.nn.Parameter(whole, requires_grad=False)
    model.layers[0].part = torch.nn.Parameter(whole[64:128].view(8, 8), requires_grad=False)
    model.layers[1].alone = torch.nn.Parameter(torch.randn(1 << 18, device=where))
    handle = offload(model, compress="auto")
    assert compressed(handle) == {"layers.1.alone"}
    handle.remove()
    with pytest.raises(ValueError, match=r"part.*in the memory of.*whole"):
        offload(model, compress=["layers.0.whole"])


def test_compiled_models_use_them(nets, where):
    resident, model = nets
    handle = offload(model)
    compiled = torch.compile(model, backend="eager")
    x = torch.randn(3, WIDTH, device=where)
    with torch.no_grad():
        expected = resident(x)
        for _ in range(3):
            assert same(compiled(x), expected)
    handle.remove()


class Wide(torch.nn.Module):
    """Layers of 1.6 MB, each of which takes one piece of device memory."""

    LAYERS, WIDTH = 6, 896

    def __init__(self) -> None:
        super().__init__()
        blocks = (torch.nn.Sequential(torch.nn.Linear(self.WIDTH, self.WIDTH)) for _ in range(6))
        self.layers = torch.nn.ModuleList(blocks)

    def forward(self, x):
        for layer in self.layers:
            x = torch.relu(layer(x)) + x
        return x


def test_a_budget_changes_and_neither_outputs_nor_addresses_do(where):
    piece = 2 << 20
    torch.manual_seed(3)
    model = Wide().to(where, torch.bfloat16).eval().requires_grad_(False)
    resident = copy.deepcopy(model)
    addresses: dict[int, set[int]] = {at: set() for at in range(Wide.LAYERS)}
    for at, layer in enumerate(model.layers):
        layer[0].register_forward_pre_hook(
            lambda module, _, at=at: addresses[at].add(module.weight.data_ptr())
        )
    handle = wt.offload(
        model,
        device_bytes=3 * piece,
        transfer_mode="prefetch",
        fixed_addresses=True,
        compress="auto",
    )
    offloaded = compressed(handle)
    assert len(offloaded) >= 4
    least = handle.stats.slot_bytes
    whole = least + 2 * Wide.LAYERS * piece  # also if biases have pieces of their own
    x = torch.randn(3, Wide.WIDTH, device=where, dtype=torch.bfloat16)
    choose = random.Random(2)
    for turn in range(20):
        budget = choose.choice([least, whole, least + choose.randrange(4) * piece])
        progress = handle.resize(device_bytes=budget)
        assert progress.pending_units == 0 and progress.device_bytes <= budget
        before = handle.stats
        assert same(model(x), resident(x)), f"turn {turn}, {budget} bytes"
        now = handle.stats
        assert (now.moved_encoded_bytes == before.moved_encoded_bytes) == (budget == whole)
        if turn % 4 == 0:
            for weight in ("layers.1.0.weight", "layers.4.0.weight"):
                new = torch.randn_like(resident.get_parameter(weight))
                resident.get_parameter(weight).copy_(new)
            model.load_state_dict(resident.state_dict())
            assert same(model(x), resident(x)), f"turn {turn}, loaded at {budget} bytes"
        if turn % 5 == 0:
            handle.sleep()
            assert handle.offloader.resize_advance().device_bytes == 0
            for name in offloaded:
                assert same(handle.read(name), resident.get_parameter(name)), name
            handle.wake()
            assert same(model(x), resident(x)), f"turn {turn}, awake"
    assert all(len(one) == 1 for one in addresses.values()), "an address has changed"
    assert compressed(handle) == offloaded
    handle.remove()
    assert same(model(x), resident(x))


def test_weights_of_a_compressed_file_stay_there(where, tmp_path):
    """Only compressed ones: PyTorch writes to others in place, and the file is never written."""
    files = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    torch.manual_seed(3)
    resident = Net().eval()
    raw, packed = tmp_path / "raw.safetensors", tmp_path / "packed.safetensors"
    files.save_file(resident.state_dict(), raw)
    compress_file(raw, packed)
    before = packed.read_bytes()
    resident, x = resident.to(where), torch.randn(3, WIDTH, device=where)
    for store in ("copy", "compressed"):
        model = Net().eval()
        handle = offload(
            model, checkpoint=packed, device=where, host_store=store, verify_compressed=True
        )
        assert "layers.0.up.weight" in compressed(handle)
        for info in handle.offloader.parameter_infos():
            stays = store == "compressed" and info.encoded_bytes > 0
            assert info.host_store == ("source" if stays else "copy"), info
        with torch.no_grad():
            expected = resident(x)
            for _ in range(2):
                assert same(model(x), expected)
            scaled = copy.deepcopy(resident)
            for net in (model, scaled):
                net.layers[0].norm.weight.mul_(2)
            assert same(model(x), scaled(x))
            model.load_state_dict(scaled.state_dict())
            assert same(model(x), scaled(x))
        info = handle.offloader.parameter_info("layers.0.up.weight")
        assert info.host_store == "copy" and info.encoded_bytes > 0
        handle.remove()
        assert packed.read_bytes() == before
    for word, why in (("file", "host_store is 'file'"), ("source", "may write to weights")):
        with pytest.raises(ValueError, match=why):
            offload(Net(), checkpoint=packed, device=where, host_store=word)


def test_damage_of_a_file_is_found_before_the_first_step(where, tmp_path):
    files = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    raw, packed = tmp_path / "raw.safetensors", tmp_path / "packed.safetensors"
    files.save_file(Net().state_dict(), raw)
    compress_file(raw, packed)
    with Device("host") as device, Safetensors(device, packed) as file:
        info = file.tensor_info("layers.1.up.weight")
        damaged = bytearray(packed.read_bytes())
        damaged[info.offset_bytes + info.nbytes - 2048] ^= 1
    packed.write_bytes(damaged)
    model = Net()
    with pytest.raises(WeighbridgeError, match=r"layers\.1\.up\.weight") as caught:
        offload(model, checkpoint=packed, device=where, verify_compressed=True)
    assert caught.value.status == Status.DAMAGED
    with pytest.raises(WeighbridgeError, match=r"layers\.1\.up\.weight.*replace it"):
        offload(model, checkpoint=packed, device=where).read("layers.1.up.weight")


@pytest.mark.parametrize("asked", [None, False, True])
def test_encoders_are_chosen(nets, where, asked):
    resident, model = nets
    handle = offload(model, encode_on_device=asked)
    stats = handle.stats
    by_device = asked if asked is not None else where.type == "cuda"
    assert (stats.encoded_by_device_bytes > 0) == by_device
    assert stats.encoded_by_device_bytes + stats.encoded_by_host_bytes == stats.decoded_bytes
    x = torch.randn(3, WIDTH, device=where)
    with torch.no_grad():
        assert same(model(x), resident(x))

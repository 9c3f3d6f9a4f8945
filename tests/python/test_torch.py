"""PyTorch modules: outputs are the resident model's, bit for bit, whatever carries the weights."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from conftest import ROOT  # noqa: E402
from test_quantizer import reference  # noqa: E402

import weighbridge.torch as wt  # noqa: E402
from weighbridge import Scheme  # noqa: E402


class Block(torch.nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(width)
        self.up = torch.nn.Linear(width, 3 * width)
        self.down = torch.nn.Linear(3 * width, width, bias=False)
        self.fails = False

    def forward(self, x):
        y = self.down(torch.nn.functional.gelu(self.up(self.norm(x))))
        if self.fails:
            raise RuntimeError("on purpose")
        return x + y


class Net(torch.nn.Module):
    """An embedding, tied to the head, and layers between."""

    def __init__(self, layers: int = 5, width: int = 32) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(50, width)
        self.layers = torch.nn.ModuleList([Block(width) for _ in range(layers)])
        self.head = torch.nn.Linear(width, 50, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("scale", torch.tensor(1.5))

    def forward(self, tokens):
        x = self.embed(tokens) * self.scale
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


@pytest.fixture
def net(where):
    torch.manual_seed(0)
    return Net().to(where).eval()


TOKENS = [[1, 7, 3, 49], [0, 2, 2, 9]]


def run(model, where):
    with torch.no_grad():
        return model(torch.tensor(TOKENS, device=where)).cpu()


def bits(tensor) -> np.ndarray:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def same(one, other) -> bool:
    return np.array_equal(bits(one), bits(other))


CARRIERS = ["view", "on-demand", "prefetch", "auto"]


@pytest.mark.parametrize("pin", [None, False])
@pytest.mark.parametrize("carrier", CARRIERS)
def test_outputs_are_bit_identical(net, where, carrier, pin):
    resident = run(net, where)
    before = {name: bits(p).copy() for name, p in net.named_parameters()}
    if carrier == "view" and pin is False and where.type == "cuda":
        pytest.skip("views need pinned memory; that this is refused is in test_offloader")
    handle = wt.offload(net, offload_bytes=1 << 20, carrier=carrier, pin=pin)
    assert handle.plan.totals.offloaded_bytes == handle.plan.totals.payload_bytes
    for _ in range(3):
        assert same(run(net, where), resident)
    assert net.head.weight is net.embed.weight
    handle.remove()
    assert same(run(net, where), resident)
    assert {name: bits(p).tobytes() for name, p in net.named_parameters()} == {
        name: value.tobytes() for name, value in before.items()
    }
    assert all(p.requires_grad for p in net.parameters())
    assert next(net.parameters()).device.type == where.type


def test_a_part_and_by_device_bytes(net, where):
    resident = run(net, where)
    layer = sum(p.nbytes for p in net.layers[0].parameters())
    handle = wt.offload(net, offload_bytes=2 * layer, select="layers", order="declared")
    totals = handle.plan.totals
    assert 0 < totals.offloaded_bytes <= 2 * layer
    assert same(run(net, where), resident)
    handle.remove()
    handle = wt.offload(net, device_bytes=5 * layer, select="layers")
    totals = handle.plan.totals
    assert totals.resident_bytes + totals.slot_bytes <= 5 * layer
    assert same(run(net, where), resident)
    handle.remove()


def test_an_exception_in_a_layer_releases_it(net, where):
    resident = run(net, where)
    handle = wt.offload(net, offload_bytes=1 << 20, carrier="prefetch")
    net.layers[2].fails = True
    for _ in range(3):
        with pytest.raises(RuntimeError, match="on purpose"):
            run(net, where)
    net.layers[2].fails = False
    assert same(run(net, where), resident)
    handle.remove()


def test_saving_and_loading(net, where):
    saved = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    resident = run(net, where)
    handle = wt.offload(net, offload_bytes=1 << 20, carrier="prefetch")
    run(net, where)
    state = net.state_dict()
    assert list(state) == list(saved)
    assert all(same(state[name], saved[name]) for name in saved)
    doubled = {name: tensor * 2 for name, tensor in saved.items()}
    net.load_state_dict(doubled)
    changed = run(net, where)
    assert not same(changed, resident)
    assert all(same(tensor, doubled[name]) for name, tensor in net.state_dict().items())
    net.load_state_dict(saved)
    assert same(run(net, where), resident)
    handle.remove()


def test_to_another_type(net, where):
    expected = run(Net().to(where).eval().requires_grad_(False), where)
    del expected
    handle = wt.offload(net, offload_bytes=1 << 20)
    net.to(torch.bfloat16)
    assert all(p.dtype == torch.bfloat16 for p in net.parameters())
    offloaded = run(net, where)
    torch.manual_seed(0)
    assert same(offloaded, run(Net().to(where).eval().to(torch.bfloat16), where))
    handle.remove()
    assert same(run(net, where), offloaded)


def test_repacking(net, where):
    """What quantization does: same object, new object, new name, deleted, another shape."""
    handle = wt.offload(net, offload_bytes=1 << 20, select="layers", carrier="prefetch")
    plain = Net().to(where).eval()
    plain.load_state_dict(net.state_dict())

    def quantize(layer):
        with torch.no_grad():
            layer.norm.weight.mul_(0.5)
            layer.up.weight = torch.nn.Parameter(layer.up.weight.half().float() + 1, False)
            layer.up.register_parameter("shift", torch.nn.Parameter(layer.up.bias * 2, False))
            layer.up.bias.data = layer.up.bias.data + 1
            layer.down.weight.data = layer.down.weight.data.t().contiguous().t()

    for layer in plain.layers:
        quantize(layer)
    with handle.repack() as modules:
        names = []
        for name, module in modules:
            names.append(name)
            quantize(module)
    assert names == [f"layers.{index}" for index in range(5)]
    assert same(run(net, where), run(plain, where))
    state, wanted = net.state_dict(), plain.state_dict()
    assert state.keys() == wanted.keys()
    assert all(same(state[name], wanted[name]) for name in state)
    offloaded = {name for name in handle._names if name.startswith("layers")}
    assert "layers.0.up.shift" in offloaded
    assert all(handle._offloader.info(name).carrier == "prefetch" for name in offloaded)
    handle.remove()
    assert same(run(net, where), run(plain, where))


def test_from_a_file_without_the_model_in_memory(net, where, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    resident = run(net, where)
    path = tmp_path / "model.safetensors"
    state = {name: t.contiguous().clone() for name, t in net.state_dict().items()}
    del state["head.weight"]  # files have what is tied once
    safetensors.save_file(state, path)
    with torch.device("meta"):
        empty = Net().eval()
    empty.scale = torch.tensor(1.5, device=where)
    layer = sum(p.nbytes for p in net.layers[0].parameters())
    handle = wt.offload(empty, offload_bytes=3 * layer, checkpoint=path, device=where)
    assert not any(p.is_meta for p in empty.parameters())
    assert empty.head.weight is empty.embed.weight
    assert same(run(empty, where), resident)
    assert handle.stats().asked_bytes <= 3 * layer
    handle.remove()
    assert same(run(empty, where), resident)


def test_a_model_in_host_memory_is_brought_to_its_device(net, where):
    resident = run(net, where)
    net.cpu()
    layer = sum(p.nbytes for p in net.layers[0].parameters())
    handle = wt.offload(net, offload_bytes=2 * layer, device=where)
    assert {t.device.type for t in [*net.parameters(), *net.buffers()]} == {where.type}
    assert same(run(net, where), resident)
    handle.remove()
    assert same(run(net, where), resident)


def test_progress_is_told_and_can_cancel(net, where):
    resident, told = run(net, where), []

    def tell(phase, done, total):
        told.append((phase, done, total))

    handle = wt.offload(net, offload_bytes=1 << 20, progress=tell)
    assert told and all(0 <= done <= total for _, done, total in told)
    assert same(run(net, where), resident)
    handle.remove()

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        wt.offload(net, offload_bytes=1 << 20, progress=stop)
    assert same(run(net, where), resident), "nothing was changed"


def test_shards_are_one_checkpoint(net, where, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    resident, paths = run(net, where), []
    for half in range(2):
        state = {
            name: t.clone() for at, (name, t) in enumerate(net.named_parameters()) if at % 2 == half
        }
        paths.append(tmp_path / f"{half}.safetensors")
        safetensors.save_file(state, paths[-1])
    with torch.device("meta"):
        empty = Net().eval()
    empty.scale = torch.tensor(1.5, device=where)
    handle = wt.offload(empty, offload_bytes=1 << 20, checkpoint=paths, device=where)
    assert same(run(empty, where), resident)
    handle.remove()


def test_buffers_stay_unless_they_are_asked_for(net, where):
    resident = run(net, where)
    place = net.scale.data_ptr()
    handle = wt.offload(net, offload_bytes=1 << 20, groups=[""])
    assert net.scale.data_ptr() == place
    assert "scale" not in {planned.name for planned in handle.plan.parameters}
    handle.remove()
    handle = wt.offload(net, offload_bytes=1 << 20, groups=[""], buffers=True)
    (planned,) = (planned for planned in handle.plan.parameters if planned.name == "scale")
    assert planned.carrier == "prefetch" and net.scale.data_ptr() != place
    assert isinstance(net.scale, torch.Tensor) and not isinstance(net.scale, torch.nn.Parameter)
    assert same(run(net, where), resident)
    assert same(net.state_dict()["scale"], torch.tensor(1.5))
    handle.remove()
    assert same(run(net, where), resident)


class Tower(torch.nn.Module):
    """Weights of its own, a module whose inside is used without being called, two lists."""

    def __init__(self) -> None:
        super().__init__()
        self.position = torch.nn.Parameter(torch.randn(4, 32))
        self.attention = torch.nn.MultiheadAttention(32, 4, batch_first=True)
        self.encoder = torch.nn.ModuleList([Block(32) for _ in range(3)])
        self.decoder = torch.nn.ModuleList([Block(32) for _ in range(5)])
        self.embed = torch.nn.Embedding(50, 32)
        self.shifts = torch.nn.ParameterList([torch.randn(32) for _ in range(2)])
        self.heads = torch.nn.ModuleDict({"out": torch.nn.Linear(32, 32)})

    def forward(self, tokens):
        x = self.heads["out"](self.embed(tokens) + self.position + self.shifts[1])
        for layer in self.encoder:
            x = layer(x)
        x = self.attention(x, x, x, need_weights=False)[0]
        for layer in self.decoder:
            x = layer(x) + self.position
        return x


@pytest.mark.parametrize("pin", [None, False])
@pytest.mark.parametrize("carrier", ["on-demand", "prefetch", "auto"])
def test_weights_outside_of_layers(where, carrier, pin):
    torch.manual_seed(0)
    tower = Tower().to(where).eval()
    resident = run(tower, where)
    handle = wt.offload(tower, offload_bytes=1 << 20, carrier=carrier, pin=pin)
    groups = {group.name for group in handle.plan.groups}
    layers = {f"encoder.{at}" for at in range(3)} | {f"decoder.{at}" for at in range(5)}
    assert groups == {"", "attention", "embed", "heads.out", *layers}
    # What is used while groups come and go cannot have a slot of its own.
    for planned in handle.plan.parameters:
        if planned.name.startswith(("position", "shifts")):
            assert planned.carrier in ("view", "resident"), planned
    for _ in range(3):
        assert same(run(tower, where), resident)
    handle.remove()
    assert same(run(tower, where), resident)


def test_groups_may_be_one_or_named(net, where):
    resident = run(net, where)
    for groups, names in [
        ([""], {""}),
        (["layers.1", "layers.3"], {"embed", "head", "layers.1", "layers.3", "layers.0"}),
    ]:
        handle = wt.offload(net, offload_bytes=1 << 20, groups=groups)
        found = {group.name for group in handle.plan.groups}
        assert names <= found
        assert same(run(net, where), resident)
        handle.remove()


@pytest.mark.parametrize("carrier", ["view", "on-demand", "prefetch", "auto"])
def test_weights_are_kept_in_8_bits(net, where, carrier, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    before = {name: p.detach().cpu().numpy().copy() for name, p in net.named_parameters()}
    safetensors.save_model(net, str(tmp_path / "model.safetensors"))
    scheme = Scheme(block=(16, 32))
    with torch.device("meta"):
        empty = Net().eval()
    for model, more in (
        (net, {}),
        (empty, {"checkpoint": tmp_path / "model.safetensors", "device": where}),
    ):
        handle = wt.offload(
            model,
            offload_bytes=1 << 20,
            carrier=carrier,
            quantize={"format": "e4m3fn", "block": (16, 32)},
            exclude="layers.4",
            **more,
        )

        def check(model=model):
            state = model.state_dict()
            for layer in range(5):
                for own in ("up", "down"):
                    name = f"layers.{layer}.{own}.weight"
                    scales, codes = reference(before[name], scheme)
                    weight, scale = state[name], state[f"{name}_scale_inv"]
                    assert weight.dtype == torch.float8_e4m3fn
                    assert np.array_equal(bits(weight), codes.ravel())
                    assert np.array_equal(scale.cpu().numpy(), scales[0])
            # The head is a Linear too, and tied to the embedding, which keeps what it has.
            assert state["head.weight"].dtype == torch.float8_e4m3fn
            assert same(state["embed.weight"], torch.from_numpy(before["embed.weight"]))

        check()
        names = dict(model.named_parameters())
        module = model.layers[0].up
        assert module.weight_scale_inv is names["layers.0.up.weight_scale_inv"]
        info = handle._offloader.info("layers.0.up.weight")
        assert info.nbytes == module.weight.numel() and info.carrier != "resident"
        assert handle._offloader.info("layers.4.up.weight").carrier == "resident"
        handle.remove()
        check()


def test_quantize_that_cannot_be(net):
    for quantize, text in [({"bits": 4}, "bits"), ({"format": "e3m4"}, "e3m4")]:
        with pytest.raises((ValueError, TypeError), match=text):
            wt.offload(net, offload_bytes=1 << 20, quantize=quantize)


def test_the_example_runs(run_python):
    code, output, errors = run_python(str(ROOT / "examples" / "python" / "offload_torch.py"))
    assert code == 0, errors
    assert "offloaded_bytes=" in output


def test_groups_that_are_none(net):
    with pytest.raises(ValueError, match="no module 'layer'"):
        wt.offload(net, offload_bytes=1 << 20, groups=["layer"])
    with pytest.raises(ValueError, match="'layers' is a ModuleList, which is never called"):
        wt.offload(net, offload_bytes=1 << 20, groups=["layers"])


def test_compiled(net, where):
    resident = run(net, where)
    handle = wt.offload(net, offload_bytes=1 << 20, carrier="prefetch")
    compiled = torch.compile(net, backend="aot_eager")
    for _ in range(3):
        assert same(run(compiled, where), resident)
    handle.remove()

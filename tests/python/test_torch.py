"""PyTorch modules: outputs equal the resident model's, bit for bit, in every transfer mode."""

from __future__ import annotations

import threading

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from conftest import ROOT  # noqa: E402

import weighbridge.torch as wt  # noqa: E402
from fp8_reference import blocks, reference  # noqa: E402
from weighbridge import QuantizeOptions  # noqa: E402


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
    """An embedding, which is tied to the head, and layers between them."""

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


TRANSFER_MODES = ["zero-copy", "on-demand", "prefetch", "auto"]


@pytest.mark.parametrize("pin", [None, False])
@pytest.mark.parametrize("transfer_mode", TRANSFER_MODES)
def test_outputs_are_bit_identical(net, where, transfer_mode, pin):
    resident = run(net, where)
    before = {name: bits(p).copy() for name, p in net.named_parameters()}
    if transfer_mode == "zero-copy" and pin is False and where.type == "cuda":
        pytest.skip("zero-copy needs pinned memory; test_offloader tests the error")
    handle = wt.offload(net, offload_bytes=1 << 20, transfer_mode=transfer_mode, pin=pin)
    assert handle.plan.info.offloaded_bytes == handle.plan.info.payload_bytes
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


def test_either_budget_offloads_a_part(net, where):
    resident = run(net, where)
    layer = sum(p.nbytes for p in net.layers[0].parameters())
    handle = wt.offload(net, offload_bytes=2 * layer, select="layers", order="declared")
    assert 0 < handle.plan.info.offloaded_bytes <= 2 * layer
    assert same(run(net, where), resident)
    handle.remove()
    handle = wt.offload(net, device_bytes=5 * layer, select="layers")
    info = handle.plan.info
    assert info.resident_bytes + info.slot_bytes <= 5 * layer
    assert same(run(net, where), resident)
    handle.remove()


class ReadsAsAWhole(torch.nn.Module):
    """Multiplies with a part of an embedding, transposed: another layout of the same memory."""

    def __init__(self, weight) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(weight.detach()[:40].t(), requires_grad=False)

    def forward(self, x):
        return x @ self.weight


@pytest.mark.parametrize("tied", ["apart", "object", "layout"])
def test_an_embedding_that_a_head_reads_is_dense(net, where, tied):
    """A step reads a few of its rows only if nothing else uses its memory."""
    if tied == "apart":
        net.head.weight = torch.nn.Parameter(net.embed.weight.detach().clone())
    elif tied == "layout":
        net.head = ReadsAsAWhole(net.embed.weight)
    resident = run(net, where)
    handle = wt.offload(net, offload_bytes=1 << 20)
    found = {p["name"]: p["access_pattern"] for p in handle.plan.to_dict()["parameters"]}
    assert found["embed.weight"] == ("sparse" if tied == "apart" else "dense")
    assert {pattern for name, pattern in found.items() if name != "embed.weight"} == {"dense"}
    assert same(run(net, where), resident)
    handle.remove()


def test_a_step_is_predicted_from_given_times(net, where):
    """Seconds of groups are given by name, in any order, and rows and rates reach the plan."""
    given = {"offload_bytes": 1 << 20, "select": "layers", "link_bytes_per_second": 1e9}
    handle = wt.offload(net, **given)
    names = [group.name for group in handle.plan.groups]
    handle.remove()
    seconds = {name: 0.5 + at for at, name in enumerate(names)}
    backwards = dict(reversed(seconds.items()))
    handle = wt.offload(net, **given, group_seconds=backwards, rows=7)
    options = handle.plan.to_dict()["options"]
    assert (options["rows"], options["group_seconds"]) == (7, list(seconds.values()))
    assert handle.plan.info.kernel_seconds == pytest.approx(sum(seconds.values()))
    handle.remove()
    # The kernels of both groups of a tied weight read it.
    read = sum(p.nbytes for _, p in net.named_parameters(remove_duplicate=False))
    handle = wt.offload(net, **given, compute_bytes_per_second=read / 2)
    assert handle.plan.info.kernel_seconds == pytest.approx(2)
    handle.remove()


def test_seconds_of_other_groups_are_an_error(net, where):
    resident = run(net, where)
    with pytest.raises(ValueError, match=r"lacks .*'layers\.0'.* no group, \['nowhere'\]"):
        wt.offload(net, offload_bytes=1 << 20, group_seconds={"nowhere": 1.0})
    assert same(run(net, where), resident)


def test_an_exception_in_a_layer_releases_its_group(net, where):
    resident = run(net, where)
    handle = wt.offload(net, offload_bytes=1 << 20, transfer_mode="prefetch")
    net.layers[2].fails = True
    for _ in range(3):
        with pytest.raises(RuntimeError, match="on purpose"):
            run(net, where)
    net.layers[2].fails = False
    assert same(run(net, where), resident)
    handle.remove()


def test_state_dicts_have_the_true_weights_and_change_them(net, where):
    saved = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    resident = run(net, where)
    handle = wt.offload(net, offload_bytes=1 << 20, transfer_mode="prefetch")
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


def test_offloaded_weights_can_be_converted_to_another_type(net, where):
    handle = wt.offload(net, offload_bytes=1 << 20)
    net.to(torch.bfloat16)
    assert all(p.dtype == torch.bfloat16 for p in net.parameters())
    offloaded = run(net, where)
    torch.manual_seed(0)
    assert same(offloaded, run(Net().to(where).eval().to(torch.bfloat16), where))
    handle.remove()
    assert same(run(net, where), offloaded)


def test_repacked_weights_are_offloaded_again(net, where):
    """As quantization changes them: in place, as new objects, renamed, deleted, reshaped."""
    handle = wt.offload(net, offload_bytes=1 << 20, select="layers", transfer_mode="prefetch")
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
    infos = {info.name: info for info in handle.offloader.parameter_infos()}
    assert "layers.0.up.shift" in infos
    layers = [info for name, info in infos.items() if name.startswith("layers")]
    assert all(info.transfer_mode == "prefetch" for info in layers)
    handle.remove()
    assert same(run(net, where), run(plain, where))


def test_a_model_on_the_meta_device_is_loaded_from_a_file(net, where, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    resident = run(net, where)
    path = tmp_path / "model.safetensors"
    state = {name: t.contiguous().clone() for name, t in net.state_dict().items()}
    del state["head.weight"]  # files have tied weights once
    safetensors.save_file(state, path)
    with torch.device("meta"):
        empty = Net().eval()
    empty.scale = torch.tensor(1.5, device=where)
    layer = sum(p.nbytes for p in net.layers[0].parameters())
    handle = wt.offload(empty, offload_bytes=3 * layer, checkpoint=path, device=where)
    assert not any(p.is_meta for p in empty.parameters())
    assert empty.head.weight is empty.embed.weight
    assert same(run(empty, where), resident)
    assert handle.stats.asked_bytes <= 3 * layer
    handle.remove()
    assert same(run(empty, where), resident)


def test_a_model_in_host_memory_is_moved_to_its_device(net, where):
    resident = run(net, where)
    net.cpu()
    layer = sum(p.nbytes for p in net.layers[0].parameters())
    handle = wt.offload(net, offload_bytes=2 * layer, device=where)
    assert {t.device.type for t in [*net.parameters(), *net.buffers()]} == {where.type}
    assert same(run(net, where), resident)
    handle.remove()
    assert same(run(net, where), resident)


def test_progress_is_reported_and_can_cancel(net, where):
    resident, calls = run(net, where), []

    def progress(*call):
        calls.append(call)

    handle = wt.offload(net, offload_bytes=1 << 20, progress=progress)
    assert calls and all(0 <= done <= total for _, done, total in calls)
    assert same(run(net, where), resident)
    handle.remove()

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        wt.offload(net, offload_bytes=1 << 20, progress=stop)
    assert same(run(net, where), resident), "the model is unchanged"


def test_a_checkpoint_may_have_several_files(net, where, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    resident, paths = run(net, where), []
    for half in range(2):
        names = [name for name in net.state_dict() if name != "head.weight"]  # tied
        state = {name: net.state_dict()[name].clone() for name in names[half::2]}
        paths.append(tmp_path / f"{half}.safetensors")
        safetensors.save_file(state, paths[-1])
    with torch.device("meta"):
        empty = Net().eval()
    empty.scale = torch.tensor(1.5, device=where)
    handle = wt.offload(empty, offload_bytes=1 << 20, checkpoint=paths, device=where)
    assert same(run(empty, where), resident)
    handle.remove()


def test_buffers_are_offloaded_only_on_request(net, where):
    resident = run(net, where)
    address = net.scale.data_ptr()
    handle = wt.offload(net, offload_bytes=1 << 20, groups=[""])
    assert net.scale.data_ptr() == address
    assert "scale" not in {planned.name for planned in handle.plan.parameters}
    handle.remove()
    handle = wt.offload(net, offload_bytes=1 << 20, groups=[""], buffers=True)
    (planned,) = (planned for planned in handle.plan.parameters if planned.name == "scale")
    assert planned.transfer_mode == "prefetch" and net.scale.data_ptr() != address
    assert isinstance(net.scale, torch.Tensor) and not isinstance(net.scale, torch.nn.Parameter)
    assert same(run(net, where), resident)
    assert same(net.state_dict()["scale"], torch.tensor(1.5))
    handle.remove()
    assert same(run(net, where), resident)


class Tower(torch.nn.Module):
    """Has weights of its own, a module whose children are used uncalled, and two lists."""

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
@pytest.mark.parametrize("transfer_mode", ["on-demand", "prefetch", "auto"])
def test_weights_outside_of_layers_are_offloaded(where, transfer_mode, pin):
    torch.manual_seed(0)
    tower = Tower().to(where).eval()
    resident = run(tower, where)
    handle = wt.offload(tower, offload_bytes=1 << 20, transfer_mode=transfer_mode, pin=pin)
    groups = {group.name for group in handle.plan.groups}
    layers = {f"encoder.{at}" for at in range(3)} | {f"decoder.{at}" for at in range(5)}
    assert groups == {"", "attention", "embed", "heads.out", *layers}
    # Weights that are used while groups enter and leave slots have no slot.
    for planned in handle.plan.parameters:
        if planned.name.startswith(("position", "shifts")):
            assert planned.placement == "resident" or planned.transfer_mode == "zero-copy", planned
    for _ in range(3):
        assert same(run(tower, where), resident)
    handle.remove()
    assert same(run(tower, where), resident)


def test_groups_can_be_named(net, where):
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


def test_modules_that_are_in_several_lists_are_in_one_group(net, where):
    net.inner = torch.nn.ModuleList([net.layers[0], torch.nn.Sequential(net.layers[1])])
    resident = run(net, where)
    for groups in ("auto", ["inner.0", "layers.1"]):
        handle = wt.offload(net, offload_bytes=1 << 20, groups=groups)
        found = {group.name for group in handle.plan.groups}
        assert {"layers.0", "layers.1"} <= found
        assert not any(name.startswith("inner") for name in found)
        assert same(run(net, where), resident)
        handle.remove()


@pytest.mark.parametrize("transfer_mode", ["zero-copy", "on-demand", "prefetch", "auto"])
def test_weights_are_kept_in_fp8(net, where, transfer_mode, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    before = {name: p.detach().cpu().numpy().copy() for name, p in net.named_parameters()}
    safetensors.save_model(net, str(tmp_path / "model.safetensors"))
    options = blocks(16, 32)
    with torch.device("meta"):
        empty = Net().eval()
    for model, more in (
        (net, {}),
        (empty, {"checkpoint": tmp_path / "model.safetensors", "device": where}),
    ):
        handle = wt.offload(
            model,
            offload_bytes=1 << 20,
            transfer_mode=transfer_mode,
            quantize=options,
            exclude="layers.4",
            **more,
        )

        def check(model=model):
            state = model.state_dict()
            for layer in range(5):
                for own in ("up", "down"):
                    name = f"layers.{layer}.{own}.weight"
                    scales, codes = reference(before[name], options)
                    weight, scale = state[name], state[f"{name}_scale_inv"]
                    assert weight.dtype == torch.float8_e4m3fn
                    assert np.array_equal(bits(weight), codes.ravel())
                    assert np.array_equal(scale.cpu().numpy(), scales[0])
            # The head is a Linear, and is tied to the embedding, which keeps its type.
            assert state["head.weight"].dtype == torch.float8_e4m3fn
            assert same(state["embed.weight"], torch.from_numpy(before["embed.weight"]))

        check()
        names = dict(model.named_parameters())
        module = model.layers[0].up
        assert module.weight_scale_inv is names["layers.0.up.weight_scale_inv"]
        info = handle.offloader.parameter_info("layers.0.up.weight")
        assert info.span_bytes == module.weight.numel() and info.placement == "offloaded"
        assert handle.offloader.parameter_info("layers.4.up.weight").placement == "resident"
        handle.remove()
        check()


def test_an_unknown_quantized_type_is_an_error(net):
    with pytest.raises(ValueError, match="e3m4"):
        wt.offload(net, offload_bytes=1 << 20, quantize=QuantizeOptions("float8_e3m4"))


def test_the_example_runs(run_python):
    code, output, errors = run_python(str(ROOT / "examples" / "python" / "offload_torch.py"))
    assert code == 0, errors
    assert "offloaded_bytes=" in output


def test_arguments_of_another_kind_are_named(net):
    for change, message in [
        ({"model": None}, "model is None; it must be a torch.nn.Module"),
        ({"checkpoint": 5}, "checkpoint is 5; it must be a path or a list of paths"),
        ({"quantize": True}, "options are True; they must be weighbridge.QuantizeOptions"),
    ]:
        arguments = {"model": net, "offload_bytes": 1 << 20, **change}
        with pytest.raises(TypeError, match=message):
            wt.offload(arguments.pop("model"), **arguments)
    with pytest.raises(TypeError, match="device_bytes is None; it must be an integer"):
        wt.Arbiter(None)
    with pytest.raises(TypeError, match="handle is 5; it must be what"):
        wt.Arbiter(1 << 20).add(5)


def test_invalid_groups_are_errors(net):
    with pytest.raises(ValueError, match="no module 'layer'"):
        wt.offload(net, offload_bytes=1 << 20, groups=["layer"])
    with pytest.raises(ValueError, match="'layers' is a ModuleList, which is never called"):
        wt.offload(net, offload_bytes=1 << 20, groups=["layers"])
    with pytest.raises(ValueError, match="groups is 'layers': it is 'auto' or a list of names"):
        wt.offload(net, offload_bytes=1 << 20, groups="layers")


def test_compiled_outputs_are_bit_identical(net, where):
    resident = run(net, where)
    handle = wt.offload(net, offload_bytes=1 << 20, transfer_mode="prefetch")
    compiled = torch.compile(net, backend="aot_eager")
    for _ in range(3):
        assert same(run(compiled, where), resident)
    handle.remove()


@pytest.mark.parametrize("transfer_mode", ["on-demand", "prefetch"])
def test_a_step_starts_no_threads(net, where, transfer_mode, monkeypatch):
    """To start one for every wait for a layer's copies takes longer than most layers."""
    handle = wt.offload(net, offload_bytes=1 << 20, transfer_mode=transfer_mode)
    run(net, where)
    started = []
    monkeypatch.setattr(threading.Thread, "start", lambda thread: started.append(thread.name))
    run(net, where)
    monkeypatch.undo()
    assert handle.stats.acquires >= 2 * len(net.layers)
    assert started == []
    handle.remove()


def test_groups_by_themselves_begin_a_step_where_a_capture_begins_or_ends(net, monkeypatch):
    """Replays repeat captured calls only: what eager calls have copied is not there for them."""
    handle = wt.offload(net, offload_bytes=1 << 20, transfer_mode="prefetch", depth=3)
    late = []
    for at, captures in enumerate([False, False, True, True, False]):
        monkeypatch.setattr(handle._weights, "is_capturing", lambda captures=captures: captures)
        before = handle.stats.late_copies
        group = handle.offloader.find_group(f"layers.{at}")
        handle.acquire_group(group)
        handle.release_group(group)
        late.append(handle.stats.late_copies - before)
    assert late == [1, 0, 1, 0, 1]
    handle.remove()


def test_cuda_without_a_number_is_the_current_device(monkeypatch):
    """As for PyTorch, also on the second GPU of a rank; one with a number is that."""
    from weighbridge.torch._devices import runs_on

    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    one = torch.device("cuda", 1)
    assert runs_on("cuda") == runs_on(None) == runs_on(torch.device("cuda")) == one
    assert runs_on("cuda:0") == torch.device("cuda", 0)
    assert runs_on("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert runs_on("cuda") == torch.device("cuda", 0)  # which cannot be opened, with a clear error
    assert runs_on(None) == torch.device("cpu")

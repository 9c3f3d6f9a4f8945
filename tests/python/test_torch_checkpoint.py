"""``offload(checkpoint=...)`` reads files by the rules of ``load_state_dict``."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
files = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")

from torch import nn  # noqa: E402

import weighbridge.torch as wt  # noqa: E402
from equivalence.twins import equal  # noqa: E402
from weighbridge import WeighbridgeError  # noqa: E402


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(16, 32)
        self.norm = nn.BatchNorm1d(32)
        self.down = nn.Linear(32, 16, bias=False)

    def forward(self, x):
        return x + self.down(torch.relu(self.norm(self.up(x))))


class Net(nn.Module):
    """Has a tie, buffers that are saved, and one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.layers = nn.ModuleList([Layer() for _ in range(3)])
        self.head = nn.Linear(16, 20, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("bias", torch.zeros(16))
        self.register_buffer("table", torch.arange(16.0), persistent=False)

    def forward(self, tokens):
        x = self.embed(tokens) + self.bias + self.table
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def net(seed: int, dtype=torch.float32):
    """Returns a model whose every number depends on the seed."""
    torch.manual_seed(seed)
    model = Net()
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape) + 0.1)
    return model.to(dtype).eval()


def empty(dtype=torch.float32):
    """Returns a model on the meta device, but for the buffer that no file has."""
    with torch.device("meta"):
        model = Net().to(dtype).eval()
    model.table = torch.arange(16.0, dtype=dtype)
    return model


def saved(path, state):
    # A file has tied weights once.
    state = {name: tensor.contiguous().clone() for name, tensor in state.items()}
    state.pop("head.weight", None)
    files.save_file(state, path)
    return path


@pytest.fixture
def checkpoint(tmp_path):
    """A file with the numbers of another training."""
    return saved(tmp_path / "model.safetensors", net(2).state_dict())


def run(model, where):
    with torch.no_grad():
        return model(torch.tensor([1, 7, 3, 19], device=where)).cpu()


def state_of(model):
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def refused(model, where, path, message, **options):
    """Expects an error that leaves the model unchanged."""
    before = state_of(model)
    objects = [id(t) for t in (*model.parameters(), *model.buffers())]
    with pytest.raises(ValueError, match=message) as caught:
        wt.offload(model, offload_bytes=1 << 20, checkpoint=path, device=where, **options)
    if not any(tensor.is_meta for tensor in before.values()):
        assert equal(state_of(model), before)
    assert [id(t) for t in (*model.parameters(), *model.buffers())] == objects
    return str(caught.value)


@pytest.mark.parametrize("buffers", [False, True])
@pytest.mark.parametrize("build", [lambda: net(1), empty], ids=["random", "meta"])
def test_weights_and_buffers_are_those_of_the_file(where, checkpoint, build, buffers):
    """Batch norm's statistics, and a bias that routing reads, are buffers."""
    wanted = net(2).to(where)
    model = build()
    handle = wt.offload(
        model, offload_bytes=1 << 20, checkpoint=checkpoint, device=where, buffers=buffers
    )
    assert (handle.missing_keys, handle.unexpected_keys) == ([], [])
    assert equal(run(model, where), run(wanted, where))
    assert equal(state_of(model), state_of(wanted))
    assert model.head.weight is model.embed.weight
    handle.remove()
    assert equal(run(model, where), run(wanted, where))
    assert equal(state_of(model), state_of(wanted))


def test_buffers_are_changed_in_place(where, checkpoint):
    """Other references to the buffer see its new numbers, as after load_state_dict."""
    model = net(1).to(where)
    kept = model.bias
    handle = wt.offload(model, offload_bytes=1 << 20, checkpoint=checkpoint)
    assert model.bias is kept
    assert equal(kept.cpu(), net(2).bias)
    handle.remove()


def test_a_part_of_the_model_is_offloaded_and_all_of_it_is_read(where, checkpoint):
    wanted = net(2).to(where)
    model = empty()
    handle = wt.offload(
        model, offload_bytes=1 << 20, select="layers.1", checkpoint=checkpoint, device=where
    )
    assert equal(run(model, where), run(wanted, where))
    handle.remove()
    assert equal(state_of(model), state_of(wanted))


@pytest.mark.parametrize("build", [lambda: net(1), empty], ids=["random", "meta"])
def test_missing_names_are_an_error(where, tmp_path, build):
    state = net(2).state_dict()
    del state["layers.1.up.weight"], state["bias"], state["layers.0.norm.running_mean"]
    path = saved(tmp_path / "part.safetensors", state)
    message = refused(build(), where, path, "no file has")
    for name in ("layers.1.up.weight", "bias", "layers.0.norm.running_mean"):
        assert f"'{name}'" in message
    assert "strict=False" in message and "'embed.weight'" not in message


@pytest.mark.parametrize("build", [lambda: net(1), empty], ids=["random", "meta"])
def test_unexpected_names_are_an_error(where, tmp_path, build):
    state = {**net(2).state_dict(), "extra.weight": torch.ones(3)}
    path = saved(tmp_path / "more.safetensors", state)
    assert "'extra.weight'" in refused(build(), where, path, "the model has no")


@pytest.mark.parametrize("build", [lambda: net(1), empty], ids=["random", "meta"])
def test_a_prefix_of_every_name_is_an_error(where, tmp_path, build):
    state = {f"model.{name}": tensor for name, tensor in net(2).state_dict().items()}
    path = saved(tmp_path / "prefix.safetensors", {**state})
    message = refused(build(), where, path, "no file has.*the model has no")
    assert "and " in message and "more" in message, "a long list is cut"


def test_other_names_are_listed_if_it_is_not_strict(where, tmp_path):
    state = net(2).state_dict()
    del state["layers.1.up.weight"], state["bias"]
    state["extra.weight"] = torch.ones(3)
    path = saved(tmp_path / "other.safetensors", state)
    model, wanted = net(1).to(where), net(1).to(where)
    del state["head.weight"]
    missing, unexpected = wanted.load_state_dict(state, strict=False)
    handle = wt.offload(model, offload_bytes=1 << 20, checkpoint=path, strict=False)
    # As in torch, but for the tie, which a file has once.
    assert sorted(handle.missing_keys) == sorted(set(missing) - {"head.weight"})
    assert handle.unexpected_keys == unexpected == ["extra.weight"]
    assert equal(state_of(model), state_of(wanted))
    assert equal(run(model, where), run(wanted, where))
    handle.remove()
    assert equal(state_of(model), state_of(wanted))


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("build", [lambda: net(1), empty], ids=["random", "meta"])
@pytest.mark.parametrize(
    "name, shape",
    [
        ("embed.weight", (30, 16)),
        ("layers.0.up.weight", (16, 32)),
        ("layers.0.up.weight", (512,)),
        ("layers.0.up.weight", (1, 32, 16)),
        ("bias", (17,)),
        ("layers.2.norm.running_var", (1, 32)),
    ],
    ids=str,
)
def test_another_shape_is_an_error(where, tmp_path, build, name, shape, strict):
    state = {**net(2).state_dict(), name: torch.ones(shape)}
    path = saved(tmp_path / "shape.safetensors", state)
    message = refused(build(), where, path, f"'{name}' has the shape", strict=strict)
    assert str(tuple(shape)) in message
    assert str(tuple(net(2).state_dict()[name].shape)) in message


@pytest.mark.parametrize("buffers", [False, True])
@pytest.mark.parametrize("given", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["random", "meta"])
def test_another_type_is_cast(where, tmp_path, kind, dtype, given, buffers):
    state = {
        name: tensor.to(given) if tensor.is_floating_point() else tensor
        for name, tensor in net(2).state_dict().items()
    }
    path = saved(tmp_path / "cast.safetensors", state)
    wanted = net(1, dtype).to(where)
    wanted.load_state_dict(state)
    model = net(1, dtype) if kind == "random" else empty(dtype)
    handle = wt.offload(
        model, offload_bytes=1 << 20, checkpoint=path, device=where, buffers=buffers
    )
    assert equal(state_of(model), state_of(wanted))
    assert equal(run(model, where), run(wanted, where))
    handle.remove()
    assert equal(state_of(model), state_of(wanted))


def test_one_type_of_many_is_cast(where, tmp_path):
    """Full-precision biases in a file for a model in half precision."""
    state = net(2, torch.bfloat16).state_dict()
    state["layers.1.up.bias"] = state["layers.1.up.bias"].float() / 3
    path = saved(tmp_path / "mixed.safetensors", state)
    wanted = net(1, torch.bfloat16).to(where)
    wanted.load_state_dict(state)
    model = empty(torch.bfloat16)
    handle = wt.offload(model, offload_bytes=1 << 20, checkpoint=path, device=where)
    assert equal(state_of(model), state_of(wanted))
    handle.remove()


@pytest.mark.parametrize("build", [lambda: net(1), empty], ids=["random", "meta"])
def test_fp8_is_not_cast(where, tmp_path, build):
    """Without their scales they are other numbers."""
    state = net(2).state_dict()
    state["layers.1.up.weight"] = state["layers.1.up.weight"].to(torch.float8_e4m3fn)
    path = saved(tmp_path / "fp8.safetensors", state)
    for strict in (True, False):
        message = refused(build(), where, path, "'layers.1.up.weight' is", strict=strict)
        assert "float8_e4m3fn" in message and "float32" in message


@pytest.mark.parametrize("strict", [True, False])
def test_tensors_that_stay_on_the_meta_device_are_named(where, checkpoint, strict):
    """Like the tables of rotary embeddings, which no file has."""
    model = empty()
    model.register_buffer("table", torch.empty(16, device="meta"), persistent=False)
    message = refused(model, where, checkpoint, "stay on the meta device", strict=strict)
    assert "'table'" in message


def test_missing_weights_that_stay_on_the_meta_device_are_named(where, tmp_path):
    state = net(2).state_dict()
    del state["layers.1.up.weight"], state["layers.2.norm.running_mean"]
    path = saved(tmp_path / "part.safetensors", state)
    message = refused(empty(), where, path, "stay on the meta device", strict=False)
    assert "'layers.1.up.weight'" in message and "'layers.2.norm.running_mean'" in message


def test_a_meta_model_without_a_checkpoint_is_an_error(where):
    message = refused(empty(), where, (), "there is no checkpoint for the model Net")
    assert "'embed.weight'" in message


def test_a_name_in_two_files_is_an_error(where, tmp_path, checkpoint):
    again = saved(tmp_path / "again.safetensors", {"bias": torch.ones(16)})
    assert "'bias'" in refused(net(1), where, [checkpoint, again], "several files have")


def test_several_files_are_one_checkpoint(where, tmp_path):
    state = list(net(2).state_dict().items())
    paths = [saved(tmp_path / f"{part}.safetensors", dict(state[part::3])) for part in range(3)]
    wanted, model = net(2).to(where), empty()
    handle = wt.offload(model, offload_bytes=1 << 20, checkpoint=paths, device=where)
    assert equal(state_of(model), state_of(wanted))
    handle.remove()
    refused(net(1), where, paths[:2], "no file has")


@pytest.mark.parametrize("name", ["embed.weight", "head.weight"])
def test_a_tied_weight_has_any_of_its_names_in_the_file(where, tmp_path, name):
    state = {key: tensor.clone() for key, tensor in net(2).state_dict().items()}
    weight = state.pop("embed.weight")
    del state["head.weight"]
    path = tmp_path / "tied.safetensors"
    files.save_file({**state, name: weight}, path)
    wanted = net(2).to(where)
    for model in (net(1), empty()):
        handle = wt.offload(model, offload_bytes=1 << 20, checkpoint=path, device=where)
        assert equal(state_of(model), state_of(wanted))
        handle.remove()
        assert model.head.weight is model.embed.weight


def test_two_parameters_over_one_storage_are_tied(where, checkpoint):
    """safetensors saves shared storage once."""
    model, wanted = net(1), net(2).to(where)
    model.head.weight = nn.Parameter(model.embed.weight.detach())
    handle = wt.offload(model, offload_bytes=1 << 20, checkpoint=checkpoint, device=where)
    assert equal(run(model, where), run(wanted, where))
    handle.remove()
    assert equal(state_of(model), state_of(wanted))


def test_memory_that_is_shared_in_part_is_an_error(where, tmp_path):
    class Slices(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.whole = nn.Parameter(torch.ones(8, 4))
            self.part = nn.Parameter(self.whole.detach()[:4])

    path = tmp_path / "slices.safetensors"
    files.save_file({"whole": torch.zeros(8, 4), "part": torch.zeros(4, 4)}, path)
    message = refused(Slices(), where, path, "shares memory with")
    assert "'whole'" in message and "'part'" in message


def test_the_order_of_a_weights_elements_stays(where, tmp_path):
    """load_state_dict copies numbers: the model keeps its strides."""
    model, wanted = net(1), net(2)
    for each in (model, wanted):
        up = each.layers[0].up
        up.weight = nn.Parameter(up.weight.detach().t().contiguous().t())
    path = saved(tmp_path / "strided.safetensors", net(2).state_dict())
    handle = wt.offload(model, offload_bytes=1 << 20, checkpoint=path, device=where)
    assert model.layers[0].up.weight.stride() == (1, 32)
    assert equal(state_of(model), state_of(wanted.to(where)))
    handle.remove()
    assert model.layers[0].up.weight.stride() == (1, 32)


def test_every_problem_is_in_one_error(where, tmp_path):
    state = {**net(2).state_dict(), "extra": torch.ones(2), "bias": torch.ones(3)}
    del state["layers.1.up.weight"]
    message = refused(net(1), where, saved(tmp_path / "all.safetensors", state), "does not fit")
    for name in ("extra", "bias", "layers.1.up.weight"):
        assert f"'{name}'" in message


def test_a_refused_plan_changes_no_buffer(where, checkpoint):
    """The error comes after the file was read."""
    model = net(1).to(where)
    before = state_of(model)
    with pytest.raises(WeighbridgeError, match="0 bytes offload nothing"):
        wt.offload(model, offload_bytes=0, checkpoint=checkpoint)
    with pytest.raises(KeyboardInterrupt):
        wt.offload(model, offload_bytes=1 << 20, checkpoint=checkpoint, progress=interrupt)
    assert equal(state_of(model), before)


def interrupt(*_):
    raise KeyboardInterrupt


def test_a_model_of_transformers_is_read(where, tmp_path):
    """Its rotary tables are in no file; its routers have a bias that is a buffer."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.DeepseekV3Config(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        moe_intermediate_size=16,
        n_routed_experts=8,
        num_experts_per_tok=2,
        n_group=2,
        topk_group=1,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        v_head_dim=8,
        qk_nope_head_dim=8,
        first_k_dense_replace=1,
    )

    def build(seed):
        torch.manual_seed(seed)
        return transformers.DeepseekV3ForCausalLM(config).eval()

    def logits(model):
        tokens = torch.arange(24, device=where).reshape(2, 12) % 90
        with torch.no_grad():
            return model(input_ids=tokens, use_cache=False).logits.cpu()

    trained = build(0)
    biases = [b for name, b in trained.named_buffers() if "e_score_correction_bias" in name]
    for bias in biases:
        bias.copy_(torch.linspace(-1, 1, 8))
    assert biases
    path = tmp_path / "deepseek.safetensors"
    files.save_file({k: v.clone() for k, v in trained.state_dict().items()}, path)
    wanted = logits(trained.to(where))
    model = build(1)
    handle = wt.offload(model, offload_bytes=1 << 24, checkpoint=path, device=where)
    assert equal(logits(model), wanted)
    handle.remove()
    with torch.device("meta"):
        model = transformers.DeepseekV3ForCausalLM(config).eval()
    assert "inv_freq" in refused(model, where, path, "stay on the meta device")

"""weighbridge.engines.transformers: numbers and reports are those of transformers' own loading."""

from __future__ import annotations

import copy
import gc
import json
import shutil
import threading
import weakref

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from safetensors.torch import load_file, save_file  # noqa: E402

import weighbridge.torch as wt  # noqa: E402
from weighbridge import QuantizeOptions, Safetensors, WeighbridgeError  # noqa: E402
from weighbridge.compress_file import compress_file  # noqa: E402
from weighbridge.engines.transformers import (  # noqa: E402
    _begun,
    _deferred,
    _files,
    _load,
    from_pretrained,
)

SMALL = {
    "vocab_size": 96,
    "max_position_embeddings": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
}
LAYERED = {**SMALL, "num_key_value_heads": 2}
MODELS = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", LAYERED),
    "tied": ("LlamaForCausalLM", "LlamaConfig", {**LAYERED, "tie_word_embeddings": True}),
    "mixtral": (
        "MixtralForCausalLM",
        "MixtralConfig",
        {**LAYERED, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "qwen3-moe": (
        "Qwen3MoeForCausalLM",
        "Qwen3MoeConfig",
        {
            **LAYERED,
            "head_dim": 8,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
        },
    ),
    "gpt2": (
        "GPT2LMHeadModel",
        "GPT2Config",
        {"vocab_size": 96, "n_positions": 64, "n_embd": 32, "n_layer": 4, "n_head": 4},
    ),
    "bert": ("BertForMaskedLM", "BertConfig", SMALL),
    "t5": (
        "T5ForConditionalGeneration",
        "T5Config",
        {
            "vocab_size": 96,
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 64,
            "num_layers": 3,
            "num_heads": 4,
            "decoder_start_token_id": 0,
        },
    ),
}
FUSED = {"mixtral": "experts.0.w1.weight", "qwen3-moe": "experts.0.gate_proj.weight"}
"""Names in checkpoints that the models do not have."""
ALL = {"offload_bytes": 1 << 24}
INDEX_NAME = "model.safetensors.index.json"


def made(kind: str):
    torch.manual_seed(0)
    model, config, options = MODELS[kind]
    return getattr(transformers, model)(getattr(transformers, config)(**options)).eval()


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Returns the folder of a model's checkpoint of several files."""
    found = {}

    def path(kind: str):
        if kind not in found:
            found[kind] = tmp_path_factory.mktemp(kind)
            made(kind).save_pretrained(found[kind], max_shard_size="50KB")
            assert len(list(found[kind].glob("*.safetensors"))) > 1
        return found[kind]

    return path


def run(model, where):
    tokens = torch.arange(24, device=where).reshape(2, 12) * 3 % 90 + 3
    more = {"decoder_input_ids": tokens} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model(input_ids=tokens, **more)[0].cpu()


def state_of(model):
    return {name: tensor.cpu().clone() for name, tensor in model.state_dict().items()}


def assert_same(model, other):
    assert model.keys() == other.keys()
    for name, tensor in other.items():
        assert model[name].dtype == tensor.dtype, name
        assert torch.equal(model[name], tensor), name


def bytes_of(model):
    return sum({p.data_ptr(): p.nbytes for p in model.parameters()}.values())


def copy_of(folder, target):
    shutil.copytree(folder, target, dirs_exist_ok=True)
    return target


def changed_config(folder, target, **fields):
    copy_of(folder, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, **fields}))
    return target


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", list(MODELS))
def test_numbers_are_those_of_transformers(where, checkpoints, kind, dtype):
    path = checkpoints(kind)
    assert kind not in FUSED or any(FUSED[kind] in name for name in names_of(path))
    resident = type(made(kind)).from_pretrained(path, dtype=dtype).to(where)
    expected, state = run(resident, where), state_of(resident)
    for budget in (ALL, {"device_bytes": bytes_of(resident) // 2}):
        model = from_pretrained(path, dtype=dtype, device=where, **budget)
        handle = wt.handle_of(model)
        assert handle.plan.info.offloaded_bytes > 0 == handle.stats.unfilled_bytes
        assert (handle.plan.info.resident_bytes > 0) == ("device_bytes" in budget)
        assert not model.training and isinstance(model, type(resident))
        assert_same(state_of(model), state)
        for _ in range(2):
            assert torch.equal(run(model, where), expected)
        handle.remove()
        assert type(model) is type(resident)
        assert_same(state_of(model), state)
        assert torch.equal(run(model, where), expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["llama", "tied", "mixtral", "gpt2", "t5"])
def test_a_compressed_checkpoint_has_the_same_numbers(where, checkpoints, tmp_path, kind, dtype):
    path, packed = checkpoints(kind), tmp_path / "packed"
    copy_of(path, packed)
    compress_file(path / INDEX_NAME, packed / INDEX_NAME)
    sizes = [sum(file.stat().st_size for file in of.glob("*.safetensors")) for of in (packed, path)]
    assert sizes[0] < sizes[1]  # few of these small weights are compressed
    resident = type(made(kind)).from_pretrained(path, dtype=dtype).to(where)
    expected, state = run(resident, where), state_of(resident)
    for compress in (False, "*"):
        for budget in (ALL, {"device_bytes": bytes_of(resident) // 2}):
            model = from_pretrained(packed, dtype=dtype, device=where, compress=compress, **budget)
            handle = wt.handle_of(model)
            in_file = [one for one in handle.plan.parameters if "in its file" in one.reason]
            # Of another type they are decoded to be cast.
            if budget is ALL:
                assert bool(in_file) == (compress == "*" and dtype == "float32")
            for one in in_file:
                assert handle.offloader.parameter_info(one.name).encoded_bytes == one.encoded_bytes
            for _ in range(2):
                assert torch.equal(run(model, where), expected)
            assert_same(state_of(model), state)
            handle.remove()
            assert torch.equal(run(model, where), expected)


@pytest.mark.parametrize("host_store", ["copy", "compressed"])
def test_a_large_compressed_checkpoint_is_carried_unchanged(where, tmp_path, host_store):
    torch.manual_seed(0)
    config = {**LAYERED, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 3}
    trained = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config)).bfloat16()
    trained.save_pretrained(tmp_path / "raw", max_shard_size="1MB")
    copy_of(tmp_path / "raw", tmp_path / "packed")
    compress_file(tmp_path / "raw" / INDEX_NAME, tmp_path / "packed" / INDEX_NAME)
    stores = {"compress": "auto", "host_store": host_store}
    model = from_pretrained(tmp_path / "packed", device=where, **stores, **ALL)
    plan = wt.handle_of(model).plan
    for info in wt.handle_of(model).offloader.parameter_infos():
        stays = host_store == "compressed" and info.encoded_bytes > 0
        assert info.host_store == ("source" if stays else "copy")
    in_file = [one for one in plan.parameters if "in its file" in one.reason]
    assert len(in_file) == 3 * 3  # the projections of each MLP have 256 KiB
    large = sum(one.span_bytes for one in in_file)
    assert plan.info.arena_bytes < plan.info.offloaded_bytes - 0.3 * large
    kind = transformers.LlamaForCausalLM
    resident = kind.from_pretrained(tmp_path / "raw", dtype="bfloat16").to(where)
    expected = run(resident, where)
    for _ in range(2):
        assert torch.equal(run(model, where), expected)


def names_of(path):
    return json.loads((path / "model.safetensors.index.json").read_text())["weight_map"]


def test_modules_that_transformers_keeps_in_full_precision_stay_so(where, checkpoints):
    path = checkpoints("t5")
    kind = transformers.T5ForConditionalGeneration
    state = state_of(kind.from_pretrained(path, dtype=torch.float16))
    assert {tensor.dtype for tensor in state.values()} == {torch.float16, torch.float32}
    model = from_pretrained(path, dtype=torch.float16, device=where, **ALL)
    assert_same(state_of(model), state)


@pytest.mark.parametrize("buffers", [False, True])
def test_buffers_are_those_of_the_checkpoint(where, tmp_path, buffers):
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[2, 2], layer_type="basic"
    )
    torch.manual_seed(0)
    model = transformers.ResNetForImageClassification(config)
    with torch.no_grad():
        for _ in range(
            3
        ):  # in training mode, so that the statistics are no longer the initial ones
            model(torch.randn(2, 3, 32, 32))
    model.save_pretrained(tmp_path)
    loaded = from_pretrained(tmp_path, device=where, buffers=buffers, **ALL)
    assert any(tensor.dtype == torch.int64 for tensor in loaded.buffers())
    assert_same(state_of(loaded), state_of(model))
    pixels = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        expected = model.to(where).eval()(pixels.to(where)).logits
        assert torch.equal(loaded(pixels.to(where)).logits, expected)


def test_tied_weights_are_one(where, checkpoints):
    model = from_pretrained(checkpoints("tied"), device=where, **ALL)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    handle = wt.handle_of(model)
    assert handle.plan.info.payload_bytes == bytes_of(made("tied"))


@pytest.mark.parametrize("kind", ["llama", "mixtral"])
def test_generation_is_that_of_transformers(where, checkpoints, kind):
    path = copy_of(checkpoints(kind), checkpoints(kind).with_name(f"{kind}-generates"))
    given = {"max_new_tokens": 7, "do_sample": False, "pad_token_id": 0, "eos_token_id": 95}
    (path / "generation_config.json").write_text(json.dumps(given))
    resident = type(made(kind)).from_pretrained(path).to(where)
    tokens = torch.tensor([[5, 7, 11, 13]], device=where)
    model = from_pretrained(path, device=where, **ALL)
    assert model.generation_config.max_new_tokens == 7
    assert model.name_or_path == str(path) == resident.name_or_path
    assert torch.equal(model.generate(tokens), resident.generate(tokens))


def test_pipelines_take_the_model(where, checkpoints):
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({f"w{n}": n for n in range(96)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0")

    def text(model):
        generate = transformers.pipeline(
            "text-generation", model=model, tokenizer=tokenizer, device=where
        )
        return generate("w5 w7 w11", max_new_tokens=6, do_sample=False)

    path = checkpoints("llama")
    resident = transformers.LlamaForCausalLM.from_pretrained(path).to(where)
    assert text(from_pretrained(path, device=where, **ALL)) == text(resident)


@pytest.mark.parametrize("kind", ["AutoModel", "AutoModelForCausalLM", "LlamaModel"])
def test_the_class_may_be_given(where, checkpoints, kind):
    path, wanted = checkpoints("llama"), getattr(transformers, kind)
    resident = wanted.from_pretrained(path).to(where)
    model = from_pretrained(path, model_class=wanted, device=where, **ALL)
    assert isinstance(model, type(resident))
    assert_same(state_of(model), state_of(resident))
    assert torch.equal(run(model, where), run(resident, where))


def test_missing_and_unexpected_names_are_those_of_transformers(where, checkpoints):
    path, kind = checkpoints("bert"), transformers.BertForSequenceClassification
    torch.manual_seed(3)
    resident, wanted = kind.from_pretrained(path, output_loading_info=True)
    torch.manual_seed(3)
    model, info = from_pretrained(
        path, model_class=kind, output_loading_info=True, device=where, **ALL
    )
    assert info == wanted and info["missing_keys"] and info["unexpected_keys"]
    assert_same(state_of(model), state_of(resident))  # also what was made for missing names


def test_another_size_is_reported_as_by_transformers(where, checkpoints, tmp_path):
    path = changed_config(checkpoints("llama"), tmp_path, intermediate_size=48)
    with pytest.raises(RuntimeError) as wanted:
        transformers.LlamaForCausalLM.from_pretrained(path)
    with pytest.raises(RuntimeError) as found:
        from_pretrained(path, device=where, **ALL)
    assert str(found.value) == str(wanted.value)
    torch.manual_seed(3)
    resident = transformers.LlamaForCausalLM.from_pretrained(path, ignore_mismatched_sizes=True)
    torch.manual_seed(3)
    model = from_pretrained(path, ignore_mismatched_sizes=True, device=where, **ALL)
    assert_same(state_of(model), state_of(resident))


@pytest.mark.parametrize("kind", ["llama", "mixtral"])
def test_a_saved_model_is_the_checkpoint(where, checkpoints, tmp_path, kind):
    """Also where the model has other names and fused weights."""
    path = checkpoints(kind)
    from_pretrained(path, device=where, **ALL).save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    given = {
        name: one for file in path.glob("*.safetensors") for name, one in load_file(file).items()
    }
    assert_same(saved, given)


def test_a_copy_of_the_model_is_resident(where, checkpoints):
    model = from_pretrained(checkpoints("llama"), device=where, **ALL)
    other = copy.deepcopy(model)
    assert torch.equal(run(other, where), run(model, where))
    with pytest.raises(ValueError, match="not offloaded"):
        wt.handle_of(other)


def test_a_model_that_is_no_longer_used_is_freed(where, device, checkpoints):
    """The device that the fixture opens has no memory left."""
    model = from_pretrained(checkpoints("mixtral"), device=where, **ALL)
    run(model, where)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_a_name_of_the_hub_is_found_in_its_cache(where, checkpoints, tmp_path):
    folder = tmp_path / "models--org--tiny"
    copy_of(checkpoints("llama"), folder / "snapshots" / ("1" * 40))
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("1" * 40)
    options = {"cache_dir": tmp_path, "local_files_only": True}
    model = from_pretrained("org/tiny", device=where, **options, **ALL)
    assert_same(state_of(model), state_of(made("llama")))
    assert model.name_or_path == "org/tiny"


def test_weights_are_kept_in_fp8(where, checkpoints):
    """Also those that are cast first: the numbers are of the offloaded resident model."""
    path = checkpoints("llama")
    for dtype in (torch.float32, torch.bfloat16):
        options = {"quantize": QuantizeOptions(), **ALL}
        resident = transformers.LlamaForCausalLM.from_pretrained(path, dtype=dtype).to(where)
        wt.offload(resident, **options)
        state = state_of(resident)
        model = from_pretrained(path, dtype=dtype, device=where, **options)
        assert state["model.layers.0.mlp.up_proj.weight"].dtype == torch.float8_e4m3fn
        assert_same(state_of(model), state)


def test_one_device_of_a_device_map_is_the_device(where, checkpoints):
    for given in (str(where), where, {"": where}):
        model = from_pretrained(checkpoints("llama"), device_map=given, **ALL)
        assert model.device.type == where.type


@pytest.mark.parametrize("given", ["auto", "balanced", {"model": 0, "lm_head": "cpu"}, "disk"])
def test_another_device_map_is_refused(checkpoints, given):
    with pytest.raises(ValueError, match=r"device_map .* leave it out"):
        from_pretrained(checkpoints("llama"), device_map=given, **ALL)


@pytest.mark.parametrize(
    "given",
    [
        {"max_memory": {0: 1}},
        {"offload_folder": "x"},
        {"tp_plan": "auto"},
        {"gguf_file": "x.gguf"},
        {"state_dict": {"a": None}},
        {"quantization_config": {"quant_method": "bitsandbytes"}},
    ],
)
def test_options_that_place_weights_in_another_way_are_refused(checkpoints, given):
    with pytest.raises(ValueError, match=f"{next(iter(given))} is given"):
        from_pretrained(checkpoints("llama"), **given, **ALL)


@pytest.mark.parametrize("method", ["gptq", "bitsandbytes", "awq", "fp8"])
def test_a_checkpoint_of_another_quantizer_is_refused(checkpoints, tmp_path, method):
    quantized = {"quant_method": method, "load_in_4bit": method == "bitsandbytes"}
    path = changed_config(checkpoints("llama"), tmp_path, quantization_config=quantized)
    with pytest.raises(ValueError, match=f"quantized by {method}.*weighbridge.torch.offload"):
        from_pretrained(path, **ALL)


def test_a_checkpoint_in_another_format_is_refused(checkpoints, tmp_path):
    copy_of(checkpoints("llama"), tmp_path)
    for file in tmp_path.glob("model*"):
        file.unlink()
    torch.save(made("llama").state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin.*save_pretrained"):
        from_pretrained(tmp_path, **ALL)
    with pytest.raises(ValueError, match="use_safetensors is False"):
        from_pretrained(tmp_path, use_safetensors=False, **ALL)


def test_a_folder_without_a_model_is_an_error_of_transformers(tmp_path):
    with pytest.raises((OSError, ValueError), match=r"config\.json"):
        from_pretrained(tmp_path, **ALL)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="load the model"):
        from_pretrained(tmp_path, **ALL)


def test_an_unknown_class_is_an_error(checkpoints, tmp_path):
    path = changed_config(checkpoints("llama"), tmp_path, architectures=["NoSuchModel"])
    with pytest.raises(ValueError, match=r"NoSuchModel.*model_class="):
        from_pretrained(path, **ALL)
    with pytest.raises(TypeError, match="a class of transformers"):
        from_pretrained(path, model_class=torch.nn.Linear, **ALL)


def test_an_element_type_that_the_library_lacks_is_named(checkpoints, tmp_path):
    path = copy_of(checkpoints("llama"), tmp_path)
    file = sorted(path.glob("*.safetensors"))[0]
    header = {"model.norm.weight": {"dtype": "F6_E2M3", "shape": [32], "data_offsets": [0, 24]}}
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + bytes(24))
    with pytest.raises(ValueError, match=r"model\.norm\.weight.*element type"):
        from_pretrained(path, **ALL)


def test_a_budget_that_is_too_small_is_an_error(where, checkpoints):
    with pytest.raises(WeighbridgeError, match="bytes"):
        from_pretrained(checkpoints("llama"), device=where, device_bytes=16, pin=False)
    with pytest.raises(WeighbridgeError, match="one budget"):
        from_pretrained(checkpoints("llama"), device=where)


def mapped_bytes(address):
    """The bytes of a mapping that this process can read without a fault."""
    begin = f"{address:x}-"
    with open("/proc/self/smaps") as lines:
        for line in lines:
            if line.startswith(begin):
                break
        rss = next(line for line in lines if line.startswith("Rss:"))
    return int(rss.split()[1]) << 10


def test_pages_of_files_are_mapped_in_the_background(device, tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(3 << 20, dtype=torch.uint8)}, path)
    with Safetensors(device, path, file_mode="source") as file, file.buffer as buffer:
        before = mapped_bytes(buffer.address)
        populate = _files.Populate()
        populate.add(buffer.address, buffer.nbytes)
        populate.start()
        populate.wait()
        assert before < 1 << 20 and mapped_bytes(buffer.address) > 3 << 20


def test_nothing_is_left_in_the_background(checkpoints, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no places")

    def left():
        return [one for one in threading.enumerate() if one.name == _files.NAME]

    from_pretrained(checkpoints("llama"), device="cpu", offload_bytes=1 << 20)
    assert not left() and gc.isenabled()
    monkeypatch.setattr(_load, "give_places", fail)
    with pytest.raises(RuntimeError, match="no places"):
        from_pretrained(checkpoints("llama"), device="cpu", offload_bytes=1 << 20)
    assert not left() and gc.isenabled()


@pytest.fixture
def commits(monkeypatch):
    """Returns the plans of commits that began while transformers loaded: taken, and cancelled."""
    taken, cancelled = [], []
    offloader, cancel = _begun.Begun.offloader, _begun.Begun.cancel

    def take(begun):
        taken.append(begun.plan)
        return offloader(begun)

    def end(begun):
        if begun.plan not in taken + cancelled:
            cancelled.append(begun.plan)
        cancel(begun)

    monkeypatch.setattr(_begun.Begun, "offloader", take)
    monkeypatch.setattr(_begun.Begun, "cancel", end)
    return taken, cancelled


@pytest.mark.parametrize("kind", [*MODELS])
def test_a_commit_begins_while_transformers_loads(where, checkpoints, commits, kind):
    model = from_pretrained(checkpoints(kind), device=where, **ALL)
    assert (len(commits[0]), len(commits[1])) == (1, 0)
    assert wt.handle_of(model).plan is commits[0][0]


def test_a_commit_of_another_model_than_the_loaded_one_is_made_again(
    where, checkpoints, commits, tmp_path
):
    path = checkpoints("llama")
    for file in copy_of(path, tmp_path).glob("*.safetensors"):
        tensors = load_file(file)
        tensors.pop("model.norm.weight", None)  # transformers makes it: it has other bytes then
        save_file(tensors, file, {"format": "pt"})
    model = from_pretrained(tmp_path, device=where, **ALL)
    assert (len(commits[0]), len(commits[1])) == (0, 1)
    assert torch.equal(model.model.norm.weight.cpu(), torch.ones(32))
    assert_same(state_of(model), state_of(transformers.LlamaForCausalLM.from_pretrained(tmp_path)))


def test_a_load_that_fails_ends_its_commit(checkpoints, monkeypatch):
    begun = []

    def fail(model, files):
        raise KeyboardInterrupt

    begin = _begun.Early._begin
    monkeypatch.setattr(_begun.Early, "_begin", lambda *x: begun.append(begin(*x)) or begun[0])
    monkeypatch.setattr(_load, "give_places", fail)
    with pytest.raises(KeyboardInterrupt):
        from_pretrained(checkpoints("llama"), device="cpu", **ALL)
    assert not begun[0]._thread.is_alive() and begun[0]._made is None


def test_progress_cancels_a_commit(where, checkpoints):
    with pytest.raises(WeighbridgeError, match="cancelled"):
        from_pretrained(checkpoints("llama"), device=where, progress=lambda *_: False, **ALL)


def test_a_version_with_another_loader_is_refused(checkpoints, monkeypatch):
    monkeypatch.delattr(transformers.PreTrainedModel, "_load_pretrained_model")
    with pytest.raises(RuntimeError, match=r"5\.17 to"):
        from_pretrained(checkpoints("llama"), **ALL)


CONVERSIONS = {
    "a tensor": lambda a, b: a[...],
    "a cast": lambda a, b: a.to(device="cpu", dtype=torch.bfloat16),
    "casts that round twice": lambda a, b: a.to(torch.bfloat16).to(torch.float32),
    "a stack": lambda a, b: torch.stack([a, b], dim=1),
    "a stack of casts, cast back": lambda a, b: torch.stack([a.half(), b.half()]).float(),
    "parts joined": lambda a, b: torch.cat([a, b, a], dim=-1),
    "stacks joined": lambda a, b: torch.cat([torch.stack([a, b]), torch.stack([b, a])], dim=1),
    "an empty part": lambda a, b: torch.cat([a, a[:0], b]),
    "types that are promoted": lambda a, b: torch.cat([a.half(), b]),
    "parts": lambda a, b: torch.cat(list(reversed(a.chunk(3)))),
    "split and transposed": lambda a, b: a.split([2, 4])[1].transpose(0, 1),
    "another order": lambda a, b: b.view(2, 3, 8).permute(1, 0, 2).reshape(6, 8).contiguous(),
    "columns": lambda a, b: torch.cat([a[:, ::2], b[:, 1::2]], dim=1),
    "a sum": lambda a, b: torch.stack([a + b, a * 2]),
    "a number": lambda a, b: a * b.max().item() if bool((a < 1e9).all()) else a,
    "a repetition": lambda a, b: a[None].expand(2, 6, 8).clone(),
}


def _in_file(tensor):
    return _deferred.deferred(tensor.shape, tensor.dtype, "one", lambda: tensor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", list(CONVERSIONS))
def test_a_conversion_has_the_numbers_of_tensors_in_memory(monkeypatch, kind, dtype):
    monkeypatch.setattr(_deferred, "PIECE", 64)  # several pieces of each tensor
    given = [torch.randn(6, 8).to(dtype) for _ in range(2)]
    wanted = CONVERSIONS[kind](*given)
    numbers = CONVERSIONS[kind](*(_in_file(one) for one in given))
    assert isinstance(numbers, _deferred.Deferred)
    assert (numbers.dtype, numbers.shape) == (wanted.dtype, wanted.shape)
    assert torch.equal(numbers.computed(), wanted)
    parameter = torch.nn.Parameter(numbers, requires_grad=False)
    apart = torch.empty(*wanted.shape, 2, dtype=wanted.dtype)[..., 0]
    for place in (torch.empty_like(wanted), apart):
        with _deferred.Writer() as writer:
            writer.write(parameter, place)
        assert torch.equal(place, wanted)
    if numbers.is_view():
        addresses = [one.untyped_storage().data_ptr() for one in given]
        assert numbers.computed().untyped_storage().data_ptr() in addresses


def test_a_change_in_place_while_loading_is_refused():
    with pytest.raises(NotImplementedError, match="in place"):
        _in_file(torch.ones(3)).add_(1)


PEAK = """
import gc, sys, threading
import torch, transformers
from weighbridge.engines.transformers import from_pretrained
import weighbridge.torch as wt

def anonymous():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon:"))

def load(path, dtype):
    # Without slots, which are memory of the host, too, if that is the device.
    options = {"offload_bytes": 1 << 40, "transfer_mode": "zero-copy"}
    return from_pretrained(path, dtype=dtype, device="cpu", **options)

small, *given = sys.argv[1:]
load(small, "float32")  # code and caches that the first load keeps
for path, dtype in zip(given[::2], given[1::2]):
    before, peak, done = anonymous(), 0, threading.Event()

    def watch():
        global peak
        while not done.wait(0.001):
            peak = max(peak, anonymous() - before)

    thread = threading.Thread(target=watch)
    thread.start()
    model = load(path, dtype)
    done.set()
    thread.join()
    info = wt.handle_of(model).plan.info
    assert info.resident_bytes == info.slot_bytes == 0
    print(info.arena_bytes, peak)
    wt.handle_of(model).remove()
    del model
    gc.collect()
"""
LARGE = {
    "llama": {
        "hidden_size": 512,
        "intermediate_size": 4096,
        "num_hidden_layers": 8,
        "vocab_size": 8192,
    },
    "qwen3-moe": {
        "hidden_size": 256,
        "num_experts": 64,
        "moe_intermediate_size": 512,
        "num_hidden_layers": 2,
    },
}


@pytest.mark.slow
def test_the_host_holds_the_arena_and_little_else(checkpoints, tmp_path, run_python):
    """Whether weights are cast, or fused."""
    dtypes, sizes, arguments = {"llama": "bfloat16", "qwen3-moe": "float32"}, {}, []
    for kind, dtype in dtypes.items():
        name, config, options = MODELS[kind]
        with torch.device("meta"):
            model = getattr(transformers, name)(
                getattr(transformers, config)(**{**options, **LARGE[kind]})
            )
        model.to_empty(device="cpu")
        sizes[kind] = bytes_of(model) // (2 if dtype == "bfloat16" else 1)
        model.save_pretrained(tmp_path / kind, max_shard_size="100MB")
        arguments += [str(tmp_path / kind), dtype]
    status, out, err = run_python("-c", PEAK, str(checkpoints("mixtral")), *arguments)
    assert status == 0, err
    for nbytes, line in zip(sizes.values(), out.splitlines()):
        arena, peak = map(int, line.split())
        assert arena >= nbytes > 100e6
        assert arena / 2 < peak <= arena + 20e6  # it was measured, and there is no second copy
    assert len(out.splitlines()) == len(sizes)

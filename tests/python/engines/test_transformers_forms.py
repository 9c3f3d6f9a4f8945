"""weighbridge.engines.transformers: forms of models and checkpoints beside the usual ones."""

from __future__ import annotations

import json
import sys

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from conftest import ROOT  # noqa: E402

sys.path.insert(0, str(ROOT / "tests"))

from sweep import audio, text  # noqa: E402
from weighbridge.engines.transformers import _begun, _deferred, from_pretrained  # noqa: E402

SWEPT = {model.name: model for model in (*audio.MODELS, *text.MODELS)}
ALL = {"offload_bytes": 1 << 24}
CPU = torch.device("cpu")


def saved(name, folder):
    """Saves one of the swept models, and returns its class."""
    model = SWEPT[name].build(CPU)
    model.save_pretrained(folder)
    return type(model)


def assert_equal(model, expected):
    found, wanted = model.state_dict(), expected.state_dict()
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name].cpu(), tensor), name


@pytest.mark.parametrize("name", ["wav2vec2", "recurrent-gemma"])
def test_a_model_that_initializes_what_it_computes_is_loaded(tmp_path, where, name):
    """Such as one with weight norm. Random numbers are drawn as transformers draws them."""
    kind = saved(name, tmp_path)
    torch.manual_seed(7)
    expected, drawn = kind.from_pretrained(tmp_path), torch.rand(1)
    torch.manual_seed(7)
    model = from_pretrained(tmp_path, model_class=kind, device=where, **ALL)
    assert torch.equal(torch.rand(1), drawn)
    assert_equal(model, expected)


def deferred():
    return _deferred.deferred((4,), torch.float32, "w", lambda: torch.arange(4.0))


def test_a_change_of_a_part_of_a_computed_tensor_is_one_of_the_whole():
    made = deferred() * 2
    made[1:3].fill_(9)
    made[0].sub_(1)
    assert made.computed().tolist() == [-1, 9, 9, 6]
    assert (made + 1).computed().tolist() == [0, 10, 10, 7]
    assert deferred().computed().tolist() == [0, 1, 2, 3]


def test_a_computed_tensor_that_another_is_computed_from_keeps_its_numbers():
    made = deferred() * 2
    other = made[1:] + 1
    with pytest.raises(NotImplementedError, match="in place"):
        made.fill_(0)
    assert other.computed().tolist() == [3, 5, 7]


class OwnConfig(transformers.PreTrainedConfig):
    model_type = "an-own-type"


class OwnModel(transformers.PreTrainedModel):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.layers = torch.nn.ModuleList([torch.nn.Linear(16, 16) for _ in range(4)])
        self.post_init()


@pytest.mark.parametrize("model_type", ["an-own-type", None])
def test_a_model_of_the_users_own_class_is_loaded(tmp_path, where, model_type):
    """Auto classes do not know its configuration, which may not even name a type."""
    OwnModel(OwnConfig()).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    if model_type is None:
        del config["model_type"]
    path.write_text(json.dumps(config))
    expected = OwnModel.from_pretrained(tmp_path)
    assert_equal(from_pretrained(tmp_path, model_class=OwnModel, device=where, **ALL), expected)
    config["quantization_config"] = {"quant_method": "some"}
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="quantized by some"):
        from_pretrained(tmp_path, model_class=OwnModel, device=where, **ALL)


def test_a_configuration_without_a_type_needs_a_class(tmp_path):
    OwnModel(OwnConfig()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"give the model's class as model_class="):
        from_pretrained(tmp_path, **ALL)


def test_a_model_is_loaded_in_inference_mode(tmp_path, where):
    OwnModel(OwnConfig()).save_pretrained(tmp_path)
    expected = OwnModel.from_pretrained(tmp_path)
    with torch.inference_mode():
        model = from_pretrained(tmp_path, model_class=OwnModel, device=where, **ALL)
        assert torch.is_inference_mode_enabled()
        assert_equal(model, expected)
    assert not any(parameter.is_inference() for parameter in model.parameters())


def test_a_class_of_transformers_with_a_quantizers_name_is_loaded(tmp_path, where):
    """I-BERT has a QuantLinear of its own."""
    kind = saved("ibert", tmp_path)
    expected = kind.from_pretrained(tmp_path)
    assert_equal(from_pretrained(tmp_path, model_class=kind, device=where, **ALL), expected)


def test_what_a_trainer_keeps_beside_the_weights_is_not_taken_for_them(tmp_path):
    OwnModel(OwnConfig()).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "rng_state_0.pth", "scaler.pt"):
        torch.save({}, tmp_path / name)
    with pytest.raises(OSError, match=r"model.safetensors"):
        from_pretrained(tmp_path, model_class=OwnModel, **ALL)
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"has its weights in pytorch_model.bin"):
        from_pretrained(tmp_path, model_class=OwnModel, **ALL)


def test_no_path_is_said_so():
    with pytest.raises(TypeError, match="pretrained_model_name_or_path is None"):
        from_pretrained(None, **ALL)


def test_a_commit_that_another_one_follows_is_cancelled(monkeypatch):
    """Such as that of a model which is loaded while another one is made."""

    class Begun:
        cancelled = False

        def cancel(self):
            self.cancelled = True

    made = [Begun(), Begun()]
    left = list(made)
    early = _begun.Early(CPU, {})
    monkeypatch.setattr(early, "_begin", lambda *_: left.pop(0))
    with early:
        early.begin(None, None, {})
        early.begin(None, None, {})
        assert [one.cancelled for one in made] == [True, False] and early.begun is made[1]
    assert made[1].cancelled

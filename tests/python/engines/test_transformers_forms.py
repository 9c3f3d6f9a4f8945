"""weighbridge.engines.transformers: forms of models and checkpoints beside the usual ones."""

from __future__ import annotations

import sys

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from conftest import ROOT  # noqa: E402

sys.path.insert(0, str(ROOT / "tests"))

from sweep import audio, text  # noqa: E402
from weighbridge.engines.transformers import _deferred, from_pretrained  # noqa: E402

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

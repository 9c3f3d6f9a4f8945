"""A sample of the models of ``make sweep``, one for each kind of use, and its verdicts."""

from __future__ import annotations

import sys

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("diffusers", reason="diffusers is not installed")

from conftest import GPU, ROOT  # noqa: E402

sys.path.insert(0, str(ROOT / "tests"))

import weighbridge.torch as wt  # noqa: E402
from sweep import __main__ as program  # noqa: E402
from sweep import compare as sweep  # noqa: E402
from weighbridge import WeighbridgeError  # noqa: E402

# What each one has that a plain chain of layers has not.
SAMPLE = {
    "llama": "layers that are called in order, and a generation",
    "qwen2-moe": "fused experts, which caches carry",
    "t5": "an embedding and a position bias that two stacks share",
    "squeezebert": "forward of layers called directly",
    "deberta": "the weight of an embedding handed to every layer",
    "detr": "queries that are the weight of an uncalled embedding",
    "sam": "weights of embeddings that are added and concatenated",
    "perceiver": "a module that returns its weight",
    "prophetnet": "an embedding's weight read in its decoder's layers",
    "sew-d": "a relative embedding read by every layer of the encoder",
    "dit": "a layer's norm called again after the layers",
    "transformer-2d": "the same, in a model that chooses it by its options",
    "oobleck": "encode and decode, and weight norm by hooks",
    "t5-beams": "a search that reorders the cache",
    "pipeline-stable-diffusion": "models that a pipeline calls in turn",
}
# That in which a use out of turn does most harm; `make sweep` has them all.
MODES = sweep.TRANSFER_MODES if GPU else ("prefetch",)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(SAMPLE))
def test_numbers_of_a_model_are_the_same(name, where):
    results = sweep.compare_everywhere(name, str(where), MODES)
    others = {place: result for place, result in results.items() if result.outcome != "equal"}
    assert len(results) == len(MODES) * len(sweep.SHARES)
    assert not others


class Handle:
    """A handle whose removal does nothing, or spoils a weight."""

    def __init__(self, model=None) -> None:
        self.model = model

    def remove(self) -> None:
        if self.model is not None:
            next(self.model.parameters()).data.add_(1)


def wrong_numbers(model, **options):
    next(model.parameters()).data.add_(1)
    return Handle()


def wrong_after_remove(model, **options):
    return Handle(model)


def refuses(model, **options):
    raise WeighbridgeError(1, "asked for too much")


def fails(model, **options):
    raise KeyError("layers.0.weight")


def refuses_and_spoils(model, **options):
    next(model.parameters()).data.add_(1)
    raise WeighbridgeError(1, "asked for too much")


@pytest.mark.parametrize(
    "offload, outcome",
    [
        (lambda model, **options: Handle(), "equal"),
        (wrong_numbers, "wrong"),
        (wrong_after_remove, "wrong"),
        (refuses, "refused"),
        (fails, "wrong"),
        (refuses_and_spoils, "wrong"),
    ],
)
def test_the_sweep_tells_outcomes_apart(monkeypatch, offload, outcome):
    monkeypatch.setattr(wt, "offload", offload)
    result = sweep.compare(sweep.MODELS["vit"], "prefetch", 1.0, torch.device("cpu"))
    assert result.outcome == outcome, result


def test_a_model_that_the_frameworks_lack_is_counted_and_not_wrong(capsys):
    model = sweep.MODELS["vit"]._replace(kind="NoSuchModel")
    result = sweep.compare(model, "prefetch", 1.0, torch.device("cpu"))
    assert result.outcome == "not built" and "NoSuchModel" in result.reason
    everywhere = dict.fromkeys(sweep.TRANSFER_MODES, tuple(result))
    assert program.conclude(["vit"], {"vit": everywhere}) == 0
    assert '"not built": "not run: 1"' in capsys.readouterr().out


@pytest.mark.parametrize("outcome, status", [("equal", 0), ("refused", 0), ("wrong", 1)])
def test_one_wrong_mode_of_one_model_fails_the_sweep(outcome, status, capsys):
    results = {mode: ("equal", "") for mode in sweep.TRANSFER_MODES}
    found = {"one": results, "two": {**results, "prefetch": (outcome, "layers.0.weight")}}
    assert program.conclude(["one", "two"], found) == status
    counts = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()}
    column = sweep.TRANSFER_MODES.index("prefetch")
    assert counts[outcome][column] == ("2" if outcome == "equal" else "1")


def test_a_model_without_a_result_fails_the_sweep():
    assert program.conclude(["one"], {}) == 1


def test_the_table_says_where_and_why_a_model_is_not_equal(capsys):
    results = {f"{mode} 60%": ("equal", "") for mode in sweep.TRANSFER_MODES}
    program.show("one", {**results, "prefetch 60%": ("refused", "layers.0.weight is kept")})
    table, why = capsys.readouterr().out.splitlines()
    assert table.split() == ["one", *["equal"] * (len(results) - 1), "refused"]
    assert why.strip() == "refused (prefetch 60%): layers.0.weight is kept"

"""What the options of the plug-ins take, and what the errors of others say."""

from __future__ import annotations

import math

import pytest

from weighbridge.engines._options import (
    LayerOptions,
    check_budget,
    check_by_model,
    check_runs,
    given_options,
)

from .vllm_models import start

FORMAT = "load_format is .* which is this format itself: name the format .* 'auto'"
REFUSED = [
    ("12GiB", "is '12GiB': give a dictionary of options"),
    (None, "is None: give a dictionary of options"),
    ([1], r"is \[1\]: give a dictionary of options"),
    ({1: 2}, "unknown options 1"),
    ({"device_bytes": None}, "device_bytes is None .* whole number of bytes, .* or leave it out"),
    ({"device_bytes": 7e6}, "device_bytes is 7000000.0 .* whole number of bytes"),
    ({"device_bytes": "12 Gigs"}, "device_bytes is '12 Gigs' .* write 60MB"),
    ({"offload_bytes": True}, "offload_bytes is True .* whole number of bytes"),
    ({"offload_bytes": -1}, "offload_bytes is -1 .* 0 or more"),
    ({"offload_bytes": math.inf}, "offload_bytes is inf .* whole number of bytes"),
    ({"offload_bytes": 1, "select": 3}, "select is 3 .* whole segments of a name"),
    ({"offload_bytes": 1, "select": [3]}, r"select is \[3\] .* whole segments of a name"),
    ({"offload_bytes": 1, "select": ""}, "select is '' .* whole segments of a name"),
    ({"offload_bytes": 1, "exclude": None}, "exclude is None .* leave it out"),
    ({"offload_bytes": 1, "depth": "2"}, "depth is '2' .* number of layers"),
    ({"offload_bytes": 1, "depth": -1}, "depth is -1 .* number of layers"),
    ({"offload_bytes": 1, "overlap_steps": "false"}, "overlap_steps is 'false' .* true or false"),
    ({"offload_bytes": 1, "transfer_mode": None}, "transfer_mode is None .* give a text"),
]


@pytest.mark.parametrize(("given", "said"), REFUSED, ids=lambda one: None)
def test_what_an_option_of_an_engine_does_not_take_is_named(given, said):
    with pytest.raises(ValueError, match=f"(?s){said}"):
        given_options(given, LayerOptions, "OPTIONS")


def test_what_an_option_of_an_engine_takes_is_returned():
    given = {
        "device_bytes": "1.5KiB",
        "select": "mlp",
        "exclude": [],
        "depth": 2,
        "overlap_steps": None,
        "transfer_mode": "prefetch",
    }
    assert given_options(given, LayerOptions, "OPTIONS") == {
        "device_bytes": 1536,
        "select": ("mlp",),
        "depth": 2,
        "overlap_steps": None,
        "transfer_mode": "prefetch",
    }


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("12GiB", r"additional_config\['weighbridge'\] is '12GiB': give a dictionary"),
        ([1], r"additional_config\['weighbridge'\] is \[1\]: give a dictionary"),
        ({"offload_bytes": 1, "expert_bytes": -1}, "expert_bytes is -1"),
        ({"offload_bytes": 1, "load_format": 7}, "load_format is 7 .* give a text"),
        ({"offload_bytes": 1, "load_format": "weighbridge"}, FORMAT),
        ({"offload_bytes": 1, "load_format": "Weighbridge"}, FORMAT),
    ],
)
def test_vllm_refuses_what_its_options_do_not_take(vllm, given, said):
    with pytest.raises(ValueError, match=said):
        start(vllm, weighbridge=given)
    assert isinstance(vllm.get_offloader(), vllm.NoopOffloader)


def test_vllm_refuses_options_that_are_null(vllm):
    with pytest.raises(ValueError, match="is None: give a dictionary"):
        start(vllm, additional_config={"weighbridge": None})


def test_the_budget_of_a_pipeline_is_a_number_of_bytes():
    check_budget("device_bytes", 0)
    for value in ("8GiB", None, 1.5e6, True):
        with pytest.raises(TypeError, match=r"device_bytes is .*: give a whole number of bytes"):
            check_budget("device_bytes", value)
    with pytest.raises(ValueError, match=r"device_bytes is -5: .* 0 or more"):
        check_budget("device_bytes", -5)


def test_how_often_a_model_runs_is_a_finite_number():
    check_runs({"unet": 0.5, "vae": 0})
    for value in ("x", None, True):
        with pytest.raises(TypeError, match=r"runs is .* for unet: give how often it runs"):
            check_runs({"unet": value})
    for value in (math.nan, math.inf, -1):
        with pytest.raises(ValueError, match=r"runs is .* for unet: give how often it runs"):
            check_runs({"unet": value})


def test_what_is_said_by_the_names_of_models_names_models():
    check_by_model("runs", {"unet": 1}, ["unet", "vae"])
    with pytest.raises(TypeError, match=r"groups is 'unet': give a dictionary .* unet, vae"):
        check_by_model("groups", "unet", ["unet", "vae"])
    with pytest.raises(ValueError, match=r"runs names 'clip', .* no model 'clip': it has unet"):
        check_by_model("runs", {"clip": 1}, ["unet", "vae"])

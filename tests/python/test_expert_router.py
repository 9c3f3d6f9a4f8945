"""Predictions of what caches of experts find, from the frequencies of a router."""

from __future__ import annotations

import random

import pytest

from weighbridge import Device, Parameter, Plan
from weighbridge.expert_router import ExpertRouter, predict_for, step_seconds
from weighbridge.expert_trace import ExpertTrace, replay

LAYERS, EXPERTS = 4, 32


def _skewed(seed=1):
    dice = random.Random(seed)
    layers = []
    for _ in range(LAYERS):
        found = [min(1.0, 2.0 / (1 + at)) for at in range(EXPERTS)]
        dice.shuffle(found)
        layers.append(tuple(found))
    return ExpertRouter(tuple(layers))


def _drawn(router, steps, seed=2):
    dice = random.Random(seed)
    trace = ExpertTrace(tuple(map(len, router.frequencies)))
    for step in range(steps):
        for layer, uses in enumerate(router.frequencies):
            trace.record(layer, [at for at, use in enumerate(uses) if dice.random() < use], step)
    return trace


@pytest.mark.parametrize("slots", [24, 40, 64, 100])
def test_a_prediction_is_what_a_cache_finds_of_independent_draws(slots):
    router = _skewed()
    predicted, found = router.predict(slots), replay(_drawn(router, 3000), slots)
    assert predicted.lru == pytest.approx(found.lru, abs=0.02)
    assert predicted.frequency == pytest.approx(found.frequency, abs=0.02)
    assert predicted.lru_misses == pytest.approx(found.lru_misses, rel=0.1, abs=0.1)
    assert predicted.lru_layers == pytest.approx(found.lru_layers, abs=0.05)
    assert predicted.lru > slots / router.total  # what is known is worth something


def test_a_router_that_picks_all_equally_finds_about_the_part_with_slots():
    router = ExpertRouter(((0.0625,) * 64,) * 8)
    for slots in (128, 256, 384):
        rate = router.predict(slots).lru
        assert rate == pytest.approx(replay(_drawn(router, 1000), slots).lru, abs=0.02)
        assert rate == pytest.approx(slots / 512, abs=0.03)
    assert router.predict(512).lru == router.predict(512).frequency == 1.0


def test_frequencies_of_a_trace_are_those_that_it_was_drawn_from(tmp_path):
    router = _skewed()
    found = ExpertRouter.of_trace(_drawn(router, 4000))
    for given, seen in zip(router.frequencies, found.frequencies):
        assert seen == pytest.approx(given, abs=0.03)
    found.write(tmp_path / "router.json")
    assert ExpertRouter.read(tmp_path / "router.json") == found


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (((0.5, 1.5),), "layer 0 is 1.5"),
        (((0.5,), ()), "layer 1 is missing"),
        (((0.0,),), "no expert"),
    ],
)
def test_numbers_that_are_not_frequencies_are_refused(given, words):
    with pytest.raises(ValueError, match=words):
        ExpertRouter(given)


def test_a_plan_predicts_by_what_the_router_is_known_to_pick():
    router = _skewed()
    shape, nbytes = (EXPERTS, 64, 64), 4 * EXPERTS * 64 * 64
    given = [
        Parameter(f"layers.{at}.w", f"layers.{at}", "float32", shape, access_pattern="experts")
        for at in range(LAYERS)
    ]
    with Device("host") as device:
        with Plan(device, given, device_bytes=LAYERS * nbytes // 4) as plan:
            slots = round(plan.info.expert_hit_rate * router.total)
            assert 0 < slots <= router.total // 4
            assert predict_for(plan, router) == router.predict(slots)
            trace = _drawn(router, 50)
            assert predict_for(plan, trace) == replay(trace, slots)
        with Plan(device, given, offload_bytes=1 << 30) as plan:
            with pytest.raises(ValueError, match="no device memory for caches"):
                predict_for(plan, router)


def test_a_step_is_the_resident_one_and_what_is_gathered():
    rates = _skewed().predict(40)
    assert step_seconds(rates, 0.002, 1e6, 50e9) == pytest.approx(0.002 + rates.lru_misses / 5e4)


def test_the_command_predicts_from_frequencies(tmp_path, run_python):
    path = tmp_path / "router.json"
    router = _skewed()
    router.write(path)
    common = ("-m", "weighbridge", "experts", str(path), "--slots", "40", "--resident-ms", "2")
    status, printed, _ = run_python(*common, "--layers", "--expert-bytes", "1MB", "--link", "50GB")
    rates = router.predict(40)
    assert status == 0 and f"{100 * rates.lru:.1f} %" in printed
    assert f"{2 + rates.lru_misses * 1e6 / 50e9 * 1e3:.2f} ms" in printed
    status, _, error = run_python(*common)
    assert status == 1 and "--resident-ms needs" in error

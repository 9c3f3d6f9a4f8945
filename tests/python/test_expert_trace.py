"""Traces of experts: the file, what caches would find in them, the routings of the benchmark."""

from __future__ import annotations

import dataclasses
import gzip
import itertools
import json
import random
import sys

import pytest
from conftest import ROOT

from weighbridge.cli import experts as command
from weighbridge.expert_trace import ExpertTrace, lru_hits, replay

sys.path.insert(0, str(ROOT / "benches"))


def _trace(calls, experts=(4, 4)):
    trace = ExpertTrace(experts)
    for layer, ids in calls:
        trace.record(layer, ids)
    return trace


def _random(seed, layers=2, experts=4, calls=12):
    dice = random.Random(seed)
    steps = ((at % layers, dice.sample(range(experts), 2)) for at in range(calls))
    return _trace(steps, (experts,) * layers)


def test_steps_begin_with_a_layer_that_does_not_follow():
    trace = _trace([(0, [1]), (1, [2]), (0, [3]), (0, [3, 3, 0]), (1, [])])
    assert [call.step for call in trace.calls] == [0, 0, 1, 2, 2]
    assert trace.calls[3].experts == (0, 3)
    assert (trace.steps, trace.total) == (3, 8)


def test_ids_of_tensors_are_flattened_and_padding_is_left_out():
    np = pytest.importorskip("numpy")
    trace = _trace([(0, np.array([[3, -1], [0, 4]]))])
    assert trace.calls[0].experts == (0, 3)
    with pytest.raises(ValueError, match="layer 2"):
        trace.record(2, [0])


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_a_trace_is_read_as_it_was_written(tmp_path, name):
    path, trace = tmp_path / name, _random(1)
    trace.write(path)
    assert ExpertTrace.read(path) == trace
    opened = gzip.open if name.endswith(".gz") else open
    with opened(path, "rt", encoding="utf-8") as file:
        assert json.loads(file.readline()) == {
            "weighbridge": "expert trace",
            "version": 1,
            "experts": [4, 4],
        }


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], "is empty"),
        (["x"], "line 1 is not JSON"),
        (["HEAD", "[" * 100_000], "line 2 is not JSON"),
        (["[]"], "line 1 is not the head"),
        (['{"weighbridge":"expert trace","version":2,"experts":[4]}'], "version 2"),
        (['{"weighbridge":"expert trace","version":1,"experts":[0]}'], r"experts is \[0\]"),
        (["HEAD", "[0,0]"], "line 2 is not a call"),
        (["HEAD", '[0,0,["1"]]'], "line 2 is not a call"),
        (["HEAD", "[0,1,[0]]"], "line 2: layer 1; the trace has 1"),
        (["HEAD", "[0,0,[4]]"], "line 2: expert 4; layer 0 has 4"),
        (["HEAD", "[1,0,[0]]", "[0,0,[0]]"], "line 3: step 0 follows step 1"),
    ],
)
def test_a_malformed_file_is_refused_by_its_line(tmp_path, lines, words):
    head = '{"weighbridge":"expert trace","version":1,"experts":[4]}'
    path = tmp_path / "bad.jsonl"
    path.write_text("".join(line.replace("HEAD", head) + "\n" for line in lines))
    with pytest.raises(ValueError, match=words):
        ExpertTrace.read(path)


def test_rates_of_a_trace_that_can_be_counted_by_hand():
    # One layer, two slots: 0 1 | 0 2 | 0 1.
    trace = _trace([(0, [0]), (0, [1]), (0, [0]), (0, [2]), (0, [0]), (0, [1])], (4,))
    rates = replay(trace, 2)
    # LRU: 0, 1 miss; 0 hits; 2 evicts 1; 0 hits; 1 misses.
    assert rates.lru == 2 / 6
    # 0 and 1 stay: all uses but that of 2.
    assert rates.frequency == 5 / 6
    # No other cache does better: 2 must evict 0 or 1, each of which is used again.
    assert rates.optimum == 2 / 6
    assert rates.lru_layers == (2 / 6,)
    assert replay(trace, 3).lru == 3 / 6
    with pytest.raises(ValueError, match="1 slots do not hold the 2 experts"):
        replay(_trace([(0, [0, 1])]), 1)


def test_the_optimum_is_the_best_of_all_choices():
    def best(calls, held, slots):
        """The most hits of any choice of victims."""
        if not calls:
            return 0
        needed = {(calls[0].layer, expert) for expert in calls[0].experts}
        free = [one for one in held if one not in needed]
        over = max(len(held | needed) - slots, 0)
        rest = (
            best(calls[1:], frozenset(held | needed) - set(gone), slots)
            for gone in itertools.combinations(free, over)
        )
        return len(held & needed) + max(rest)

    for seed in range(30):
        trace = _random(seed, calls=8)
        total = sum(len(call.experts) for call in trace.calls)
        for slots in (2, 3, 4):
            found = round(replay(trace, slots).optimum * total)
            assert found == best(trace.calls, frozenset(), slots), (seed, slots)


def test_no_cache_beats_the_optimum_and_more_slots_lose_nothing():
    for seed in range(20):
        trace = _random(seed, layers=3, experts=6, calls=60)
        rates = [replay(trace, slots) for slots in range(2, 19)]
        assert all(each.lru <= each.optimum for each in rates)
        assert [each.optimum for each in rates] == sorted(each.optimum for each in rates)
        assert rates[-1].lru == rates[-1].optimum


def test_the_replay_finds_what_the_cache_finds(device):
    from test_experts import EXPERTS, LAYERS, bench

    dice = random.Random(5)
    for slots in (3, 5, 8):
        trace = ExpertTrace((EXPERTS,) * LAYERS)
        with bench(device, slots=slots) as made:
            for at in range(60):
                ids = [min(dice.randrange(6), dice.randrange(6)) for _ in range(3)]
                made.route(at % LAYERS, ids)
                trace.record(at % LAYERS, ids)
            assert made.cache.stats().hits == sum(lru_hits(trace, slots))


def test_the_skewed_routing_has_the_public_hit_rates_and_the_uniform_one_none():
    pytest.importorskip("numpy")
    import routings

    def warm(routing, part):
        layers, steps = 8, 120
        small = dataclasses.replace(routing, layers=layers)
        trace = routings.trace_of(routings.draw(small, steps), small.experts)
        hits = list(lru_hits(trace, int(part * trace.total)))[layers * steps // 3 :]
        return sum(hits) / len(hits) / small.used

    for part, public in ((0.15, 0.74), (0.30, 0.89), (0.50, 0.96)):
        assert warm(routings.SKEWED, part) == pytest.approx(public, abs=0.025)
        assert warm(routings.UNIFORM, part) == pytest.approx(part, abs=0.03)


def test_the_command_prints_rates_and_writes_an_svg(tmp_path, run_python):
    path, svg = tmp_path / "trace.jsonl", tmp_path / "rates.svg"
    trace = _random(3, calls=40)
    trace.write(path)
    status, printed, _ = run_python(
        "-m", "weighbridge", "experts", str(path), "--slots", "2,50%", "--layers", "--svg", str(svg)
    )
    assert status == 0
    for slots in (2, 4):
        assert f"{100 * replay(trace, slots).lru:.1f} %" in printed
        assert f"{100 * replay(trace, slots).optimum:.1f} %" in printed
    drawn = svg.read_text()
    assert drawn.startswith("<svg") and drawn.count("<polyline stroke") == 3
    status, printed, _ = run_python(
        "-m", "weighbridge", "experts", str(path), "--slots", "4", "--expert-bytes", "3MiB"
    )
    misses = sum(len(call.experts) for call in trace.calls) - sum(lru_hits(trace, 4))
    assert status == 0 and "12.0 MiB" in printed
    assert f"{misses * 3 / trace.steps:.1f} MiB" in printed
    status, _, error = run_python("-m", "weighbridge", "experts", str(path), "--slots", "9")
    assert status == 1 and "use 1 to 8 slots" in error
    status, _, error = run_python("-m", "weighbridge", "experts", str(tmp_path / "none"))
    assert status == 1 and "No such file" in error


@pytest.mark.parametrize("words", ["0", "x", "30%%", "-1", "120%", "", "1.5"])
def test_invalid_slots_are_refused(words):
    with pytest.raises(ValueError, match="--slots"):
        command.slots_of(words, 8)


def test_slots_are_numbers_or_parts():
    assert command.slots_of("3, 50%,12.5%", 8) == [3, 4, 1]

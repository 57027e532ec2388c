import itertools
import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.evaluate.bootstrap import Measure, estimates, holm, mean_of, paired_differences, ratio
from posttrain.evaluate.intervals import bootstrap_interval, wilson_interval

VALUE = mean_of("value")
SHARE = mean_of("hit", name="share", is_share=True)
PER_TOKEN = Measure(name="loss", title="loss", columns=lambda r: (r["sum"], r["n"]), value=ratio)


def drawn(size, seed, shift=0.0):
    chance = random.Random(seed)
    return [{"value": chance.gauss(shift, 1)} for _ in range(size)]


def test_by_hand():
    # two items: means of resamples are 1, 2 and 3 with chances 1/4, 1/2, 1/4, so the percentiles are the ends
    found = estimates([VALUE], [{"value": 1.0}, {"value": 3.0}], seed=1, level=0.95)["value"]
    assert (found.value, found.low, found.high) == (2.0, 1.0, 3.0)


def test_a_ratio_is_of_the_sums_and_not_the_mean_of_ratios():
    # (1 + 6) / (1 + 3), where the mean of 1/1 and 6/3 would be 1.5
    found = estimates([PER_TOKEN], [{"sum": 1.0, "n": 1}, {"sum": 6.0, "n": 3}], seed=1, level=0.95)["loss"]
    assert found.value == 1.75
    assert found.interval == [1.0, 2.0]


def test_the_interval_of_a_mean_is_that_of_the_plain_bootstrap():
    records = drawn(200, 3)
    low, high = bootstrap_interval([r["value"] for r in records], seed=5)
    found = estimates([VALUE], records, seed=5, level=0.95)["value"]
    assert found.low == pytest.approx(low, abs=0.02)
    assert found.high == pytest.approx(high, abs=0.02)


def test_it_covers_what_it_should():
    # 95 % intervals around the mean of 80 normal values: of 200 of them about 190 hold 0
    held = 0
    for seed in range(200):
        found = estimates([VALUE], drawn(80, seed), seed=seed, level=0.95, num_resamples=400)["value"]
        held += found.low <= 0 <= found.high
    assert 178 <= held <= 198


def test_shares_have_wilsons_interval():
    records = [{"hit": True}] * 7 + [{"hit": False}] * 3
    found = estimates([SHARE], records, seed=1, level=0.9)["share"]
    assert found.interval == list(wilson_interval(7, 10, level=0.9))


def test_a_measure_that_a_record_does_not_know_is_left_out():
    records = [{"value": 1.0, "hit": True}, {"value": None, "hit": False}]
    assert list(estimates([VALUE, SHARE], records, seed=1, level=0.95)) == ["share"]
    assert estimates([VALUE], [], seed=1, level=0.95) == {}


def test_a_figure_that_is_no_number_is_none():
    undefined = Measure(name="x", title="x", columns=lambda r: (0.0, 0.0), value=ratio)
    found = estimates([undefined], [{}, {}], seed=1, level=0.95)["x"]
    assert (found.value, found.low, found.high) == (None, None, None)


def test_pairing_finds_what_the_spread_of_items_hides():
    # items differ by far more than the systems do
    base = drawn(60, 8)
    better = [{"value": r["value"] * 1.0 + 0.2 + 0.05 * (i % 3 - 1)} for i, r in enumerate(base)]
    paired = paired_differences([VALUE], better, base, seed=2, level=0.95)["value"]
    assert paired.value == pytest.approx(0.2)
    assert 0.15 < paired.low < paired.high < 0.25
    assert paired.p == pytest.approx(2 / 2001)
    single = estimates([VALUE], base, seed=2, level=0.95)["value"]
    assert single.high - single.low > 0.3
    mirrored = paired_differences([VALUE], base, better, seed=2, level=0.95)["value"]
    assert mirrored.value == -paired.value
    assert mirrored.p == paired.p


def test_equal_systems_do_not_differ():
    records = drawn(20, 4)
    found = paired_differences([VALUE], records, records, seed=1, level=0.95)["value"]
    assert (found.value, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)


def test_p_is_seldom_small_where_nothing_differs():
    small = 0
    for seed in range(200):
        a, b = drawn(60, 2 * seed), drawn(60, 2 * seed + 1)
        small += paired_differences([VALUE], a, b, seed=seed, level=0.95, num_resamples=400)["value"].p < 0.05
    assert small <= 22  # 10 are expected


def test_the_same_items_are_drawn_for_both_sides_and_all_measures():
    records = [{"value": float(i), "hit": i % 2 == 0, "sum": float(i), "n": 1} for i in range(30)]
    shifted = [{**r, "sum": r["sum"] + 1.0} for r in records]
    found = paired_differences([SHARE, PER_TOKEN], shifted, records, seed=1, level=0.95)
    assert found["loss"].low == pytest.approx(1.0)
    assert found["loss"].high == pytest.approx(1.0)


def test_different_lengths_cannot_be_paired():
    with pytest.raises(ValueError, match="3 items cannot be paired with 2"):
        paired_differences([VALUE], drawn(3, 1), drawn(2, 1), seed=1, level=0.95)


def test_many_items_are_resampled_in_parts_to_the_same_figures(monkeypatch):
    records = drawn(50, 6)
    whole = estimates([VALUE], records, seed=4, level=0.95, num_resamples=300)["value"]
    monkeypatch.setattr("posttrain.evaluate.bootstrap._CELLS", 50 * 7)
    parts = estimates([VALUE], records, seed=4, level=0.95, num_resamples=300)["value"]
    assert parts.interval == pytest.approx(whole.interval)


def test_holm_by_hand():
    # ordered 0.01, 0.02, 0.04: 3 * 0.01, 2 * 0.02, then not below what came before
    assert holm([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.6, 0.5]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_keeps_the_order_and_lies_between_p_and_bonferroni(values):
    found = holm(values)
    for p, adjusted in zip(values, found, strict=True):
        assert p <= adjusted <= min(1.0, len(values) * p) + 1e-12
    order = sorted(range(len(values)), key=values.__getitem__)
    assert all(found[a] <= found[b] for a, b in itertools.pairwise(order))


def test_resampling_leaves_torchs_own_random_numbers_alone():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    estimates([VALUE], drawn(9, 1), seed=1, level=0.95)
    assert math.isclose(float(torch.rand(1)), float(expected))

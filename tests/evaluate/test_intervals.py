import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.evaluate.intervals import bootstrap_interval, paired_difference_interval, wilson_interval


def test_wilson_matches_the_textbook_value():
    # 8 of 10 at 95 %: z = 1.959964, centre (0.8 + 0.19207) / 1.38415, half-width sqrt(0.016 + 0.009604) * z / 1.38415.
    low, high = wilson_interval(8, 10)
    assert low == pytest.approx(0.4902, abs=1e-4)
    assert high == pytest.approx(0.9433, abs=1e-4)


def test_wilson_at_the_ends_and_without_trials():
    assert wilson_interval(0, 10)[0] == 0.0
    assert wilson_interval(0, 10)[1] == pytest.approx(3.8415 / 13.8415, abs=1e-4)
    assert wilson_interval(10, 10)[1] == 1.0
    assert wilson_interval(0, 0) == (0.0, 1.0)


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_share_and_mirrors(case):
    successes, n = case
    low, high = wilson_interval(successes, n)
    assert 0 <= low <= successes / n <= high <= 1
    mirrored = wilson_interval(n - successes, n)
    assert mirrored == pytest.approx((1 - high, 1 - low))


def test_wilson_narrows_with_level():
    wide, narrow = wilson_interval(30, 100, level=0.99), wilson_interval(30, 100, level=0.8)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_bootstrap_is_close_to_the_normal_interval():
    values = [float(i % 10) for i in range(400)]
    half = 1.96 * statistics.pstdev(values) / 20
    low, high = bootstrap_interval(values, seed=1)
    assert low == pytest.approx(4.5 - half, abs=0.06)
    assert high == pytest.approx(4.5 + half, abs=0.06)


def test_bootstrap_depends_on_the_seed_only():
    values = [0.1, 0.7, 0.4, 0.9, 0.2]
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values, seed=3)
    assert bootstrap_interval(values, seed=3) != bootstrap_interval(values, seed=4)


def test_bootstrap_of_a_constant_is_a_point():
    assert bootstrap_interval([2.0] * 7, seed=0) == (2.0, 2.0)


def test_pairing_removes_the_variation_between_items():
    a = [i + 0.5 for i in range(50)]
    b = [float(i) for i in range(50)]
    assert paired_difference_interval(a, b, seed=0) == (0.5, 0.5)
    low, high = paired_difference_interval(b, a, seed=0)
    assert (low, high) == (-0.5, -0.5)


@pytest.mark.parametrize(
    "call",
    [
        lambda: bootstrap_interval([], seed=0),
        lambda: bootstrap_interval([1.0], seed=0, level=1.0),
        lambda: bootstrap_interval([1.0], seed=0, num_resamples=0),
        lambda: wilson_interval(3, 2),
        lambda: wilson_interval(-1, 2),
        lambda: paired_difference_interval([1.0], [1.0, 2.0], seed=0),
    ],
)
def test_impossible_arguments_are_refused(call):
    with pytest.raises(ValueError, match=r"."):
        call()

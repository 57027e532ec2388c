"""Medians of paired ratios, their interval, discarding and parity."""

from __future__ import annotations

import pytest
from benchmarks.compare import ratios
from benchmarks.compare.calibration import calibration, drift


@pytest.fixture
def pair(answer):
    def make(peer, ours, *, drift=0.0, sampled=False, **both):
        return {"peer": answer(peer, **both), "ours": answer(ours, **both), "drift": drift, "sampled": sampled}

    return make


def test_the_ratio_is_the_median_of_the_pairs_not_of_the_sides(pair) -> None:
    """A machine that slows down for both sides of a pair changes nothing: 4/2, 40/20 and 9/3 are 2, 2 and 3."""
    found = ratios.summary([pair(4, 2), pair(40, 20), pair(9, 3)])
    assert found["wall"]["value"] == found["cpu"]["value"] == 2
    assert (found["wall"]["low"], found["wall"]["high"]) == (2, 3)


def test_the_interval_holds_the_median_and_narrows_with_pairs() -> None:
    few, many = ratios.ratio([1.8, 2.0, 2.3]), ratios.ratio([1.8, 2.0, 2.3] * 20)
    assert few.low <= few.value <= few.high
    assert (few.low, few.value, few.high) == (1.8, 2.0, 2.3)
    assert many.high - many.low < few.high - few.low


def test_seconds_count_by_live_token(pair) -> None:
    """Sampled answers differ in length: 10 s for 100 tokens beside 10 s for 50 is twice as fast."""
    found = pair(10, 10, sampled=True)
    found["ours"]["live_tokens"], found["peer"]["live_tokens"] = 100, 50
    assert ratios.summary([found])["wall"]["value"] == 2


def test_memory_is_our_share_of_theirs(pair) -> None:
    found = pair(1, 1)
    found["ours"]["peak_rss_bytes"] = 250_000_000
    assert ratios.summary([found])["memory"] == 0.25


def test_pairs_in_which_the_machine_moved_do_not_count(pair) -> None:
    found = ratios.summary([pair(2, 1), pair(9, 1, drift=0.11), pair(2, 1, drift=0.10)])
    assert found["wall"]["value"] == 2
    assert (found["pairs"], found["discarded"]) == (2, 1)
    assert ratios.summary([pair(9, 1, drift=0.5)]) == {"pairs": 0, "discarded": 1}


@pytest.mark.parametrize(
    ("name", "near", "far"),
    [("first_loss", 1.5 * (1 + 9e-5), 1.5 * (1 + 2e-4)), ("first_grad_norm", 0.5 * (1 + 9e-4), 0.5 * (1 + 2e-3))],
)
def test_sides_that_disagree_in_the_first_step_void_the_ratio(pair, name, near, far) -> None:
    found = pair(2, 1)
    found["ours"][name] = near
    assert ratios.summary([found])["void"] is None
    found["ours"][name] = far
    said = ratios.summary([pair(2, 1), found])["void"]
    assert name in said
    assert f"{found['peer'][name]:.6g}" in said
    assert f"{far:.6g}" in said
    found["ours"][name] = float("nan")
    assert name in ratios.summary([found])["void"]
    found["ours"][name] = None
    assert "one side only" in ratios.summary([found])["void"]
    found["peer"][name] = None
    assert ratios.summary([found])["void"] is None


def test_other_tokens_void_the_ratio_unless_they_are_sampled(pair) -> None:
    found = pair(2, 1)
    found["ours"]["live_tokens"] = 99
    assert ratios.summary([found])["void"] == "live tokens 100 there, 99 here"
    assert ratios.summary([{**found, "sampled": True}])["void"] is None


def test_the_drift_is_that_of_what_moved_most() -> None:
    first = {"gflops": 100.0, "gbytes": 10.0}
    assert drift([first, first]) == 0
    assert drift([first, {"gflops": 95.0, "gbytes": 8.0}, first]) == pytest.approx(0.2)
    assert drift([first, {"gflops": 125.0, "gbytes": 10.0}]) == pytest.approx(0.2)


def test_the_machine_is_measured() -> None:
    found = calibration(seconds=0.02)
    assert 0.1 < found["gflops"] < 1e5
    assert 0.1 < found["gbytes"] < 1e4

"""Two systems on the same questions."""

import random

import pytest

from posttrain.evaluate.paired import paired_counts


def test_counts_and_test_by_hand():
    first = [True] * 4 + [True] * 5 + [False] * 1 + [False] * 2
    second = [True] * 4 + [False] * 5 + [True] * 1 + [False] * 2
    counts = paired_counts(first, second)
    assert (counts.both, counts.only_first, counts.only_second, counts.neither) == (4, 5, 1, 2)
    # 2 (C(6,0) + C(6,1)) / 2^6
    assert counts.p_value == pytest.approx(2 * 7 / 64)


def test_equal_systems_cannot_be_told_apart():
    answers = [random.random() < 0.5 for _ in range(20)]
    assert paired_counts(answers, answers).p_value == 1.0
    assert paired_counts([], []).p_value == 1.0


def test_swapping_the_systems_changes_only_the_names():
    first, second = [True, True, True, False], [False, True, False, True]
    a, b = paired_counts(first, second), paired_counts(second, first)
    assert (a.only_first, a.only_second, a.p_value) == (b.only_second, b.only_first, b.p_value)


def test_different_lengths_are_a_mistake():
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        paired_counts([True, False], [True])

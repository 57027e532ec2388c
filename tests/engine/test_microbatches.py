"""Micro-batches: every row once, pairs whole, the budget held, prompts kept together, padding counted."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.engine.microbatches import cost, microbatches
from posttrain.models.packing import packed

# few tokens, so that beginnings coincide; long enough that some are worth sharing
rows_of_tokens = st.lists(st.lists(st.integers(1, 2), min_size=1, max_size=30), min_size=1, max_size=12)


def live(batch):
    """Rows of a batch without their padding."""
    return [tuple(ids[:n]) for ids, n in zip(batch.input_ids.tolist(), batch.lengths.tolist(), strict=True)]


def fits(piece, budget, *, rows_of_a_unit=1):
    return len(piece) == rows_of_a_unit or packed(piece).num_tokens <= budget


@settings(deadline=None)
@given(rows=rows_of_tokens, budget=st.integers(1, 90), start=st.integers(0, 20), system=st.sampled_from([0, 12]))
def test_every_row_once_within_the_budget(make_batch, rows, budget, start, system) -> None:
    rows = [[7] * system + row for row in rows]
    batch = make_batch(rows, starts=[min(start, len(row) - 1) for row in rows])
    pieces = microbatches(batch, budget)
    assert sorted(row for piece in pieces for row in live(piece)) == sorted(map(tuple, rows))
    for piece in pieces:
        assert fits(piece, budget)
        assert packed(piece).num_tokens <= cost(piece)
        assert len(piece) == 1 or cost(piece) <= budget
        assert piece.input_ids.shape[1] == piece.lengths.max()


@settings(deadline=None)
@given(rows=rows_of_tokens, budget=st.integers(1, 60))
def test_padding_counts_where_it_is_computed(make_batch, rows, budget) -> None:
    pieces = microbatches(make_batch(rows), budget, padded=True)
    assert sorted(row for piece in pieces for row in live(piece)) == sorted(map(tuple, rows))
    for piece in pieces:
        assert len(piece) == 1 or piece.input_ids.numel() <= budget
        assert cost(piece, padded=True) == piece.input_ids.numel()


@settings(deadline=None)
@given(rows=rows_of_tokens, budget=st.integers(1, 90))
@pytest.mark.parametrize("padded", [False, True])
def test_pairs_stay_whole(make_batch, rows, budget, padded) -> None:
    pairs = [(row, [*row, 9]) for row in rows]
    batch = make_batch([row for pair in pairs for row in pair], pairs=True, margins=torch.arange(float(len(rows))))
    pieces = microbatches(batch, budget, together=2, padded=padded)
    found = []
    for piece in pieces:
        assert len(piece) % 2 == 0
        assert fits(piece, budget, rows_of_a_unit=2)
        sides = live(piece)
        found += [(sides[2 * i], sides[2 * i + 1], float(piece.margins[i])) for i in range(len(piece) // 2)]
    expected = [(tuple(chosen), tuple(rejected), float(i)) for i, (chosen, rejected) in enumerate(pairs)]
    assert sorted(found) == sorted(expected)


@settings(deadline=None)
@given(rows=rows_of_tokens, budget=st.integers(4, 60), seed=st.integers(0, 100))
@pytest.mark.parametrize("padded", [False, True])
def test_the_cut_does_not_depend_on_the_order_of_rows(make_batch, rows, budget, seed, padded) -> None:
    shuffled = list(rows)
    random.Random(seed).shuffle(shuffled)
    first, second = ([live(p) for p in microbatches(make_batch(r), budget, padded=padded)] for r in (rows, shuffled))
    assert first == second


@settings(deadline=None)
@given(rows=st.lists(st.lists(st.integers(1, 2), min_size=1, max_size=30), min_size=2, max_size=12))
@pytest.mark.parametrize("padded", [False, True])
def test_what_is_cut_by_half_its_cost_falls_apart(make_batch, rows, padded) -> None:
    """Halving after memory ran out always gets somewhere."""
    batch = make_batch(rows)
    assert len(microbatches(batch, cost(batch, padded=padded) // 2, padded=padded)) > 1


def test_rows_that_share_a_prompt_become_neighbours(make_batch) -> None:
    one, two = [4] * 10, [5] * 10
    rows = [[*one, 1], [*two, 1], [*one, 2], [*two, 2], [*one, 3], [*two, 3]]
    pieces = microbatches(make_batch(rows), 13)
    assert [live(piece)[0][:10] for piece in pieces] == [tuple(one), tuple(two)]
    assert [packed(piece).num_tokens for piece in pieces] == [13, 13]


def test_micro_batches_are_filled_whatever_the_first_tokens_are(make_batch) -> None:
    """9 + 1, 8 + 2, 7 + 3, 6 + 4: four full ones, where the order of the tokens alone gives five and more."""
    lengths = [9, 8, 7, 6, 4, 3, 2, 1]
    rows = [[10 + (3 * i) % 8] * n for i, n in enumerate(lengths)]
    pieces = microbatches(make_batch(rows), 10)
    assert sorted(packed(piece).num_tokens for piece in pieces) == [10] * 4


def test_single_rows_share_one_system_message(make_batch) -> None:
    """20 tokens in front of four rows of 5 and one pair of answers to another prompt: 20 + 4 x 5 fit into 40."""
    system = [7] * 20
    rows = [[*system, *[n] * 5] for n in (1, 3, 4, 6)]  # their prompts differ in the first of the five
    group = [[*system, *[2] * 12, n] for n in (8, 9)]
    batch = make_batch([*rows, *group], starts=[21] * 4 + [32] * 2)
    pieces = microbatches(batch, 40)
    assert sorted(len(piece) for piece in pieces) == [2, 4]
    assert sorted(packed(piece).num_tokens for piece in pieces) == [34, 40]


def test_a_group_does_not_share_what_its_rows_share_less_of(make_batch) -> None:
    """Cuts count one beginning for each row: 44 tokens for the group, for nobody the 20 of the system message.

    Packing then shares both.
    """
    system = [7] * 20
    rows = [[*system, *[1] * 30], *([*system, *[2] * 24, n] for n in (8, 9))]
    batch = make_batch(rows, starts=[21, 44, 44])
    assert [len(piece) for piece in microbatches(batch, 95)] == [1, 2]
    assert [packed(piece).num_tokens for piece in microbatches(batch, 96)] == [76]


def test_a_row_longer_than_the_budget_stands_alone(make_batch) -> None:
    pieces = microbatches(make_batch([[1] * 3, [2] * 30, [3] * 3]), 8)
    assert [len(piece) for piece in pieces] == [1, 2]
    assert len(microbatches(make_batch([[1] * 3, [3] * 3]), 8)) == 1


def test_all_columns_travel_with_their_row(make_batch) -> None:
    batch = make_batch([[5, 6, 7], [1, 2], [3, 4, 5, 6]], starts=[2, 1, 0])
    pieces = microbatches(batch, 4)
    masks = {live(piece)[i]: piece.loss_mask[i].tolist() for piece in pieces for i in range(len(piece))}
    assert masks[5, 6, 7][:3] == [False, False, True]
    assert masks[1, 2][:2] == [False, True]
    assert masks[3, 4, 5, 6] == [True] * 4

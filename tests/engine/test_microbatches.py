"""Micro-batches: every row once, pairs whole, the budget held, prefixes kept together."""

from __future__ import annotations

import random

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.engine.microbatches import microbatches
from posttrain.models.packing import packed

rows_of_tokens = st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=12), min_size=1, max_size=12)


def live(batch):
    """Rows of a batch without their padding."""
    return [tuple(ids[:n]) for ids, n in zip(batch.input_ids.tolist(), batch.lengths.tolist(), strict=True)]


def distinct_tokens(rows):
    """Tokens left when each shares its prefix with the row before it."""
    total, previous = 0, ()
    for row in rows:
        shared = next((i for i, (a, b) in enumerate(zip(row, previous, strict=False)) if a != b), None)
        total += len(row) - (min(len(row), len(previous)) if shared is None else shared)
        previous = row
    return total


@settings(deadline=None)
@given(rows=rows_of_tokens, budget=st.integers(1, 40))
def test_every_row_once_within_the_budget(make_batch, rows, budget) -> None:
    pieces = microbatches(make_batch(rows), budget)
    assert sorted(row for piece in pieces for row in live(piece)) == sorted(map(tuple, rows))
    for piece in pieces:
        assert len(piece) == 1 or distinct_tokens(live(piece)) <= budget
        assert piece.input_ids.shape[1] == piece.lengths.max()


@settings(deadline=None)
@given(rows=rows_of_tokens, budget=st.integers(1, 40))
def test_pairs_stay_whole(make_batch, rows, budget) -> None:
    pairs = [(row, [*row, 9]) for row in rows]
    batch = make_batch([row for pair in pairs for row in pair], pairs=True, margins=torch.arange(float(len(rows))))
    pieces = microbatches(batch, budget, together=2)
    found = []
    for piece in pieces:
        assert len(piece) % 2 == 0
        sides = live(piece)
        found += [(sides[2 * i], sides[2 * i + 1], float(piece.margins[i])) for i in range(len(piece) // 2)]
    expected = [(tuple(chosen), tuple(rejected), float(i)) for i, (chosen, rejected) in enumerate(pairs)]
    assert sorted(found) == sorted(expected)


@settings(deadline=None)
@given(rows=rows_of_tokens, budget=st.integers(4, 40), seed=st.integers(0, 100))
def test_the_cut_does_not_depend_on_the_order_of_rows(make_batch, rows, budget, seed) -> None:
    shuffled = list(rows)
    random.Random(seed).shuffle(shuffled)
    first, second = ([live(p) for p in microbatches(make_batch(r), budget)] for r in (rows, shuffled))
    assert first == second


def test_rows_that_share_a_prompt_become_neighbours(make_batch) -> None:
    one, two = [4] * 10, [5] * 10
    rows = [[*one, 1], [*two, 1], [*one, 2], [*two, 2], [*one, 3], [*two, 3]]
    pieces = microbatches(make_batch(rows), 13)
    assert [live(piece)[0][:10] for piece in pieces] == [tuple(one), tuple(two)]
    assert [packed(piece).num_tokens for piece in pieces] == [13, 13]


def test_a_row_longer_than_the_budget_stands_alone(make_batch) -> None:
    pieces = microbatches(make_batch([[1] * 3, [2] * 30, [3] * 3]), 8)
    assert [len(piece) for piece in pieces] == [1, 1, 1]
    assert len(microbatches(make_batch([[1] * 3, [3] * 3]), 8)) == 1


def test_all_columns_travel_with_their_row(make_batch) -> None:
    batch = make_batch([[5, 6, 7], [1, 2], [3, 4, 5, 6]], starts=[2, 1, 0])
    pieces = microbatches(batch, 4)
    masks = {live(piece)[i]: piece.loss_mask[i].tolist() for piece in pieces for i in range(len(piece))}
    assert masks[5, 6, 7][:3] == [False, False, True]
    assert masks[1, 2][:2] == [False, True]
    assert masks[3, 4, 5, 6] == [True] * 4

"""Packing: who shares, who attends to whom, and how many tokens are left to compute."""

from __future__ import annotations

import math
from itertools import combinations, pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from posttrain.models import packing
from posttrain.models.packing import Packing, Segment, packed


def common(rows):
    """Tokens that all rows begin with."""
    count = 0
    for column in zip(*rows, strict=False):
        if len(set(column)) > 1:
            break
        count += 1
    return count


def best_saving(rows, shortest):
    """The most tokens that any cut of the rows into runs leaves out, by trying all cuts."""
    n = len(rows)
    best = 0
    for size in range(n):
        for cuts in combinations(range(1, n), size):
            edges = [0, *cuts, n]
            total = 0
            for first, last in pairwise(edges):
                shared = common(rows[first:last]) if last - first > 1 else 0
                total += (last - first - 1) * shared if shared >= shortest else 0
            best = max(best, total)
    return best


few_rows = st.lists(st.lists(st.integers(1, 2), min_size=1, max_size=7), min_size=1, max_size=6)


@settings(deadline=None, max_examples=150)
@given(rows=few_rows, shortest=st.integers(1, 3))
def test_the_cut_leaves_out_the_most_tokens(make_batch, rows, shortest) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "SHORTEST_PREFIX", shortest)
        plan = packed(make_batch(rows))
    assert plan.num_tokens == sum(map(len, rows)) - best_saving(rows, shortest)


@settings(deadline=None, max_examples=100)
@given(rows=few_rows, shared=st.booleans())
def test_every_live_token_is_there_with_its_position_and_its_past(make_batch, rows, shared) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "SHORTEST_PREFIX", 1)
        plan = packed(make_batch(rows), share_prefixes=shared)
    assert sum(segment.length for segment in plan.segments) == plan.num_tokens
    ids, positions = plan.input_ids[0].tolist(), plan.position_ids[0].tolist()
    starts = [0]
    for segment in plan.segments:
        starts.append(starts[-1] + segment.length)
    for b, row in enumerate(rows):
        places = plan.index[b, : len(row)].tolist()
        assert [ids[place] for place in places] == row
        assert [positions[place] for place in places] == list(range(len(row)))
        # what the last token of the row may look at is the row and nothing else
        number = max(n for n, start in enumerate(starts[:-1]) if start <= places[-1])
        segment = plan.segments[number]
        seen = list(range(starts[number], places[-1] + 1))
        if segment.prefix is not None:
            seen = [*range(starts[segment.prefix], starts[segment.prefix + 1]), *seen]
        assert seen == places


def test_prefixes_by_hand(make_batch) -> None:
    # Rows 0 and 1 share 9 tokens, row 2 shares 3 with them (too few), rows 3 and 4 are equal.
    first = list(range(10, 19))
    rows = [[*first, 1, 2], [*first, 3], [10, 11, 12, 5], [*first, 9, 9], [*first, 9, 9]]
    plan = packed(make_batch(rows))
    assert plan.segments == (
        *(Segment(9), Segment(2, prefix=0), Segment(1, prefix=0)),
        *(Segment(4), Segment(11)),
    )
    assert plan.num_tokens == 9 + 2 + 1 + 4 + 11
    assert torch.equal(plan.index[3, :11], plan.index[4, :11])


def test_a_row_that_is_the_prefix_of_the_others(make_batch) -> None:
    first = list(range(10, 19))
    plan = packed(make_batch([first, [*first, 1], [*first, 2]]))
    assert plan.segments == (Segment(9), Segment(1, prefix=0), Segment(1, prefix=0))
    assert plan.index[0].tolist()[:9] == list(range(9))


def test_share_prefixes_false_packs_in_full(make_batch) -> None:
    rows = [[5] * 12, [5] * 12]
    assert packed(make_batch(rows), share_prefixes=False).num_tokens == 24
    assert packed(make_batch(rows)).num_tokens == 12


@pytest.mark.parametrize("window", [None, 3, 50])
@pytest.mark.parametrize("softcap", [None, 0.7])
def test_attention_is_the_textbook_one(make_batch, window, softcap) -> None:
    """Against softmax(q kᵀ) v written out token by token, with grouped heads and a scale of our own."""
    rows = [[1] * 9 + [2, 3], [1] * 9 + [4], [6, 7, 8, 9]]
    plan = packed(make_batch(rows))
    torch.manual_seed(0)
    n = plan.num_tokens
    query, key, value = (torch.randn(1, heads, n, 6, dtype=torch.float64) for heads in (4, 2, 2))
    out = plan.attend(0, query, key, value, scaling=0.3, dropout=0.0, sliding_window=window, softcap=softcap)
    assert out.shape == (1, n, 4, 6)
    for b, row in enumerate(rows):
        places = plan.index[b, : len(row)]
        for t in range(len(row)):
            past = places[max(0, t + 1 - window) if window else 0 : t + 1]
            for head in range(4):
                scores = 0.3 * key[0, head // 2, past] @ query[0, head, places[t]]
                if softcap:
                    scores = softcap * torch.tanh(scores / softcap)
                expected = scores.softmax(0) @ value[0, head // 2, past]
                torch.testing.assert_close(out[0, places[t], head], expected)


def test_dropout_reaches_attention(make_batch) -> None:
    plan = packed(make_batch([[1] * 6]))
    torch.manual_seed(0)
    query = torch.randn(1, 2, 6, 4)
    for softcap in (None, 5.0):
        options = {"scaling": None, "sliding_window": None, "softcap": softcap}
        dry = plan.attend(0, query, query, query, dropout=0.0, **options)
        wet = plan.attend(0, query, query, query, dropout=0.5, **options)
        assert not torch.allclose(dry, wet)


def test_default_scale_is_that_of_the_head_size() -> None:
    plan = Packing(torch.zeros(1, 3), torch.zeros(1, 3), torch.zeros(1, 3), (Segment(3),))
    query = torch.randn(1, 1, 3, 16)
    options = {"dropout": 0.0, "sliding_window": None}
    plain = plan.attend(0, query, query, query, scaling=None, softcap=None, **options)
    expected = F.scaled_dot_product_attention(query, query, query, is_causal=True, scale=1 / math.sqrt(16))
    torch.testing.assert_close(plain, expected.transpose(1, 2))
    capped = plan.attend(0, query, query, query, scaling=None, softcap=1e6, **options)
    torch.testing.assert_close(capped, plain, atol=1e-4, rtol=1e-4)

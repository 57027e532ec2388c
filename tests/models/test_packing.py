"""Packing: who shares, who attends to whom, and how many tokens are left to compute."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from posttrain.models import packing
from posttrain.models.packing import Packing, Segment, packed

few_rows = st.lists(st.lists(st.integers(1, 2), min_size=1, max_size=7), min_size=1, max_size=6)


def least_tokens(rows, shortest):
    """What is left to compute when every beginning is computed once, of rows with so many tokens in common."""
    long = [row for row in rows if len(row) >= shortest]
    beginnings = {(tuple(row[: t + 1]), tuple(row[:shortest])) for row in long for t in range(len(row))}
    return len(beginnings) + sum(len(row) for row in rows if len(row) < shortest)


@settings(deadline=None, max_examples=150)
@given(rows=few_rows, shortest=st.integers(1, 4))
def test_every_beginning_is_computed_once(make_batch, rows, shortest) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "SHORTEST_PREFIX", shortest)
        plan = packed(make_batch(rows))
    assert plan.num_tokens == least_tokens(rows, shortest)


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
        chain = plan.chain(number)
        assert [place for n in chain for place in range(starts[n], starts[n + 1])][: len(row)] == places
        assert plan.past[number] == sum(plan.segments[n].length for n in chain[:-1])
        every = torch.arange(plan.num_tokens)
        assert every[plan.allowed(torch.tensor(places[-1]), every, None)].tolist() == places
        assert every[plan.allowed(torch.tensor(places[-1]), every, 2)].tolist() == places[-2:]


def test_prefixes_by_hand(make_batch) -> None:
    # Rows 0, 2, 3 and 4 begin with the same 9 tokens; two of them go on with the same 8, two are equal. Two others
    # share 7 tokens: too few.
    system = list(range(10, 19))
    prompt = list(range(30, 38))
    rows = [[*system, *prompt, 1, 2], [*prompt[:7], 41], [*system, 9, 9], [*system, *prompt, 3], [*system, 9, 9]]
    plan = packed(make_batch([*rows, [*prompt[:7], 42]]))
    assert plan.segments == (
        Segment(9),
        Segment(2, prefix=0),
        *(Segment(8, prefix=0), Segment(2, prefix=2), Segment(1, prefix=2)),
        *(Segment(8), Segment(8)),
    )
    assert plan.num_tokens == 9 + 2 + 8 + 2 + 1 + 8 + 8
    assert plan.past == (0, 9, 9, 17, 17, 0, 0)
    assert plan.ends == (22, 11, 22, 21, 22, 30, 38)
    assert plan.num_pairs == 45 + (18 + 3) + (72 + 36) + (34 + 3) + (17 + 1) + 36 + 36
    assert plan.index[3, :18].tolist() == [*range(9), *range(11, 19), 21]
    assert torch.equal(plan.index[2], plan.index[4])


def test_a_row_that_is_the_prefix_of_the_others(make_batch) -> None:
    first = list(range(10, 19))
    plan = packed(make_batch([[*first, 1], first, [*first, 2]]))
    assert plan.segments == (Segment(9), Segment(1, prefix=0), Segment(1, prefix=0))
    assert plan.index[1].tolist()[:9] == list(range(9))


def test_the_order_of_rows_changes_nothing(make_batch) -> None:
    first, second = list(range(10, 19)), list(range(20, 29))
    apart = packed(make_batch([[*first, 1], [*second, 1], [*first, 2], [*second, 2]]))
    assert apart.num_tokens == 9 + 1 + 1 + 9 + 1 + 1


def test_share_prefixes_false_packs_in_full_and_in_order(make_batch) -> None:
    rows = [[6] * 12, [5] * 12, [5] * 12]
    plan = packed(make_batch(rows), share_prefixes=False)
    assert plan.segments == (Segment(12), Segment(12), Segment(12))
    assert plan.input_ids[0].tolist() == [token for row in rows for token in row]
    assert packed(make_batch(rows)).num_tokens == 24


def test_hundreds_of_rows_and_a_deep_tree(make_batch) -> None:
    """Every row goes on where the one before ended: the tree is as deep as there are rows."""
    rows = [[7] * n for n in range(1, 700)]
    plan = packed(make_batch(rows))
    assert plan.num_tokens == 699 + sum(range(1, packing.SHORTEST_PREFIX))


def test_dropout_reaches_attention(make_batch) -> None:
    plan = packed(make_batch([[1] * 6]))
    torch.manual_seed(0)
    query = torch.randn(1, 2, 6, 4)
    for softcap, backend in ((None, "tiles"), (5.0, "tiles"), (None, "sdpa"), (5.0, "sdpa")):
        plan = dataclasses.replace(plan, backends=(backend,))
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

"""Two results compared: cells of every kind, the order of columns, and in what way a result is wrong."""

import datetime
import math
import random as chance
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.rewards.sql.cells import is_same, plain
from posttrain.rewards.sql.compare import WRONG_RESULTS, difference, same_result
from posttrain.rewards.sql.sandbox import Execution


def ran(*rows, columns=()):
    return Execution(rows, columns=columns)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (True, 1),
        (Decimal("5.00"), 5),
        (Decimal("2.50"), 2.5),
        (Decimal("1e30"), 10**30),
        (datetime.date(2024, 5, 1), "2024-05-01"),
        (datetime.datetime(2024, 5, 1), "2024-05-01"),
        (datetime.datetime(2024, 5, 1, 9, 30, 0, 500000), "2024-05-01 09:30:00.5"),
        (datetime.datetime(2024, 5, 1, 2, tzinfo=datetime.timezone(datetime.timedelta(hours=2))), "2024-05-01"),
        (datetime.time(9, 30), "09:30:00"),
        (datetime.timedelta(hours=36), 1.5),
        ("2024-05-01T00:00:00", "2024-05-01"),
        ("2024-05-01 10:00:00.000", "2024-05-01 10:00:00"),
        ("2024-05-01 10:00:00 or so", "2024-05-01 10:00:00 or so"),
        (memoryview(b"ab"), b"ab"),
        ([1, "中"], '[1, "中"]'),
        ({"b": 1, "a": Decimal(2)}, '{"a": 2, "b": 1}'),
        (None, None),
        ("5", "5"),
    ],
)
def test_cells_of_any_driver_become_plain(value, expected):
    assert plain(value) == expected
    assert type(plain(value)) is type(expected)


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        (Decimal("0.1"), 0.1, True),
        (Decimal("3"), 3, True),
        (True, 1, True),
        (False, None, False),
        (1_000_000.0, 1_000_000.9, True),
        (1_000_000.0, 1_000_002.0, False),
        (0.0, 1e-10, True),
        (0.0, 1e-8, False),
        (1, 1.0000001, True),
        (math.nan, math.nan, True),
        (math.nan, 1.0, False),
        (math.inf, math.inf, True),
        (math.inf, -math.inf, False),
        (10**400, 1.5, False),
        (b"1", 1, False),
        (datetime.date(2024, 1, 2), "2024-01-02", True),
    ],
)
def test_numbers_are_the_same_within_the_stated_tolerance(a, b, same):
    assert is_same(plain(a), plain(b)) is same
    assert is_same(plain(b), plain(a)) is same
    assert same_result(ran((a, 1)), ran((b, 1)), ordered=False) is same


CELL = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 2), st.sampled_from(["a", "b", ""]), st.floats(-3, 3), st.dates()
)


@given(st.lists(st.tuples(CELL, CELL, CELL), min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_moved_columns_count_only_by_position(rows, random):
    order = random.sample(range(3), 3)
    moved = [tuple(row[i] for i in order) for row in rows]
    random.shuffle(moved)
    assert same_result(ran(*rows), ran(*moved), ordered=False, column_order="any")
    by_position = same_result(ran(*rows), ran(*moved), ordered=False)
    assert difference(ran(*rows), ran(*moved), ordered=False) in (("",) if by_position else ("wrong_column_order",))


@given(st.lists(st.tuples(CELL, CELL), max_size=6), st.lists(st.tuples(CELL, CELL), max_size=6), st.booleans())
def test_difference_and_equality_agree_and_are_symmetric(left, right, ordered):
    a, b = ran(*left), ran(*right)
    same = same_result(a, b, ordered=ordered)
    assert same_result(b, a, ordered=ordered) is same
    kind = difference(a, b, ordered=ordered)
    assert (kind == "") is same
    assert kind in ("", *WRONG_RESULTS)
    if ordered and same:
        assert same_result(a, b, ordered=False)


@given(st.lists(st.tuples(CELL, CELL), min_size=1, max_size=6))
def test_another_cell_is_another_result(rows):
    changed = [*rows[:-1], (rows[-1][0], "changed")]
    assert not same_result(ran(*rows), ran(*changed), ordered=False)
    assert not same_result(ran(*rows), ran(*changed), ordered=False, column_order="any")


@pytest.mark.parametrize(
    ("gold", "predicted", "ordered", "kind"),
    [
        ([(1, 2)], [(1,)], False, "wrong_columns"),
        ([(1,), (2,)], [(2,), (1,)], True, "wrong_order"),
        ([(1, "a")], [("a", 1)], False, "wrong_column_order"),
        ([(1,), (2,)], [], False, "empty_result"),
        ([(1,), (2,)], [(1,), (2,), (2,)], False, "wrong_duplicates"),
        ([(1,), (1,), (2,)], [(1,), (2,), (2,)], False, "wrong_duplicates"),
        ([(1,), (2,)], [(1,), (3,), (4,)], False, "wrong_row_count"),
        ([(1,), (2,)], [(1,), (3,)], False, "wrong_values"),
        ([(1,), (2,)], [(2,), (1,)], False, ""),
    ],
)
def test_wrong_results_have_their_kind(gold, predicted, ordered, kind):
    assert difference(ran(*gold), ran(*predicted), ordered=ordered) == kind


def test_two_empty_results_must_have_as_many_columns():
    one, two = ran(columns=("a",)), ran(columns=("a", "b"))
    assert same_result(one, ran(columns=("other",)), ordered=False)
    assert not same_result(one, two, ordered=False)
    assert difference(one, two, ordered=False) == "wrong_columns"


def test_many_equal_columns_do_not_take_for_ever():
    random = chance.Random(1)
    gold = [tuple(random.choice("ab") for _ in range(12)) for _ in range(40)]
    shifted = [(*row[1:], row[0]) for row in gold]
    constant = [tuple("a" * 12) for _ in gold]
    assert same_result(ran(*gold), ran(*shifted), ordered=True, column_order="any")
    assert not same_result(ran(*gold), ran(*constant), ordered=True, column_order="any")
    spoilt = [(*row[:-1], "c") for row in shifted]
    assert not same_result(ran(*gold), ran(*spoilt), ordered=False, column_order="any")

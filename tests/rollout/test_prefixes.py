"""Which beginning of a prompt lies where."""

import random

import pytest

from posttrain.rollout.prefixes import LEAST, Prefixes


def test_the_longest_beginning_is_found():
    known = Prefixes(4)
    known.lies(0, range(30))
    known.lies(1, [*range(40), 99, 98])
    known.lies(3, [*range(40), 97])
    assert known.longest([*range(40), 99, 1, 2]) == (1, 41)
    assert known.longest([*range(35), 1]) == (1, 35)
    assert known.longest([5, *range(40)]) == (0, 0)


def test_the_last_token_is_always_computed():
    known = Prefixes(1)
    known.lies(0, range(30))
    assert known.longest(tuple(range(30))) == (0, 29)
    assert known.longest(tuple(range(20))) == (0, 19)


def test_short_beginnings_are_not_worth_it():
    known = Prefixes(2)
    known.lies(1, range(LEAST))
    assert known.longest([*range(LEAST - 1), 99, 98]) == (0, 0)
    assert known.longest([*range(LEAST), 99, 98]) == (1, LEAST)


def test_what_is_overwritten_is_not_there():
    known = Prefixes(2)
    known.lies(0, range(40))
    known.lies(0, range(20))
    assert known.longest(range(40)) == (0, 20)


@pytest.mark.parametrize("seed", range(20))
def test_it_is_the_longest_of_all(seed):
    chance = random.Random(seed)
    rows = [[chance.randrange(2) for _ in range(chance.randint(0, 60))] for _ in range(6)]
    begun = [0] * 20
    rows = [begun[: chance.choice([0, 18, 20])] + row for row in rows]
    ids = begun + [chance.randrange(2) for _ in range(40)]
    known = Prefixes(6)
    for slot, row in enumerate(rows):
        known.lies(slot, row)

    def common(row):
        return next((i for i, (a, b) in enumerate(zip(row, ids[:-1], strict=False)) if a != b), min(len(row), 59))

    slot, count = known.longest(ids)
    assert count == (max(map(common, rows)) if max(map(common, rows)) >= LEAST else 0)
    if count:
        assert common(rows[slot]) == count

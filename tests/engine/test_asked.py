"""The tokens that a batch asks for, a shared beginning counted once."""

from __future__ import annotations

import random

from posttrain.engine.asked import Live, _shared


def test_a_shared_beginning_counts_once(make_batch) -> None:
    rows = [[1, 2, 3, 4], [1, 2, 9], [5, 6], [1, 2, 3, 7, 8]]
    live = Live.of(make_batch(rows, starts=[2, 2, 1, 3]))
    assert live.rows == 14
    assert live.tokens == 4 + 1 + 2 + 2
    assert live.targets == 2 + 1 + 1 + 2
    assert live.seen(None) == (1 + 2 + 3 + 4) + 3 + (1 + 2) + (4 + 5)
    assert live.seen(2) == (1 + 2 + 2 + 2) + 2 + (1 + 2) + (2 + 2)


def test_live_tokens_are_the_nodes_of_a_tree(make_batch, ragged_rows) -> None:
    for seed in range(20):
        rows = ragged_rows(seed)
        prefixes = {tuple(row[: n + 1]) for row in rows for n in range(len(row))}
        live = Live.of(make_batch(rows))
        assert live.tokens == len(prefixes)
        assert live.seen(None) == sum(map(len, prefixes))


def test_the_longest_common_beginning() -> None:
    chance = random.Random(0)
    for _ in range(300):
        a, b = ([chance.randrange(2) for _ in range(chance.randrange(12))] for _ in range(2))
        expected = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        assert _shared(a, b) == expected

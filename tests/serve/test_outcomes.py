"""From what a judge said to pairs, by hand."""

import pytest

from posttrain.data.answers import AnswersExample
from posttrain.data.formats import Message, guess_layout, pair_example
from posttrain.serve.outcomes import account, pairs_of, preference_rows, scored, voted


def example(*answers, is_ranked=False):
    return AnswersExample(prompt=(Message("user", "q"),), answers=answers, is_ranked=is_ranked)


def test_neighbours_are_compared_first_so_that_few_pairs_take_in_many_answers():
    assert pairs_of(4) == [(0, 1), (1, 2), (2, 3), (0, 2), (1, 3), (0, 3)]
    assert pairs_of(4, 3) == [(0, 1), (1, 2), (2, 3)]
    assert pairs_of(2) == [(0, 1)]


@pytest.mark.parametrize(
    ("in_order", "swapped", "kind", "chosen"),
    [
        ("A", "B", "decided", 0),  # the first answer both times
        ("B", "A", "decided", 1),
        ("A", "A", "disagreed", None),  # whichever stands first
        ("B", "B", "disagreed", None),
        ("tie", "tie", "tie", None),
        ("tie", "A", "disagreed", None),
        ("A", None, "undecided", None),
        (None, None, "undecided", None),
    ],
)
def test_only_an_answer_that_wins_in_both_orders_wins(in_order, swapped, kind, chosen):
    outcome = voted(5, (0, 1), {(5, 0, 1): in_order, (5, 1, 0): swapped}, swap=True)
    assert (outcome.kind, outcome.chosen, outcome.votes) == (kind, chosen, 2 if chosen is not None else 0)
    if chosen is not None:
        assert outcome.rejected == 1 - chosen


def test_without_the_swap_one_verdict_decides_and_one_that_is_missing_does_not():
    assert voted(0, (1, 3), {(0, 1, 3): "B"}, swap=False).chosen == 3
    assert voted(0, (1, 3), {(0, 1, 3): "B"}, swap=False).votes == 1
    assert voted(0, (1, 3), {(0, 3, 1): "B"}, swap=False).kind == "undecided"


def test_scores_decide_by_more_than_the_margin():
    scores = {(0, 0): 5.0, (0, 1): 7.0, (0, 2): None}
    found = scored(0, 3, scores, min_margin=1.0, limit=None)
    assert [(o.first, o.second, o.kind, o.chosen) for o in found] == [
        (0, 1, "decided", 1),
        (1, 2, "undecided", None),
        (0, 2, "undecided", None),
    ]
    assert found[0].scores == (7.0, 5.0)
    assert scored(0, 2, scores, min_margin=2.0, limit=None)[0].kind == "tie"


def test_a_limit_keeps_the_scored_pairs_that_lie_furthest_apart():
    scores = {(0, 0): 5.0, (0, 1): 6.0, (0, 2): 9.0}
    best = scored(0, 3, scores, min_margin=0.0, limit=1)
    assert [(o.rejected, o.chosen) for o in best] == [(0, 2)]


def test_rows_are_read_back_by_stage_rm_and_dpo():
    examples = [example("x", "y"), example("u", "v")]
    votes = voted(0, (0, 1), {(0, 0, 1): "B", (0, 1, 0): "A"}, swap=True)
    score = scored(1, 2, {(1, 0): 9.0, (1, 1): 4.5}, min_margin=0, limit=None)
    rows = preference_rows(examples, [votes, *score], "referee")
    prompt = [{"role": "user", "content": "q"}]
    assert rows == [
        {"prompt": prompt, "chosen": "y", "rejected": "x", "votes": 2, "judge": "referee"},
        {
            **{"prompt": prompt, "chosen": "u", "rejected": "v", "margin": 4.5},
            **{"chosen_score": 9.0, "rejected_score": 4.5, "judge": "referee"},
        },
    ]
    pairs = [pair_example(row, guess_layout(row, "row"), "row") for row in rows]
    assert [(pair.chosen, pair.rejected, pair.margin) for pair in pairs] == [("y", "x", None), ("u", "v", 4.5)]
    assert pairs[0].prompt == (Message("user", "q"),)


def test_the_account_adds_up():
    examples = [example("longer", "x", is_ranked=True) for _ in range(3)] + [example("a", "b") for _ in range(2)]
    verdicts = {
        **{(0, 0, 1): "A", (0, 1, 0): "B"},  # the first answer, as the data say
        **{(1, 0, 1): "B", (1, 1, 0): "A"},  # the second
        **{(2, 0, 1): "A", (2, 1, 0): "A"},  # whichever stands first
        **{(3, 0, 1): "tie", (3, 1, 0): "tie"},
        **{(4, 0, 1): "A", (4, 1, 0): None},
    }
    outcomes = [voted(row, (0, 1), verdicts, swap=True) for row in range(5)]
    assert account(examples, outcomes, verdicts) == {
        "label_num_rows": 5,
        "label_num_compared": 5,
        "label_num_pairs": 2,
        "label_ties": 1,
        "label_disagreed": 1,
        "label_undecided": 1,
        "label_order_agreement": 0.75,  # rows 0, 1 and 3 of 0 .. 3
        "label_first_share": 5 / 7,
        "label_longer_share": 0.5,
        "label_agreement": 0.5,
    }
    nothing = account(examples, [voted(0, (0, 1), {}, swap=True)], {})
    assert not {"label_agreement", "label_first_share", "label_order_agreement"} & set(nothing)

"""The built-in rules, case by case."""

from __future__ import annotations

import pytest

from posttrain.config.reward_names import read_reward_name
from posttrain.errors import UserError
from posttrain.rewards.rules import RuleReward, last_number


def rule(text):
    return RuleReward.named(read_reward_name(text))


def worth(rollouts, text, completion, **columns):
    return float(rule(text)(rollouts([completion], **{name: [value] for name, value in columns.items()})))


@pytest.mark.parametrize(
    ("pattern", "completion", "expected"),
    [
        (r"regex:^\d+$", "42", 1.0),
        (r"regex:^\d+$", "42 apples", 0.0),
        (r"regex:<think>.*</think>", "<think>\n</think>", 0.0),
        (r"regex:(?s)<think>.*</think>", "<think>\n</think>", 1.0),
        (r"regex:答案[:：]", "所以答案：3", 1.0),
        (r"regex:a{1,2}:b", "aa:b", 1.0),
    ],
)
def test_a_pattern_is_found_or_not(rollouts, pattern, completion, expected):
    assert worth(rollouts, pattern, completion) == expected


@pytest.mark.parametrize(
    ("completion", "answer", "expected"),
    [
        (" Paris\n", "Paris", 1.0),
        ("paris", "Paris", 0.0),
        ("two  words", "two words", 1.0),
        ("１２３", "123", 1.0),
        ("北京。", "北京", 0.0),
        ("7", 7, 1.0),
    ],
)
def test_texts_match_but_for_white_space_and_width(rollouts, completion, answer, expected):
    assert worth(rollouts, "exact_match", completion, answer=answer) == expected


def test_the_column_is_the_first_known_one_or_the_named_one(rollouts):
    columns = {"output": "b", "answer": "a", "mine": "c"}
    assert [worth(rollouts, "exact_match", text, **columns) for text in "abc"] == [1.0, 0.0, 0.0]
    assert worth(rollouts, "exact_match:mine", "c", **columns) == 1.0
    assert worth(rollouts, "exact_match", "b", output="b", reference="x") == 1.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("so it is 42", 42.0),
        ("1,234,567.5 in all", 1234567.5),
        ("from 3 to 5 items", 5.0),
        ("3-5", 5.0),
        ("x=-3", -3.0),
        ("temperature −7 degrees", -7.0),
        ("约为12.5元", 12.5),
        ("共１２个，每个３元", 3.0),
        ("销量3万件", 30000.0),
        ("1.5亿", 150000000.0),
        ("2.5e3", 2500.0),
        (".5", 0.5),
        ("#### 18", 18.0),
        ("1, 2, 3", 3.0),
        ("The answer is 10.", 10.0),
        ("1e999", float("inf")),
    ],
)
def test_the_last_number_of_a_text(text, expected):
    number, is_percent = last_number(text)
    assert number == pytest.approx(expected)
    assert not is_percent


def test_a_text_without_a_number_has_none():
    assert last_number("no number, 没有") is None


@pytest.mark.parametrize(
    ("completion", "answer", "expected"),
    [
        ("答案是１，２３４。", "1234", 1.0),
        ("it is 12%", "12%", 1.0),
        ("it is 12％", "0.12", 1.0),
        ("it is 12%", "12", 1.0),
        ("0.12", "12%", 1.0),
        ("it is 1.2%", "12%", 0.0),
        ("3.0000001", 3, 1.0),
        ("3.01", 3, 0.0),
        ("no idea", 3, 0.0),
        ("-3", "3", 0.0),
        ("0", "0.0", 1.0),
    ],
)
def test_numbers_match_however_they_are_written(rollouts, completion, answer, expected):
    assert worth(rollouts, "numeric_match", completion, answer=answer) == expected


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ('{"a": 1}', 1.0),
        (" [1, 2]\n", 1.0),
        ('Here it is:\n```json\n{"a": 1}\n```\nDone.', 1.0),
        ("3", 0.0),
        ('"text"', 0.0),
        ('{"a": 1} and more', 0.0),
        ('{"a": NaN}', 0.0),
        ("{'a': 1}", 0.0),
        ("", 0.0),
        ("[" * 100_000, 0.0),
        ("```\n[1]\n```\n```\n[2]\n```", 0.0),
    ],
)
def test_only_whole_objects_and_lists_are_json(rollouts, completion, expected):
    assert worth(rollouts, "json_valid", completion) == expected


@pytest.mark.parametrize(
    ("range_", "length", "expected"),
    [
        ("20-40", 20, 0.0),
        ("20-40", 40, 0.0),
        ("20-40", 10, -0.5),
        ("20-40", 0, -1.0),
        ("20-40", 50, -0.25),
        ("20-40", 79, -0.975),
        ("20-40", 1000, -1.0),
        ("20-", 10_000, 0.0),
        ("-40", 0, 0.0),
        ("-40", 60, -0.5),
    ],
)
def test_length_costs_nothing_within_its_range_and_more_with_the_distance(rollouts, range_, length, expected):
    assert worth(rollouts, f"length:{range_}", "字" * length) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "completion", "expected"),
    [
        ("repetition:1", "one two three", 0.0),
        ("repetition:1", "one two one two", -0.5),  # one, two, one, two: two of four have occurred
        ("repetition:2", "one two one two", -1 / 3),  # one two, two one, one two
        ("repetition:3", "one two", 0.0),  # no run of three
        ("repetition", "a b c a b c", -0.25),  # abc bca cab abc
        ("repetition:2", "好的好的", -1 / 3),  # 好的, 的好, 好的: no spaces needed
        ("repetition:1", "!!!!", -0.75),
        ("repetition:1", "ab" * 30, -2 / 3),  # a run without spaces is cut every twenty letters
    ],
)
def test_repetition_costs_the_share_of_runs_that_have_occurred(rollouts, text, completion, expected):
    assert worth(rollouts, text, completion) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "row", "words"),
    [
        ("exact_match", {"text": "x"}, "row 2 .*none of the columns answer, gold, output, reference.*columns: text"),
        ("exact_match:gold", {"answer": "x"}, "row 2 .*no column `gold`"),
        ("numeric_match", {"answer": "many"}, "row 2 .*its reference 'many' holds no number"),
        ("exact_match", {"answer": ["x"]}, "row 2 .*column `answer` holds list"),
    ],
)
def test_rows_that_cannot_be_judged_are_named_before_the_run(text, row, words):
    with pytest.raises(UserError, match=f"^reward_funcs: {text} cannot judge {words}"):
        rule(text).check([{"answer": "1", "gold": "1"}, row])


def test_rules_without_a_reference_take_any_row(rollouts):
    for text in ("regex:x", "json_valid", "length:1-2", "repetition:2"):
        rule(text).check([{}])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("regex:", "has no pattern"),
        ("regex:(", "is no regular expression"),
        ("length", "has no length"),
        ("length:-", "has no length"),
        ("length:9-3", "shorter than the shortest"),
        ("length:0-0", "or 0"),
        ("repetition:x", "has no number"),
        ("repetition:0", "has no number"),
        ("json_valid:x", "takes nothing behind a colon"),
        ("lenght:1-2", "did you mean length?"),
        ("sql", "known are"),
        ("rewards.py", "write rewards.py:function"),
        ("rewards.py:", "names no function"),
        ("http://", "names no server"),
        ("http://user:pw@host/", "reward_token_env"),
        ("http://[::1/", "is no address"),
    ],
)
def test_names_that_stand_for_nothing_say_what_to_write(text, words):
    with pytest.raises(ValueError, match=words):
        read_reward_name(text)


@pytest.mark.parametrize(
    ("text", "kind", "label"),
    [
        ("a/b-c/rewards.py:score_2", "function", "score_2"),
        (r"C:\rewards\r.py:f", "function", "f"),
        ("https://host:8000/score?k=v", "endpoint", "endpoint"),
        ("regex:.*\\.py:f", "regex", "regex"),
        ("sql_execution", "sql_execution", "sql_execution"),
        ("judge", "judge", "judge"),
    ],
)
def test_names_are_told_apart(text, kind, label):
    name = read_reward_name(text)
    assert (name.kind, name.label) == (kind, label)

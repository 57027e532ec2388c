import json

import pytest

from posttrain.config.use import EvalConfig
from posttrain.errors import UserError
from posttrain.evaluate.match import Matching


def judged(completion, reference, **keys):
    return Matching(EvalConfig(**keys)).record(completion, reference)


@pytest.mark.parametrize(
    ("completion", "reference", "keys", "correct"),
    [
        ("Paris", "Paris", {}, True),
        (" Paris\n", "Paris", {}, True),
        ("Ｐａｒｉｓ", "Paris", {}, True),
        ("paris", "Paris", {}, False),
        ("paris", "Paris", {"match_ignore_case": True}, True),
        ("Paris.", "Paris", {}, False),
        ("Paris.", "Paris", {"match_ignore_punctuation": True}, True),
        ("北京。", "北京", {"match_ignore_punctuation": True}, True),
        ("The capital is Paris, of course", "Paris", {"match": "contains"}, True),
        ("The capital is Lyon", "Paris", {"match": "contains"}, False),
        ("so she has 72 clips", "Natalia sold 48+24 = 72.\n#### 72", {"match": "number"}, True),
        ("1,200 euros", "1200", {"match": "number"}, True),
        ("约为 3 万元", "30000", {"match": "number"}, True),
        ("It is 72, not 71", "72", {"match": "number"}, False),  # the last number counts
        ("3.14", "3.1416", {"match": "number"}, False),
        ("3.14", "3.1416", {"match": "number", "match_tolerance": 1e-3}, True),
        ("#### 5\nor else 6", "why not\n#### 5", {"match": "number", "match_pattern": r"####\s*(\S+)"}, True),
        ("the answer is (B).", "B", {"match_pattern": r"answer is \(?([A-D])"}, True),
        ("The answer is A. No: the answer is (C)", "C", {"match_pattern": r"answer is \(?([A-D])"}, True),
        ("no letter at all", "B", {"match_pattern": r"answer is \(?([A-D])"}, False),
    ],
)
def test_what_is_right(completion, reference, keys, correct):
    assert judged(completion, reference, **keys)["correct"] is correct


def test_an_answer_that_is_not_there_is_wrong_and_counted():
    found = judged("no letter at all", "B", match_pattern=r"answer is ([A-D])")
    assert (found["answer"], found["found"], found["correct"]) == (None, False, False)
    assert judged("none", "3", match="number")["found"] is False
    assert judged("", "x")["found"] is False


def test_the_number_that_was_read_is_told():
    assert judged("about 1,234.5", "7", match="number")["answer"] == "1234.5"
    assert judged("12%", "0.12", match="number")["answer"] == "12%"


def test_a_reference_without_a_number_is_refused():
    with pytest.raises(UserError, match="the reference of row 2 holds no number: 'none'"):
        Matching(EvalConfig(match="number")).check(["1", "none"])


def test_settings_are_those_that_results_depend_on():
    found = Matching(EvalConfig(match="number", match_pattern="(.)")).settings
    assert found["match"] == "number"
    assert found["match_pattern"] == "(.)"


def test_every_answer_of_gsm8k_is_read_with_and_without_its_mark(shared):
    text = (shared / "gsm8k" / "test.jsonl").read_text(encoding="utf-8")
    answers = [json.loads(line)["answer"] for line in text.splitlines()]
    plain, marked = (Matching(EvalConfig(match="number", match_pattern=pattern)) for pattern in (None, r"#### *(.+)"))
    plain.check(answers)
    marked.check(answers)
    for answer in answers:
        number = answer.rpartition("#### ")[2]
        for rule in (plain, marked):
            assert rule.record(answer, answer)["correct"]
            assert not rule.record(f"#### 1{number}", answer)["correct"]
        assert plain.record(f"So it is {number}.", answer)["correct"]
        assert not marked.record(f"So it is {number}.", answer)["found"]

"""Rows with several answers, in the shapes in which users have them."""

import json

import pytest

from posttrain.config import load_config
from posttrain.data.answers import AnswersExample, as_rows, distinct, read_answers
from posttrain.data.encode import Report
from posttrain.data.formats import Message, UnusableRowError
from posttrain.errors import UserError

ASKED = (Message("user", "Name a fruit."),)


@pytest.fixture
def read(tmp_path):
    def read(*tables, info=None, **keys):
        names = []
        for number, rows in enumerate(tables):
            (tmp_path / f"rows{number}.json").write_text(json.dumps(rows), encoding="utf-8")
            names.append(f"rows{number}.json")
        if info is not None:
            (tmp_path / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
            names = list(info)
        config = load_config({"model_name_or_path": "m", "dataset_dir": str(tmp_path), **keys}, command="generate")
        report = Report()
        return read_answers(names, config.data, report), report

    return read


@pytest.mark.parametrize(
    ("row", "is_ranked"),
    [
        ({"prompt": "Name a fruit.", "chosen": "fig", "rejected": "pea"}, True),
        ({"instruction": "Name a fruit.", "output": ["fig", "pea"]}, True),
        ({"prompt": [{"role": "user", "content": "Name a fruit."}], "answers": ["fig", "pea"]}, False),
        ({"question": "Name a fruit.", "completions": ["fig", "pea", "fig"]}, False),
        ({"prompt": "<|user|>", "messages": as_rows(ASKED), "predict": ["fig", "pea"], "label": None}, False),
        (
            {
                "conversations": [{"from": "human", "value": "Name a fruit."}],
                "chosen": {"from": "gpt", "value": "fig"},
                "rejected": {"from": "gpt", "value": "pea"},
            },
            True,
        ),
    ],
)
def test_a_row_is_its_prompt_and_its_different_answers(read, row, is_ranked):
    found, report = read([row])
    assert found == [AnswersExample(prompt=ASKED, answers=("fig", "pea"), is_ranked=is_ranked)]
    assert (report.rows_read, report.kept) == (1, 1)


def test_more_than_two_answers_of_an_answer_column_are_not_ranked(read):
    found, _ = read([{"instruction": "Name a fruit.", "output": ["fig", "pea", "date"]}])
    assert found[0].answers == ("fig", "pea", "date")
    assert not found[0].is_ranked


def test_columns_are_found_where_dataset_info_says(read, tmp_path):
    (tmp_path / "own.json").write_text(json.dumps([{"q": "Name a fruit.", "good": "fig", "bad": "pea"}]))
    entry = {"file_name": "own.json", "ranking": True, "columns": {"prompt": "q", "chosen": "good", "rejected": "bad"}}
    found, _ = read(info={"own": entry})
    assert found == [AnswersExample(prompt=ASKED, answers=("fig", "pea"), is_ranked=True)]


def test_rows_that_cannot_be_compared_are_dropped_and_counted(read):
    rows = [
        {"prompt": "Name a fruit.", "answers": ["fig", "fig"]},
        {"prompt": "Name a fruit.", "answers": ["fig", "pea"]},
        {"prompt": "Name a fruit.", "answers": []},
    ]
    found, report = read(rows)
    assert [example.where.endswith("row 2") for example in found] == [True]
    assert report.dropped == {"all answers are the same": 2}
    with pytest.raises(UserError, match=r"no row is left to label: 1 dropped: all answers are the same .*row 1"):
        read(rows[:1])
    pairs = [{"prompt": "q", "chosen": text, "rejected": "a"} for text in ("a", "b")]
    assert read(pairs)[1].dropped == {"chosen equals rejected": 1}


def test_prompts_alone_are_told_from_answers_and_not_mixed_with_them(read):
    prompts = [{"instruction": "Name a fruit.", "output": "fig"}]
    answered = [{"prompt": "Name a fruit.", "answers": ["fig", "pea"]}]
    assert read(prompts)[0] is None
    with pytest.raises(UserError, match=r"rows1\.json holds answers to compare and rows0\.json holds prompts"):
        read(prompts, answered)


def test_as_many_rows_are_taken_as_the_configuration_says(read):
    rows = [{"prompt": f"Name fruit {n}.", "answers": ["fig", "pea"]} for n in range(5)]
    assert len(read(rows, max_samples=3)[0]) == 3


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([{"prompt": "q", "predict": ["a", "b"]}], "row 1: the prompt is text that was rendered.*`messages`"),
        ([{"prompt": "q", "messages": as_rows(ASKED), "predict": "a"}], "num_return_sequences above 1"),
        ([{"prompt": "q", "answers": ["a", "b"]}, {"prompt": "q", "answers": ["a", 3]}], "row 2: column 'answers'"),
        ([{"prompt": "q", "answers": ["a", "b"]}, {"prompt": "q"}], "row 2: no list of answers"),
        ([{"messages": [{"role": "system", "content": "s"}], "answers": ["a", "b"]}], "row 1: no user message"),
        (
            [{"messages": [*as_rows(ASKED), {"role": "system", "content": "s"}], "answers": ["a", "b"]}],
            "row 1: the prompt must end with a user message",
        ),
        ([{"prompt": "q", "chosen": "a", "rejected": 1}], "row 1, column 'rejected'"),
    ],
)
def test_malformed_rows_are_refused_with_their_place(read, rows, sentence):
    with pytest.raises(UserError, match=sentence):
        read(rows)


def test_distinct_answers_keep_their_order():
    assert distinct(["b", "a", "b"]) == ("b", "a")
    with pytest.raises(UnusableRowError):
        distinct(["a", "a"])

"""Columns of any name: which is what, and questions made of several."""

import json

import pytest

from posttrain.config import load_config
from posttrain.data.answers import read_answers
from posttrain.data.datasets import load_dataset, read_examples
from posttrain.data.encode import Report
from posttrain.data.formats import Message
from posttrain.data.template import Template
from posttrain.errors import UserError

ROWS = [
    {"frage": "Wie viele?", "titel": "Fruits", "antwort": "3", "n": 1, "tags": ["a", "b"]},
    {"frage": "Welche?", "titel": "蔬菜", "antwort": "keine", "n": None, "tags": []},
]


@pytest.fixture
def examples(tmp_path):
    def read(stage, rows=ROWS, name="rows.jsonl", **keys):
        if name.endswith(".csv"):
            text = "\n".join(",".join(map(str, row)) for row in rows) + "\n"
        else:
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (tmp_path / name).write_text(text, encoding="utf-8")
        values = {"model_name_or_path": "x", "dataset": str(tmp_path / name), **keys}
        data = load_config(values, command="generate").data
        return read_examples(data.dataset, data, stage, Report())

    return read


def questions(found):
    return [[(message.role, message.content) for message in example.prompt] for example in found]


def test_columns_say_what_a_column_is_for(examples):
    found = examples("ppo", columns="prompt=frage, system=titel, response=antwort")
    assert questions(found) == [
        [("system", "Fruits"), ("user", "Wie viele?")],
        [("system", "蔬菜"), ("user", "Welche?")],
    ]
    assert [example.extras["reference"] for example in found] == ["3", "keine"]
    assert found[0].extras["tags"] == ["a", "b"]
    (first, _) = examples("sft", columns=["prompt=frage", "response=antwort"])
    assert first.messages == (Message("user", "Wie viele?"), Message("assistant", "3"))
    table = [("frage", "antwort"), ("Wie viele?", "3")]
    assert examples("sft", table, "rows.csv", columns="prompt=frage, response=antwort") == [first]


def test_columns_may_hold_conversations(examples):
    rows = [{"dialog": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}]
    (example,) = examples("sft", rows, columns="messages=dialog")
    assert example.messages == (Message("user", "a"), Message("assistant", "b"))


def test_a_question_is_made_of_any_columns(examples):
    found = examples("ppo", question_template="{titel} ({n}, {tags}):\\n{{{frage}}}")
    assert questions(found) == [
        [("user", 'Fruits (1, ["a", "b"]):\n{Wie viele?}')],
        [("user", "蔬菜 (, []):\n{Welche?}")],
    ]
    assert found[0].extras == ROWS[0]  # all columns are there to be kept, none of ours among them


def test_answers_and_system_messages_stay_beside_a_question(examples):
    rows = [{**ROWS[0], "system": "Be brief.", "output": "3"}]
    (example,) = examples("sft", rows, question_template="{titel}?")
    assert [message.content for message in example.messages] == ["Be brief.", "Fruits?", "3"]
    (example,) = examples("sft", columns="response=antwort", question_template="{titel}?", rows=ROWS[:1])
    assert [message.content for message in example.messages] == ["Fruits?", "3"]
    pair = {"titel": "a", "chosen": "b", "rejected": "c"}
    (example,) = examples("rm", [pair], question_template="{titel}?")
    assert (example.prompt, example.chosen, example.rejected) == ((Message("user", "a?"),), "b", "c")


def test_a_prompt_template_may_name_columns(examples, tmp_path, make_tokenizer):
    written = "Q: {titel}\\n- {frage}\\nA:"
    found = examples("ppo", prompt_template=written)
    assert questions(found)[0] == [("user", "Fruits\n- Wie viele?")]
    template = Template(make_tokenizer(None), prompt_template=written)
    assert template.prompt_text(found[0].prompt) == "Q: Fruits\n- Wie viele?\nA:"
    config = load_config(
        {"model_name_or_path": "x", "dataset": str(tmp_path / "rows.jsonl"), "prompt_template": written},
        command="generate",
    )
    (prompt, _) = load_dataset(config.data, make_tokenizer(None), "ppo").train
    assert prompt.text == "Q: Fruits\n- Wie viele?\nA:"
    one = Template(make_tokenizer(None), prompt_template="{system}\n{titel}")
    assert one.prompt_text([Message("system", "s"), Message("user", "q")]) == "s\nq"


def test_answers_to_such_questions_are_compared(tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_text(json.dumps({"titel": "a", "answers": ["b", "c"]}) + "\n", encoding="utf-8")
    keys = {"model_name_or_path": "x", "dataset": str(path), "judge": "scorer"}
    for more in ({"question_template": "{titel}?"}, {"columns": "prompt=titel"}):
        config = load_config({**keys, **more}, command="label")
        (example,) = read_answers(config.data.dataset, config.data, Report())
        assert example.prompt == (Message("user", "a?" if "question_template" in more else "a"),)


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"columns": "frage"}, "`frage` is not purpose=column"),
        ({"columns": "promt=frage"}, "gives a column for 'promt'; did you mean prompt"),
        ({"columns": "prompt=fragen"}, r"row 1: no column 'fragen' \(found: frage, titel"),
        ({"question_template": "{title}"}, r"question_template: .*row 1: no column 'title'; did you mean \{titel\}\?"),
        ({"question_template": "{zzz}"}, "no column 'zzz'; it has: frage, titel, antwort, n, tags"),
        ({"question_template": "Why?"}, "no column stands in it"),
        ({"question_template": "{frage"}, "question_template: expected '}'"),
        ({"question_template": "{n:3}"}, "{n} is put in as it is"),
        ({"prompt_template": "{fragen}"}, r"prompt_template: .*no column 'fragen'; did you mean \{frage\}"),
    ],
)
def test_what_cannot_be_read_is_said(examples, keys, sentence):
    with pytest.raises(UserError, match=sentence):
        examples("ppo", **keys)


def test_a_later_row_that_lacks_a_column_is_named(examples):
    with pytest.raises(UserError, match=r"rows\.jsonl, row 2: no column 'titel'"):
        examples("ppo", [ROWS[0], {"frage": "?"}], question_template="{titel}")


def test_two_ways_of_asking_are_refused(examples):
    with pytest.raises(UserError, match="both name columns; write"):
        examples("ppo", question_template="{titel}", prompt_template="{frage}")
    found = examples("ppo", question_template="{titel}", prompt_template="Q: {prompt}")
    assert questions(found)[0] == [("user", "Fruits")]

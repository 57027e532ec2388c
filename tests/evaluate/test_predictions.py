import json

import pytest

from posttrain.config import load_config
from posttrain.data.formats import Message, PromptExample
from posttrain.errors import UserError
from posttrain.evaluate.predictions import prediction_files, read_predictions, reference_of

ROWS = [{"messages": [{"role": "user", "content": f"q{i}"}], "predict": f"p{i}", "label": f"a{i}"} for i in range(3)]
EXAMPLES = [PromptExample(prompt=(Message("user", f"q{i}"),), extras={"reference": f"a{i}"}) for i in range(3)]


@pytest.fixture
def config(tmp_path):
    """Write a file for each keyword argument; the configuration that names them."""

    def make(keys=None, **files):
        entries = []
        for name, rows in files.items():
            path = tmp_path / f"{name}.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            entries.append(f"{name}={path}")
        return load_config({"task": "match", "predictions": entries, **(keys or {})}, command="eval")

    return make


def refused(config, examples=None):
    with pytest.raises(UserError) as caught:
        read_predictions(config, examples)
    return str(caught.value)


def test_a_file_alone_says_what_was_asked_and_what_is_right(config):
    found = read_predictions(config(one=ROWS), None)
    assert [row.text for row in found.said["one"]] == ["p0", "p1", "p2"]
    assert found.references == ("a0", "a1", "a2")
    assert found.asked[1] == (Message("user", "q1"),)


def test_items_are_named_as_the_dataset_names_them(config):
    alone, beside = read_predictions(config(one=ROWS), None), read_predictions(config(one=ROWS), EXAMPLES)
    assert alone.ids == beside.ids
    assert len(set(alone.ids)) == 3


def test_files_are_brought_into_one_order(config):
    other = [{**row, "predict": row["predict"].upper()} for row in ROWS[::-1]]
    found = read_predictions(config(one=ROWS, two=other), None)
    assert [row.text for row in found.said["two"]] == ["P0", "P1", "P2"]
    with_data = read_predictions(config(one=other), EXAMPLES)
    assert [row.text for row in with_data.said["one"]] == ["P0", "P1", "P2"]


def test_prompts_rendered_for_another_model_are_matched_by_their_references(config):
    mine = [{"prompt": f"<user>q{i}", "predict": f"p{i}", "label": f"a{i}"} for i in range(3)]
    theirs = [{"prompt": f"[INST]q{i}", "predict": f"r{i}", "label": f"a{i}"} for i in range(3)]
    found = read_predictions(config(one=mine, two=theirs), None)
    assert [row.text for row in found.said["two"]] == ["r0", "r1", "r2"]
    assert "answer different items" in refused(config(one=mine, two=[theirs[1], theirs[0], theirs[2]]))


def test_rows_of_the_data_may_be_matched_by_their_order(config):
    bare = [{"predict": f"p{i}"} for i in range(3)]
    found = read_predictions(config(one=bare), EXAMPLES)
    assert [row.text for row in found.said["one"]] == ["p0", "p1", "p2"]
    assert found.references == ("a0", "a1", "a2")


def test_one_variant_of_what_an_evaluation_wrote(config):
    rows = [{"id": f"i{i}", "variant": v, "completion": f"{v}{i}", "reference": "x"} for v in "ab" for i in range(2)]
    found = read_predictions(config(b=rows), None)
    assert [row.text for row in found.said["b"]] == ["b0", "b1"]
    assert found.ids == ("i0", "i1")
    assert "holds 2 variants (a, b); name the one that is meant" in refused(config(c=rows))


def test_equal_questions_stay_apart(config):
    rows = [ROWS[0], {**ROWS[0], "predict": "again"}]
    found = read_predictions(config(one=rows), None)
    assert [row.text for row in found.said["one"]] == ["p0", "again"]
    assert found.ids[1] == f"{found.ids[0]}-2"


@pytest.mark.parametrize(
    ("files", "examples", "message"),
    [
        ({"one": []}, None, "one.jsonl holds no rows; was the run that writes it interrupted?"),
        (
            {"one": [{"predict": "a"}]},
            EXAMPLES,
            "holds 1 rows, but the data 3: each row of the data needs its prediction",
        ),
        ({"one": [{"said": "a"}]}, None, "no column predict or completion or"),
        ({"one": [{"predict": ["a", "b"]}]}, None, "several answers; generate with num_return_sequences: 1"),
        ({"one": [{"predict": None}]}, None, "column 'predict' must be text, found NoneType"),
        (
            {
                "one": [
                    {"predict": "a", "label": "a0"},
                    {"predict": "a", "label": "a2"},
                    {"predict": "a", "label": "a1"},
                ]
            },
            EXAMPLES,
            "another reference ('a2') than row 2 of the data ('a1')",
        ),
        ({"one": ROWS, "two": ROWS[:2]}, None, "two (2 rows) and one (3 rows) answer different items: 1 of one"),
        ({"one": [{"predict": "a", "messages": [{"role": "ghost", "content": "x"}]}]}, None, "role and content"),
    ],
)
def test_what_does_not_fit_is_one_message(config, files, examples, message):
    assert message in refused(config(**files), examples)


def test_the_columns_may_be_named(config):
    rows = [{"said": 4, "truth": "4", "prompt": "2+2"}]
    found = read_predictions(config({"prediction_column": "said", "reference_column": "truth"}, one=rows), None)
    assert (found.said["one"][0].text, found.references) == ("4", ("4",))
    assert "no column `told`" in refused(config({"prediction_column": "told"}, one=rows))


def test_entries_are_names_and_files(config):
    def files(*entries):
        return prediction_files(load_config({"task": "match", "predictions": list(entries)}, command="eval"))

    assert list(files("runs/sft.jsonl", "b=x.jsonl")) == ["sft", "b"]
    for entries, wrong in (
        (("a=x", "a=y"), "is there twice"),
        (("=x",), "is not name=file"),
        (("a=",), "not name=file"),
    ):
        with pytest.raises(UserError, match=wrong):
            files(*entries)


def test_a_missing_file_is_named(tmp_path):
    config = load_config({"task": "match", "predictions": [f"a={tmp_path / 'no.jsonl'}"]}, command="eval")
    assert "predictions: a: there is no file" in refused(config)


def test_what_counts_as_right():
    assert reference_of({"output": "o", "label": "l"}, None) == "l"
    assert reference_of({"answer": 42}, None) == "42"
    assert reference_of({"answer": True, "other": "x"}, None) is None
    assert reference_of({"answer": "a", "other": "x"}, "other") == "x"

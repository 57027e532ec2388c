"""Batch generation: one file, whole or absent, with the numbers beside it."""

import json
import sqlite3

import pytest

from posttrain.config import load_config
from posttrain.errors import RunError, UserError
from posttrain.serve import generate as generate_module
from posttrain.serve.generate import generate
from posttrain.serve.model import ChatModel

ROWS = [
    {"instruction": "Count the rows.", "input": "", "output": "SELECT count(*) FROM t;", "db": "a.sqlite"},
    {"instruction": "Names?", "input": "of students", "output": "SELECT name FROM students;", "db": "b.sqlite"},
    {"instruction": "列出名字", "input": "", "output": "SELECT 名字 FROM 表;", "db": "c.sqlite"},
]


@pytest.fixture
def run(tmp_path, base):
    (tmp_path / "rows.json").write_text(json.dumps(ROWS), encoding="utf-8")

    def run(said=None, **keys):
        values = {
            "model_name_or_path": str(base),
            "dataset": str(tmp_path / "rows.json"),
            "max_new_tokens": 8,
            "do_sample": False,
            "output_file": str(tmp_path / "out" / "predictions.jsonl"),
            **keys,
        }
        config = load_config({k: v for k, v in values.items() if v is not None}, command="generate")
        return generate(config, notify=(said if said is not None else []).append)

    return run


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_row_gets_its_answer(run, tmp_path, base):
    results = run(keep_columns=["db"])
    rows = lines(tmp_path / "out" / "predictions.jsonl")
    assert [row["label"] for row in rows] == [row["output"] for row in ROWS]
    assert [row["db"] for row in rows] == ["a.sqlite", "b.sqlite", "c.sqlite"]
    assert rows[1]["prompt"] == "<|im_start|>user\nNames?\nof students<|im_end|>\n<|im_start|>assistant\n"
    chat = ChatModel({"model_name_or_path": str(base), "max_new_tokens": 8, "do_sample": False})
    answers = [
        chat.chat([{"role": "user", "content": "\n".join(filter(None, (r["instruction"], r["input"])))}]) for r in ROWS
    ]
    assert [row["predict"] for row in rows] == [answer[0].response_text for answer in answers]
    written = json.loads((tmp_path / "out" / "predict_results.json").read_text(encoding="utf-8"))
    assert written == results
    assert results["predict_num_rows"] == 3
    assert results["predict_tokens"] == sum(answer[0].response_length for answer in answers)
    assert results["predict_seconds_per_row"] == pytest.approx(results["predict_runtime"] / 3)


def test_several_answers_are_a_list_and_json_is_one_list(run, tmp_path):
    target = tmp_path / "all.json"
    run(output_file=str(target), num_return_sequences=3, do_sample=True)
    rows = json.loads(target.read_text(encoding="utf-8"))
    assert [len(row["predict"]) for row in rows] == [3, 3, 3]
    assert "列出名字" in target.read_text(encoding="utf-8")


def test_the_slots_change_no_answer(run, tmp_path):
    keys = {"do_sample": True, "temperature": 1.5}
    run(per_device_eval_batch_size=1, **keys)
    one = (tmp_path / "out" / "predictions.jsonl").read_bytes()
    run(per_device_eval_batch_size=3, **keys)
    assert (tmp_path / "out" / "predictions.jsonl").read_bytes() == one


def test_output_dir_serves_where_no_file_is_named(run, tmp_path):
    said = []
    run(said, output_file=None, output_dir=str(tmp_path / "run"))
    assert len(lines(tmp_path / "run" / "generated_predictions.jsonl")) == 3
    assert any("wrote 3 rows" in sentence for sentence in said)


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"output_file": None}, "`output_file` is missing"),
        ({"output_file": "x.txt"}, "must end in .jsonl"),
        ({"dataset": None}, "`dataset` is missing"),
        ({"keep_columns": ["nope"]}, "row 1 has no column 'nope' beside its prompt .it has: db, output, reference"),
        ({"cutoff_len": 4}, "Raise cutoff_len"),
    ],
)
def test_bad_input_is_said_and_writes_nothing(run, tmp_path, keys, sentence):
    with pytest.raises(UserError, match=sentence):
        run(**keys)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.json"]


def test_a_failed_write_leaves_no_partial_file(run, tmp_path, monkeypatch):
    def full(rows, *, as_list):
        (tmp_path / "out" / ".predictions.jsonl.partial").mkdir(parents=True)  # writing to a folder fails
        return ""

    monkeypatch.setattr(generate_module, "_serialised", full)
    with pytest.raises(RunError, match="cannot be written"):
        run()
    assert not (tmp_path / "out" / "predictions.jsonl").exists()


def test_a_judge_turns_wrong_answers_into_preference_pairs(run, tmp_path):
    connection = sqlite3.connect(tmp_path / "a.sqlite")
    connection.execute("CREATE TABLE t (x INT)")
    connection.commit()
    connection.close()
    rows = [{**ROWS[0], "instruction": question} for question in ("Count the rows.", "How many?")]
    for row in rows:
        row["db"] = "a.sqlite"
    (tmp_path / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    keys = {"preference_judge": "sql_execution", "database_dir": str(tmp_path), "num_return_sequences": 2}
    results = run(do_sample=True, **keys)
    pairs = lines(tmp_path / "out" / "preference_pairs.jsonl")
    assert results["predict_pairs"] == len(pairs) >= 2
    assert {pair["chosen"] for pair in pairs} == {"SELECT count(*) FROM t;"}
    predicted = {text for row in lines(tmp_path / "out" / "predictions.jsonl") for text in row["predict"]}
    assert {pair["rejected"] for pair in pairs} <= predicted
    assert pairs[0]["prompt"][-1] == {"role": "user", "content": "Count the rows."}


def test_rows_that_cannot_be_judged_are_refused_before_any_answer(run, tmp_path, monkeypatch):
    monkeypatch.setattr(ChatModel, "complete", None)
    with pytest.raises(UserError, match=r"row 1 .*'a\.sqlite', but there is no .*database_dir"):
        run(preference_judge="sql_execution")
    assert not (tmp_path / "out").exists()


def test_answers_that_are_all_right_are_kept_and_no_pairs_are_said(run, tmp_path, monkeypatch):
    sqlite3.connect(tmp_path / "a.sqlite").close()
    (tmp_path / "rows.json").write_text(json.dumps([{**ROWS[0], "output": "SELECT 1;"}]), encoding="utf-8")
    monkeypatch.setattr(ChatModel, "text_of", lambda model, completion: "SELECT 1")
    with pytest.raises(UserError, match="all answers to the 1 prompts are right"):
        run(preference_judge="sql_execution", database_dir=str(tmp_path))
    assert [row["predict"] for row in lines(tmp_path / "out" / "predictions.jsonl")] == ["SELECT 1"]

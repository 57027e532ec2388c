"""Batch generation: one file, whole or absent, with the numbers beside it."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time

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


def stop_after(monkeypatch, rows):
    """Let a run be interrupted when it has drawn some rows."""
    draw = ChatModel.complete_each

    def stopped(self, prompts, **keys):
        for number, found in enumerate(draw(self, prompts, **keys)):
            if number == rows:
                raise KeyboardInterrupt
            yield found

    monkeypatch.setattr(ChatModel, "complete_each", stopped)
    return lambda: monkeypatch.setattr(ChatModel, "complete_each", draw)


SAMPLED = {"do_sample": True, "temperature": 1.5, "num_return_sequences": 2}


def test_what_was_drawn_is_not_drawn_again(run, tmp_path, monkeypatch):
    run(**SAMPLED)
    target, partial = tmp_path / "out" / "predictions.jsonl", tmp_path / "out" / "predictions.partial.jsonl"
    whole = target.read_bytes()
    assert not partial.exists()
    target.unlink()
    go_on = stop_after(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        run(**SAMPLED)
    assert not target.exists()
    header, *records = lines(partial)
    assert len(records) == 2
    records[0]["predict"] = ["kept", "as it was"]
    partial.write_text("".join(json.dumps(line) + "\n" for line in (header, *records)), encoding="utf-8")
    go_on()
    said = []
    results = run(said, **SAMPLED)
    assert f"2 of 3 rows are answered in {partial}; the others follow" in said
    rows, expected = lines(target), [json.loads(line) for line in whole.splitlines()]
    assert rows[records[0]["row"]]["predict"] == ["kept", "as it was"]
    for row, record in enumerate(expected):
        assert row == records[0]["row"] or rows[row] == record
    assert results["predict_num_rows"] == 3
    assert results["predict_runtime"] > records[1]["seconds"]
    assert not partial.exists()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"temperature": 1.0}, r"predictions\.partial\.jsonl was begun with temperature 1\.5 \(now 1\.0\)"),
        ({"seed": 3}, "was begun with seed 42 .now 3."),
        ({"num_return_sequences": 3}, "was begun with num_return_sequences 2"),
        ({"default_system": "Be brief."}, "was begun with another prompts"),
        ({"adapter_name_or_path": "ADAPTER"}, "was begun with another adapters|was begun with adapters"),
    ],
)
def test_answers_of_other_settings_are_not_gone_on_with(run, tmp_path, adapter, monkeypatch, change, sentence):
    go_on = stop_after(monkeypatch, 1)
    with pytest.raises(KeyboardInterrupt):
        run(**SAMPLED)
    go_on()
    change = {key: str(adapter) if value == "ADAPTER" else value for key, value in change.items()}
    with pytest.raises(UserError, match=sentence):
        run(**{**SAMPLED, **change})
    run(**{**SAMPLED, **change, "overwrite_output_dir": True})
    assert len(lines(tmp_path / "out" / "predictions.jsonl")) == 3


def test_settings_may_change_while_nothing_is_drawn(run, monkeypatch):
    go_on = stop_after(monkeypatch, 0)
    with pytest.raises(KeyboardInterrupt):
        run(**SAMPLED)
    go_on()
    run(do_sample=False)


def test_a_model_that_cannot_be_packed_goes_on_too(run, tmp_path, monkeypatch):
    run()
    whole = (tmp_path / "out" / "predictions.jsonl").read_bytes()
    monkeypatch.setattr("posttrain.serve.model.prepare_trunk", lambda model: False)
    go_on = stop_after(monkeypatch, 1)
    with pytest.raises(KeyboardInterrupt):
        run()
    go_on()
    run()
    assert (tmp_path / "out" / "predictions.jsonl").read_bytes() == whole


@pytest.mark.parametrize("name", ["asked.txt", "asked.csv", "asked.json", "asked.jsonl"])
def test_files_of_any_kind_and_columns_of_any_name(run, tmp_path, name):
    contents = {
        "asked.txt": "first\n第二\n",
        "asked.csv": "id,frage\n1,first\n2,第二\n",
        "asked.json": json.dumps([{"id": 1, "frage": "first"}, {"id": 2, "frage": "第二"}]),
        "asked.jsonl": '{"id": 1, "frage": "first"}\n{"id": 2, "frage": "第二"}\n',
    }
    (tmp_path / name).write_text(contents[name], encoding="utf-8")
    keys = {} if name == "asked.txt" else {"question_template": "Say {frage}", "keep_columns": "id, frage"}
    run(dataset=str(tmp_path / name), **keys)
    rows = lines(tmp_path / "out" / "predictions.jsonl")
    begins = "" if name == "asked.txt" else "Say "
    assert [row["messages"][-1]["content"] for row in rows] == [f"{begins}first", f"{begins}第二"]
    if keys:
        assert [(str(row["id"]), row["frage"]) for row in rows] == [("1", "first"), ("2", "第二")]


def start(tmp_path, config):
    command = [sys.executable, "-m", "posttrain", "generate", str(config)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_killed_command_goes_on_where_it_was(tmp_path, base):
    rows = [{"instruction": f"Count table {number}."} for number in range(10)]
    (tmp_path / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    config = tmp_path / "gen.yaml"
    keys = "dataset: rows.json\nper_device_eval_batch_size: 1\nmin_new_tokens: 70\nmax_new_tokens: 70\n"
    config.write_text(f"model_name_or_path: {base}\noutput_file: p.jsonl\n{keys}", encoding="utf-8")
    partial, deadline = tmp_path / "p.partial.jsonl", time.monotonic() + 60
    process = start(tmp_path, config)
    while not partial.exists() or partial.read_bytes().count(b"\n") < 4:
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    assert not (tmp_path / "p.jsonl").exists()
    before = partial.read_bytes()
    done = [json.loads(line) for line in before[: before.rfind(b"\n")].split(b"\n")[1:]]
    assert 3 <= len(done) < 10
    process = start(tmp_path, config)
    said = process.communicate(timeout=60)[0].decode()
    assert process.returncode == 0, said
    assert f"{len(done)} of 10 rows are answered in" in said
    found = lines(tmp_path / "p.jsonl")
    assert len(found) == 10
    assert all(found[record["row"]]["predict"] == record["predict"][0] for record in done)
    assert not partial.exists()


def test_rows_whose_reference_fails_make_no_pair_and_are_named(run, tmp_path):
    sqlite3.connect(tmp_path / "a.sqlite").close()
    rows = [{**ROWS[0], "db": "a.sqlite", "output": gold} for gold in ("SELECT nothing;", "SELECT 7;")]
    (tmp_path / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    said = []
    run(said, preference_judge="sql_execution", database_dir=str(tmp_path))
    assert [sentence for sentence in said if sentence.startswith("row 1 makes no pair: its reference SQL")]
    assert {pair["chosen"] for pair in lines(tmp_path / "out" / "preference_pairs.jsonl")} == {"SELECT 7;"}
    assert len(lines(tmp_path / "out" / "predictions.jsonl")) == 2


def test_references_that_all_fail_are_said_before_any_answer(run, tmp_path, monkeypatch):
    sqlite3.connect(tmp_path / "a.sqlite").close()
    (tmp_path / "rows.json").write_text(json.dumps([{**ROWS[0], "output": "SELECT missing;"}]), encoding="utf-8")
    monkeypatch.setattr(ChatModel, "complete", None)
    with pytest.raises(UserError, match=r"none of the 1 reference statements runs.*no such column: missing"):
        run(preference_judge="sql_execution", database_dir=str(tmp_path))

"""Malformed data files and dataset_info.json: one message that names file, row or line, column and fix; status 2."""

import gzip
import json

import pytest

from posttrain.cli import main

GOOD = {"instruction": "Count.", "input": "", "output": "SELECT 1;"}


def rows(*items):
    return json.dumps(items, ensure_ascii=False).encode()


def turns(*roles):
    return {"conversations": [{"from": role, "value": "x"} for role in roles]}


# name -> (stage, file name, bytes, parts of the message)
FILES = {
    "broken JSON": ("sft", "d.json", b'[\n{"instruction": "a"},\n{"b" "c"}\n]', ["d.json", "line 3"]),
    "broken line": ("sft", "d.jsonl", json.dumps(GOOD).encode() + b'\n{"a": \n', ["d.jsonl", "line 2"]),
    "no rows": ("sft", "d.json", b"[]", ["d.json", "no rows"]),
    "empty file": ("sft", "d.jsonl", b"", ["d.jsonl"]),
    "rows that are no objects": ("sft", "d.json", b'["a", "b"]', ["d.json", "row 1"]),
    "an object without rows": ("sft", "d.json", b'{"a": 1}', ["d.json"]),
    "not UTF-8": ("sft", "d.json", json.dumps([GOOD]).encode() + "你好".encode("gbk"), ["d.json", "UTF-8"]),
    "missing column": ("sft", "d.json", rows(GOOD, {"instruction": "a"}), ["d.json, row 2", "'output'"]),
    "number for a text": ("sft", "d.json", rows({**GOOD, "output": [1]}), ["d.json, row 1", "output", "text"]),
    "unknown layout": ("sft", "d.json", rows({"question": "a", "reply": "b"}), ["d.json, row 1", "question"]),
    "speaker without a name": ("sft", "d.json", rows(turns("human", "robot")), ["d.json, row 1", "robot"]),
    "answer before question": ("sft", "d.json", rows(turns("gpt", "human")), ["d.json, row 1"]),
    "turns that are no list": ("sft", "d.json", rows({"conversations": "hi"}), ["d.json, row 1", "conversations"]),
    "turn without text": ("sft", "d.json", rows({"conversations": [{"from": "human"}]}), ["d.json, row 1", "value"]),
    "messages without a role": ("sft", "d.json", rows({"messages": [{"content": "a"}]}), ["d.json, row 1", "role"]),
    "history that is none": ("sft", "d.json", rows({**GOOD, "history": [["a"]]}), ["d.json, row 1", "history"]),
    "no documents": ("pt", "d.json", rows({"body": "a"}), ["d.json, row 1", "body"]),
    "answers where pairs are": ("rm", "d.json", rows(GOOD), ["d.json, row 1", "chosen"]),
    "half a pair": ("dpo", "d.json", rows({"prompt": "a", "chosen": "b"}), ["d.json, row 1", "rejected"]),
    "pairs that are equal": (
        "rm",
        "d.json",
        rows({"prompt": "a", "chosen": "b", "rejected": "b"}),
        ["d.json, row 1", "chosen equals rejected"],
    ),
    "no judgement": ("kto", "d.json", rows(GOOD), ["d.json, row 1", "'kto_tag'", "found: instruction"]),
    "odd judgement": ("kto", "d.json", rows({**GOOD, "kto_tag": "good"}), ["row 1", "true or false", "'good'"]),
    "one kind of judgement": ("kto", "d.json", rows({**GOOD, "kto_tag": True}), ["good (true)", "Add rows"]),
    "no table": ("sft", "d.parquet", b"PAR1 this is none", ["d.parquet"]),
    "cut-off archive": ("sft", "d.jsonl.gz", gzip.compress(json.dumps(GOOD).encode() * 9)[:-12], ["d.jsonl.gz"]),
    "file of another kind": ("sft", "d.docx", b"PK", ["d.docx", ".json"]),
    "table without a header": ("sft", "d.csv", b"a;b\n1;2\n", ["d.csv, row 1"]),
}


@pytest.fixture
def message_of(work, tmp_path, capsys):
    """The message of a command that refuses what the files of ``data`` hold."""

    def run(stage, **keys):
        assert main(["train", work("run.yaml", stage=stage, **keys)]) == 2
        captured = capsys.readouterr()
        assert captured.err.count("posttrain: error: ") == 1, captured.err
        assert "Traceback" not in captured.err
        assert "Error:" not in captured.err
        assert captured.out == ""
        assert not (tmp_path / "run").exists()
        return captured.err[captured.err.index("posttrain: error: ") :]

    return run


@pytest.mark.parametrize("cause", FILES)
def test_a_malformed_data_file(message_of, tmp_path, cause):
    stage, name, content, parts = FILES[cause]
    (tmp_path / "data").mkdir(exist_ok=True)
    (tmp_path / "data" / name).write_bytes(content)
    message = message_of(stage, dataset=f"data/{name}")
    assert [part for part in parts if part not in message] == [], message


# name -> (text of dataset_info.json, dataset, parts of the message)
INFOS = {
    "broken": ('{"a": {"file_name" "sft.json"}}', "a", ["dataset_info.json", "line 1"]),
    "a list": ('["a"]', "a", ["dataset_info.json"]),
    "name that is not there": (
        '{"train_clean": {"file_name": "sft.json"}}',
        "train_claen",
        ["train_claen", "train_clean"],
    ),
    "file that is not there": ('{"a": {"file_name": "gone.json"}}', "a", ["gone.json"]),
    "entry that is no object": ('{"a": "sft.json"}', "a", ["dataset_info.json, dataset 'a'", "file_name"]),
    "entry without a file": ('{"a": {"columns": {"prompt": "q"}}}', "a", ["dataset_info.json", "file_name"]),
    "column that is not there": (
        '{"a": {"file_name": "sft.json", "columns": {"prompt": "question", "response": "output"}}}',
        "a",
        ["sft.json, row 1", "question"],
    ),
    "role of no column": (
        '{"a": {"file_name": "sft.json", "columns": {"promt": "instruction"}}}',
        "a",
        ["dataset_info.json", "'promt'; did you mean prompt?"],
    ),
    "unknown formatting": (
        '{"a": {"file_name": "sft.json", "formatting": "sharegtp"}}',
        "a",
        ["dataset_info.json", "sharegtp", "sharegpt"],
    ),
}


@pytest.mark.parametrize("cause", INFOS)
def test_a_malformed_dataset_info(message_of, tmp_path, cause):
    text, dataset, parts = INFOS[cause]
    (tmp_path / "data").mkdir(exist_ok=True)
    (tmp_path / "data" / "dataset_info.json").write_text(text, encoding="utf-8")
    message = message_of("sft", dataset=dataset, dataset_dir="data")
    assert [part for part in parts if part not in message] == [], message

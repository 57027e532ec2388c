"""Whole runs that are paid by a database: what is written down, and what a user gets wrong."""

import json
from urllib.parse import quote

import pytest

from posttrain.cli import main
from posttrain.train.run import train


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.json"
    asked = [f"name a fruit like {i}" for i in range(8)]
    table = [{"instruction": q, "output": "SELECT name FROM item", "db": "shop.sqlite"} for q in asked]
    table[3]["output"] = "SELECT nothing FROM item"
    path.write_text(json.dumps(table), encoding="utf-8")
    return path


def keys(rows, url):
    found = {"reward_model": None, "reward_funcs": "sql_execution", "dataset": str(rows), "database_url": url}
    return found | {"critic": "value_head", "max_steps": 2}


def test_a_run_on_a_server_writes_its_password_nowhere(tiny_config, rows, server, tmp_path):
    train(tiny_config("ppo", tmp_path / "run", **keys(rows, server.url("{db}"))))
    written = [json.loads(line) for line in (tmp_path / "run" / "completions.jsonl").open(encoding="utf-8")]
    assert len(written) == 8
    assert {row["reward"] for row in written} <= {0.0, 0.2, 1.0}
    (left_out,) = json.loads((tmp_path / "run" / "excluded.json").read_text(encoding="utf-8"))
    assert (left_out["row"], "reader:***@127.0.0.1" in left_out["db"]) == (4, True)
    assert "reader:***@127.0.0.1" in (tmp_path / "run" / "config.yaml").read_text(encoding="utf-8")
    secrets = [server.password.encode(), quote(server.password, safe="").encode()]
    files = [file for file in (tmp_path / "run").rglob("*") if file.is_file()]
    assert [str(file) for file in files if any(secret in file.read_bytes() for secret in secrets)] == []


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgresql://me:secret@127.0.0.1:1/{db}", "no connection to the server"),
        ("oracle://me:secret@127.0.0.1/{db}", "SQL is run on PostgreSQL (postgresql://...) and SQLite files, not on"),
        ("somewhere", "no address of a database"),
    ],
)
def test_a_wrong_address_ends_with_status_2_and_one_sentence(tiny_config, rows, tmp_path, capsys, url, words):
    path = tmp_path / "run.json"
    path.write_text(json.dumps(tiny_config("ppo", tmp_path / "run", **keys(rows, url)).to_flat()), encoding="utf-8")
    assert main(["train", str(path), f"database_url={url}"]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert "secret" not in said
    assert "Traceback" not in said


def test_answers_in_a_file_are_judged_by_a_server_and_its_password_is_nowhere(server, tmp_path):
    row = {"prompt": "how many items?", "db": server.url(), "gold": "SELECT count(*) FROM item"}
    answers = ["SELECT 40", "SELECT 41", "DROP TABLE item"]
    lines = [json.dumps({**row, "prompt": f"{row['prompt']} {i}", "predict": said}) for i, said in enumerate(answers)]
    (tmp_path / "said.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    config = {"task": "sql", "predictions": f"one={tmp_path / 'said.jsonl'}", "output_dir": str(tmp_path / "scores")}
    path = tmp_path / "eval.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    assert main(["eval", str(path)]) == 0
    results = json.loads((tmp_path / "scores" / "eval_results.json").read_text(encoding="utf-8"))
    scores = results["variants"]["one"]
    assert (scores["execution_accuracy"], scores["valid_rate"]) == (pytest.approx(1 / 3), pytest.approx(2 / 3))
    for file in (tmp_path / "scores").iterdir():
        assert quote(server.password, safe="").encode() not in file.read_bytes(), file

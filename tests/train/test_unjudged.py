"""Prompts whose reference SQL does not run: left out of a run, counted, listed, and left out again when it resumes."""

import json
import sqlite3

import pytest

from posttrain.cli import main
from posttrain.errors import UserError
from posttrain.rewards import SqlExecutionReward
from posttrain.train.run import train

GOOD, BROKEN = "SELECT name FROM item", "SELECT colour FROM item"


@pytest.fixture
def data(tmp_path):
    with sqlite3.connect(tmp_path / "shop.sqlite") as connection:
        connection.execute("CREATE TABLE item (name TEXT)")
    connection.close()

    def write(*golds):
        asked = [f"name a fruit like {i}" for i in range(len(golds))]
        rows = [{"instruction": q, "output": g, "db": "shop.sqlite"} for q, g in zip(asked, golds, strict=True)]
        path = tmp_path / f"rows-{len(golds)}.json"
        path.write_text(json.dumps(rows), encoding="utf-8")
        return str(path)

    return write


@pytest.fixture
def config(tiny_config, tmp_path):
    def config(dataset, **keys):
        own = {"reward_model": None, "reward_funcs": "sql_execution", "database_dir": str(tmp_path), "max_steps": 2}
        return tiny_config("ppo", tmp_path / "run", critic="value_head", dataset=dataset, **{**own, **keys})

    return config


def test_they_are_left_out_counted_and_listed(config, data, tmp_path):
    said = []
    rows = [GOOD, BROKEN, GOOD, GOOD, BROKEN, GOOD]
    train(config(data(*rows), eval_dataset=data(GOOD, GOOD, BROKEN)), notify=said.append)
    assert any("kept 4" in s and "dropped 2: the reference SQL does not run (first: row 2 on" in s for s in said), said
    assert any(s.startswith("held out: dropped 1: the reference SQL does not run (first: row 3") for s in said), said
    listed = json.loads((tmp_path / "run" / "excluded.json").read_text(encoding="utf-8"))
    assert [(entry["split"], entry["row"]) for entry in listed] == [("train", 2), ("train", 5), ("held out", 3)]
    assert listed[0]["sql"] == BROKEN
    assert "no such column: colour" in listed[0]["reason"]
    completions = [json.loads(line) for line in (tmp_path / "run" / "completions.jsonl").open(encoding="utf-8")]
    asked = {row["prompt"] for row in completions}
    assert not any("like 1" in prompt or "like 4" in prompt for prompt in asked)


STEPWISE = {"save_steps": 1, "save_strategy": "steps"}


@pytest.mark.parametrize("resume", [True, None])
def test_a_resumed_run_leaves_out_what_it_left_out_before(config, data, tmp_path, resume):
    rows = data(GOOD, BROKEN, GOOD, GOOD)
    train(config(rows, **STEPWISE, max_steps=1))
    if resume is None:  # what a killed run lacks
        for name in ("all_results.json", "train_results.json"):
            (tmp_path / "run" / name).unlink()
    with sqlite3.connect(tmp_path / "shop.sqlite") as connection:
        connection.execute("ALTER TABLE item ADD COLUMN colour TEXT")
    connection.close()
    said = []
    keys = {} if resume is None else {"resume_from_checkpoint": True}
    train(config(rows, **STEPWISE, max_steps=2, **keys), notify=said.append)
    assert any("kept 3" in sentence and "dropped 1" in sentence for sentence in said), said
    (tmp_path / "run" / "excluded.json").write_text("[", encoding="utf-8")
    with pytest.raises(UserError, match=r"excluded\.json, which lists the prompts that this run leaves out"):
        train(config(rows, **STEPWISE, max_steps=3, resume_from_checkpoint=True))


def test_a_run_that_left_out_none_leaves_out_none_when_it_resumes(config, data, tmp_path, monkeypatch):
    train(config(data(GOOD, GOOD), **STEPWISE, max_steps=1))
    monkeypatch.setattr(SqlExecutionReward, "failing", lambda reward, rows: pytest.fail("judged anew"))
    train(config(data(GOOD, GOOD), **STEPWISE, max_steps=2, resume_from_checkpoint=True))


def test_an_earlier_list_is_not_taken_for_that_of_a_new_run(config, data, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "excluded.json").write_text('[{"split": "train", "row": 1}]', encoding="utf-8")
    said = []
    train(config(data(GOOD, GOOD), **STEPWISE), notify=said.append)
    assert any("kept 2" in sentence and "dropped" not in sentence for sentence in said), said
    assert json.loads((tmp_path / "run" / "excluded.json").read_text(encoding="utf-8")) == []
    train(config(data(GOOD, BROKEN, GOOD), overwrite_output_dir=True))
    train(config(data(GOOD, GOOD), overwrite_output_dir=True))
    assert not (tmp_path / "run" / "excluded.json").exists()


def test_a_second_opinion_leaves_out_its_own(config, data, tmp_path):
    keys = {"reward_funcs": "length:2-6", "alarm_reward_funcs": "sql_execution"}
    train(config(data(GOOD, GOOD), eval_dataset=data(BROKEN, GOOD, GOOD), **keys))
    listed = json.loads((tmp_path / "run" / "excluded.json").read_text(encoding="utf-8"))
    assert [(entry["split"], entry["row"]) for entry in listed] == [("held out", 1)]


def test_a_second_opinion_asks_nothing_of_the_rows_that_train(config, data, tmp_path):
    path = tmp_path / "plain.json"
    path.write_text(json.dumps([{"instruction": "name a fruit", "output": "fig"}] * 2), encoding="utf-8")
    keys = {"reward_funcs": "length:2-6", "alarm_reward_funcs": "sql_execution"}
    train(config(str(path), eval_dataset=data(GOOD, GOOD), **keys))
    with pytest.raises(UserError, match="held out: row 1 of the data has no column `db`"):
        train(config(data(GOOD, GOOD), eval_dataset=str(path), overwrite_output_dir=True, **keys))


def test_where_none_runs_the_run_ends_with_status_2(config, data, tmp_path, capsys):
    path = tmp_path / "run.json"
    path.write_text(json.dumps(config(data(BROKEN, BROKEN)).to_flat()), encoding="utf-8")
    assert main(["train", str(path)]) == 2
    said = capsys.readouterr().err
    assert "none of the 2 reference statements runs" in said
    assert "no such column: colour" in said
    assert "Traceback" not in said
    assert not (tmp_path / "run").exists()


def test_all_is_well_where_all_run(config, data, tmp_path):
    train(config(data(GOOD, GOOD)))
    assert not (tmp_path / "run" / "excluded.json").exists()

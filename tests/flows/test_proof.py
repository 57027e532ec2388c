"""The kept predictions give the published table: databases made anew, every statement run again."""

from __future__ import annotations

import json
import sys

import pytest

from benchmarks import text2sql_proof


@pytest.mark.slow
def test_the_page_holds_what_the_predictions_give(request, monkeypatch, capsys):
    page = request.config.rootpath / "docs" / "results" / "text2sql.md"
    monkeypatch.setattr(sys, "argv", ["text2sql_proof.py", "--check", str(page)])
    text2sql_proof.main()
    table = capsys.readouterr().out
    seeds = [line for line in table.splitlines() if line.startswith("| seed ")]
    assert len(seeds) == len(list(text2sql_proof.KEPT.glob("seed-*.jsonl"))) == 3


def test_a_prediction_that_was_changed_changes_the_table(request, tmp_path):
    kept = request.config.rootpath / "benchmarks" / "results" / "text2sql" / "seed-2.jsonl"
    rows = [json.loads(line) for line in kept.read_text(encoding="utf-8").splitlines()]
    right = text2sql_proof.scored(kept)
    assert len(rows) >= 300
    place = right.right["ppo"].index(1.0)
    rows[place]["ppo"] = "SELECT 1 WHERE 0"
    (tmp_path / "seed-2.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    wrong = text2sql_proof.scored(tmp_path / "seed-2.jsonl")
    assert sum(right.right["ppo"]) - sum(wrong.right["ppo"]) == 1
    assert right.right["sft"] == wrong.right["sft"]


def test_questions_that_the_generator_does_not_make_are_refused(request, tmp_path):
    kept = request.config.rootpath / "benchmarks" / "results" / "text2sql" / "seed-2.jsonl"
    (tmp_path / "seed-9.jsonl").write_text(kept.read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(SystemExit, match="not those that the generator makes from seed 9"):
        text2sql_proof.scored(tmp_path / "seed-9.jsonl")

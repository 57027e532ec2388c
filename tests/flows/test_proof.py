"""The kept predictions give the published table: databases made anew, every statement run again."""

from __future__ import annotations

import importlib.util
import json
import sys

import pytest


@pytest.fixture(scope="module")
def proof(request):
    path = request.config.rootpath / "benchmarks" / "text2sql_proof.py"
    spec = importlib.util.spec_from_file_location("text2sql_proof", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.mark.slow
def test_the_page_holds_what_the_predictions_give(proof, request, monkeypatch, capsys):
    page = request.config.rootpath / "docs" / "results" / "text2sql.md"
    monkeypatch.setattr(sys, "argv", ["text2sql_proof.py", "--check", str(page)])
    proof.main()
    table = capsys.readouterr().out
    seeds = [line for line in table.splitlines() if line.startswith("| seed ")]
    assert len(seeds) == len(list(proof.KEPT.glob("seed-*.jsonl"))) == 3


def test_a_prediction_that_was_changed_changes_the_table(proof, request, tmp_path):
    kept = request.config.rootpath / "benchmarks" / "results" / "text2sql" / "seed-2.jsonl"
    rows = [json.loads(line) for line in kept.read_text(encoding="utf-8").splitlines()]
    right = proof.scored(kept)
    assert len(rows) >= 300
    place = right.right["ppo"].index(1.0)
    rows[place]["ppo"] = "SELECT 1 WHERE 0"
    (tmp_path / "seed-2.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    wrong = proof.scored(tmp_path / "seed-2.jsonl")
    assert sum(right.right["ppo"]) - sum(wrong.right["ppo"]) == 1
    assert right.right["sft"] == wrong.right["sft"]


def test_questions_that_the_generator_does_not_make_are_refused(proof, request, tmp_path):
    kept = request.config.rootpath / "benchmarks" / "results" / "text2sql" / "seed-2.jsonl"
    (tmp_path / "seed-9.jsonl").write_text(kept.read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(SystemExit, match="not those that the generator makes from seed 9"):
        proof.scored(tmp_path / "seed-9.jsonl")

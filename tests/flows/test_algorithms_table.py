"""The table of all algorithms follows from the kept predictions."""

from __future__ import annotations

import importlib
import json
import sys

import pytest


@pytest.fixture
def algorithms(request, monkeypatch):
    monkeypatch.syspath_prepend(str(request.config.rootpath / "benchmarks"))
    yield importlib.import_module("algorithms")
    for name in ("algorithms", "text2sql_proof"):
        sys.modules.pop(name, None)


@pytest.mark.slow
def test_the_page_holds_what_the_predictions_give(algorithms, request, monkeypatch, capsys):
    page = request.config.rootpath / "docs" / "results" / "algorithms.md"
    monkeypatch.setattr(sys, "argv", ["algorithms.py", "--check", str(page)])
    algorithms.main()
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 2 + len(json.loads(next(algorithms.KEPT.glob("costs-*.json")).read_text("utf-8")))
    assert len(list(algorithms.KEPT.glob("seed-*.jsonl"))) == 3


def test_every_trained_model_of_a_seed_has_a_prediction_for_every_question_and_a_cost(algorithms):
    for file in algorithms.KEPT.glob("seed-*.jsonl"):
        rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
        costs = json.loads((algorithms.KEPT / f"costs-{file.stem.rpartition('-')[2]}.json").read_text("utf-8"))
        models = set(rows[0]) - {"index", "db", "kind", "gold"}
        assert len(rows) == 100
        assert models - {"base"} == set(costs) - {"reward"}
        assert all(set(row) == set(rows[0]) for row in rows)

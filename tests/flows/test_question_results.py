"""The kept questions give the published tables; what the rules say is found out anew."""

from __future__ import annotations

import importlib.util
import json
import sys

import pytest


@pytest.fixture(scope="module")
def bench(request):
    path = request.config.rootpath / "benchmarks" / "question_generation.py"
    spec = importlib.util.spec_from_file_location("question_generation_results", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.mark.slow
def test_the_page_holds_what_the_questions_give(bench, request, monkeypatch, capsys):
    page = request.config.rootpath / "docs" / "results" / "question-generation.md"
    monkeypatch.setattr(sys, "argv", ["question_generation.py", "--check", str(page)])
    bench.main()
    printed = capsys.readouterr().out
    for name in bench.RULES:
        if (bench.KEPT / f"{name}.json").is_file():
            assert f"| {bench.NAMES[name]}: " in printed


@pytest.mark.slow
def test_a_question_that_was_changed_changes_the_table(bench, tmp_path):
    kept = json.loads((bench.KEPT / "scratch.json").read_text(encoding="utf-8"))
    before = bench.read("scratch")
    assert len(kept["rows"]) >= 200
    place = next(i for i, row in enumerate(before["rows"]) if row["shares"]["after"]["good"] == 1.0)
    kept["rows"][place]["after"][0] = "它是什么？"
    (tmp_path / "scratch.json").write_text(json.dumps(kept), encoding="utf-8")
    changed = bench.read("scratch", tmp_path)["rows"][place]["shares"]
    assert changed["after"]["good"] == 1 - 1 / len(kept["rows"][place]["after"])
    assert changed["before"] == before["rows"][place]["shares"]["before"]
    kept["rows"][3]["gold"] = "谁？"
    (tmp_path / "scratch.json").write_text(json.dumps(kept), encoding="utf-8")
    with pytest.raises(SystemExit, match="not those that the generator makes"):
        bench.read("scratch", tmp_path)


@pytest.mark.parametrize(
    ("question", "wrong"),
    [
        ("罗店镇何时改为罗店人民公社？", set()),
        ("罗店镇何时改为罗店人民公社", {"ends"}),
        ("罗店镇何时改？罗店镇何时设？", {"ends"}),
        ("罗店镇罗店镇何时改设？", {"fluent"}),
        ("什么什么时候改设罗店乡？", {"fluent"}),
        ("这本书的作者是谁？", {"grounded"}),
        ("？", {"fluent", "grounded"}),
    ],
)
def test_rules_for_any_text(bench, question, wrong):
    text = "罗店镇辖境于1959年始设罗店管理区，1979年改为罗店人民公社。1983年改设罗店乡。"
    found = bench.rules_of_text(question, text)
    assert {rule for rule, holds in found.items() if not holds and rule != "good"} == wrong
    assert found["good"] is (not wrong)

"""The kept questions give the published tables; what the rules say is found out anew."""

from __future__ import annotations

import json
import sys

import pytest

from benchmarks import question_generation


@pytest.mark.slow
def test_the_page_holds_what_the_questions_give(request, monkeypatch, capsys):
    page = request.config.rootpath / "docs" / "results" / "question-generation.md"
    monkeypatch.setattr(sys, "argv", ["question_generation.py", "--check", str(page)])
    question_generation.main()
    printed = capsys.readouterr().out
    for name in question_generation.RULES:
        if (question_generation.KEPT / f"{name}.json").is_file():
            assert f"| {question_generation.NAMES[name]}: " in printed


@pytest.mark.slow
def test_a_question_that_was_changed_changes_the_table(tmp_path):
    kept = json.loads((question_generation.KEPT / "scratch.json").read_text(encoding="utf-8"))
    before = question_generation.read("scratch")
    assert len(kept["rows"]) >= 200
    place = next(i for i, row in enumerate(before["rows"]) if row["shares"]["after"]["good"] == 1.0)
    kept["rows"][place]["after"][0] = "它是什么？"
    (tmp_path / "scratch.json").write_text(json.dumps(kept), encoding="utf-8")
    changed = question_generation.read("scratch", tmp_path)["rows"][place]["shares"]
    assert changed["after"]["good"] == 1 - 1 / len(kept["rows"][place]["after"])
    assert changed["before"] == before["rows"][place]["shares"]["before"]
    kept["rows"][3]["gold"] = "谁？"
    (tmp_path / "scratch.json").write_text(json.dumps(kept), encoding="utf-8")
    with pytest.raises(SystemExit, match="not those that the generator makes"):
        question_generation.read("scratch", tmp_path)


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
def test_rules_for_any_text(question, wrong):
    text = "罗店镇辖境于1959年始设罗店管理区，1979年改为罗店人民公社。1983年改设罗店乡。"
    found = question_generation.rules_of_text(question, text)
    assert {rule for rule, holds in found.items() if not holds and rule != "good"} == wrong
    assert found["good"] is (not wrong)

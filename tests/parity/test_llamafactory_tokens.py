"""Our token ids and masks against LLaMA-Factory 0.9.5's, which benchmarks/llamafactory_tokens.py recorded.

Rows written for the comparison are recorded whole; of LLaMA-Factory's demo data a few digits of a hash for each row.
"""

from __future__ import annotations

import json
import runpy
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from posttrain.data.template_names import FAMILIES, PLAIN

ROOT = Path(__file__).parents[2]
DEMO = ROOT.parent / "shared" / "data" / "llamafactory-demo"
BENCHMARK = runpy.run_path(str(ROOT / "benchmarks" / "llamafactory_tokens.py"))
FIXTURE = json.loads(BENCHMARK["FIXTURE"].read_text(encoding="utf-8"))
WHOLE = [scenario for scenario in FIXTURE["scenarios"] if "full" in scenario]
HASHED = [scenario for scenario in FIXTURE["scenarios"] if "digests" in scenario]
# Where we differ from a format of that name, and why: docs/decisions.md.
OTHERWISE = {"alpaca", "empty", "glm4", "mistral", "vicuna"}


def name(scenario: dict[str, Any]) -> str:
    settings = "-".join(scenario["settings"])
    return "-".join([scenario["family"], scenario["stage"], scenario["dataset"], *([settings] if settings else [])])


@cache
def tokenizer(family: str) -> Any:
    return BENCHMARK["tokenizer"](family, FIXTURE["merges"])


def tail(scenario: dict[str, Any]) -> list[int]:
    """What our reward models leave out: the line end that ChatML writes behind an end of turn."""
    if scenario["stage"] != "rm" or scenario["family"] != "qwen":
        return []
    return tokenizer("qwen")("\n", add_special_tokens=False)["input_ids"]


def test_the_fixture_says_where_it_comes_from() -> None:
    assert FIXTURE["versions"]["llamafactory"] == "0.9.5"
    stages = {(scenario["family"], scenario["stage"]) for scenario in HASHED}
    assert stages == {(family, stage) for family in ("qwen", "llama3") for stage in ("sft", "rm", "dpo", "kto")}
    assert {name(scenario) for scenario in WHOLE} == {
        name(scenario) for scenario in BENCHMARK["scenarios"]() if scenario["dataset"].startswith("own_")
    }


@pytest.mark.parametrize("scenario", WHOLE, ids=name)
def test_rows_recorded_whole(scenario: dict[str, Any], tmp_path: Path) -> None:
    ours = BENCHMARK["our_rows"](scenario, BENCHMARK["write_own_sets"](tmp_path), tokenizer(scenario["family"]))
    expected = [BENCHMARK["without_tail"](row, tail(scenario)) for row in scenario["full"]]
    assert [ours[number] for number in sorted(ours)] == expected
    assert all(any(side[1]) for row in expected for key, side in row.items() if key != "good")


@pytest.mark.skipif(not DEMO.is_dir(), reason="no LLaMA-Factory demo data beside the repository")
@pytest.mark.parametrize("scenario", HASHED, ids=name)
def test_every_row_of_the_demo_data(scenario: dict[str, Any]) -> None:
    ours = BENCHMARK["our_rows"](scenario, DEMO, tokenizer(scenario["family"]))
    end = tail(scenario)
    size, digits = BENCHMARK["DIGITS"], scenario["digests"]
    expected = [digits[start : start + size] for start in range(0, len(digits), size)]
    assert list(ours) == list(range(1, len(expected) + 1)), "no row is dropped"
    for number, digest in enumerate(expected, start=1):
        row = ours[number]
        if end:
            row = {side: [[*ids, *end], [*mask, *[1] * len(end)]] for side, (ids, mask) in row.items()}
        assert BENCHMARK["digest"](row) == digest, f"row {number}"


@pytest.mark.parametrize("template", sorted(FIXTURE["templates"]))
def test_shipped_formats_write_what_theirs_write(template: str, all_chats: dict[str, Any]) -> None:
    if template in OTHERWISE:
        assert all_chats[template] != FIXTURE["templates"][template]
    else:
        assert all_chats[template] == FIXTURE["templates"][template]


@pytest.fixture(scope="module")
def all_chats() -> dict[str, Any]:
    return BENCHMARK["our_template_chats"](FIXTURE["special"], FIXTURE["merges"])


def test_all_of_their_names_are_known() -> None:
    assert set(FIXTURE["names"]) <= {*PLAIN, *FAMILIES}
    assert len(FIXTURE["names"]) == 121

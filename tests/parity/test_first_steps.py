"""Our first optimizer steps of DPO, KTO, GRPO and RLOO against TRL 1.16's, which benchmarks/first_steps.py wrote."""

from __future__ import annotations

import json
import runpy
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
BENCHMARK = runpy.run_path(str(ROOT / "benchmarks" / "first_steps.py"))
FIXTURE = json.loads(BENCHMARK["FIXTURE"].read_text(encoding="utf-8"))
SCENARIOS = list(BENCHMARK["SCENARIOS"])


@cache
def ours(name: str) -> dict[str, Any]:
    return BENCHMARK["run_posttrain"](FIXTURE["scenarios"][name])


def test_the_fixture_says_where_it_comes_from_and_holds_what_the_benchmark_makes() -> None:
    assert FIXTURE["versions"]["trl"] == "1.16.0"
    assert list(FIXTURE["scenarios"]) == SCENARIOS
    plain = BENCHMARK["MAKER"]["plain"]
    for rows in ("pairs", "answers", "groups"):
        assert plain(BENCHMARK[rows]()) == FIXTURE[rows], rows
    for name, scenario in BENCHMARK["SCENARIOS"].items():
        assert plain(scenario["settings"]) == FIXTURE["scenarios"][name]["settings"], name


@pytest.mark.parametrize("name", SCENARIOS)
def test_loss_and_gradient_norm_of_every_step(name: str) -> None:
    expected = FIXTURE["scenarios"][name]["steps"]
    assert len(expected) == BENCHMARK["STEPS"]
    for theirs, own in zip(expected, ours(name)["steps"], strict=True):
        for figure in ("loss", "grad_norm"):
            assert own[figure] == pytest.approx(theirs[figure], abs=1e-4, rel=1e-4), figure


@pytest.mark.parametrize(
    ("name", "trl", "mine"),
    [
        ("dpo", "rewards/accuracies", "rewards/accuracies"),
        ("kto", "kl", "kl"),
        ("dapo", "clip_ratio/region_mean", "clip_fraction"),  # the others average it over completions first
        ("gspo", "clip_ratio/region_mean", "clip_fraction"),
        ("rloo", "clip_ratio/region_mean", "clip_fraction"),
    ],
)
def test_what_both_count_beside_the_loss(name: str, trl: str, mine: str) -> None:
    for theirs, own in zip(FIXTURE["scenarios"][name]["steps"], ours(name)["steps"], strict=True):
        assert own[mine] == pytest.approx(theirs[trl], abs=1e-5)


def test_the_second_step_is_clipped_and_the_reference_point_is_above_zero() -> None:
    scenarios = FIXTURE["scenarios"]
    for name in ("grpo", "dr_grpo", "dapo", "gspo", "rloo"):
        assert 0 < scenarios[name]["steps"][1]["clip_ratio/region_mean"] < 1, name
    assert scenarios["cispo"]["steps"][1]["cispo_clip_ratio"] > 0
    assert all(step["kl"] > 0 for step in scenarios["kto"]["steps"])


@pytest.mark.parametrize("name", SCENARIOS)
def test_weights_after_the_last_step(name: str) -> None:
    # What was found: 7e-7 in entries, 5e-4 of the way of a weight. Adam divides by the gradient's own size, which
    # passes rounding on magnified.
    expected, found = FIXTURE["scenarios"][name]["weights"], ours(name)["weights"]
    assert {f"backbone.{weight}" for weight in expected} == set(found)
    for weight, theirs in expected.items():
        own = found[f"backbone.{weight}"]
        assert theirs["moved"] > 0
        assert float(own["moved"]) == pytest.approx(theirs["moved"], rel=1e-3), weight
        assert own["entries"].tolist() == pytest.approx(theirs["entries"], abs=1e-5), weight

"""The text-to-SQL recipe as it is shipped, every stage for two steps on a tiny model."""

import json

import pytest

from posttrain.config import load_pipeline
from posttrain.pipeline.prepare import check_prepared
from posttrain.pipeline.run import run_pipeline

RECIPE = "recipes/text2sql/pipeline.yaml"
NUMBERS = ("tables=10", "pretrain=4", "pretrain_heldout=4", "sft=16", "pairs=16", "prompts=16", "heldout=4")
SMALL = ("num_heldout_pairs=4", *(f"num_{number}" for number in NUMBERS))


@pytest.fixture
def recipe(request):
    return request.config.rootpath / RECIPE


def test_the_recipe_can_be_read_and_its_data_made(recipe):
    pipeline = load_pipeline(recipe)
    assert [stage.kind for stage in pipeline.stages] == ["pt", "sft", "rm", "ppo", "export", "evaluate"]
    assert pipeline.warnings == ()
    for prepared in pipeline.prepare:
        check_prepared(prepared)


@pytest.mark.slow
def test_the_recipe_runs_from_text_to_report(recipe, tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    overrides = [
        f"output_dir={tmp_path / 'out'}",
        f"model_name_or_path={tiny_llama}",
        "max_steps=2",
        "evaluate.max_new_tokens=8",
        "ppo.max_new_tokens=8",
        "report_to=none",
        *(f"prepare.text2sql.{number}" for number in SMALL),
    ]
    said = []
    report = run_pipeline(recipe, overrides, said.append).read_text(encoding="utf-8")
    assert next(line for line in report.splitlines() if line.startswith("## ")) == "## What the models can do"
    results = json.loads((tmp_path / "out" / "evaluate" / "eval_results.json").read_text(encoding="utf-8"))
    assert list(results["variants"]) == ["base", "sft", "ppo"]
    assert "kl" in results["variants"]["ppo"]
    state = (tmp_path / "out" / "pipeline_state.json").read_text(encoding="utf-8")
    said.clear()
    run_pipeline(recipe, overrides, said.append)
    assert sum(sentence.endswith("done already") for sentence in said) == 6
    assert (tmp_path / "out" / "pipeline_state.json").read_text(encoding="utf-8") == state

"""The text-to-SQL recipes as they are shipped, every stage for two steps on a tiny model."""

import json

import pytest

from posttrain.config import load_pipeline
from posttrain.config.stages import ONLINE_STAGES
from posttrain.pipeline.prepare import check_prepared
from posttrain.pipeline.run import run_pipeline

RECIPE = "recipes/text2sql/pipeline.yaml"
FULL = "recipes/text2sql/full.yaml"
ALGORITHMS = "recipes/text2sql/algorithms.yaml"
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


def test_one_number_seeds_the_whole_proof(request):
    pipeline = load_pipeline(request.config.rootpath / FULL, ["prepare.text2sql.seed=7"])
    assert [stage.kind for stage in pipeline.stages] == ["sft", "generate", "rm", "ppo", "ppo", "evaluate"]
    assert {stage.values["seed"] for stage in pipeline.stages} == {7} == {pipeline.prepare[0].seed}
    assert pipeline.warnings == ()
    rewards = [(stage.values.get("reward_model"), stage.values.get("reward_funcs")) for stage in pipeline.stages[3:5]]
    assert rewards == [("outputs/text2sql-full/seed-1/reward", None), (None, ["sql_execution"])]


@pytest.mark.slow
def test_the_proof_runs_from_tables_to_predictions(request, tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    numbers = ("num_tables=10", "num_sft=16", "num_questions=8", "num_prompts=16", "num_heldout=4")
    overrides = [
        f"output_dir={tmp_path / 'out'}",
        f"model_name_or_path={tiny_llama}",
        "max_steps=2",
        *(f"{stage}.max_new_tokens=8" for stage in ("sample", "ppo", "ppo_execution", "evaluate")),
        "report_to=none",
        *(f"prepare.text2sql.{number}" for number in numbers),
    ]
    run_pipeline(request.config.rootpath / FULL, overrides, lambda sentence: None)
    lines = (tmp_path / "out" / "evaluate" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert {json.loads(line)["variant"] for line in lines} == {"base", "sft", "ppo", "ppo_execution"}
    rewards = (tmp_path / "out" / "ppo_execution" / "completions.jsonl").read_text(encoding="utf-8").splitlines()
    assert {round(json.loads(line)["reward"], 6) for line in rewards} <= {0.0, 0.2, 1.0}


def test_the_comparison_trains_and_evaluates_every_algorithm(request):
    recipe = request.config.rootpath / ALGORITHMS
    pipeline = load_pipeline(recipe)
    assert pipeline.warnings == ()
    trained = [stage for stage in pipeline.stages if stage.name not in ("sft", "sample", "reward", "evaluate")]
    assert {stage.kind for stage in trained} == {"dpo", "kto", *ONLINE_STAGES}
    compared = next(stage for stage in pipeline.stages if stage.name == "evaluate").values["variants"]
    assert {entry.split("=")[0] for entry in compared} == {"base", "sft", *(stage.name for stage in trained)}


ASKING = "recipes/question_generation/pipeline.yaml"
CMRC = "recipes/question_generation/cmrc.yaml"


def test_the_question_recipes_can_be_read(request):
    pipeline = load_pipeline(request.config.rootpath / ASKING)
    assert [stage.kind for stage in pipeline.stages] == ["sft", "rm", "ppo", "generate", "generate"]
    for prepared in pipeline.prepare:
        check_prepared(prepared)
    ppo = pipeline.stages[2].values
    assert (ppo["reward_clip"], ppo["kl_coef"], ppo["ppo_target"], ppo["gamma"]) == (5.0, 0.02, 0, 1.0)
    assert (ppo["gae_lambda"], ppo["ppo_epochs"], ppo["repetition_penalty"]) == (0.95, 2, 1.0)
    assert (ppo["finetuning_type"], ppo["critic"], ppo["ppo_buffer_size"]) == ("full", "model", 4)
    assert ppo["cutoff_len"] == 160 - 32 - 3
    assert ppo["model_name_or_path"].endswith("/sft")
    assert not any("ignored" in note for note in pipeline.warnings)
    cmrc = load_pipeline(request.config.rootpath / CMRC)
    assert [stage.kind for stage in cmrc.stages] == ["sft", "rm", "ppo", "generate", "generate"]
    assert cmrc.stages[2].values["repetition_penalty"] == 1.0
    assert not any("changes nothing" in note for note in (*pipeline.warnings, *cmrc.warnings))


@pytest.mark.slow
def test_the_question_recipe_runs_from_nothing_to_questions(request, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    counts = ("sft=80", "pairs=40", "prompts=32", "heldout=8", "heldout_pairs=8")
    sizes = ("num_layers=2", "width=32", "num_heads=2")
    overrides = [
        f"output_dir={tmp_path / 'out'}",
        "max_steps=2",
        "save_steps=1",
        "report_to=tensorboard",
        "ppo.query_len=6",
        "before.query_len=6",
        "after.query_len=6",
        *(f"prepare.question_generation.num_{count}" for count in counts),
        *(f"prepare.new_gpt2.{size}" for size in sizes),
    ]
    run_pipeline(request.config.rootpath / ASKING, overrides, lambda sentence: None)
    out = tmp_path / "out"
    log = [json.loads(line) for line in (out / "ppo" / "trainer_log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert max(line["current_steps"] for line in log) == 2
    assert sum("eval_reward" in line for line in log) >= 2  # before the first iteration and at the end
    assert (out / "ppo" / "checkpoint-2").is_dir()
    assert list((out / "ppo" / "runs").rglob("events.out.tfevents.*"))
    for side in ("before", "after"):
        rows = [json.loads(line) for line in (out / side / "questions.jsonl").read_text("utf-8").splitlines()]
        assert [len(row["predict"]) for row in rows] == [2] * 8
        assert all({"kind", "subject", "stated", "label"} <= set(row) for row in rows)
    said = []
    run_pipeline(request.config.rootpath / ASKING, overrides, said.append)
    assert sum(sentence.endswith("done already") for sentence in said) == 5


SENTIMENT = "recipes/sentiment/pipeline.yaml"


def test_the_sentiment_recipe_can_be_read(request):
    pipeline = load_pipeline(request.config.rootpath / SENTIMENT, ["output_dir=elsewhere"])
    assert [stage.kind for stage in pipeline.stages] == ["sft", "rm", "export", "ppo"]
    for prepared in pipeline.prepare:
        check_prepared(prepared)
    ppo = pipeline.stages[-1].values
    assert ppo["reward_classifier"].endswith("/classifier")
    assert ppo["model_name_or_path"].endswith("/sft")
    assert ppo["cutoff_len"] == 64
    named = [stage.values.get(key) for stage in pipeline.stages for key in ("output_dir", "dataset_dir")]
    assert all(place is None or place.startswith("elsewhere/") for place in named)
    assert not any("changes nothing" in note or "ignored" in note for note in pipeline.warnings)


@pytest.mark.slow
def test_the_sentiment_recipe_runs_from_nothing_to_a_picture(request, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    counts = ("sft=80", "pairs=64", "prompts=32", "heldout=8", "heldout_pairs=8")
    overrides = [
        f"output_dir={tmp_path / 'out'}",
        "max_steps=2",
        "ppo.max_new_tokens=8",
        *(f"prepare.reviews.num_{count}" for count in counts),
        *(f"prepare.new_gpt2.{size}" for size in ("num_layers=2", "width=32", "num_heads=2")),
    ]
    run_pipeline(request.config.rootpath / SENTIMENT, overrides, lambda sentence: None)
    out = tmp_path / "out" / "ppo"
    found = json.loads((out / "reward_distribution.json").read_text(encoding="utf-8"))
    assert (found["before"]["step"], found["after"]["step"]) == (0, 2)
    assert len(found["rewards"]["before"]) == len(found["rewards"]["after"]) == 8
    assert (out / "reward_distribution.png").is_file()
    lines = [json.loads(line) for line in (out / "eval_completions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(lines) == 16
    assert all(line["prompt"].startswith("[CLS]") for line in lines)

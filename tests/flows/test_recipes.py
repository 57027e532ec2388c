"""The recipes as they are shipped, in an empty folder, on a tiny model: training for two steps, then what uses it."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
import yaml

from posttrain.config import load_config

AFTER = {
    "pt": (),
    "sft": (),
    "sft_full": (),
    "sft_text": (),
    "rm": ("sft",),
    "rm_qlora": (),
    "dpo": ("sft",),
    "orpo": (),
    "kto": ("sft",),
    "grpo": ("sft",),
    "rloo": ("sft", "rm"),
    "ppo": ("sft", "rm"),
    "ppo_adapter_critic": ("sft", "rm"),
    "ppo_execution": ("sft",),
    "ppo_rewards": ("sft",),
    "ppo_full": ("sft_full", "sft", "rm"),
    "label": ("sft", "rm"),
    "export": ("ppo",),
    "predict": ("export",),
    "eval_sql": ("sft", "rm", "ppo"),
    "eval_sql_files": ("predict",),
    "eval_reward": ("sft", "rm"),
    "eval_generation": ("sft",),
    "eval_match": ("sft",),
    "eval_win_rate": ("sft", "rm", "ppo"),
    "eval_frontier": ("sft", "rm", "ppo"),
    "serve": ("sft", "rm", "ppo"),
}
"""Recipe -> the recipes whose results it starts from, as its comment says."""

EVALUATIONS = tuple(name for name in AFTER if name.startswith("eval_"))
COMMANDS = {
    **{"label": ("label",), "export": ("export",), "predict": ("generate", "chat"), "serve": ("serve",)},
    **dict.fromkeys(EVALUATIONS, ("eval",)),
}
ADAPTERS = (
    "pt",
    "sft",
    "sft_text",
    "rm",
    "rm_qlora",
    "dpo",
    "orpo",
    "kto",
    "grpo",
    "rloo",
    "ppo",
    "ppo_adapter_critic",
    "ppo_execution",
    "ppo_rewards",
)
COUNTS = {"pretrain": 30, "pretrain_heldout": 4, "sft": 20, "pairs": 16, "prompts": 32, "heldout": 4}


@pytest.fixture(scope="module")
def recipes(request):
    return request.config.rootpath / "recipes"


@pytest.fixture(scope="module")
def run(recipes, tiny_llama, tmp_path_factory):
    """Run a recipe and those before it, once each, in a folder that held nothing but the data; returns the folder."""
    from posttrain.data.text2sql import generate
    from posttrain.evaluate.run import evaluate
    from posttrain.models.export import export_model
    from posttrain.serve.generate import generate as predict
    from posttrain.serve.label import label
    from posttrain.train.run import train

    place, before, done = tmp_path_factory.mktemp("recipes"), Path.cwd(), set()
    generate(
        place / "data" / "text2sql",
        num_tables=40,
        num_heldout_pairs=4,
        **{f"num_{name}": count for name, count in COUNTS.items()},
    )
    starts = {"export": export_model, "generate": predict, "label": label, "eval": evaluate, "train": train}

    def start(name):
        if name in done:
            return place
        for earlier in AFTER[name]:
            start(earlier)
        command = COMMANDS.get(name, ("train",))[0]
        overrides = ["max_steps=2", "report_to=none", "disable_tqdm=true", "max_new_tokens=6"]
        if name != "predict":  # it uses what export wrote
            overrides.append(f"model_name_or_path={tiny_llama}")
        starts[command](load_config(recipes / f"{name}.yaml", overrides, command=command))
        done.add(name)
        return place

    os.chdir(place)
    yield start
    os.chdir(before)


def test_every_recipe_is_here(recipes):
    assert {path.stem for path in recipes.glob("*.yaml")} == set(AFTER)


@pytest.mark.parametrize("name", AFTER)
def test_a_recipe_loads_without_a_warning(recipes, name):
    path = recipes / f"{name}.yaml"
    for command in COMMANDS.get(name, ("train",)):
        config = load_config(path, command=command)
        assert config.warnings == ()
        written = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert set(written) <= set(config.sources), "a key that is read as another one"


@pytest.mark.parametrize("name", AFTER)
def test_a_recipe_says_how_it_is_run(recipes, name):
    text = (recipes / f"{name}.yaml").read_text(encoding="utf-8")
    for command in COMMANDS.get(name, ("train",)):
        assert f"#   posttrain {command} recipes/{name}.yaml" in text
    head = text.partition("\n\n")[0]
    missing = [earlier for earlier in AFTER[name] if f"recipes/{earlier}.yaml" not in head]
    assert missing == []


@pytest.mark.parametrize("name", [name for name in AFTER if name not in COMMANDS])
def test_a_training_recipe_takes_two_steps(run, name):
    folder = run(name) / "saves" / name
    log = [json.loads(line) for line in (folder / "trainer_log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert log[-1]["total_steps"] == log[-1]["current_steps"] == 2
    results = json.loads((folder / "all_results.json").read_text(encoding="utf-8"))
    assert math.isfinite(results["train_loss"])
    assert (folder / ("adapter_model.safetensors" if name in ADAPTERS else "model.safetensors")).is_file()
    assert (folder / "training_loss.png").is_file()


@pytest.mark.parametrize(("name", "completions", "questions"), [("ppo", 8, 8), ("ppo_adapter_critic", 32, 8)])
def test_ppo_samples_as_many_completions_as_its_comments_say(run, name, completions, questions):
    lines = (run(name) / "saves" / name / "completions.jsonl").read_text(encoding="utf-8").splitlines()
    first = [row for row in map(json.loads, lines) if row["step"] == 1]
    assert len(first) == completions
    assert len({row["prompt"] for row in first}) == questions
    assert all("Write SQL." in row["prompt"] for row in first)


def test_the_merged_model_answers_the_held_out_questions(run, recipes):
    from posttrain.serve.model import ChatModel

    place = run("predict")
    rows = [json.loads(line) for line in (place / "saves" / "predictions.jsonl").read_text("utf-8").splitlines()]
    assert len(rows) == COUNTS["heldout"]
    assert {"prompt", "predict", "label", "db", "kind"} <= set(rows[0])
    model = ChatModel(load_config(recipes / "predict.yaml", ["max_new_tokens=4"], command="chat"))
    assert len(model.chat([{"role": "user", "content": "How many?"}])) == 1


def test_the_reward_model_labels_the_sft_models_answers(run):
    place = run("label") / "saves" / "label"
    results = json.loads((place / "label_results.json").read_text(encoding="utf-8"))
    rows = [json.loads(line) for line in (place / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]
    assert 0 < len(rows) == results["label_num_pairs"] <= 2 * results["label_num_rows"] <= 2 * COUNTS["prompts"]
    assert all(row["margin"] > 0.1 for row in rows)


def test_the_sql_of_three_models_is_run(run):
    text = (run("eval_sql") / "saves" / "eval_sql" / "eval_results.json").read_text(encoding="utf-8")
    results = json.loads(text)
    assert list(results["variants"]) == ["base", "sft", "ppo"]
    assert all({"execution_accuracy", "reward"} <= set(metrics) for metrics in results["variants"].values())


@pytest.mark.parametrize(
    ("name", "variants", "figures"),
    [
        ("eval_reward", ["reward"], {"accuracy", "calibration_error", "length_correlation", "by_length"}),
        ("eval_generation", ["base", "sft"], {"bleu", "chrf", "rougeL"}),
        ("eval_match", ["base", "sft"], {"accuracy", "answered"}),
        ("eval_sql_files", ["ours"], {"execution_accuracy", "valid_rate", "num_excluded", "error_classes"}),
        ("eval_win_rate", ["ppo"], {"win_rate", "wins", "ties", "losses", "sign_test_p"}),
        ("eval_frontier", ["reference", "checkpoint-2"], {"kl", "reward", "step"}),
    ],
)
def test_an_evaluation_has_figures_and_a_record_for_every_item(run, name, variants, figures):
    folder = run(name) / "saves" / name
    results = json.loads((folder / "eval_results.json").read_text(encoding="utf-8"))
    assert list(results["variants"]) == variants
    assert all(figures <= set(metrics) for metrics in results["variants"].values())
    records = (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(records) == results["eval_num_rows"] * len(variants)


def test_the_models_that_are_served(run, recipes, tiny_llama):
    from posttrain.serve.server.models import load_served

    run("ppo")
    config = load_config(recipes / "serve.yaml", [f"model_name_or_path={tiny_llama}"], command="serve")
    assert load_served(config, notify=lambda _: None, environment={}).names == ("base", "sft", "ppo", "rm")

"""One reward model, scored in PPO, in an evaluation and as exported."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from posttrain.cli import main
from posttrain.config import load_config
from posttrain.errors import UserError
from posttrain.evaluate.parity import reward_parity
from posttrain.models.export import export_model


@pytest.fixture(scope="module")
def exported(trained, tiny_llama, tmp_path_factory):
    """The reward adapter of the fixture as a sequence classifier."""
    folder = tmp_path_factory.mktemp("exported") / "reward"
    keys = {"model_name_or_path": str(tiny_llama), "adapter_name_or_path": str(trained / "rm"), "stage": "rm"}
    return export_model(load_config({**keys, "export_dir": str(folder)}, command="export"))


@pytest.fixture
def keys(tiny_llama, trained, tiny_data, exported):
    return {
        "model_name_or_path": str(tiny_llama),
        "adapter_name_or_path": str(trained / "sft"),
        "reward_model": str(trained / "rm"),
        "eval_dataset": str(tiny_data / "pairs.json"),
        "export_dir": str(exported),
        "cutoff_len": 64,
    }


def parity(keys):
    return reward_parity(load_config(keys, command="eval"))


@pytest.mark.parametrize("stage", [None, "ppo", "grpo"])
def test_all_three_agree_on_pairs(keys, tiny_data, stage):
    found = parity(keys if stage is None else {**keys, "stage": stage})
    assert list(found.scores) == ["ppo", "eval", "export"]
    assert list(found.differences) == [("ppo", "eval"), ("ppo", "export"), ("eval", "export")]
    assert found.num_rows == 2 * len(json.loads((tiny_data / "pairs.json").read_text(encoding="utf-8")))
    assert found.holds
    assert found.largest < 1e-5
    assert found.scores["ppo"].std() > 0.05  # else anything would agree


def test_prompts_with_answers_are_rows_too(keys, tiny_data):
    found = parity({**keys, "eval_dataset": str(tiny_data / "chat.json"), "export_dir": None})
    assert found.holds
    assert list(found.scores) == ["ppo", "eval"]
    assert found.num_rows == 12


def test_a_merged_actor_scores_on_what_the_reward_was_trained_on(keys, trained):
    found = parity({**keys, "model_name_or_path": str(trained / "merged"), "adapter_name_or_path": None})
    assert found.holds


def test_a_constant_that_the_export_leaves_out_is_added(keys, trained, tmp_path):
    import shutil

    shutil.copytree(trained / "rm", tmp_path / "rm")
    head = load_file(tmp_path / "rm" / "value_head.safetensors")
    head["v_head.summary.bias"] = torch.tensor([0.75])
    save_file(head, tmp_path / "rm" / "value_head.safetensors")
    said = []
    config = load_config({**keys, "reward_model": str(tmp_path / "rm")}, command="eval")
    found = reward_parity(config, said.append)
    assert found.holds
    assert any("the constant 0.75 of the head is added" in sentence for sentence in said)


def test_another_export_is_found_out(keys, exported, tmp_path, capsys):
    import shutil

    folder = tmp_path / "other"
    shutil.copytree(exported, folder)
    weights = load_file(folder / "model.safetensors")
    weights["score.weight"] = 1.01 * weights["score.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    found = parity({**keys, "export_dir": str(folder)})
    assert not found.holds
    assert found.differences["ppo", "eval"] < 1e-5
    assert found.differences["eval", "export"] > 1e-3
    (tmp_path / "ppo.yaml").write_text(yaml.safe_dump({**keys, "export_dir": str(folder)}), encoding="utf-8")
    assert main(["reward-parity", str(tmp_path / "ppo.yaml")]) == 1
    assert "scores differ by up to" in capsys.readouterr().err


def test_the_command_prints_the_differences(keys, tmp_path, capsys):
    (tmp_path / "ppo.yaml").write_text(yaml.safe_dump({**keys, "stage": "ppo"}), encoding="utf-8")
    assert main(["reward-parity", str(tmp_path / "ppo.yaml")]) == 0
    out = capsys.readouterr().out
    assert "***** reward parity *****" in out
    for name in ("ppo - eval", "ppo - export", "eval - export", "largest", "num_rows"):
        assert name in out


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"reward_model": None}, "reward_model is missing"),
        ({"reward_model": "http://127.0.0.1:1/"}, "reward_model is missing"),
        ({"export_dir": "nowhere"}, "export_dir: nowhere holds no exported model"),
        ({"eval_dataset": None}, "`eval_dataset` is missing"),
    ],
)
def test_what_is_missing_is_said(keys, change, words):
    with pytest.raises(UserError, match=words):
        parity({**keys, **change})

"""A reward that is measured on held-out prompts and never trained on."""

from __future__ import annotations

import json

import pytest
import torch

from posttrain.errors import RunError, UserError
from posttrain.rewards import ScriptedReward
from posttrain.train import online
from posttrain.train import run as train_run


def test_it_scores_the_answers_that_the_reward_scores(make_online_run) -> None:
    seen = []

    def judge(batch):
        seen.append(batch.completions)
        return torch.arange(float(len(batch)))

    run, _ = make_online_run({"reward": ScriptedReward(lambda ids: 7.0)})
    prompts = run.prompts[:4]
    alone, judged = online.held_out(run, prompts)(), online.held_out(run, prompts, judge)()
    assert (judged["eval_judge_reward"], judged["eval_judge_reward_std"]) == (1.5, pytest.approx(1.25**0.5))
    assert (judged["eval_reward"], judged["eval_reward_std"]) == (7.0, 0.0)
    assert [len(completions) for completions in seen] == [4]
    names = {name for name in judged if not name.endswith(("runtime", "_per_second"))}
    assert names - set(alone) == {"eval_judge_reward", "eval_judge_reward_std"}
    assert all(judged[name] == alone[name] for name in names & set(alone))


@pytest.fixture
def start(tiny_config, tmp_path):
    """A short run that is rewarded for JSON; keywords are keys."""
    keys = {"reward_funcs": "json_valid", "val_size": 3, "eval_strategy": "steps", "eval_steps": 1, "max_steps": 2}
    return lambda **more: train_run.train(tiny_config("ppo", tmp_path / "out", **{**keys, **more}))


def log(tmp_path):
    return [json.loads(line) for line in (tmp_path / "out" / "trainer_log.jsonl").read_text("utf-8").splitlines()]


def test_it_changes_nothing_that_is_learned(start, tmp_path) -> None:
    start(alarm_reward_funcs="length:1000-")
    weights = (tmp_path / "out" / "adapter_model.safetensors").read_bytes()
    measured = [line["eval_judge_reward"] for line in log(tmp_path) if "eval_reward" in line]
    assert len(measured) == 3
    assert all(-1.0 <= value < -0.9 for value in measured)
    start(overwrite_output_dir=True)
    assert (tmp_path / "out" / "adapter_model.safetensors").read_bytes() == weights
    assert not any("eval_judge_reward" in line for line in log(tmp_path))


def test_several_are_added_up_without_the_weights_of_the_reward(start, tmp_path) -> None:
    """The reward's own parts have weights and clips; those are not for the judge."""
    keys = {"reward_funcs": "json_valid,length:1000-", "reward_weights": "2,3", "reward_part_clip": "0.5"}
    start(**keys, alarm_reward_funcs="length:1000-,length:1000-,regex:^")
    assert all(-1.0 <= line["eval_judge_reward"] < -0.8 for line in log(tmp_path) if "eval_reward" in line)


def test_rows_that_it_cannot_judge_are_refused_before_training(start, tmp_path) -> None:
    with pytest.raises(
        UserError, match=r"alarm_reward_funcs, on the held-out rows: .*exact_match:gold cannot judge row 1"
    ):
        start(alarm_reward_funcs="exact_match:gold")
    assert not (tmp_path / "out" / "checkpoint-1").exists()


def test_a_judge_that_dies_stops_the_run_with_a_checkpoint(start, tmp_path) -> None:
    (tmp_path / "mine.py").write_text(
        "calls = []\n\n\ndef judge(completions, **_):\n    calls.append(1)\n"
        "    return [float('nan') if len(calls) == 2 else 1.0 for _ in completions]\n",
        encoding="utf-8",
    )
    with pytest.raises(RunError, match=r"checkpoint-1"):
        start(alarm_reward_funcs=f"{tmp_path / 'mine.py'}:judge")
    assert (tmp_path / "out" / "checkpoint-1" / "trainer_state.json").is_file()

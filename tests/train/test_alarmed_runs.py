"""Runs with a reward that is easily fooled trip the alarms, a healthy one trips none; a stop, a way back, a resume."""

from __future__ import annotations

import json

import pytest

from posttrain.cli import main
from posttrain.train import run as train_run
from posttrain.train.clocks import timeless
from posttrain.train.monitor import Monitor

REWARDS = '''
FRUITS = ["apple", "pear", "plum", "fig", "lime", "kiwi", "date", "peach", "melon", "grape", "mango", "berry"]


def length(completions, **_):
    """The longer the better."""
    return [float(len(text)) for text in completions]


def limes(completions, **_):
    """One word counts, as often as it is there."""
    return [float(text.count("lime")) for text in completions]


def fruit(completions, **_):
    """What was asked for."""
    return [float(text.strip() in FRUITS) for text in completions]
'''
HEALTHY = {"finetuning_type": "lora", "lora_rank": 8, "learning_rate": 3e-3, "kl_coef": 0.2}


class StoppedError(Exception):
    """The power is cut."""


@pytest.fixture(scope="module")
def fluent(tiny_config, tmp_path_factory):
    """The tiny model once it can name a fruit and stop, though not always."""
    folder = tmp_path_factory.mktemp("fluent")
    keys = {"finetuning_type": "full", "learning_rate": 1e-2, "lr_scheduler_type": "cosine", "warmup_steps": 5}
    train_run.train(
        tiny_config("sft", folder, num_train_epochs=20, per_device_train_batch_size=12, save_strategy="no", **keys)
    )
    return folder


@pytest.fixture
def configure(tiny_config, fluent, tmp_path):
    """A PPO run that is rewarded by one of ``REWARDS`` and judged, held out, by whether it names a fruit."""
    file = tmp_path / "mine.py"
    file.write_text(REWARDS, encoding="utf-8")

    def make(reward, steps, name="out", **keys):
        values = {
            **{"model_name_or_path": str(fluent), "finetuning_type": "full", "learning_rate": 5e-3, "kl_coef": 0.0},
            **{"lr_scheduler_type": "constant", "per_device_train_batch_size": 16, "ppo_buffer_size": 2},
            **{"num_return_sequences": 4, "max_new_tokens": 24, "max_steps": steps, "save_strategy": "no"},
            **{"val_size": 4, "eval_strategy": "steps", "eval_steps": 5, "reward_funcs": f"{file}:{reward}"},
            **{"alarm_reward_funcs": f"{file}:fruit", **keys},
        }
        return tiny_config("ppo", tmp_path / name, **values)

    return make


def log(folder):
    return [json.loads(line) for line in (folder / "trainer_log.jsonl").read_text("utf-8").splitlines()]


def alarms(folder):
    """Name -> first step, from the log."""
    return {line["alarm"]: line["current_steps"] for line in reversed(log(folder)) if "alarm" in line}


def test_a_reward_for_one_word_trips_those_that_see_it(configure, tmp_path, capsys) -> None:
    results = train_run.train(configure("limes", 40, max_new_tokens=32))
    assert results["alarms"].keys() >= {"kl", "length_drift", "repetition", "entropy", "reward_gap"}
    assert results["alarms"] == alarms(tmp_path / "out")
    assert results["alarms"] == json.loads((tmp_path / "out" / "all_results.json").read_text("utf-8"))["alarms"]
    said = capsys.readouterr().err
    assert all(f"alarm {name} at step {step}: " in said for name, step in results["alarms"].items())
    gap = next(line for line in log(tmp_path / "out") if line.get("alarm") == "reward_gap")
    assert gap["metric"] == "eval_judge_reward"


def test_a_reward_for_length_trips_those_that_see_it(configure, tmp_path) -> None:
    results = train_run.train(configure("length", 15))
    assert results["alarms"].keys() >= {"length_drift", "no_eos", "reward_gap"}
    assert results["eval_judge_reward"] < 0.5 < next(line["eval_judge_reward"] for line in log(tmp_path / "out"))


def test_a_healthy_run_trips_none(configure, tmp_path) -> None:
    """The reward is what is wanted: it rises, and nothing else goes wrong."""
    results = train_run.train(configure("fruit", 25, **HEALTHY))
    assert results["alarms"] == {}
    rewards = [line["reward_mean"] for line in log(tmp_path / "out") if "reward_mean" in line]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.1
    assert all(0 <= line["repetition"] < 0.1 for line in log(tmp_path / "out") if "reward_mean" in line)


def test_stop_from_the_command_line(configure, tmp_path, capsys) -> None:
    """Exit status 1 and one message; again the same; with ``on_alarm: log`` it goes on to its end."""
    import yaml

    keys = configure("limes", 8, on_alarm="stop", eval_strategy="no", alarm_reward_funcs=[]).to_flat()
    (tmp_path / "ppo.yaml").write_text(yaml.safe_dump(keys), encoding="utf-8")
    command = ["train", str(tmp_path / "ppo.yaml")]
    steps = []
    for _ in range(2):
        assert main(command) == 1
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("posttrain: error")]
        assert len(errors) == 1
        assert errors[0].startswith("posttrain: error: stopped by alarm kl at step ")
        steps.append([line["current_steps"] for line in log(tmp_path / "out")])
    assert steps[0] == steps[1]
    assert not (tmp_path / "out" / "all_results.json").exists()
    (stopped,) = (int(path.name[11:]) for path in (tmp_path / "out").glob("checkpoint-*"))
    assert stopped == alarms(tmp_path / "out")["kl"] < 8
    assert main([*command, "on_alarm=log"]) == 0
    results = json.loads((tmp_path / "out" / "all_results.json").read_text("utf-8"))
    assert (results["stopped_at_step"], results["alarms"]["kl"]) == (8, stopped)


def test_rollback_ends_with_the_weights_of_the_best_checkpoint(configure, tmp_path, capsys) -> None:
    config = configure("limes", 20, on_alarm="rollback", eval_steps=1, alarm_kl=1.5, plot_loss=True)
    results = train_run.train(config)
    out = tmp_path / "out"
    best, stopped = results["rolled_back_to"], results["stopped_at_step"]
    assert best < stopped == min(results["alarms"].values()) < 20
    assert (out / "model.safetensors").read_bytes() == (out / f"checkpoint-{best}" / "model.safetensors").read_bytes()
    assert (out / "model.safetensors").read_bytes() != (
        out / f"checkpoint-{stopped}" / "model.safetensors"
    ).read_bytes()
    measured = {line["current_steps"]: line["eval_judge_reward"] for line in log(out) if "eval_judge_reward" in line}
    before = {step: value for step, value in measured.items() if 0 < step < stopped}
    assert measured[best] == max(before.values()) == results["eval_judge_reward"]
    assert f"Going back to checkpoint-{best}, the best before (eval_judge_reward " in capsys.readouterr().err
    assert (out / "training_repetition.png").is_file()
    assert (out / "training_eval_judge_reward.png").is_file()


@pytest.mark.parametrize("on_alarm", ["log", "rollback"])
def test_a_run_that_was_cut_off_raises_the_same_alarms(configure, tmp_path, monkeypatch, on_alarm) -> None:
    """Cut before the first alarm, and after it; log lines, results and weights are those of the undisturbed run."""
    keys = {"on_alarm": on_alarm, "save_strategy": "steps", "save_steps": 1, "eval_steps": 3, "alarm_kl": 1.0}
    whole = train_run.train(configure("limes", 12, "whole", **keys))
    config, after = configure("limes", 12, "cut", **keys), Monitor.after_step
    first = min(whole["alarms"].values())
    for last in (first - 2, first):

        def cut(self, step, stats, last=last):
            after(self, step, stats)
            if step == last:
                raise StoppedError

        with monkeypatch.context() as patch:
            patch.setattr(Monitor, "after_step", cut)
            with pytest.raises(StoppedError):
                train_run.train(config)
    assert timeless(train_run.train(config)) == timeless(whole)
    one, other = tmp_path / "whole", tmp_path / "cut"
    assert alarms(one) == whole["alarms"]
    assert timeless(log(one)) == timeless(log(other))
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()

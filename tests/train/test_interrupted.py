"""Runs that were cut off, and what the next attempt in the same folder makes of what they left."""

from __future__ import annotations

import json
import os
import signal

import pytest

from posttrain.errors import UserError
from posttrain.train import run as train_run
from posttrain.train.monitor import Monitor


class StoppedError(Exception):
    """The power is cut."""


@pytest.fixture
def start(tiny_config, trained, tmp_path):
    """Run a stage into ``tmp_path/out``; returns its results and what it said."""

    def run(stage="sft", **keys):
        if stage == "ppo":
            keys = {"reward_model": str(trained / "rm"), **keys}
        said = []
        config = tiny_config(stage, tmp_path / "out", **{"save_steps": 1, **keys})
        return train_run.train(config, notify=said.append), said

    return run


@pytest.fixture
def attended():
    """Python's own handler of Ctrl-C: a shell that starts tests in the background has them ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def cut(start, monkeypatch):
    """A run whose power is cut when it comes to ``place`` (a function of the run), after ``calls`` calls of it."""

    def run(owner, name, *, calls=1, stage="sft", **keys):
        original, seen = getattr(owner, name), []

        def stopping(*args, **kwargs):
            seen.append(1)
            if len(seen) > calls:
                raise StoppedError
            return original(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, stopping)
            with pytest.raises(StoppedError):
                start(stage, **keys)

    return run


def log(tmp_path):
    return [json.loads(line) for line in (tmp_path / "out" / "trainer_log.jsonl").read_text("utf-8").splitlines()]


def test_checkpoints_of_the_model_only_are_started_over(start, cut, tmp_path) -> None:
    cut(Monitor, "after_step", calls=2, save_only_model=True)
    assert (tmp_path / "out" / "checkpoint-2").is_dir()
    results, said = start(save_only_model=True)
    assert any("hold the model only" in sentence and "starting afresh" in sentence for sentence in said)
    assert results["stopped_at_step"] == 3
    assert [line["current_steps"] for line in log(tmp_path)] == [1, 2, 3]


@pytest.mark.parametrize("keys", [{"lora_rank": 8}, {"lora_target": "q_proj"}])
def test_a_changed_adapter_cannot_continue(start, cut, tmp_path, keys) -> None:
    cut(Monitor, "after_step", calls=2)
    before = (tmp_path / "out" / "trainer_log.jsonl").read_bytes()
    with pytest.raises(UserError, match=r"checkpoint-2 was written by a run .*overwrite_output_dir: true"):
        start(**keys)
    assert (tmp_path / "out" / "trainer_log.jsonl").read_bytes() == before


def test_a_folder_of_another_program_cannot_be_continued(start, tmp_path) -> None:
    foreign = tmp_path / "checkpoint-500"
    foreign.mkdir()
    for name in ("trainer_state.json", "optimizer.pt", "adapter_model.safetensors"):
        (foreign / name).write_bytes(b"{}")
    with pytest.raises(UserError, match=r"checkpoint-500 is no checkpoint that a run can continue from"):
        start(resume_from_checkpoint=str(foreign))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("file", ["trainer_weights.safetensors", "optimizer.safetensors", "monitor.json", "clock.json"])
def test_a_damaged_checkpoint_is_refused_with_the_one_before_it(start, cut, tmp_path, file) -> None:
    cut(Monitor, "after_step", calls=2)
    damaged = tmp_path / "out" / "checkpoint-2" / file
    damaged.write_bytes(damaged.read_bytes()[:-9])
    before = log(tmp_path)
    with pytest.raises(UserError, match=rf"{file} cannot be read .*resume_from_checkpoint: .*checkpoint-1, or start"):
        start(resume_from_checkpoint=True)
    assert log(tmp_path) == before
    results, _ = start(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-1"))
    assert results["stopped_at_step"] == 3
    assert [line["current_steps"] for line in log(tmp_path)] == [1, 2, 3]


@pytest.mark.parametrize("stage", ["pt", "ppo"])
def test_the_evaluation_before_training_survives(start, cut, tmp_path, stage) -> None:
    keys = {"val_size": 2, "learning_rate": 1e-2}
    cut(Monitor, "after_step", calls=1, stage=stage, **keys)
    (first,) = [line for line in log(tmp_path) if line["current_steps"] == 0]
    results, _ = start(stage, **keys)
    name = {"pt": "eval_perplexity", "ppo": "eval_reward"}[stage]
    assert results[f"{name}_before"] == first[name] != results[name]


def test_loss_and_time_are_those_of_all_attempts(start, cut, tmp_path) -> None:
    cut(Monitor, "after_step", calls=2)
    state = json.loads((tmp_path / "out" / "checkpoint-2" / "monitor.json").read_text("utf-8"))["totals"]
    results, _ = start()
    assert results["train_loss"] == pytest.approx(sum(line["loss"] for line in log(tmp_path)) / 3)
    assert results["train_runtime"] > state["seconds"] > 0
    assert results["train_steps_per_second"] == pytest.approx(3 / results["train_runtime"])


def test_a_fresh_start_doubles_no_line_and_no_event(start, cut, tmp_path) -> None:
    keys = {"val_size": 2, "report_to": "tensorboard"}
    cut(Monitor, "after_step", calls=1, stage="pt", save_strategy="no", **keys)
    assert [line["current_steps"] for line in log(tmp_path)] == [0, 1]
    start("pt", **keys)
    assert [line["current_steps"] for line in log(tmp_path)] == [0, 1, 2, 2]
    assert len(list((tmp_path / "out" / "runs").iterdir())) == 1


def test_a_run_that_was_out_of_patience_takes_no_further_step(start, cut, tmp_path) -> None:
    keys = {"val_size": 4, "eval_strategy": "steps", "eval_steps": 1, "early_stopping_steps": 2, "learning_rate": 0.5}
    keys |= {"num_train_epochs": 20, "lr_scheduler_type": "constant"}
    cut(train_run, "_write_results", calls=0, **keys)
    steps = [line["current_steps"] for line in log(tmp_path)]
    results, _ = start(**keys)
    assert results["stopped_at_step"] == steps[-1] < results["total_steps"]
    assert [line["current_steps"] for line in log(tmp_path)] == steps


@pytest.mark.skipif(os.name == "nt", reason="signals are sent differently there")
@pytest.mark.parametrize(("calls", "saved"), [(1, []), (2, [2])])
@pytest.mark.usefixtures("attended")
def test_ctrl_c_in_the_first_or_the_last_evaluation_stops_at_once(start, tmp_path, monkeypatch, calls, saved) -> None:
    """In the last one what was trained is saved, though no checkpoint was asked for."""
    from posttrain.train import stages

    evaluation, seen = stages.offline.evaluation, []

    def interrupted(*args):
        evaluate = evaluation(*args)

        def measure():
            seen.append(1)
            if len(seen) == calls:
                os.kill(os.getpid(), signal.SIGINT)
                seen.append("went on")
            return evaluate()

        return measure

    with monkeypatch.context() as patch:
        patch.setattr(stages.offline, "evaluation", interrupted)
        with pytest.raises(KeyboardInterrupt):
            start("pt", val_size=2, save_strategy="no")
    assert seen == [1] * calls
    assert [int(path.name[11:]) for path in (tmp_path / "out").glob("checkpoint-*")] == saved
    results, _ = start("pt", val_size=2, save_strategy="no")
    assert results["stopped_at_step"] == 2
    assert [line["current_steps"] for line in log(tmp_path)] == [0, 1, 2, 2]

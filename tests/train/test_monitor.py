"""What is due after a step: log, evaluation, checkpoint, the best one, early stopping, Ctrl-C."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time

import pytest

from posttrain.config import TrainConfig
from posttrain.errors import RunError, UserError
from posttrain.train.checkpoints import STATE_FILES
from posttrain.train.metrics import MetricsLog
from posttrain.train.monitor import Monitor, metric_name
from posttrain.train.progress import Progress
from posttrain.train.run_directory import RunDirectory


@pytest.fixture
def make_monitor(tmp_path):
    """A monitor over ``total`` steps whose evaluations are read from a list."""

    def make(total=10, evaluations=None, per_epoch=4, metric="eval_loss", clock=time.perf_counter, **keys):
        config = TrainConfig(output_dir=str(tmp_path / "out"), **{"logging_steps": 1, "save_strategy": "no", **keys})
        directory = RunDirectory.create(tmp_path / "out")
        values = iter(evaluations or [])
        return Monitor(
            config,
            directory,
            MetricsLog(directory, total_steps=total),
            Progress(total, "test", disable=True),
            steps_per_epoch=per_epoch,
            save=lambda folder: [
                (folder / name).write_text("w", encoding="utf-8") for name in ("weights", *STATE_FILES)
            ],
            evaluate=None if evaluations is None else lambda: {metric: next(values)},
            default_metric=metric,
            clock=clock,
        )

    return make


def lines(tmp_path):
    return [json.loads(line) for line in (tmp_path / "out" / "trainer_log.jsonl").read_text("utf-8").splitlines()]


def checkpoints(tmp_path):
    return sorted(int(p.name.split("-")[1]) for p in (tmp_path / "out").glob("checkpoint-*"))


def run(monitor, steps, loss=1.0):
    for step in range(1, steps + 1):
        if monitor.after_step(step, {"loss": loss * step, "learning_rate": 0.1}):
            return step
    return steps


def test_a_line_is_the_mean_since_the_last(make_monitor, tmp_path) -> None:
    run(make_monitor(total=5, logging_steps=2, logging_first_step=True), 5)
    assert [(line["current_steps"], line["loss"]) for line in lines(tmp_path)] == [
        (1, 1.0),
        (2, 2.0),
        (4, 3.5),
        (5, 5.0),
    ]
    assert lines(tmp_path)[-1]["lr"] == 0.1
    assert lines(tmp_path)[-1]["epoch"] == 1.25


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"save_strategy": "steps", "save_steps": 3}, [3, 6, 9, 10]),
        ({"save_strategy": "epoch"}, [4, 8, 10]),
        ({"save_strategy": "no"}, []),
        ({"save_strategy": "steps", "save_steps": 3, "save_total_limit": 2}, [9, 10]),
    ],
)
def test_checkpoints_when_due_and_at_the_end(make_monitor, tmp_path, keys, expected) -> None:
    run(make_monitor(**keys), 10)
    assert checkpoints(tmp_path) == expected
    for step in expected:
        assert (tmp_path / "out" / f"checkpoint-{step}" / "weights").read_text("utf-8") == "w"


@pytest.mark.parametrize(("keys", "steps"), [({"eval_steps": 5}, [5, 10]), ({"eval_strategy": "epoch"}, [4, 8, 10])])
def test_evaluation_when_due(make_monitor, tmp_path, keys, steps) -> None:
    run(make_monitor(evaluations=[3.0, 2.0, 1.0], **{"eval_strategy": "steps", **keys}), 10)
    assert [line["current_steps"] for line in lines(tmp_path) if "eval_loss" in line] == steps


def test_a_step_is_evaluated_once(make_monitor) -> None:
    monitor = make_monitor(evaluations=[3.0])
    assert monitor.evaluate(10) == monitor.evaluate(10) == {"eval_loss": 3.0}


def test_without_held_out_rows_nothing_is_evaluated(make_monitor, tmp_path) -> None:
    monitor = make_monitor(eval_strategy="steps", eval_steps=1)
    run(monitor, 3)
    assert monitor.evaluate(3) == {}
    assert not any("eval_loss" in line for line in lines(tmp_path))


@pytest.mark.parametrize(
    ("metric", "values", "keys", "best"),
    [
        ("eval_loss", [3.0, 1.0, 2.0], {}, (1.0, 2)),
        ("eval_perplexity", [3.0, 1.0, 2.0], {}, (1.0, 2)),
        ("eval_reward", [3.0, 1.0, 5.0], {}, (5.0, 3)),
        ("eval_accuracy", [3.0, 9.0, 5.0], {"metric_for_best_model": "accuracy"}, (9.0, 2)),
        ("eval_loss", [3.0, 1.0, 2.0], {"greater_is_better": True}, (3.0, 1)),
    ],
)
def test_which_evaluation_is_best(make_monitor, tmp_path, metric, values, keys, best) -> None:
    """The best checkpoint survives the limit, and load_best_model_at_end has one to load though none was due."""
    monitor = make_monitor(
        total=3,
        evaluations=values,
        metric=metric,
        eval_strategy="steps",
        eval_steps=1,
        load_best_model_at_end=True,
        save_total_limit=1,
        save_strategy="steps",
        save_steps=100,
        **keys,
    )
    run(monitor, 3)
    assert (monitor.best.value, monitor.best.step) == best
    assert set(checkpoints(tmp_path)) == {best[1], 3}


def test_early_stopping_counts_evaluations_without_improvement(make_monitor, tmp_path) -> None:
    values = [5.0, 4.0, 4.0, 4.5, 1.0]
    monitor = make_monitor(evaluations=values, eval_strategy="steps", eval_steps=1, early_stopping_steps=2)
    assert run(monitor, 10) == 4
    assert monitor.best.step == 2
    assert checkpoints(tmp_path) == [4]


def test_the_evaluation_before_training_is_not_a_candidate(make_monitor) -> None:
    monitor = make_monitor(evaluations=[0.1, 5.0], eval_strategy="steps", eval_steps=1)
    monitor.evaluate(0)
    run(monitor, 1)
    assert (monitor.best.value, monitor.best.step) == (5.0, 1)


def test_patience_survives_a_resume(make_monitor, tmp_path) -> None:
    keys = {"eval_strategy": "steps", "eval_steps": 1, "early_stopping_steps": 3, "save_strategy": "steps"}
    monitor = make_monitor(evaluations=[1.0, 2.0, 2.0], **keys, save_steps=3)
    run(monitor, 3)
    again = make_monitor(evaluations=[2.0, 0.5], **keys, save_steps=100)
    again.resume(tmp_path / "out" / "checkpoint-3", 3)
    assert not again.out_of_patience
    assert (again.best.value, again.best.step, again.best.waited) == (1.0, 1, 2)
    assert again.after_step(4, {"loss": 1.0})


def test_a_run_that_was_out_of_patience_still_is(make_monitor, tmp_path) -> None:
    keys = {"eval_strategy": "steps", "eval_steps": 1, "early_stopping_steps": 2}
    monitor = make_monitor(evaluations=[1.0, 2.0, 2.0], **keys)
    assert run(monitor, 10) == 3
    again = make_monitor(evaluations=[], **keys)
    again.resume(tmp_path / "out" / "checkpoint-3", 3)
    assert again.out_of_patience
    assert again.evaluate(3) == {"eval_loss": 2.0}  # known from the checkpoint
    assert [line["current_steps"] for line in lines(tmp_path) if "eval_loss" in line] == [1, 2, 3]


def test_an_evaluation_at_the_end_that_no_checkpoint_knows_is_made_again(make_monitor, tmp_path) -> None:
    monitor = make_monitor(total=2, evaluations=[1.0], save_strategy="epoch")
    run(monitor, 2)
    monitor.evaluate(2)
    again = make_monitor(total=2, evaluations=[3.0], save_strategy="epoch")
    again.resume(tmp_path / "out" / "checkpoint-2", 2)
    assert again.evaluate(2) == {"eval_loss": 3.0}
    assert [line["eval_loss"] for line in lines(tmp_path) if "eval_loss" in line] == [3.0]


def test_sums_over_the_run_survive_a_resume(make_monitor, tmp_path) -> None:
    now = [100.0]
    keys = {"save_strategy": "steps", "save_steps": 2, "clock": lambda: now[0]}
    monitor = make_monitor(**keys)
    now[0] = 110.0
    run(monitor, 2)
    now[0] = 150.0
    monitor.after_step(3, {"loss": 9.0})  # lost: after the checkpoint
    now[0] = 1000.0
    again = make_monitor(**keys)
    again.resume(tmp_path / "out" / "checkpoint-2", 2)
    now[0] = 1005.0
    again.after_step(3, {"loss": 6.0})
    assert (again.totals.steps, again.totals.loss, again.totals.seconds) == (3, 1.0 + 2.0 + 6.0, 10.0 + 5.0)


@pytest.mark.parametrize("content", [None, "{", "[]", "{}", '{"best": {"color": 1}, "meter": {}}'])
def test_a_damaged_state_is_one_clear_message(make_monitor, tmp_path, content) -> None:
    monitor = make_monitor(save_strategy="steps", save_steps=1)
    run(monitor, 1)
    file = tmp_path / "out" / "checkpoint-1" / "monitor.json"
    file.unlink()
    if content is not None:
        file.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=r"monitor.json cannot be read"):
        make_monitor().resume(file.parent, 1)


def test_a_best_checkpoint_that_is_not_there_is_not_loaded_at_the_end(make_monitor, tmp_path) -> None:
    keys = {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True}
    monitor = make_monitor(evaluations=[1.0, 2.0], save_strategy="steps", save_steps=2, **keys)
    run(monitor, 2)
    shutil.rmtree(tmp_path / "out" / "checkpoint-1")
    again = make_monitor(evaluations=[], **keys)
    again.resume(tmp_path / "out" / "checkpoint-2", 2)
    assert again.best.step is None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_before_saving(make_monitor, tmp_path, value) -> None:
    monitor = make_monitor(save_strategy="steps", save_steps=1)
    run(monitor, 1)
    with pytest.raises(RunError, match=r"loss is (nan|inf) at step 2 .*checkpoint-1"):
        monitor.after_step(2, {"loss": value})
    assert checkpoints(tmp_path) == [1]


@pytest.mark.skipif(os.name == "nt", reason="signals are sent differently there")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("late", [False, True])
def test_ctrl_c_or_termination_finishes_the_step_and_saves(make_monitor, tmp_path, number, late) -> None:
    """Late is after the last step has looked whether it was interrupted."""
    monitor = make_monitor()
    before = signal.getsignal(number)

    def interrupted_step():
        with monitor.interruptible():
            if late:
                monitor.after_step(1, {"loss": 1.0})
            os.kill(os.getpid(), number)
            if not late:
                monitor.after_step(1, {"loss": 1.0})
                pytest.fail("the signal was swallowed")

    with pytest.raises(KeyboardInterrupt):
        interrupted_step()
    assert checkpoints(tmp_path) == [1]
    assert signal.getsignal(number) is before


@pytest.mark.skipif(os.name == "nt", reason="signals are sent differently there")
def test_a_second_ctrl_c_stops_at_once(make_monitor, tmp_path) -> None:
    monitor = make_monitor()

    def interrupted_twice():
        with monitor.interruptible():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            pytest.fail("the second Ctrl-C was swallowed")

    with pytest.raises(KeyboardInterrupt):
        interrupted_twice()
    assert checkpoints(tmp_path) == []


def test_metric_names() -> None:
    assert metric_name("loss") == metric_name("eval_loss") == "eval_loss"

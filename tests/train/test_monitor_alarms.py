"""What the monitor does when an alarm sounds: says and logs it, stops, or goes back to the best checkpoint."""

from __future__ import annotations

import io
import json

import pytest

from posttrain.config import AlarmConfig, TrainConfig
from posttrain.errors import RunError
from posttrain.train.alarms import Alarms
from posttrain.train.checkpoints import STATE_FILES
from posttrain.train.metrics import MetricsLog
from posttrain.train.monitor import Monitor
from posttrain.train.progress import Progress
from posttrain.train.run_directory import RunDirectory

CALM, LOUD = 0.1, 0.9


@pytest.fixture
def said():
    """What the run wrote to the terminal."""
    return io.StringIO()


@pytest.fixture
def make_monitor(tmp_path, said):
    """A monitor of ten steps whose evaluations are read from a list; ``alarms`` are keys of the alarms."""

    def make(evaluations=(), *, total=10, alarms=(), **keys):
        config = TrainConfig(output_dir=str(tmp_path / "out"), **{"logging_steps": 1, "save_strategy": "no", **keys})
        directory = RunDirectory.create(tmp_path / "out")
        values = iter(evaluations)
        return Monitor(
            config,
            directory,
            MetricsLog(directory, total_steps=total),
            Progress(total, "test", disable=True, stream=said),
            steps_per_epoch=4,
            save=lambda folder: [(folder / name).write_text("w", encoding="utf-8") for name in STATE_FILES],
            evaluate=lambda: {"eval_reward": next(values), "eval_reward_std": 1.0},
            default_metric="eval_reward",
            alarms=Alarms(AlarmConfig(**{"alarm_window": 1, **dict(alarms)})),
        )

    return make


def run(monitor, repetitions, start=1, rewards=None):
    """The step at which the run ended of itself, else None."""
    rewards = rewards or [1.0] * len(repetitions)
    for step, (repetition, reward) in enumerate(zip(repetitions, rewards, strict=True), start=start):
        stats = {"loss": 1.0, "repetition": repetition, "reward_mean": reward, "reward_std": 1.0}
        if monitor.after_step(step, stats):
            return step
    return None


def lines(tmp_path):
    return [json.loads(line) for line in (tmp_path / "out" / "trainer_log.jsonl").read_text("utf-8").splitlines()]


def alarm_lines(tmp_path):
    return [line for line in lines(tmp_path) if "alarm" in line]


def checkpoints(tmp_path):
    return sorted(int(path.name[11:]) for path in (tmp_path / "out").glob("checkpoint-*"))


def test_an_alarm_is_said_and_logged_and_the_run_goes_on(make_monitor, tmp_path, said) -> None:
    assert run(make_monitor(), [CALM, LOUD, LOUD, CALM]) is None
    (line,) = alarm_lines(tmp_path)
    assert list(line) == [
        *("current_steps", "total_steps", "alarm", "metric", "value", "threshold", "message", "epoch"),
    ]
    assert (line["current_steps"], line["alarm"], line["metric"]) == (2, "repetition", "repetition")
    assert (line["value"], line["threshold"], line["epoch"]) == (LOUD, 0.5, 0.5)
    assert said.getvalue() == f"alarm repetition at step 2: {line['message']}\n"
    assert [found["current_steps"] for found in lines(tmp_path)] == [1, 2, 2, 3, 4]


def test_stop_ends_the_run_with_a_checkpoint_and_one_message(make_monitor, tmp_path) -> None:
    monitor = make_monitor(alarms={"on_alarm": "stop"})
    with pytest.raises(
        RunError, match=r"^stopped by alarm repetition at step 3 of 10\. .*checkpoint-3 .*on_alarm: log"
    ):
        run(monitor, [CALM, CALM, LOUD, CALM])
    assert checkpoints(tmp_path) == [3]
    assert [line["alarm"] for line in alarm_lines(tmp_path)] == ["repetition"]


def test_stop_stops_even_where_the_best_would_be_loaded_at_the_end(make_monitor, tmp_path) -> None:
    keys = {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True}
    monitor = make_monitor([1.0], alarms={"on_alarm": "stop"}, **keys)
    with pytest.raises(RunError, match="at step 2"):
        run(monitor, [CALM, LOUD])
    assert checkpoints(tmp_path) == [1, 2]


@pytest.mark.parametrize(
    ("changes", "goes_on"),
    [({}, False), ({"on_alarm": "log"}, True), ({"alarm_repetition": 0.95}, True), ({"alarm_repetition": None}, True)],
)
def test_a_stopped_run_stays_stopped_until_its_keys_change(make_monitor, tmp_path, changes, goes_on) -> None:
    alarms = {"on_alarm": "stop"}
    with pytest.raises(RunError):
        run(make_monitor(alarms=alarms), [CALM, LOUD])
    again = make_monitor(alarms={**alarms, **changes})
    again.resume(tmp_path / "out" / "checkpoint-2", 2)
    assert again.has_ended is not goes_on
    if goes_on:
        again.end_if_stopped(2)
        assert run(again, [LOUD, CALM], start=3) is None
    else:
        with pytest.raises(RunError, match="stopped by alarm repetition at step 2 of 10"):
            again.end_if_stopped(2)
    assert [line["current_steps"] for line in alarm_lines(tmp_path)] == [2]


@pytest.mark.parametrize("save_total_limit", [None, 1])
def test_rollback_ends_with_the_best_from_before(make_monitor, tmp_path, said, save_total_limit) -> None:
    """Step 5 would have been evaluated, and better; the best is kept although no checkpoint was due."""
    keys = {"eval_strategy": "steps", "eval_steps": 1, "save_total_limit": save_total_limit}
    monitor = make_monitor([1.0, 3.0, 2.0, 2.5, 9.0], alarms={"on_alarm": "rollback"}, **keys)
    assert run(monitor, [CALM] * 4 + [LOUD, CALM]) == 5
    assert (monitor.rolled_back_to, monitor.ends_with, monitor.best.step) == (2, 2, 2)
    monitor.end_if_stopped(5)
    assert monitor.evaluate(5)["eval_reward"] == 9.0
    assert monitor.ends_with == 2
    assert {2, 5} <= set(checkpoints(tmp_path))
    (line,) = alarm_lines(tmp_path)
    assert line["rolled_back_to"] == 2
    assert said.getvalue().endswith("Going back to checkpoint-2, the best before (eval_reward 3).\n")

    again = make_monitor([9.0], alarms={"on_alarm": "rollback"}, **keys)
    again.resume(tmp_path / "out" / "checkpoint-5", 5)
    assert again.has_ended
    again.end_if_stopped(5)
    assert again.ends_with == 2
    assert not any(found["current_steps"] == 5 and "eval_reward" in found for found in lines(tmp_path))


def test_without_an_alarm_a_run_that_might_roll_back_ends_with_its_last_weights(make_monitor) -> None:
    keys = {"eval_strategy": "steps", "eval_steps": 1}
    monitor = make_monitor([3.0, 1.0], alarms={"on_alarm": "rollback"}, **keys)
    assert run(monitor, [CALM, CALM]) is None
    assert monitor.best.step == 1
    assert monitor.ends_with is None


def test_rollback_with_nothing_to_go_back_to_stops(make_monitor, tmp_path) -> None:
    monitor = make_monitor(alarms={"on_alarm": "rollback"}, eval_strategy="steps", eval_steps=3)
    with pytest.raises(RunError, match="at step 2 of 10, with no evaluation before it whose checkpoint to go back to"):
        run(monitor, [CALM, LOUD])
    assert checkpoints(tmp_path) == [2]
    assert "rolled_back_to" not in alarm_lines(tmp_path)[0]


def test_the_evaluation_that_raises_an_alarm_is_not_the_best(make_monitor, tmp_path) -> None:
    """By ``greater_is_better: false`` it would be: the reward that fell is the one that decides."""
    keys = {"eval_strategy": "steps", "eval_steps": 1, "greater_is_better": False}
    monitor = make_monitor([5.0, 4.9, 3.0], alarms={"on_alarm": "rollback"}, **keys)
    assert run(monitor, [CALM] * 3, rewards=[1.0, 1.0, 3.0]) == 3
    assert (monitor.best.step, monitor.ends_with) == (2, 2)
    (line,) = alarm_lines(tmp_path)
    assert (line["alarm"], line["metric"], line["current_steps"]) == ("reward_gap", "eval_reward", 3)


def test_an_alarm_of_an_evaluation_that_is_made_again_is_raised_again(make_monitor, tmp_path) -> None:
    """The power was cut between the last evaluation and the results."""
    keys = {"save_strategy": "epoch", "eval_strategy": "steps", "eval_steps": 2}
    monitor = make_monitor([5.0, 3.0], total=3, **keys)
    run(monitor, [CALM] * 3, rewards=[1.0, 1.0, 3.0])
    monitor.evaluate(3)
    written = lines(tmp_path)
    assert [line["current_steps"] for line in alarm_lines(tmp_path)] == [3]
    again = make_monitor([3.0], total=3, **keys)
    again.resume(tmp_path / "out" / "checkpoint-3", 3)
    assert alarm_lines(tmp_path) == []
    again.evaluate(3)
    assert [(row["current_steps"], list(row)) for row in lines(tmp_path)] == [
        (row["current_steps"], list(row)) for row in written
    ]


def test_a_checkpoint_from_before_there_were_alarms_is_taken_up(make_monitor, tmp_path) -> None:
    monitor = make_monitor(save_strategy="steps", save_steps=1)
    run(monitor, [CALM])
    file = tmp_path / "out" / "checkpoint-1" / "monitor.json"
    state = json.loads(file.read_text("utf-8"))
    del state["alarms"]
    file.write_text(json.dumps(state), encoding="utf-8")
    again = make_monitor()
    again.resume(file.parent, 1)
    assert run(again, [LOUD], start=2) is None
    assert [line["current_steps"] for line in alarm_lines(tmp_path)] == [2]

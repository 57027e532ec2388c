import json
import math

import pytest

from posttrain.errors import RunError
from posttrain.train.alarms import Alarm
from posttrain.train.checkpoints import STATE_FILES
from posttrain.train.metrics import Meter, MetricsLog
from posttrain.train.run_directory import RunDirectory
from posttrain.train.trackers import Trackers


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def run(tmp_path):
    return RunDirectory.create(tmp_path)


def test_a_line_has_the_names_that_readers_know(run):
    clock = Clock()
    log = MetricsLog(run, total_steps=30, clock=clock)
    clock.now += 3725.0
    log.log(10, {"loss": 0.5, "learning_rate": 1e-5, "reward_mean": -0.25}, epoch=1 / 3)
    assert run.read_jsonl("trainer_log.jsonl") == [
        {
            "current_steps": 10,
            "total_steps": 30,
            "loss": 0.5,
            "lr": 1e-5,
            "reward_mean": -0.25,
            "epoch": 0.3333,
            "percentage": 33.33,
            "elapsed_time": "1:02:05",
            "remaining_time": "2:04:10",
        }
    ]


def test_the_remaining_time_of_a_resumed_run_counts_only_its_own_steps(run):
    clock = Clock()
    log = MetricsLog(run, total_steps=30, start_step=20, clock=clock)
    clock.now += 50.0
    log.log(25, {"loss": 0.5}, epoch=1.0)
    assert run.read_jsonl("trainer_log.jsonl")[0]["remaining_time"] == "0:00:50"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["loss", "value_loss", "eval_loss", "grad_norm"])
def test_a_loss_that_is_no_number_stops_the_run_before_it_is_logged(run, name, value):
    run.save_checkpoint(5, lambda folder: [(folder / name).touch() for name in STATE_FILES])
    log = MetricsLog(run, total_steps=30)
    with pytest.raises(RunError, match=rf"^{name} is {value} at step 7 of 30\..*checkpoint-5"):
        log.log(7, {"reward_mean": 1.0, name: value}, epoch=0.0)
    assert run.read_jsonl("trainer_log.jsonl") == []


def test_stopping_before_the_first_checkpoint_says_so(run):
    with pytest.raises(RunError, match="No checkpoint had been written"):
        MetricsLog(run, total_steps=30).check(1, {"loss": math.nan})


def test_another_metric_that_is_no_number_is_written_as_null(run):
    MetricsLog(run, total_steps=30).log(1, {"explained_variance": math.nan}, epoch=0.0)
    assert "NaN" not in (run.path / "trainer_log.jsonl").read_text(encoding="utf-8")
    assert json.loads((run.path / "trainer_log.jsonl").read_text(encoding="utf-8"))["explained_variance"] is None


class Listener:
    name = "listener"

    def __init__(self):
        self.heard = []

    def log(self, step, values):
        self.heard.append((step, dict(values)))

    def close(self, results):
        self.heard.append(results)


def test_trackers_hear_the_same_numbers_by_kind(run):
    listener = Listener()
    with MetricsLog(run, total_steps=4, trackers=Trackers([listener])) as log:
        log.log(1, {"loss": 0.5, "learning_rate": 1e-3, "eval_loss": 2.0}, epoch=0.0)
    assert listener.heard == [(1, {"train/loss": 0.5, "train/lr": 1e-3, "eval/loss": 2.0}), None]


def test_an_alarm_is_a_line_and_an_event_of_its_own(run):
    alarm = Alarm(name="kl", step=3, metric="kl", value=0.75, threshold=0.5, sentence="far away.")
    listener = Listener()
    MetricsLog(run, total_steps=4, trackers=Trackers([listener])).alarm(alarm, 0.5, rolled_back_to=2)
    (line,) = run.read_jsonl("trainer_log.jsonl")
    assert (line["current_steps"], line["alarm"], line["message"]) == (3, "kl", "far away.")
    assert line["rolled_back_to"] == 2
    assert listener.heard == [(3, {"alarm/kl": 0.75})]


def test_a_meter_weighs_and_starts_anew():
    meter = Meter()
    meter.add({"loss": 1.0, "kl": 4.0}, weight=3.0)
    meter.add({"loss": 5.0})
    # loss: (3 * 1 + 1 * 5) / 4 = 2; kl was seen once.
    assert meter.take() == {"loss": 2.0, "kl": 4.0}
    assert meter.take() == {}
    meter.add({"loss": 7.0})
    assert meter.take() == {"loss": 7.0}

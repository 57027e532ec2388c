"""Numbers that leave the run directory: real TensorBoard, Weights & Biases, SwanLab and MLflow, without a network."""

import importlib.util
import sys

import pytest

from posttrain.config import TrackerConfig
from posttrain.errors import UserError
from posttrain.train import trackers
from posttrain.train.run_directory import RunDirectory
from posttrain.train.trackers import IDENTITIES, Trackers, check_trackers, named

OFFLINE = ("wandb", "swanlab", "mlflow")


@pytest.fixture
def run(tmp_path):
    return RunDirectory.create(tmp_path / "saves" / "sft")


@pytest.fixture
def offline(monkeypatch, tmp_path):
    for name in OFFLINE:
        pytest.importorskip(name)
    values = {
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        "WANDB_PROJECT": "fruits",
        "SWANLAB_MODE": "offline",
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "MLFLOW_TRACKING_URI": (tmp_path / "mlruns").as_uri(),
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)


def opened(run, start_step=0, said=None, **keys):
    notify = (lambda sentence: None) if said is None else said.append
    settings = {"stage": "sft", "lora_target": ["q_proj", "v_proj"], "learning_rate": 1e-4}
    return Trackers.opened(run, TrackerConfig(**keys), settings, start_step=start_step, notify=notify)


def scalars(folder, name):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_tensorboard_holds_the_numbers_and_forgets_the_steps_after_a_checkpoint(run):
    first = opened(run)
    for step in (1, 2, 3):
        first.log(step, {"train/loss": step / 2, "eval/loss": step * 2.0})
    first.close()
    second = opened(run, start_step=2)
    second.log(3, {"train/loss": 8.0, "alarm/kl": 0.75})
    second.close()
    assert scalars(run.path / "runs", "train/loss") == [(1, 0.5), (2, 1.0), (3, 8.0)]
    assert scalars(run.path / "runs", "eval/loss") == [(1, 2.0), (2, 4.0)]
    assert scalars(run.path / "runs", "alarm/kl") == [(3, 0.75)]
    assert not (run.path / IDENTITIES).exists()


def test_a_fresh_start_has_events_of_its_own_only(run):
    for step in (1, 2):
        found = opened(run, run_name="one")
        found.log(step, {"train/loss": 1.0})
        found.close()
    assert len(list((run.path / "runs" / "one").iterdir())) == 1


@pytest.mark.parametrize(
    ("name", "folder"), [("first try", "first try"), ("../up", "-up"), ("表/1", "表-1"), (None, "")]
)
def test_events_of_a_named_run_have_a_folder_of_that_name(run, name, folder):
    found = opened(run, run_name=name)
    found.log(1, {"train/loss": 1.0})
    found.close()
    assert list((run.path / "runs" / folder).glob("events.out.tfevents.*"))


@pytest.mark.parametrize("where", ["__init__", "add_scalar", "flush", "close"])
def test_what_a_tracker_refuses_is_said_once_and_the_others_go_on(run, monkeypatch, where):
    from torch.utils.tensorboard import SummaryWriter

    class Other:
        name = "other"
        heard = 0

        def __init__(self, sitting):
            pass

        def log(self, step, values):
            Other.heard += 1

        def close(self, results):
            Other.heard += 10

    def refuse(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SummaryWriter, where, refuse)
    monkeypatch.setitem(trackers._KINDS, "other", Other)
    said = []
    found = opened(run, said=said, report_to=("tensorboard", "other"))
    for step in (1, 2):
        found.log(step, {"train/loss": 1.0})
    found.close()
    assert Other.heard == 12
    assert len(said) == 1
    assert "tensorboard (No space left on device); the run goes on" in said[0]


@pytest.mark.slow
def test_mlflow_continues_the_run_of_an_interrupted_attempt_and_ends_with_its_results(run, offline):
    from mlflow import MlflowClient

    for start, losses in ((0, (3.0, 2.0)), (1, (1.5, 1.0))):
        found = opened(run, start_step=start, report_to=("mlflow",))
        for number, loss in enumerate(losses, start=start + 1):
            found.log(number, {"train/loss": loss})
        if start:
            found.end({"train_loss": 1.75, "alarms": {"kl": 3}})
        found.close()
    client = MlflowClient()
    (done,) = client.search_runs([client.get_experiment_by_name("posttrain").experiment_id])
    assert (done.info.status, done.info.run_name) == ("FINISHED", "sft")
    assert done.info.run_id == run.read_json(IDENTITIES)["mlflow"]
    assert done.data.params["lora_target"] == "['q_proj', 'v_proj']"
    history = [(metric.step, metric.value) for metric in client.get_metric_history(done.info.run_id, "train/loss")]
    assert sorted(history) == [(1, 3.0), (2, 1.5), (2, 2.0), (3, 1.0)]
    assert done.data.metrics["result/train_loss"] == 1.75
    assert "result/alarms" not in done.data.metrics


@pytest.mark.slow
def test_wandb_and_swanlab_keep_a_run_offline_under_one_identity(run, offline, tmp_path):
    for start in (0, 1):
        found = opened(
            run, start_step=start, report_to=("wandb",), use_swanlab=True, swanlab_logdir=str(tmp_path / "sw")
        )
        found.log(start + 1, {"train/loss": 1.0 / (start + 1)})
        found.end({"train_loss": 0.75})
        found.close()
    known = run.read_json(IDENTITIES)
    assert set(known) == {"wandb", "swanlab"}
    kept = list((run.path / "wandb").glob(f"offline-run-*-{known['wandb']}/run-{known['wandb']}.wandb"))
    assert len(kept) >= 1
    content = b"".join(path.read_bytes() for path in kept)
    assert b"train/loss" in content
    assert b"learning_rate" in content
    assert b"fruits" in content
    assert list((tmp_path / "sw").glob(f"run-*-{known['swanlab']}/run-{known['swanlab']}.swanlab"))


@pytest.mark.slow
def test_a_run_that_starts_afresh_is_a_new_one_to_its_trackers(run, offline):
    seen = set()
    for _ in range(2):
        opened(run, report_to=("mlflow",)).close()
        seen.add(run.read_json(IDENTITIES)["mlflow"])
    assert len(seen) == 2


@pytest.mark.parametrize("name", OFFLINE)
def test_a_tracker_that_is_not_installed_is_refused_with_the_command_that_installs_it(monkeypatch, name):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda wanted: None if wanted == name else real(wanted))
    with pytest.raises(UserError, match=rf"report_to: {name} is not installed: run `pip install {name}"):
        check_trackers(TrackerConfig(report_to=("tensorboard", name)))
    assert name not in named(TrackerConfig(report_to=("all",)))


def test_no_tracker_is_imported_before_it_is_asked_for(run):
    before = {name for name in OFFLINE if name in sys.modules}
    opened(run, report_to=()).close()
    check_trackers(TrackerConfig(report_to=("tensorboard",)))
    assert {name for name in OFFLINE if name in sys.modules} == before


def test_trackers_are_asked_for_once_each():
    assert TrackerConfig(report_to=("wandb", "swanlab"), use_swanlab=True).trackers == ("wandb", "swanlab")
    assert TrackerConfig(use_swanlab=True).trackers == ("tensorboard", "swanlab")

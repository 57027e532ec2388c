"""Where the numbers of a run are sent beside its own log: TensorBoard, Weights & Biases, SwanLab, MLflow."""

from __future__ import annotations

import importlib.util
import os
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from posttrain.config import TrackerConfig
from posttrain.errors import UserError
from posttrain.train.disk import reason
from posttrain.train.run_directory import RunDirectory

IDENTITIES = "trackers.json"
_STEP = "train/global_step"
_PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "swanlab": "swanlab", "mlflow": "mlflow-skinny"}
_LONGEST_PARAMETER = 6000
_PARAMETERS_AT_ONCE = 100


class Tracker(Protocol):
    """One place that numbers are sent to. Any call may fail: the run then goes on without it."""

    name: str

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Send what was measured at a step, under names such as ``train/loss``, ``eval/loss`` and ``alarm/kl``."""

    def close(self, results: Mapping[str, Any] | None) -> None:
        """Finish the run there.

        Args:
            results: what it ended with; None where it did not come to its end.
        """


@dataclass(frozen=True, kw_only=True)
class Sitting:
    """What a tracker is told when a process begins to train.

    Attributes:
        directory: of the run. name: of the run. start_step: optimizer steps done before.
        settings: keys of the run, plain values. keys: those of the trackers.
        identity: of the run on the tracker's side, the same for every attempt at it; None for a new one.
    """

    directory: Path
    name: str
    start_step: int
    settings: Mapping[str, Any]
    keys: TrackerConfig
    identity: str | None


class Trackers:
    """Those of one run together. What one of them refuses is said once, and ends neither the run nor the others."""

    def __init__(self, trackers: Sequence[Tracker], notify: Callable[[str], None] = lambda sentence: None) -> None:
        """Take them, opened."""
        self._trackers, self._notify = list(trackers), notify
        self._results: Mapping[str, Any] | None = None

    @classmethod
    def opened(
        cls,
        directory: RunDirectory,
        keys: TrackerConfig,
        settings: Mapping[str, Any],
        *,
        start_step: int,
        notify: Callable[[str], None],
    ) -> Trackers:
        """The trackers that the keys name; a resumed run goes on where it was.

        Args:
            directory: of the run. keys: see ``TrackerConfig``. settings: all keys of the run.
            start_step: optimizer steps done before. notify: receives a sentence about each that cannot be had.
        """
        known = _identities(directory) if start_step else {}
        found = cls([], notify)
        identities: dict[str, str] = {}
        for name in named(keys):
            sitting = Sitting(
                directory=directory.path,
                name=keys.run_name or directory.path.resolve().name,
                start_step=start_step,
                settings=settings,
                keys=keys,
                identity=known.get(name),
            )
            try:
                tracker = _KINDS[name](sitting)
            except Exception as error:  # libraries of many kinds, with networks behind them
                found._give_up(name, error)
                continue
            found._trackers.append(tracker)
            if identity := getattr(tracker, "identity", None):
                identities[name] = identity
        if identities or known:
            directory.write_json(IDENTITIES, {**known, **identities})
        return found

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See ``Tracker.log``."""
        self._each(lambda tracker: tracker.log(step, values))

    def end(self, results: Mapping[str, Any]) -> None:
        """Keep what the run ended with, to be sent on closing."""
        self._results = results

    def close(self) -> None:
        """See ``Tracker.close``."""
        self._each(lambda tracker: tracker.close(self._results))
        self._trackers = []

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for tracker in list(self._trackers):
            try:
                call(tracker)
            except Exception as error:  # as above
                self._trackers.remove(tracker)
                self._give_up(tracker.name, error)

    def _give_up(self, name: str, error: Exception) -> None:
        lines = (reason(error) if isinstance(error, OSError) else str(error)).strip().splitlines()
        why = lines[0] if lines else type(error).__name__
        self._notify(
            f"numbers can no longer be sent to {name} ({why}); the run goes on, and trainer_log.jsonl holds the same "
            "numbers"
        )


def named(keys: TrackerConfig) -> tuple[str, ...]:
    """The trackers of a run; ``all`` stands for those that are installed."""
    if "all" not in keys.trackers:
        return keys.trackers
    return tuple(name for name in _PACKAGES if importlib.util.find_spec(name))


def check_trackers(keys: TrackerConfig) -> None:
    """Refuse a tracker that is not installed, before anything slow is loaded.

    Raises:
        UserError: names it and the command that installs it.
    """
    for name in named(keys):
        if importlib.util.find_spec(name) is None:
            raise UserError(
                f"report_to: {name} is not installed: run `pip install {_PACKAGES[name]}`, or take {name} out of "
                "report_to"
            )


class TensorBoard:
    """Events under ``runs/``; those that an interrupted attempt wrote after its checkpoint are forgotten."""

    name = "tensorboard"

    def __init__(self, sitting: Sitting) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = sitting.directory / "runs" / _folder_name(sitting.keys.run_name)
        if not sitting.start_step:
            for left in folder.glob("events.out.tfevents.*"):
                left.unlink()
        purge = sitting.start_step + 1 if sitting.start_step else None
        self._events: Any = SummaryWriter(log_dir=str(folder), purge_step=purge)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See ``Tracker``."""
        for name, value in values.items():
            self._events.add_scalar(name, value, step)
        self._events.flush()

    def close(self, results: Mapping[str, Any] | None) -> None:
        """See ``Tracker``."""
        self._events.close()


class WandB:
    """A run of the project in WANDB_PROJECT; WANDB_MODE=offline keeps it in the run directory until `wandb sync`."""

    name = "wandb"

    def __init__(self, sitting: Sitting) -> None:
        import wandb

        self.identity = os.environ.get("WANDB_RUN_ID") or sitting.identity or uuid.uuid4().hex[:12]
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "posttrain"),
            name=os.environ.get("WANDB_NAME", sitting.name),
            id=self.identity,
            resume="allow",
            dir=str(sitting.directory),
            config=dict(sitting.settings),
        )
        # their own count of steps cannot go back to a checkpoint
        self._run.define_metric("*", step_metric=_STEP)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See ``Tracker``."""
        self._run.log({**values, _STEP: step})

    def close(self, results: Mapping[str, Any] | None) -> None:
        """See ``Tracker``."""
        self._run.summary.update(_scalars(results))
        self._run.finish(exit_code=1 if results is None else 0)


class SwanLab:
    """An experiment of ``swanlab_project``."""

    name = "swanlab"

    def __init__(self, sitting: Sitting) -> None:
        import swanlab

        keys = sitting.keys
        self.identity = sitting.identity or uuid.uuid4().hex[:12]
        asked = os.environ.get("SWANLAB_MODE", keys.swanlab_mode)
        folder = Path(keys.swanlab_logdir) if keys.swanlab_logdir else sitting.directory / "swanlab"
        folder.mkdir(parents=True, exist_ok=True)
        mode: Any = "online" if asked == "cloud" else asked
        self._run: Any = swanlab.init(
            mode=mode,
            project=keys.swanlab_project or os.environ.get("SWANLAB_PROJECT", "posttrain"),
            workspace=keys.swanlab_workspace,
            name=keys.swanlab_run_name or sitting.name,
            id=self.identity,
            resume="allow",
            log_dir=str(folder),
            config=dict(sitting.settings),
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See ``Tracker``."""
        self._run.log(dict(values), step=step)

    def close(self, results: Mapping[str, Any] | None) -> None:
        """See ``Tracker``."""
        if results is None:
            self._run.finish(state="crashed")
            return
        self._run.config.update({f"result/{name}": value for name, value in _scalars(results).items()})
        self._run.finish()


class MLflow:
    """A run of the experiment in MLFLOW_EXPERIMENT_NAME, on the server of MLFLOW_TRACKING_URI."""

    name = "mlflow"

    def __init__(self, sitting: Sitting) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client: Any = MlflowClient()
        if sitting.identity:
            self.identity: str = sitting.identity
            self._client.update_run(self.identity, status="RUNNING")
            return
        title = os.environ.get("MLFLOW_EXPERIMENT_NAME", "posttrain")
        experiment = self._client.get_experiment_by_name(title)
        place = experiment.experiment_id if experiment else self._client.create_experiment(title)
        self.identity = self._client.create_run(place, run_name=sitting.name).info.run_id
        written = [Param(key, str(value)[:_LONGEST_PARAMETER]) for key, value in sitting.settings.items()]
        for first in range(0, len(written), _PARAMETERS_AT_ONCE):
            self._client.log_batch(self.identity, params=written[first : first + _PARAMETERS_AT_ONCE])

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See ``Tracker``."""
        for name, value in values.items():
            self._client.log_metric(self.identity, name, value, step=step)

    def close(self, results: Mapping[str, Any] | None) -> None:
        """See ``Tracker``."""
        for name, value in _scalars(results).items():
            if isinstance(value, int | float):
                self._client.log_metric(self.identity, f"result/{name}", float(value))
        self._client.set_terminated(self.identity, "FAILED" if results is None else "FINISHED")


_KINDS: Mapping[str, Callable[[Sitting], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "swanlab": SwanLab,
    "mlflow": MLflow,
}


def _identities(directory: RunDirectory) -> dict[str, str]:
    if not (directory.path / IDENTITIES).is_file():
        return {}
    try:
        known = directory.read_json(IDENTITIES)
    except UserError:
        return {}
    return {str(name): str(value) for name, value in known.items()} if isinstance(known, dict) else {}


def _scalars(results: Mapping[str, Any] | None) -> dict[str, float | int | str]:
    return {name: value for name, value in (results or {}).items() if isinstance(value, float | int | str)}


def _folder_name(run_name: str | None) -> str:
    """The name as one folder that every system can make; empty without a name."""
    return re.sub(r"[^\w. -]+", "-", run_name or "").strip(". ")

"""Keys of where the numbers of a run are sent, beside its own log."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from posttrain.config.options import option


@dataclass(frozen=True, kw_only=True)
class TrackerConfig:
    """Experiment trackers: which ones, and SwanLab's own keys. wandb and mlflow read WANDB_* and MLFLOW_* variables."""

    report_to: tuple[str, ...] = option(
        ("tensorboard",),
        help="`tensorboard`, `wandb`, `swanlab`, `mlflow`, several of them, or `none`; trainer_log.jsonl is always "
        "written.",
    )
    run_name: str | None = option(
        None,
        help="Name of the run for trackers, by default that of `output_dir`; TensorBoard events go to runs/<run_name>, "
        "or `runs` itself.",
    )
    use_swanlab: bool = option(False, help="The same as `swanlab` in `report_to`.")
    swanlab_project: str | None = option(None, help="SwanLab's project; null is `posttrain`.")
    swanlab_workspace: str | None = option(None, help="SwanLab's workspace; null is your own.")
    swanlab_run_name: str | None = option(None, help="SwanLab's name of the run; null is `run_name`.")
    swanlab_mode: Literal["cloud", "local", "offline", "disabled"] = option(
        "cloud",
        help="Where SwanLab keeps the run: its server, a board here, or a folder to be synced later.",
    )
    swanlab_logdir: str | None = option(None, help="SwanLab's folder; null is `swanlab` in `output_dir`.", path=True)

    @property
    def trackers(self) -> tuple[str, ...]:
        """The trackers asked for, each once."""
        return tuple(dict.fromkeys((*self.report_to, *(("swanlab",) if self.use_swanlab else ()))))

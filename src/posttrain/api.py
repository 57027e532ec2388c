"""What ``import posttrain`` offers: train, export, chat and loops of one's own, with the keys of the YAML files."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from posttrain.config import load_config
from posttrain.models import export
from posttrain.serve.model import ChatModel, Response
from posttrain.train.handed_in import SampledResponse
from posttrain.train.own_loop import PPOTrainer
from posttrain.train.run import train
from posttrain.train.trainers import DPOTrainer, KTOTrainer, Pretrainer, RewardTrainer, SFTTrainer

__all__ = [
    "ChatModel",
    "DPOTrainer",
    "KTOTrainer",
    "PPOTrainer",
    "Pretrainer",
    "Response",
    "RewardTrainer",
    "SFTTrainer",
    "SampledResponse",
    "export_model",
    "run_exp",
]

Config = Mapping[str, Any] | str | Path


def _say(sentence: str) -> None:
    print(f"posttrain: {sentence}", file=sys.stderr, flush=True)


def run_exp(config: Config, *, notify: Callable[[str], None] = _say) -> dict[str, Any]:
    """Run one training stage, as ``posttrain train`` does.

    Args:
        config: flat keys as in a YAML file, or the path of one.
        notify: receives sentences for the user; standard error unless given.

    Returns:
        What ``all_results.json`` in the run directory holds.

    Raises:
        UserError: bad configuration, data or folders.
        RunError: a run that failed.
    """
    return train(load_config(config, command="train"), notify=notify)


def export_model(config: Config, *, notify: Callable[[str], None] = _say) -> Path:
    """Merge adapters into their base and write one Hugging Face folder, as ``posttrain export`` does.

    Args:
        config: flat keys as in a YAML file, or the path of one.
        notify: receives sentences for the user; standard error unless given.

    Returns:
        The folder.

    Raises:
        UserError: nothing to export, a bad ``export_dir``, an adapter of another backbone.
        RunError: the result does not say what base and adapters say, or cannot be written.
    """
    return export.export_model(load_config(config, command="export"), notify=notify)

"""What to check: the data of a configuration, or files alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from posttrain.config import DataConfig, RunConfig, load_config
from posttrain.config.loader import split_override
from posttrain.data.datasets import dataset_rows
from posttrain.diagnose.tables import guessed_stage
from posttrain.errors import UserError

_KEYS = {"stage", "dataset", "model_name_or_path"}


def configured(sources: Sequence[str], overrides: Sequence[str]) -> RunConfig:
    """The configuration that names the data to look at.

    Args:
        sources: one configuration, or data files and names of datasets. overrides: ``key=value``.

    Raises:
        UserError: a configuration beside other sources, or what ``load_config`` finds.
    """
    files = [source for source in sources if is_configuration(source)]
    if files and len(sources) > 1:
        raise UserError(
            f"{files[0]} is a configuration and names its data itself; give it alone, or data files alone with "
            "key=value behind them"
        )
    if files:
        return load_config(files[0], overrides, command="data")
    if not sources:
        raise UserError("give a configuration or at least one data file")
    given = dict(map(split_override, overrides))
    values = {"dataset": list(sources)}
    guess = load_config(
        {**values, "stage": "sft"}, [text for text in overrides if "dataset_dir" in text], command="data"
    )
    stage = {} if "stage" in given else {"stage": _stage_of(sources[0], guess.data)}
    return load_config({**values, **stage}, overrides, command="data")


def is_configuration(path: str) -> bool:
    """Whether a file is a configuration: YAML, or a JSON object with keys of one."""
    file = Path(path).expanduser()
    if file.suffix.lower() in (".yaml", ".yml"):
        return True
    if file.suffix.lower() != ".json" or not file.is_file():
        return False
    try:
        text = file.read_text(encoding="utf-8-sig")
        found = json.loads(text) if text.lstrip().startswith("{") else None
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and bool(_KEYS & set(found))


def _stage_of(name: str, data: DataConfig) -> str:
    """The stage that the first rows are for; a file that cannot be read is for the check itself to tell."""
    try:
        return guessed_stage(dataset_rows(name, data)[1])
    except UserError:
        return "sft"

"""What a checkpoint folder is called, and whether a run can continue from it."""

from __future__ import annotations

import re
from pathlib import Path

from posttrain.errors import UserError

NAME = re.compile(r"checkpoint-(\d+)")
# What the engine writes to continue from; spelt out because looking at a run directory must not load torch.
STATE_FILES = ("trainer_weights.safetensors", "optimizer.safetensors", "trainer_state.json")


def checkpoint_step(path: Path) -> int:
    """N of a folder called ``checkpoint-N``.

    Raises:
        ValueError: if it is not called so.
    """
    match = NAME.fullmatch(path.name)
    if match is None:
        raise ValueError(f"{path} is not called checkpoint-N")
    return int(match[1])


def holds_state(folder: Path) -> bool:
    """Whether a run can continue from it."""
    return all((folder / name).is_file() for name in STATE_FILES)


def with_state(folder: Path) -> Path:
    """The folder itself.

    Raises:
        UserError: if no run can continue from it.
    """
    missing = [name for name in STATE_FILES if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"resume_from_checkpoint: {folder} is no checkpoint that a run can continue from: it has no {missing[0]}. "
            "It was written with save_only_model, or by another program. To start from its weights, name it in "
            "adapter_name_or_path or model_name_or_path instead."
        )
    return folder

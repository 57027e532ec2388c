"""Folders that a model is saved to by hand."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from posttrain.errors import UserError
from posttrain.train.run_directory import RunDirectory


def model_place(folder: str | Path, *, reads: Iterable[str | Path]) -> RunDirectory:
    """The folder to write to, made; never one that the model was loaded from.

    Raises:
        UserError: it is such a folder, or cannot be written to.
    """
    path = Path(folder).expanduser()
    if any(Path(read).expanduser().resolve() == path.resolve() for read in reads):
        raise UserError(f"{path} holds a model that this policy stands on; save into another folder")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path} cannot be written to: {error.strerror or error}") from error
    return RunDirectory(path)

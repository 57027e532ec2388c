"""Where a command writes its rows, and writing them whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain.config import RunConfig
from posttrain.errors import RunError, UserError


def output_file(config: RunConfig, *, command: str, default: str, suffixes: Mapping[str, str]) -> Path:
    """The file of ``output_file``, else ``default`` in ``output_dir``; refused before anything is loaded.

    Args:
        config: names the place.
        command: who asks, for messages.
        suffixes: what the file may end in -> what is then written.

    Raises:
        UserError: neither key is set, or the place cannot be written to.
    """
    if config.predict.output_file:
        target = Path(config.predict.output_file).expanduser()
    elif config.train.output_dir:
        target = Path(config.train.output_dir).expanduser() / default
    else:
        raise UserError(
            f"`output_file` is missing: {command} needs the file to write; add a line such as `output_file: {default}`"
        )
    if target.suffix not in suffixes:
        known = " or ".join(f"{suffix} ({meaning})" for suffix, meaning in suffixes.items())
        raise UserError(f"output_file: {target} must end in {known}")
    if target.is_dir():
        raise UserError(f"output_file: {target} is a folder; name a file in it")
    existing = next((p for p in target.absolute().parents if p.exists()), Path())
    if not (existing.is_dir() and os.access(existing, os.W_OK)):
        raise UserError(f"output_file: {target.parent} cannot be written to; name a file in another folder")
    return target


def as_lines(rows: Sequence[Mapping[str, Any]]) -> str:
    """One JSON object per line."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_whole(path: Path, text: str) -> None:
    """Write a file so that it is whole or absent.

    Raises:
        RunError: it cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8", newline="\n")
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise RunError(f"{path} cannot be written: {error.strerror or error}") from error

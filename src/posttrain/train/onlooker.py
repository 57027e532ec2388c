"""A run directory as those processes of a run see it that leave the writing to the first one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from posttrain.train.run_directory import RunDirectory


class Onlooker(RunDirectory):
    """Reads as ``RunDirectory`` does and writes nothing."""

    def save_checkpoint(
        self, step: int, write: Callable[[Path], None], *, total_limit: int | None = None, keep: int | None = None
    ) -> Path:
        """Where process 0 writes it."""
        return self.path / f"checkpoint-{step}"

    def prune(self, step: int, total_limit: int | None, keep: int | None) -> None:
        """Nothing."""

    def save_model(self, write: Callable[[Path], None], *, reads: Iterable[str | Path] = ()) -> None:
        """Nothing."""

    def write_text(self, name: str, text: str) -> Path:
        """Where process 0 writes it."""
        return self.path / name

    def append_jsonl(self, name: str, *values: Mapping[str, Any]) -> None:
        """Nothing."""

    def clear_logs(self) -> None:
        """Nothing."""

    def truncate_log(self, step: int, *, evaluated: bool = True) -> None:
        """Nothing."""

"""The folder of one run: checkpoints that are whole or absent, logs that can be cut back, and the mark of the end."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.errors import RunError, UserError
from posttrain.train.checkpoints import NAME, checkpoint_step, holds_state, with_state
from posttrain.train.disk import flush_file, flush_folder, flush_tree, is_failed_write, plain, reason, remove
from posttrain.train.log_lines import parsed, until

LOGS = ("trainer_log.jsonl", "completions.jsonl", "eval_completions.jsonl")
_TRAIN_RESULTS = "train_results.json"
_ALL_RESULTS = "all_results.json"
_MARKS = ("config.yaml", LOGS[0])  # what every run of ours writes before it trains, and no other program both
_RESULTS = (_TRAIN_RESULTS, _ALL_RESULTS, "eval_results.json")
_WEIGHTS = ("adapter_model.safetensors", "model.safetensors", "model.safetensors.index.json")
# All that says what kind of model a folder holds; shards have numbers in their names.
_MODEL_FILES = (*_WEIGHTS, "adapter_config.json", "config.json", "generation_config.json", "value_head.safetensors")
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
_TEMPORARY = ".tmp-"
_REPLACED = ".old-"


@dataclass(frozen=True)
class RunDirectory:
    """An ``output_dir`` that this process may write to; made by ``RunDirectory.create``.

    Attributes:
        path: the folder.
        notice: one sentence for the user about what was found there, or None.
    """

    path: Path
    notice: str | None = None

    @classmethod
    def create(
        cls,
        path: str | Path,
        *,
        overwrite: bool = False,
        resume: bool | str | None = None,
        reads: Iterable[str | Path] = (),
    ) -> RunDirectory:
        """Make the folder ready for a run: checked, writable, free of what an interruption left half-written.

        ``overwrite`` removes what an earlier run logged and its checkpoints, and nothing else: final weights are
        replaced only by new ones, other files stay. It does not apply while an interrupted run is being resumed.

        Args:
            path: ``output_dir``.
            overwrite: ``overwrite_output_dir``.
            resume: ``resume_from_checkpoint``; None continues an interrupted run, with a notice.
            reads: folders that the run loads from; none of them may be removed by ``overwrite``.

        Raises:
            UserError: as ``check``, or if the folder cannot be written to.
        """
        folder = Path(path).expanduser()
        cls.check(folder, overwrite=overwrite, resume=resume, reads=reads)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=folder, prefix=_TEMPORARY):
                pass
            run = cls(folder)
            run._remove_leftovers()
            if overwrite and not resume:
                run._remove_earlier_run()
        except OSError as error:
            raise UserError(f"output_dir {folder} cannot be written to: {error.strerror or error}") from error
        return cls(folder, run._notice(resume))

    @classmethod
    def check(
        cls,
        path: str | Path,
        *,
        overwrite: bool = False,
        resume: bool | str | None = None,
        reads: Iterable[str | Path] = (),
    ) -> None:
        """Refuse what ``create`` would refuse, touching nothing; call it before anything slow is loaded.

        Raises:
            UserError: if the path is no folder or not writable, holds a finished run that neither ``overwrite`` nor
                ``resume`` speaks of, holds an interrupted one that ``resume: false`` would mix with, if ``resume``
                names no checkpoint to continue from, or if ``overwrite`` would remove a folder in ``reads``.
        """
        folder = Path(path).expanduser()
        existing = next((p for p in (folder, *folder.parents) if p.exists()), Path("."))
        if not existing.is_dir():
            raise UserError(f"output_dir {folder} cannot be made: {existing} is a file, not a folder")
        if not os.access(existing, os.W_OK):
            raise UserError(f"output_dir {folder} cannot be written to: no permission to write in {existing}")
        run = cls(folder)
        if overwrite and not resume:
            run._refuse_removing(reads)
            return
        if resume:
            run.resume_checkpoint(resume)
            return
        choices = "set overwrite_output_dir: true to replace it, or give another output_dir"
        if run.finished:
            raise UserError(f"output_dir {folder} already holds a finished run: {choices}")
        checkpoint = run.latest_checkpoint()
        if checkpoint is not None and resume is False:
            choices = f"set resume_from_checkpoint: true to continue from {checkpoint.name}, {choices}"
            raise UserError(f"output_dir {folder} already holds an interrupted run: {choices}")
        holds_model = any((folder / name).exists() for name in _WEIGHTS)
        if holds_model and not run.checkpoints() and not run._was_ending():
            raise UserError(f"output_dir {folder} already holds a model: {choices}")

    @property
    def finished(self) -> bool:
        """Whether a run came to its end here."""
        return self.finished_steps is not None

    @property
    def finished_steps(self) -> int | None:
        """``total_steps`` of the run that came to its end here; None when none did.

        Of the file that is written last: the others may be of a longer run that is being added to a finished one.
        """
        try:
            return int(self.read_json(_ALL_RESULTS)["total_steps"])
        except (UserError, ValueError, KeyError, TypeError):
            return None

    def checkpoints(self) -> list[Path]:
        """The complete ``checkpoint-N`` folders, oldest step first."""
        found = [p for p in self.path.glob("checkpoint-*") if NAME.fullmatch(p.name) and p.is_dir()]
        return sorted(found, key=checkpoint_step)

    def latest_checkpoint(self) -> Path | None:
        """The checkpoint of the highest step that a run can continue from, or None.

        One written with ``save_only_model`` holds no optimizer, so nothing continues from it.
        """
        return next((path for path in reversed(self.checkpoints()) if holds_state(path)), None)

    def way_back(self) -> str:
        """One sentence for the end of a message about a run that failed: what is left of it."""
        if checkpoint := self.latest_checkpoint():
            return f"The last good checkpoint is {checkpoint.name}: continue with resume_from_checkpoint: true"
        if checkpoints := self.checkpoints():
            return f"The last good checkpoint is {checkpoints[-1].name}, which holds the model only (save_only_model)"
        return "No checkpoint had been written before"

    def way_around(self, damaged: Path) -> str:
        """One sentence for the end of a message about a checkpoint that cannot be read: what to use instead."""
        others = [path for path in self.checkpoints() if holds_state(path) and path.resolve() != damaged.resolve()]
        if NAME.fullmatch(damaged.name):
            others = [path for path in others if checkpoint_step(path) < checkpoint_step(damaged)]
        afresh = "start afresh with overwrite_output_dir: true."
        if not others:
            return f"There is no older checkpoint to continue from: {afresh}"
        return f"Continue from the one before it, resume_from_checkpoint: {others[-1]}, or {afresh}"

    def resume_checkpoint(self, resume: bool | str | None) -> Path | None:
        """The checkpoint that ``resume_from_checkpoint`` speaks of; None starts afresh.

        Raises:
            UserError: if it names a folder that is not there, or one that no run can continue from.
        """
        if isinstance(resume, str):
            named = Path(resume).expanduser()
            for folder in (named, self.path / named):
                if folder.is_dir():
                    return with_state(folder)
            raise UserError(f"resume_from_checkpoint: no folder {named}; true continues from the latest checkpoint")
        return None if resume is False else self.latest_checkpoint()

    def save_checkpoint(
        self,
        step: int,
        write: Callable[[Path], None],
        *,
        total_limit: int | None = None,
        keep: int | None = None,
    ) -> Path:
        """Write ``checkpoint-{step}`` whole or not at all, then remove the oldest beyond ``total_limit``.

        Checkpoints of later steps go too: they are of the course that a run left when it resumed from before them.

        Args:
            step: N.
            write: fills the empty folder that it is given.
            total_limit: checkpoints to keep, at least 1; None keeps all.
            keep: step of the best checkpoint, which is never removed (nor is the latest).

        Returns:
            The folder of the checkpoint.

        Raises:
            RunError: if it cannot be written, for example on a full disk; names the last good checkpoint.
        """
        target = self.path / f"checkpoint-{step}"
        temporary = self.path / f"{_TEMPORARY}{target.name}"
        with self._writing(target.name, temporary):
            write(temporary)
            flush_tree(temporary)
            for name in LOGS:
                flush_file(self.path / name)
            replaced = self.path / f"{_REPLACED}{target.name}"
            if target.exists():
                target.rename(replaced)
            temporary.rename(target)
            flush_folder(self.path)
            shutil.rmtree(replaced, ignore_errors=True)
            self.prune(step, total_limit, keep)
        return target

    def prune(self, step: int, total_limit: int | None, keep: int | None) -> None:
        """Remove what ``save_checkpoint`` does not keep beside ``checkpoint-{step}``, the latest."""
        checkpoints = self.checkpoints()
        doomed = [path for path in checkpoints if checkpoint_step(path) > step]
        if total_limit is not None:
            removable = [path for path in checkpoints if checkpoint_step(path) not in (step, keep)]
            surplus = len(checkpoints) - len(doomed) - max(total_limit, 1)
            doomed += [path for path in removable if path not in doomed][: max(surplus, 0)]
        for path in doomed:
            self._remove_checkpoint(path)

    def save_model(self, write: Callable[[Path], None], *, reads: Iterable[str | Path] = ()) -> None:
        """Write the model that a run ends with, whole before any file of an earlier one is touched.

        Model files that an earlier run of another kind left are removed, unless the run reads from this very folder.

        Args:
            write: fills the empty folder that it is given.
            reads: folders that the run loaded from.

        Raises:
            RunError: if it cannot be written, for example on a full disk; names the last good checkpoint.
        """
        temporary = self.path / f"{_TEMPORARY}model"
        with self._writing("the model", temporary):
            write(temporary)
            flush_tree(temporary)
            written = sorted(path.name for path in temporary.iterdir())
            for name in written:
                if (self.path / name).is_dir():
                    shutil.rmtree(self.path / name)
                (temporary / name).replace(self.path / name)
            flush_folder(self.path)
            if not any(Path(read).expanduser().resolve() == self.path.resolve() for read in reads):
                for path in list(self.path.iterdir()):
                    is_model = path.name in _MODEL_FILES or _SHARD.fullmatch(path.name)
                    if is_model and path.name not in written:
                        path.unlink()

    def write_json(self, name: str, value: Any) -> Path:
        """Write ``name`` whole or not at all; numbers that JSON does not know (NaN, inf) become null."""
        return self.write_text(name, json.dumps(plain(value), ensure_ascii=False, indent=2) + "\n")

    def write_text(self, name: str, text: str) -> Path:
        """Write ``name`` whole or not at all."""
        return self.write_file(name, lambda path: path.write_bytes(text.encode()))

    def write_file(self, name: str, write: Callable[[Path], object]) -> Path:
        """Let ``write`` fill a file, which takes the place of ``name`` once it is whole."""
        target, temporary = self.path / name, self.path / f"{_TEMPORARY}{name}"
        with self._refusable(name):
            try:
                write(temporary)
                with temporary.open("r+b") as file:
                    os.fsync(file.fileno())
                temporary.replace(target)
            finally:
                temporary.unlink(missing_ok=True)
        return target

    def read_json(self, name: str) -> Any:
        """What ``write_json`` wrote under this name.

        Raises:
            UserError: if it is not there or no longer JSON.
        """
        try:
            return json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{self.path / name} cannot be read: {error}") from error

    def append_jsonl(self, name: str, *values: Mapping[str, Any]) -> None:
        """Add one line per value; lines of the logs hold their optimizer step as ``current_steps`` or ``step``."""
        lines = "".join(json.dumps(plain(value), ensure_ascii=False) + "\n" for value in values)
        with self._refusable(name), (self.path / name).open("a", encoding="utf-8", newline="\n") as file:
            file.write(lines)

    def read_jsonl(self, name: str) -> list[dict[str, Any]]:
        """The lines of a log that are whole; empty when there is no such log."""
        path = self.path / name
        if not path.is_file():
            return []
        return parsed(path.read_text(encoding="utf-8", errors="replace").split("\n"))

    def clear_logs(self) -> None:
        """Remove the logs, for a run that starts afresh where an earlier one never came to a checkpoint."""
        for name in LOGS:
            with self._refusable(name):
                (self.path / name).unlink(missing_ok=True)

    def truncate_log(self, step: int, *, evaluated: bool = True) -> None:
        """Drop the lines written after ``step`` and a last line cut short, so that a resumed run writes them anew.

        Args:
            step: of the checkpoint.
            evaluated: false where ``step`` is going to be evaluated again; then the line about it goes too.
        """
        for name in LOGS:
            if (self.path / name).is_file():
                rows = until(self.read_jsonl(name), step, evaluated=evaluated)
                self.write_text(name, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

    def _notice(self, resume: bool | str | None) -> str | None:
        checkpoint = self.latest_checkpoint()
        if self.finished:
            return f"{self.path} already holds a finished run of {self.finished_steps} steps"
        if isinstance(resume, str):
            return None
        if checkpoint is not None:
            return f"continuing from {checkpoint}"
        if self.checkpoints():
            return (
                f"the checkpoints in {self.path} hold the model only (save_only_model), so no run can continue from "
                "them: starting afresh, and new checkpoints replace them"
            )
        if resume is True or (resume is None and self._was_ending()):
            return f"no checkpoint in {self.path}: starting afresh"
        return None

    def _was_ending(self) -> bool:
        """Whether a run without checkpoints was cut off between its last step and the mark of its end."""
        return not (self.path / _ALL_RESULTS).exists() and all((self.path / n).is_file() for n in _MARKS)

    def _remove_leftovers(self) -> None:
        for replaced in self.path.glob(f"{_REPLACED}checkpoint-*"):
            # Interrupted between the two renames of save_checkpoint: the old one is the only whole one.
            original = self.path / replaced.name.removeprefix(_REPLACED)
            if original.exists():
                shutil.rmtree(replaced)
            else:
                replaced.rename(original)
        for leftover in self.path.glob(f"{_TEMPORARY}*"):
            remove(leftover)

    def _earlier_run(self) -> list[Path]:
        names = [*_RESULTS, *LOGS, "runs", "trackers.json", "excluded.json"]
        return [*self.checkpoints(), *(self.path / name for name in names), *self.path.glob("training_*.png")]

    def _remove_earlier_run(self) -> None:
        for path in self.checkpoints():
            self._remove_checkpoint(path)
        for path in self._earlier_run():
            remove(path)

    def _refuse_removing(self, reads: Iterable[str | Path]) -> None:
        removed = [path.resolve() for path in self._earlier_run()]
        for read in reads:
            source = Path(read).expanduser().resolve()
            if any(source == path or path in source.parents for path in removed):
                raise UserError(
                    f"the run reads {read}, which overwrite_output_dir: true would remove: give another output_dir"
                )

    def _remove_checkpoint(self, path: Path) -> None:
        # Renamed first: a folder half deleted must not pass for a checkpoint.
        renamed = path.rename(self.path / f"{_TEMPORARY}{path.name}-removed")
        shutil.rmtree(renamed, ignore_errors=True)

    @contextmanager
    def _writing(self, name: str, temporary: Path) -> Iterator[None]:
        """Offer the empty folder ``temporary``; it is gone afterwards, and what the disk refuses is a RunError."""
        with self._refusable(name):
            try:
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir()
                yield
            finally:
                shutil.rmtree(temporary, ignore_errors=True)

    @contextmanager
    def _refusable(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if not is_failed_write(error):
                raise
            why = f"could not write {name} in {self.path}: {reason(error)}. Make room there. {self.way_back()}"
            raise RunError(why) from error

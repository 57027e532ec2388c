"""Stages that learn from a fixed dataset, as classes that take what users of transformers and TRL have in memory."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from posttrain.config import RunConfig, load_config
from posttrain.engine import Processes
from posttrain.errors import UserError
from posttrain.train.arguments import keys_of, renamed
from posttrain.train.given_rows import GivenRows, is_named
from posttrain.train.handed_over import INPUTS, handed_over
from posttrain.train.parts import Parts
from posttrain.train.places import model_place
from posttrain.train.run import fit, prepared, read_folders
from posttrain.train.run_directory import RunDirectory
from posttrain.train.stages import OfflineStage

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Rows = str | Path | Sequence[str] | Sequence[Mapping[str, Any]] | Mapping[str, Sequence[Any]] | Any
_DATASETS = {"train_dataset": ("dataset", "train.jsonl"), "eval_dataset": ("eval_dataset", "eval.jsonl")}


def _say(sentence: str) -> None:
    print(f"posttrain: {sentence}", file=sys.stderr, flush=True)


class Trainer:
    """One stage, run as ``posttrain train`` runs it: same directory, log, checkpoints, results.

    Without ``peft_config`` all weights train, as in transformers: those of ``model`` itself where it is an object. With
    one, a model in memory stays as it is and the adapter is saved. Rows in memory are kept in ``output_dir/inputs``,
    and so is a model whose weights lie nowhere else, so that ``config.yaml`` names all that the run is made of.

    Attributes:
        config: fully resolved.
    """

    stage: ClassVar[str]

    def __init__(
        self,
        model: str | Path | PreTrainedModel | None = None,
        args: Any = None,
        *,
        train_dataset: Rows = None,
        eval_dataset: Rows = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        peft_config: Any = None,
        notify: Callable[[str], None] = _say,
        **keys: Any,
    ) -> None:
        """Take everything in and check it; nothing is written or loaded yet.

        Args:
            model: a name, a folder, or a model of transformers.
            args: flat keys, the path of a YAML file, or a ``TrainingArguments``.
            train_dataset: a name or path (or several), a list of rows, a mapping of columns, a ``datasets.Dataset``.
            eval_dataset: held-out rows, given in the same ways.
            tokenizer: of transformers; the one that lies with the model unless given.
            peft_config: a ``peft.LoraConfig``.
            notify: receives sentences for the user; standard error unless given.
            keys: flat keys, which win over ``args``; ``dataset_text_field`` and ``max_seq_length`` are understood.

        Raises:
            UserError: one of them cannot be used; the message says which and what to write instead.
        """
        if int(os.environ.get("WORLD_SIZE") or 1) > 1:
            raise UserError(
                f"{type(self).__name__} is one process (WORLD_SIZE is set); several share a run that is started with "
                "torchrun -m posttrain train CONFIG.yaml"
            )
        values = {**renamed(keys_of(args)), **renamed(_without_none(keys))}
        tokenizer = _one_of(tokenizer, values.pop("processing_class", None))
        values = {"stage": self.stage, **values}
        if values["stage"] != self.stage:
            raise UserError(f"{type(self).__name__} is stage {self.stage}, and the keys say stage: {values['stage']}")
        named = bool(values.get("output_dir"))
        values["output_dir"] = str(values.get("output_dir") or Path("runs") / self.stage)
        self._rows = _take_rows(values, train_dataset, eval_dataset)
        self._over = handed_over(model, tokenizer, peft_config, values, scores=self.stage == "rm")
        self.config: RunConfig = load_config(self._over.keys)
        self._notify = notify
        self._parts: Parts | None = None
        self._results: dict[str, Any] | None = None
        for sentence in self._over.notes:
            notify(sentence)
        if not named:
            notify(f"output_dir is not given: the run goes to {values['output_dir']}")

    def train(self, resume_from_checkpoint: bool | str | None = None) -> dict[str, Any]:
        """Run the stage to its end; an interrupted run in ``output_dir`` is continued.

        Args:
            resume_from_checkpoint: as the key of this name, over which it wins.

        Returns:
            What ``all_results.json`` holds.

        Raises:
            UserError: bad data or folders, before anything is trained.
            RunError: a run that failed; the last checkpoint stays.
            KeyboardInterrupt: Ctrl-C, after a checkpoint; another call goes on from it.
        """
        if resume_from_checkpoint is not None:
            settings = dataclasses.replace(self.config.train, resume_from_checkpoint=resume_from_checkpoint)
            self.config = dataclasses.replace(self.config, train=settings)
            self._parts = None
        parts = self._parts if self._results is None and self._parts is not None else self._prepared()
        self._parts = None
        if not isinstance(parts, Parts):
            self._results = parts
            return parts
        model = self._over.given.model
        if model is None:
            self._results = fit(parts, self._notify)
        else:
            with model.lent():
                self._results = fit(parts, self._notify)
            if self.stage == "rm" and self.config.method.finetuning_type != "lora":
                model.take_head(parts.assembly.roles.head("score"))
        self._parts = parts
        return self._results

    def evaluate(self) -> dict[str, float]:
        """What the held-out rows say of the model: as training left it, or, before ``train``, as it starts.

        Returns:
            ``eval_loss`` and the other figures of the stage.

        Raises:
            UserError: no rows are held out, or the stage compares with where training started.
        """
        if not (self.config.data.eval_dataset or self.config.data.val_size):
            raise UserError("there are no held-out rows: give eval_dataset, or val_size=0.1")
        if self._results is None and self.stage in ("dpo", "kto"):
            raise UserError(f"stage {self.stage} measures how far the model has moved: call train() first")
        if self._results is not None:
            return {name: value for name, value in self._results.items() if name.startswith("eval_")}
        parts = self._parts or self._prepared()
        if not isinstance(parts, Parts):
            return {name: value for name, value in parts.items() if name.startswith("eval_")}
        self._parts = parts
        measure = OfflineStage(parts).evaluate
        return dict(measure()) if measure is not None else {}

    def save_model(self, folder: str | Path | None = None) -> Path:
        """Write what was trained as ``output_dir`` holds it: adapter or model, tokenizer, lineage.

        Args:
            folder: None is ``output_dir``.

        Raises:
            UserError: nothing was trained yet, or the folder is one that the model stands on.
            RunError: it cannot be written.
        """
        own = Path(self.config.train.output_dir).expanduser()
        if self._results is None:
            raise UserError("there is nothing to save yet: call train() first")
        if folder is None or Path(folder).expanduser().resolve() == own.resolve():
            return own
        parts = self._parts
        if parts is None:
            raise UserError(f"the run was finished before, and its model lies in {own}: use or copy that folder")
        place = model_place(folder, reads=read_folders(self.config))
        place.save_model(lambda path: parts.assembly.save(path, parts.tokenizer), reads=read_folders(self.config))
        return place.path

    def _prepared(self) -> Parts | dict[str, Any]:
        """Keep in the run directory what lies nowhere else, then load and dress everything."""
        settings = self.config.train
        resume, overwrite = settings.resume_from_checkpoint, settings.overwrite_output_dir
        reads = read_folders(self.config)
        RunDirectory.check(settings.output_dir, overwrite=overwrite, resume=resume, reads=reads)
        folder = Path(settings.output_dir).expanduser()
        begun = RunDirectory(folder).resume_checkpoint(resume) is not None
        continues = begun and not (overwrite and not resume)
        try:
            said = self._over.settle(continues=continues)
            for rows, name in self._rows:
                count = rows.keep(folder / INPUTS / name, continues=continues)
                self._notify(f"{rows.key}: {count} rows, kept in {folder / INPUTS / name}")
        except OSError as error:
            raise UserError(f"output_dir {folder} cannot be written to: {error.strerror or error}") from error
        if said:
            self._notify(said)
        return prepared(self.config, Processes(), self._notify, self._over.given)


class Pretrainer(Trainer):
    """Stage pt: documents, joined and cut into blocks of ``block_size`` (``cutoff_len``) tokens."""

    stage = "pt"


class SFTTrainer(Trainer):
    """Stage sft: chats, or with ``dataset_text_field`` texts of which all tokens are learned."""

    stage = "sft"


class RewardTrainer(Trainer):
    """Stage rm: preference pairs; ``model`` may be a sequence classifier."""

    stage = "rm"


class DPOTrainer(Trainer):
    """Stage dpo: preference pairs, with the loss that ``pref_loss`` names."""

    stage = "dpo"


class KTOTrainer(Trainer):
    """Stage kto: answers, each with a label that says whether it is a good one."""

    stage = "kto"


def _without_none(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments that were given; None is how Python leaves one out."""
    return {name: value for name, value in keys.items() if value is not None}


def _one_of(tokenizer: Any, processing_class: Any) -> Any:
    if tokenizer is not None and processing_class is not None:
        raise UserError("`tokenizer` and `processing_class` mean the same; keep one")
    return tokenizer if processing_class is None else processing_class


def _take_rows(values: dict[str, Any], train_dataset: Rows, eval_dataset: Rows) -> list[tuple[GivenRows, str]]:
    """Datasets as keys; those in memory as the files that they are going to be kept in, returned with their names."""
    kept = []
    for argument, data in (("train_dataset", train_dataset), ("eval_dataset", eval_dataset)):
        key, file = _DATASETS[argument]
        if data is None:
            continue
        if key in values:
            raise UserError(f"`{argument}` and the key `{key}` both name rows; keep one")
        if is_named(data):
            values[key] = [str(name) for name in ([data] if isinstance(data, str | Path) else data)]
            continue
        kept.append((GivenRows(data, argument, text_column=values.get("text_column")), file))
        values[key] = [str(Path(values["output_dir"]).expanduser() / INPUTS / file)]
    return kept

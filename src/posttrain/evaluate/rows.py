"""The rows an evaluation measures: ``eval_dataset``, else what training held out of ``dataset``, else all of that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from posttrain.config import RunConfig
from posttrain.data.datasets import encode_examples, read_examples
from posttrain.data.encode import Report
from posttrain.data.formats import Example
from posttrain.data.splits import hold_out
from posttrain.data.template import Template
from posttrain.errors import UserError
from posttrain.evaluate.items import ids_of_examples, ids_of_rows


@dataclass(frozen=True, kw_only=True)
class Items:
    """What is measured.

    Attributes:
        rows: encoded. ids: a name for each that other runs give it too, see ``ids_of_examples``.
        template: rendered them; None for documents. report: the account of the rows.
    """

    rows: list[Any]
    ids: tuple[str, ...]
    template: Template | None
    report: Report


def read_rows(
    config: RunConfig, tokenizer: PreTrainedTokenizerBase, stage: str
) -> tuple[list[Any], Template | None, Report]:
    """``read_items`` without the names: (encoded rows, template or None, account of the rows)."""
    items = read_items(config, tokenizer, stage)
    return items.rows, items.template, items.report


def read_items(config: RunConfig, tokenizer: PreTrainedTokenizerBase, stage: str) -> Items:
    """All rows to evaluate on, encoded as training would.

    Args:
        config: names the dataset. With ``val_size`` and no ``eval_dataset`` the rows are those that a training run of
            this configuration holds out.
        tokenizer: of the model.
        stage: how rows are read and encoded, as in ``load_dataset``.

    Raises:
        UserError: there is no dataset, no row in it, or a bad one.
    """
    data = config.data
    on_text = stage == "pt" or (stage == "sft" and data.text_column is not None)
    # Pairs are read to be scored, from their end of turn.
    template = None if on_text else Template.configured(tokenizer, data, stage if stage == "sft" else None)
    examples, report = read_measured(config, stage)
    kept: list[Example] = []
    rows = encode_examples(examples, tokenizer, template, data, stage, report, kept)
    ids = ids_of_examples(kept) if len(kept) == len(rows) else ids_of_rows(rows)
    return Items(rows=rows, ids=ids, template=template, report=report)


def read_measured(config: RunConfig, stage: str) -> tuple[list[Example], Report]:
    """The examples to evaluate on, not yet encoded, and the account of the rows so far.

    Raises:
        UserError: there is no dataset, or a bad row.
    """
    data = config.data
    names = data.eval_dataset or data.dataset
    if not names:
        raise UserError(
            "`eval_dataset` is missing: an evaluation needs rows; name an entry of dataset_info.json or a data file"
        )
    report = Report()
    examples = read_examples(names, data, stage, report, margin_column=config.reward_model.margin_column)
    if holds_out(config):
        examples = _held_out(config, examples, stage)
        report = Report(rows_read=len(examples))
    return examples, report


def holds_out(config: RunConfig) -> bool:
    """Whether the rows are a part of ``dataset`` that training with this configuration leaves out."""
    return config.data.val_size > 0 and not config.data.eval_dataset


def _held_out(config: RunConfig, examples: Sequence[Example], stage: str) -> list[Example]:
    """Those of the examples that training does not see.

    Which rows are usable, and so which ones the seed chooses, depends on the stage; where the evaluation reads rows in
    another way than training did, the choice is therefore made among the examples of the training stage.
    """
    if config.data.streaming:
        raise UserError(
            "`val_size` with `streaming` holds out some of the first `buffer_size` rows, as training reads them, which "
            "an evaluation of its own does not see; name the rows to measure in `eval_dataset`"
        )
    data, trained = config.data, config.method.stage if "stage" in config.sources else stage
    if trained == stage:
        return hold_out(examples, data.val_size, config.train.seed)[1]
    seen = read_examples(data.dataset, data, trained, Report(), margin_column=config.reward_model.margin_column)
    places = {example.where for example in hold_out(seen, data.val_size, config.train.seed)[1]}
    return [example for example in examples if example.where in places]

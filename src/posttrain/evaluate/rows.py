"""The rows an evaluation measures: those of ``eval_dataset``, else of ``dataset``, encoded as training would."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase

from posttrain.config import RunConfig
from posttrain.data.datasets import Stage, encode_examples, read_examples
from posttrain.data.encode import Report
from posttrain.data.template import Template
from posttrain.errors import UserError


def read_rows(
    config: RunConfig, tokenizer: PreTrainedTokenizerBase, stage: Stage
) -> tuple[list[Any], Template | None, Report]:
    """All rows to evaluate on.

    Args:
        config: names the dataset.
        tokenizer: of the model.
        stage: how rows are read and encoded, as in ``load_dataset``.

    Returns:
        (encoded rows, the template that rendered them or None, account of the rows).

    Raises:
        UserError: there is no dataset, no row in it, or a bad one.
    """
    data = config.data
    names = data.eval_dataset or data.dataset
    if not names:
        raise UserError(
            "`eval_dataset` is missing: an evaluation needs rows; name an entry of dataset_info.json or a data file"
        )
    on_text = stage == "pt" or (stage == "sft" and data.text_column is not None)
    template = None if on_text else Template(tokenizer, data.template, data.default_system)
    report = Report()
    examples = read_examples(names, data, stage, report, margin_column=config.reward_model.margin_column)
    return encode_examples(examples, tokenizer, template, data, stage, report), template, report

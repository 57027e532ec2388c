"""`posttrain data check`: everything about data that can be known before training on them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from posttrain.config import RunConfig
from posttrain.data.splits import hold_out
from posttrain.data.template import Template
from posttrain.diagnose import measure
from posttrain.diagnose.findings import Finding, first, has_errors, share, summary
from posttrain.diagnose.lengths import Lengths
from posttrain.diagnose.oddities import label_balance, oddities, pair_oddities
from posttrain.diagnose.repeats import common_answers, contradictions, keys_of, leaks, repeats
from posttrain.diagnose.tables import Item, Table, read_table
from posttrain.errors import UserError
from posttrain.models.fetch import resolve_model
from posttrain.models.load import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(kw_only=True)
class Checked:
    """All that was found.

    Attributes:
        stage: the rows were read for it. tables: the datasets. findings: in the order of the checks.
        lengths: of the training rows. cutoff_len: of the configuration, where rows are counted in tokens.
    """

    stage: str
    tables: list[Table]
    findings: list[Finding] = field(default_factory=list)
    lengths: Lengths | None = None
    cutoff_len: int | None = None

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        found: dict[str, Any] = {
            "stage": self.stage,
            "datasets": [_plain(table) for table in self.tables],
            "findings": [finding.plain() for finding in self.findings],
            "summary": summary(self.findings),
            "ok": not has_errors(self.findings),
        }
        if self.lengths is not None:
            found["lengths"] = {"unit": self.lengths.unit, **self.lengths.quantiles()}
        return found

    def lines(self) -> Iterator[str]:
        """As a reader wants it."""
        for table in self.tables:
            kind = "held-out" if table.held_out else "training"
            yield f"{kind} data {table.name}: {table.num_rows} rows, read for stage {self.stage}"
            for name, kinds in table.columns.items():
                types = ", ".join(f"{kind} {count}" for kind, count in kinds.most_common())
                yield f"    {name}: {types}"
        if self.lengths is not None:
            measured = len(self.lengths.values)
            some = f" (of {measured} rows spread over {self.lengths.sampled_of})" if self.lengths.sampled_of else ""
            yield f"lengths{some}: {self.lengths.sentence()}"
            yield from self.lengths.histogram(self.cutoff_len)
        for finding in self.findings:
            yield finding.line()
        yield summary(self.findings)


def check(config: RunConfig) -> Checked:
    """Look at every row of the data of a configuration.

    Args:
        config: loaded with ``command="data"``; without a model, lengths are in characters.

    Raises:
        UserError: no dataset is named, or the model has no readable tokenizer.
    """
    data, stage, margins = config.data, config.method.stage, config.reward_model.margin_column
    if not data.dataset:
        raise UserError("no `dataset`: name an entry of dataset_info.json or the path of a data file")
    tables = [read_table(name, data, stage, margin_column=margins) for name in data.dataset]
    tables += [read_table(name, data, stage, margin_column=margins, held_out=True) for name in data.eval_dataset]
    found = Checked(stage=stage, tables=tables)
    found.findings += [finding for table in tables for finding in schema(table)]
    train = [item for table in tables if not table.held_out for item in table.items]
    held_out = [item for table in tables if table.held_out for item in table.items]
    if data.val_size and not data.eval_dataset:
        train, held_out = _held_out(train, config, found)
    if not train:
        fix = "See what is wrong with the others above"
        found.findings.append(Finding(level="error", check="rows", message="no usable training row is left", fix=fix))
        return found
    tokenizer, template = _rendering(config, found)
    marks = [] if tokenizer is None else list(tokenizer.all_special_tokens)
    keys, held = [keys_of(item) for item in train], [keys_of(item) for item in held_out]
    found.findings += [*repeats(train, keys), *contradictions(train, keys)]
    if held_out:
        found.findings.append(leaks(train, held_out, keys, held))
    found.findings += [*common_answers(train, keys), *oddities(train, marks)]
    found.findings += [*label_balance(train), *pair_oddities(train)]
    _measure(found, config, train, tokenizer, template)
    return found


def _plain(table: Table) -> dict[str, Any]:
    return {
        "name": table.name,
        "file": table.place,
        "held_out": table.held_out,
        "rows": table.num_rows,
        "columns": {name: dict(kinds) for name, kinds in table.columns.items()},
    }


def schema(table: Table) -> Iterator[Finding]:
    """Whether the rows of a dataset have the columns that its stage reads, with values of their types."""
    if table.failure is not None:
        yield Finding(level="error", check="reading", message=table.failure)
        return
    if table.malformed:
        yield Finding(
            level="error",
            check="schema",
            message=f"{share(len(table.malformed), table.num_rows)} rows of {table.name} cannot be read: "
            + "; ".join(message for _, message in table.malformed[:2]),
            fix="A run stops at the first of them: fix or remove them",
            count=len(table.malformed),
            places=first(where for where, _ in table.malformed),
        )
    for name, kinds in table.columns.items():
        mixed = {kind: count for kind, count in kinds.items() if kind not in ("missing", "null")}
        if len(mixed) > 1:
            types = ", ".join(f"{kind} {count}" for kind, count in kinds.most_common())
            fix = "Give it one type, if a reward or the template reads it"
            message = f"column {name!r} of {table.name} has several types: {types}"
            yield Finding(level="warning", check="schema", message=message, fix=fix, details={"column": name})
    if not table.malformed:
        yield Finding(level="ok", check="schema", message=f"every row of {table.name} has what the stage reads")
    for reason, places in table.unusable.items():
        yield Finding(
            level="warning",
            check="unusable rows",
            message=f"{share(len(places), table.num_rows)} rows of {table.name} would be dropped: {reason}",
            fix="Fix or remove them",
            count=len(places),
            places=first(places),
        )


def _held_out(train: Sequence[Item], config: RunConfig, found: Checked) -> tuple[list[Item], list[Item]]:
    """As a run splits its rows, which counts examples as the checks do."""
    examples: Any = train
    try:
        split: Any = hold_out(examples, config.data.val_size, config.train.seed)
    except UserError as error:
        found.findings.append(Finding(level="error", check="val_size", message=str(error)))
        return list(train), []
    return split


def _rendering(config: RunConfig, found: Checked) -> tuple[PreTrainedTokenizerBase | None, Template | None]:
    """Tokenizer and template, where a model is named."""
    model, data, stage = config.model, config.data, config.method.stage
    if not model.model_name_or_path:
        return None, None
    folder = resolve_model(model.model_name_or_path, revision=model.model_revision, cache_dir=model.cache_dir)
    tokenizer = load_tokenizer(folder, use_fast=model.use_fast_tokenizer, trust_remote_code=model.trust_remote_code)
    if stage == "pt" or (stage == "sft" and data.text_column is not None):
        return tokenizer, None
    try:
        return tokenizer, Template.configured(tokenizer, data, stage)
    except UserError as error:
        found.findings.append(Finding(level="error", check="template", message=str(error)))
        return None, None


def _measure(
    found: Checked,
    config: RunConfig,
    train: Sequence[Item],
    tokenizer: PreTrainedTokenizerBase | None,
    template: Template | None,
) -> None:
    found.lengths = measure.characters(train)
    if tokenizer is None:
        return
    try:
        found.lengths, cutting = measure.tokens(train, tokenizer, template, config.data, config.method.stage)
    except UserError as error:
        found.findings.append(Finding(level="error", check="template", message=str(error)))
        return
    found.cutoff_len = config.data.cutoff_len
    found.findings += cutting

"""The first rows of a data set as a stage takes them, each with where it comes from and what was cut out of it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, islice, pairwise
from typing import TYPE_CHECKING, Any

from posttrain.config import RunConfig, is_online
from posttrain.data import encode
from posttrain.data.datasets import encode_examples, split_examples
from posttrain.data.encode import EncodedPair, EncodedPrompt, Report
from posttrain.data.formats import Example, TextExample
from posttrain.data.rankings import EncodedRanking
from posttrain.data.stream import looked_at
from posttrain.data.template import EncodedRow, Template
from posttrain.data.unpaired import EncodedAnswer, with_mismatched
from posttrain.diagnose.pieces import cuts_of
from posttrain.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TWIN = "mismatched twin (another prompt's answer, measured for the reference point, never trained)"
NO_LIMIT = 10**9


@dataclass(frozen=True, kw_only=True)
class ShownSequence:
    """One sequence of a row.

    Attributes:
        label: what it is within its row: chosen, rejected ...; empty where the row is one sequence.
        row: its tokens and mask. cuts: place -> tokens that are missing before it.
    """

    label: str
    row: EncodedRow
    cuts: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ShownRow:
    """One row as the model will see it.

    Attributes:
        number: from 1, among the rows that are kept. where: its file and row, or those of its documents.
        sequences: what it consists of. extras: columns that rewards will read, in stages that sample.
        notes: facts about the row.
    """

    number: int
    where: str
    sequences: tuple[ShownSequence, ...]
    extras: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What ``shown_rows`` found.

    Attributes:
        rows: those asked for. report: account of the rows that were looked at. num_examples: rows of the data set.
        template: how chats are rendered; None for documents.
    """

    rows: list[ShownRow]
    report: Report
    num_examples: int
    template: Template | None


def shown_rows(
    config: RunConfig,
    tokenizer: PreTrainedTokenizerBase,
    count: int,
    *,
    start: int = 1,
    held_out: bool = False,
    only_cut: bool = False,
) -> Shown:
    """Rows of the data set from the first on, in the order of the files.

    Args:
        config: names data and stage. tokenizer: the model's.
        count: how many. start: number of the first, from 1, among the rows that are kept.
        held_out: those that are kept for evaluation. only_cut: those alone that ``cutoff_len`` cut.

    Raises:
        UserError: bad data, or no such row.
    """
    stage, data = config.method.stage, config.data
    on_text = stage == "pt" or (stage == "sft" and data.text_column is not None)
    template = None if on_text else Template.configured(tokenizer, data, stage)
    report = Report()
    examples = _examples(config, report, held_out)
    looks = _Looks(config, tokenizer, template, report)
    found = looks.blocks(examples, start, count) if stage == "pt" else looks.single(examples, start, count, only_cut)
    if stage != "pt":
        report.rows_read = report.kept + sum(report.dropped.values())
    if not found:
        what = "row that cutoff_len cuts" if only_cut else "row"
        raise UserError(f"there is no {what} from number {start} on: {report.sentence()}")
    return Shown(rows=found, report=report, num_examples=len(examples), template=template)


def _examples(config: RunConfig, report: Report, held_out: bool) -> list[Example]:
    data, stage, margins = looked_at(config.data), config.method.stage, config.reward_model.margin_column
    if not data.dataset:
        raise UserError("no `dataset`: name an entry of dataset_info.json or the path of a data file")
    others = Report()
    train, kept_out = split_examples(data, stage, report, others, seed=config.train.seed, margin_column=margins)
    if not held_out:
        return train
    if not kept_out:
        raise UserError("no row is held out: set `val_size` or `eval_dataset`")
    report.rows_read, report.dropped, report.first_dropped = others.rows_read, others.dropped, others.first_dropped
    return kept_out


@dataclass(frozen=True)
class _Looks:
    """Encoding with an eye on where rows come from."""

    config: RunConfig
    tokenizer: PreTrainedTokenizerBase
    template: Template | None
    report: Report

    def single(self, examples: Sequence[Example], start: int, count: int, only_cut: bool) -> list[ShownRow]:
        """Rows of stages in which an example is a row."""
        wanted = start - 1 + count
        found: Iterable[tuple[Example, Any, bool]] = self._kept(examples)
        if self.config.method.stage == "kto":  # the twin of the first row is made of the last
            every = list(found)
            twins = with_mismatched([row for _, row, _ in every], self.config.data.cutoff_len)
            found = [(example, twin, cut) for (example, _, cut), twin in zip(every, twins, strict=True)]
        kept = list(islice((item for item in found if item[2] or not only_cut), wanted))
        return [self._row(number, *kept[number - 1]) for number in range(start, min(wanted, len(kept)) + 1)]

    def blocks(self, examples: Sequence[Example], start: int, count: int) -> list[ShownRow]:
        """Rows of stage pt, which may hold several documents, or a part of one."""
        data, documents = self.config.data, [e for e in examples if isinstance(e, TextExample)]
        rows = encode_examples(documents, self.tokenizer, None, data, "pt", self.report)
        lengths = [len(encode.encode_text(document, self.tokenizer)) for document in documents]
        if data.neat_packing or data.packing is False:
            spans = [(i, i) for i, n in enumerate(lengths) for at in range(0, n, data.cutoff_len) if n - at > 1]
        else:
            ends = list(accumulate(lengths))
            starts = [0, *accumulate(map(len, rows))]
            spans = [(bisect_right(ends, a), bisect_right(ends, b - 1)) for a, b in pairwise(starts)]
        found = []
        for number in range(start, min(start - 1 + count, len(rows)) + 1):
            first, last = spans[number - 1]
            where = documents[first].where + (f" to {documents[last].where}" if last > first else "")
            notes = (f"{last - first + 1} documents",) if last > first else ()
            sequence = ShownSequence(label="", row=rows[number - 1])
            found.append(ShownRow(number=number, where=where, sequences=(sequence,), notes=notes))
        return found

    def _kept(self, examples: Sequence[Example]) -> Iterator[tuple[Example, Any, bool]]:
        for example in examples:
            before = self.report.truncated
            row = self._encoded(example, self.report)
            if row is not None:
                yield example, row, self.report.truncated > before

    def _encoded(self, example: Example, report: Report, cutoff_len: int | None = None) -> Any:
        """The row of an example, None where it is dropped."""
        data = self.config.data if cutoff_len is None else replace(self.config.data, cutoff_len=cutoff_len)
        stage, dropped = self.config.method.stage, sum(report.dropped.values())
        try:
            return encode_examples([example], self.tokenizer, self.template, data, stage, report)[0]
        except UserError:
            if sum(report.dropped.values()) == dropped:
                raise
            return None

    def _row(self, number: int, example: Example, row: Any, cut: bool) -> ShownRow:
        sequences = sequences_of(row)
        if cut:
            full = sequences_of(self._encoded(example, Report(), NO_LIMIT))
            if len(full) == len(sequences):
                pairs = zip(sequences, full, strict=True)
                sequences = tuple(s if s.label == TWIN else _compared(s, whole) for s, whole in pairs)
        extras = row.extras if isinstance(row, EncodedPrompt) else {}
        return ShownRow(number=number, where=example.where, sequences=sequences, extras=extras, notes=_notes(row))


def sequences_of(row: Any) -> tuple[ShownSequence, ...]:
    """The sequences of an encoded row of any stage, each with what it is."""
    if isinstance(row, EncodedPair):
        return ShownSequence(label="chosen", row=row.chosen), ShownSequence(label="rejected", row=row.rejected)
    if isinstance(row, EncodedRanking):
        last = len(row.rows)
        names = {1: " (best)", last: " (worst)"}
        return tuple(ShownSequence(label=f"rank {i}{names.get(i, '')}", row=r) for i, r in enumerate(row.rows, start=1))
    if isinstance(row, EncodedAnswer):
        kind = "good answer" if row.desirable else "bad answer"
        return ShownSequence(label=kind, row=row.row), ShownSequence(label=TWIN, row=row.mismatched)
    if isinstance(row, EncodedPrompt):
        return (ShownSequence(label="prompt", row=EncodedRow(row.input_ids, [False] * len(row.input_ids))),)
    return (ShownSequence(label="", row=row),)


def _compared(kept: ShownSequence, full: ShownSequence) -> ShownSequence:
    return replace(kept, cuts=cuts_of(full.row.input_ids, kept.row.input_ids))


def _notes(row: Any) -> tuple[str, ...]:
    if isinstance(row, EncodedPair):
        shared = next(
            (i for i, (a, b) in enumerate(zip(row.chosen.input_ids, row.rejected.input_ids, strict=False)) if a != b),
            min(len(row.chosen), len(row.rejected)),
        )
        margin = () if row.margin is None else (f"margin {row.margin:g}",)
        return (f"{shared} tokens in common", *margin)
    return ()


def samples_from(config: RunConfig) -> bool:
    """Whether what is shown are prompts, from whose end the model itself goes on."""
    return is_online(config.method.stage)

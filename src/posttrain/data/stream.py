"""Training rows that are read as they are needed: an endless sequence that follows from its seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, TypeVar

from posttrain.data import encode
from posttrain.data.datasets import encode_example, encode_examples, example_maker, no_row_left, read_examples
from posttrain.data.encode import Report
from posttrain.data.formats import Example, TextExample, UnusableRowError
from posttrain.data.mixing import mixed
from posttrain.data.sources import resolve_dataset, rows_of
from posttrain.data.splits import Splits, hold_out
from posttrain.data.template import EncodedRow, Template
from posttrain.data.unpaired import require_both_kinds, with_mismatched

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from posttrain.config import DataConfig

Item = TypeVar("Item")
LOOKED_AT = 1000
"""Rows whose columns decide about the layout of a dataset, and which rewards look at before a run."""
_TWINS = 64  # judged answers that get their mismatched twins from each other


class RowStream:
    """The training rows of a run, one epoch after the other.

    Which row stands at a place is a function of the data and the seed, so that a run that goes on at a step takes the
    rows that it would have taken; those before are read again and passed over.

    Attributes:
        report: account of the rows read so far, of the first epoch.
    """

    def __init__(self, epoch: Callable[[int, int, Report], Iterator[Any]], seed: int) -> None:
        """Begin at the first row.

        Args:
            epoch: (seed, number of the epoch, report) -> its encoded rows, at least one.
            seed: of their order.
        """
        self.report = Report()
        self._epoch, self._seed = epoch, seed
        self._rows, self._place = self._from_start(self.report), 0
        self._again: dict[int, RowStream] = {}
        self._ref_logps: Sequence[tuple[float, float]] | None = None

    def take(self, start: int, count: int) -> list[Any]:
        """The rows at places ``start`` to ``start + count``; steps that follow each other read on."""
        if start < self._place:
            self._rows, self._place = self._from_start(Report()), 0
        skipped = start - self._place
        rows = list(islice(self._rows, skipped, skipped + count))
        self._place = start + count
        if self._ref_logps is None:
            return rows
        return [replace(row, ref_logps=self._ref_logps[start + i]) for i, row in enumerate(rows)]

    def first(self, count: int) -> Iterator[Any]:
        """The first rows, read apart from those that are taken."""
        return islice(self._from_start(Report()), count)

    def head(self) -> list[Any]:
        """Rows of the first epoch, as many as one looks at before a run."""
        return list(islice(self._epoch(self._seed, 0, Report()), LOOKED_AT))

    def reseeded(self, seed: int) -> RowStream:
        """The same rows in another order; the same object for the same seed."""
        if seed not in self._again:
            self._again[seed] = RowStream(self._epoch, seed)
        return self._again[seed]

    def with_ref_logps(self, ref_logps: Sequence[tuple[float, float]]) -> RowStream:
        """The same rows, the first of them with what the reference says of them."""
        found = RowStream(self._epoch, self._seed)
        found.report, found._ref_logps = self.report, ref_logps
        found._rows = found._from_start(found.report)
        return found

    def _from_start(self, report: Report) -> Iterator[Any]:
        number = 0
        while True:
            yield from self._epoch(self._seed, number, report if number == 0 else Report())
            number += 1


def looked_at(data: DataConfig) -> DataConfig:
    """The same data, of a stream the first rows alone: for whoever looks before a run."""
    if not data.streaming:
        return data
    return replace(data, max_samples=data.max_samples or max(LOOKED_AT, 10 * int(data.val_size)))


def stream_dataset(
    data: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    stage: str,
    *,
    seed: int,
    order_seed: int,
    shuffle: bool = True,
    margin_column: str | None = "margin",
) -> Splits:
    """As ``load_dataset``, with a ``RowStream`` to train on; held-out rows are in memory.

    Args:
        data: which datasets; of ``val_size`` rows, chosen among the first ``buffer_size``, none is trained on.
        tokenizer: the model's. stage: as in ``load_dataset``.
        seed: chooses held-out rows and whose turn it is. order_seed: of the order of rows.
        shuffle: each row is drawn from ``buffer_size`` that were read ahead.
        margin_column: as in ``load_dataset``.

    Raises:
        UserError: bad data among what is read before the run.
    """
    on_text = stage == "pt" or (stage == "sft" and data.text_column is not None)
    template = None if on_text else Template.configured(tokenizer, data, stage)
    validation_report = Report()
    sources = partial(_sources, data, stage, margin_column)
    held_out: Sequence[Example] = ()
    if data.eval_dataset:
        held_out = read_examples(data.eval_dataset, data, stage, validation_report, margin_column=margin_column)
    elif data.val_size:
        ahead = list(islice(_mixed(data, sources(Report()), seed), data.buffer_size))
        rows = list({e.where + e.group: e for e in ahead}.values())
        chosen = {e.where + e.group for e in hold_out(rows, data.val_size, seed)[1]}
        held_out = [e for e in ahead if e.where + e.group in chosen]
        validation_report.rows_read = len(held_out)
    kept_out = set() if data.eval_dataset else {e.group or e.where for e in held_out}

    def epoch(order_seed: int, number: int, report: Report) -> Iterator[Any]:
        examples: Iterator[Example] = (
            e for e in _mixed(data, sources(report), seed) if (e.group or e.where) not in kept_out
        )
        if shuffle:
            examples = buffered(examples, data.buffer_size, seed=f"{order_seed}:{number}")
        return _at_least_one(_encoded(examples, tokenizer, template, data, stage, report), report, data)

    train = RowStream(epoch, order_seed)
    validation = encode_examples(held_out, tokenizer, template, data, stage, validation_report) if held_out else []
    next(train.first(1))  # what is wrong with the first rows is said before anything is loaded
    notes = _kinds_seen(train.head()) if stage == "kto" else ()
    how = f"each drawn from {data.buffer_size} that are read ahead" if shuffle else "in their order"
    return Splits(
        train=train,  # type: ignore[arg-type]
        validation=validation,
        report=train.report,
        validation_report=validation_report if validation else None,
        template=template,
        notes=(f"rows are read as they are needed, {how}", *notes),
    )


def _kinds_seen(head: Sequence[Any]) -> tuple[str, ...]:
    """A sentence where the first answers are all good, or all bad.

    Raises:
        UserError: there are no others.
    """
    if len({answer.desirable for answer in head}) > 1:
        return ()
    if len(head) < LOOKED_AT:
        require_both_kinds(head)
    kind = "good" if head[0].desirable else "bad"
    return (f"the first {len(head)} answers are all {kind}: stage kto learns from both kinds, best mixed well",)


def buffered(items: Iterable[Item], size: int, *, seed: str) -> Iterator[Item]:
    """The items in a random order, each drawn from ``size`` that were read ahead."""
    chance = random.Random(seed)
    buffer: list[Item] = []
    for item in items:
        if len(buffer) < size:
            buffer.append(item)
            continue
        place = chance.randrange(size)
        yield buffer[place]
        buffer[place] = item
    chance.shuffle(buffer)
    yield from buffer


class _Examples:
    """The examples of one dataset, read anew whenever they are iterated."""

    def __init__(self, name: str, data: DataConfig, stage: str, margin_column: str | None, report: Report) -> None:
        self._name, self._data, self._stage, self._margin, self._report = name, data, stage, margin_column, report

    def __iter__(self) -> Iterator[Example]:
        data, report, self._report = self._data, self._report, Report()  # rows that are read again count once
        spec = resolve_dataset(self._name, data.dataset_dir)
        limits = [limit for limit in (spec.num_samples, data.max_samples) if limit is not None]
        rows = islice(rows_of(spec, data.split, streaming=True), min(limits, default=None))
        ahead = list(islice(rows, LOOKED_AT))
        make = example_maker(spec, [row for _, row in ahead], data, self._stage, margin_column=self._margin)
        for where, row in chain(ahead, rows):
            report.rows_read += 1
            try:
                yield from make(row, where)
            except UnusableRowError as unusable:
                report.drop(unusable.reason, where)


def _sources(data: DataConfig, stage: str, margin_column: str | None, report: Report) -> list[_Examples]:
    return [_Examples(name, data, stage, margin_column, report) for name in data.dataset]


def _mixed(data: DataConfig, sources: Sequence[Iterable[Example]], seed: int) -> Iterator[Example]:
    return mixed(sources, data.mix_strategy, data.interleave_probs, seed=seed, names=data.dataset)


def _encoded(
    examples: Iterable[Example],
    tokenizer: PreTrainedTokenizerBase,
    template: Template | None,
    data: DataConfig,
    stage: str,
    report: Report,
) -> Iterator[Any]:
    if stage == "pt":
        yield from _blocks(examples, tokenizer, data, report)
        return
    rows = _rows(examples, tokenizer, template, data, report)
    if stage != "kto":
        yield from rows
        return
    window = list(islice(rows, _TWINS))
    while window:
        following = list(islice(rows, _TWINS))
        if len(following) < _TWINS:  # the last ones of an epoch join those before, not to be left alone
            window, following = window + following, []
        yield from with_mismatched(window, data.cutoff_len)
        window = following


def _rows(
    examples: Iterable[Example],
    tokenizer: PreTrainedTokenizerBase,
    template: Template | None,
    data: DataConfig,
    report: Report,
) -> Iterator[Any]:
    for example in examples:
        found = encode_example(example, data, tokenizer, template)
        if isinstance(found, str):
            report.drop(found, example.where)
            continue
        row, cut, closed = found
        report.kept += 1
        report.truncated += cut
        report.end_of_turn_kept += closed
        yield row


def _blocks(
    examples: Iterable[Example], tokenizer: PreTrainedTokenizerBase, data: DataConfig, report: Report
) -> Iterator[EncodedRow]:
    """Blocks of documents, as ``encode.blocks`` cuts all of them; what is left is the last block of an epoch."""
    apart = data.neat_packing or data.packing is False
    separator, size = tokenizer.eos_token_id, data.cutoff_len
    left: list[int] = []
    report.sequences = 0
    for example in examples:
        assert isinstance(example, TextExample)
        ids = encode.encode_text(example, tokenizer)
        report.kept += 1
        if not apart and left and separator is not None and left[-1] != separator:
            left.append(separator)
        left += ids
        whole = len(left) if apart else len(left) // size * size
        for row in encode.blocks([left[:whole]], size):
            report.sequences += 1
            yield row
        left = left[whole:]
    for row in encode.blocks([left], size):
        report.sequences += 1
        yield row


def _at_least_one(rows: Iterator[Any], report: Report, data: DataConfig) -> Iterator[Any]:
    first = next(rows, None)
    if first is None:
        raise no_row_left(report, data)
    yield first
    yield from rows

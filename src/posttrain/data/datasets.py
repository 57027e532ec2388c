"""The room's front door: datasets named in the configuration -> encoded splits for one stage."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from posttrain.data import encode
from posttrain.data.cache import kept_splits
from posttrain.data.columns import Question, row_layout
from posttrain.data.encode import EncodedPair, EncodedPrompt, Report
from posttrain.data.files import Row
from posttrain.data.formats import (
    ChatExample,
    Example,
    Layout,
    PairExample,
    PromptExample,
    RankingExample,
    TextExample,
    UnpairedExample,
    UnusableRowError,
    chat_example,
    pair_example,
    prompt_example,
    text_example,
)
from posttrain.data.mixing import mixed
from posttrain.data.rankings import EncodedRanking, encode_ranking, is_ranking, pairs_of, ranking_example
from posttrain.data.sources import DatasetSpec, resolve_dataset, rows_of
from posttrain.data.splits import Splits, grouped, held_out_places
from posttrain.data.template import EncodedRow, Template
from posttrain.data.unpaired import (
    EncodedAnswer,
    encode_unpaired,
    require_both_kinds,
    unpaired_examples,
    with_mismatched,
)
from posttrain.data.workers import mapped
from posttrain.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from posttrain.config import DataConfig

PAIR_STAGES = ("rm", "dpo")
Encoded = EncodedRow | EncodedPair | EncodedRanking | EncodedAnswer | EncodedPrompt


def load_dataset(
    data: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    stage: str,
    *,
    seed: int = 42,
    margin_column: str | None = "margin",
    template: Template | None = None,
    choose: Callable[[list[Example]], list[Example]] | None = None,
) -> Splits:
    """Read, split, render and cut the datasets of ``data`` for one stage.

    Args:
        data: which datasets, and how to cut and split them.
        tokenizer: the model's.
        stage: pt -> EncodedRow of joined documents (packing, the default), or of single ones (neat_packing, or
            packing off); sft -> EncodedRow, of chats, or of documents with ``text_column``; rm, dpo -> EncodedPair;
            kto -> EncodedAnswer; the others -> EncodedPrompt.
        seed: chooses the validation rows.
        margin_column: rm: by how much chosen should win, where a row says so.
        template: made from ``data`` if not given.
        choose: takes some of the training examples, then some of the others, for whoever wants to look at a few.

    Raises:
        UserError: bad data; the message names file, row and column. Also when no row is left.
    """
    if not data.dataset and not data.tokenized_path:
        raise UserError("no `dataset`: name an entry of dataset_info.json or the path of a data file")
    on_text = stage == "pt" or (stage == "sft" and data.text_column is not None)
    if on_text:
        template = None
    elif template is None:
        template = Template.configured(tokenizer, data, stage)
    settings: dict[str, Any] = {"stage": stage, "seed": seed, "margin_column": margin_column}
    if choose is not None:
        return _encoded_splits(data, tokenizer, template, choose=choose, **settings)
    make = partial(_encoded_splits, data, tokenizer, template, **settings)
    return kept_splits(data, tokenizer, template, settings, make)


def _encoded_splits(
    data: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    template: Template | None,
    *,
    stage: str,
    seed: int,
    margin_column: str | None,
    choose: Callable[[list[Example]], list[Example]] = lambda examples: examples,
) -> Splits:
    report, validation_report = Report(), Report()
    examples, held_out = split_examples(data, stage, report, validation_report, seed=seed, margin_column=margin_column)
    train = encode_examples(choose(examples), tokenizer, template, data, stage, report)
    if stage == "kto" and not data.streaming:  # of a stream these are the first rows alone
        require_both_kinds(train)
    validation: list[Any] = []
    if held_out or data.eval_dataset:
        validation = encode_examples(choose(held_out), tokenizer, template, data, stage, validation_report)
    return Splits(
        train=train,
        validation=validation,
        report=report,
        validation_report=validation_report if validation else None,
        template=template,
    )


def split_examples(
    data: DataConfig,
    stage: str,
    report: Report,
    validation_report: Report,
    *,
    seed: int = 42,
    margin_column: str | None = "margin",
) -> tuple[list[Example], list[Example]]:
    """The training examples of ``data`` in their order, and those held out; rows are counted in the reports."""
    sources = [read_examples((name,), data, stage, report, margin_column=margin_column) for name in data.dataset]
    if data.eval_dataset:
        held_out = read_examples(data.eval_dataset, data, stage, validation_report, margin_column=margin_column)
    else:
        sources, held_out = _without_held_out(sources, data.val_size, seed)
        report.rows_read -= len(held_out)
        validation_report.rows_read = len(held_out)
    examples = list(mixed(sources, data.mix_strategy, data.interleave_probs, seed=seed, names=data.dataset))
    if data.mix_strategy != "concat":
        report.mixed = len(examples)
    return examples, held_out


def read_examples(
    names: Iterable[str], data: DataConfig, stage: str, report: Report, *, margin_column: str | None = "margin"
) -> list[Example]:
    """The examples of several datasets, one after the other; rows that cannot train are counted in ``report``."""
    examples: list[Example] = []
    for name in names:
        spec, table = dataset_table(name, data)
        make = example_maker(spec, [row for _, row in table], data, stage, margin_column=margin_column)
        for where, row in table:
            report.rows_read += 1
            try:
                examples += make(row, where)
            except UnusableRowError as unusable:
                report.drop(unusable.reason, where)
    return examples


def dataset_rows(name: str, data: DataConfig) -> tuple[DatasetSpec, list[dict[str, Any]]]:
    """Where a dataset lies, and its rows, as many as ``num_samples`` and ``max_samples`` allow."""
    spec, table = dataset_table(name, data)
    return spec, [row for _, row in table]


def dataset_table(name: str, data: DataConfig) -> tuple[DatasetSpec, list[Row]]:
    """As ``dataset_rows``, each row with where it stands."""
    spec = resolve_dataset(name, data.dataset_dir)
    limits = [limit for limit in (spec.num_samples, data.max_samples) if limit is not None]
    return spec, list(islice(rows_of(spec, data.split, streaming=data.streaming), min(limits, default=None)))


def example_maker(
    spec: DatasetSpec,
    rows: Sequence[dict[str, Any]],
    data: DataConfig,
    stage: str,
    *,
    margin_column: str | None = "margin",
) -> Callable[[dict[str, Any], str], tuple[Example, ...]]:
    """A function from a row of this dataset, and where it stands, to the examples that the stage takes from it.

    It raises UserError for a malformed row and UnusableRowError for one that cannot train.

    Raises:
        UserError: if the layout of the rows is not known.
    """
    named = stage in ("pt", "sft") and data.text_column is not None
    question = None if stage == "pt" or named else Question.configured(data)
    layout = Layout() if named and spec.layout is None else None
    layout = layout or row_layout(spec.layout, rows, f"{spec.place}, row 1", data, set().union(*rows))
    make = _maker(layout, stage, data.text_column, margin_column)

    def made(row: dict[str, Any], where: str) -> tuple[Example, ...]:
        found = make(row if question is None else question.put_into(row, where), where)
        return grouped(found if isinstance(found, tuple) else (found,), row, where, data.split_key)

    return made


def _without_held_out(
    sources: Sequence[Sequence[Example]], val_size: float, seed: int
) -> tuple[list[list[Example]], list[Example]]:
    """Each dataset without its held-out rows, and those of all of them: what is held out is never drawn."""
    chosen = set(held_out_places([example for source in sources for example in source], val_size, seed))
    left: list[list[Example]] = []
    held_out: list[Example] = []
    place = 0
    for source in sources:
        left.append([example for i, example in enumerate(source, start=place) if i not in chosen])
        held_out += [example for i, example in enumerate(source, start=place) if i in chosen]
        place += len(source)
    return left, held_out


def encode_examples(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    template: Template | None,
    data: DataConfig,
    stage: str,
    report: Report,
    kept: list[Example] | None = None,
) -> list[Any]:
    """Examples as encoded rows; the account is added to ``report``, those that became a row of their own to ``kept``.

    Raises:
        UserError: if no row is left.
    """
    if stage == "pt":
        rows: list[Any] = _documents(examples, tokenizer, data, report)
    else:
        rows = []
        outcomes = _shared_out(encode_example, examples, data, tokenizer, template)
        for example, found in zip(examples, outcomes, strict=True):
            if isinstance(found, str):
                report.drop(found, example.where)
                continue
            row, cut, closed = found
            rows.append(row)
            if kept is not None:
                kept.append(example)
            report.kept += 1
            report.truncated += cut
            report.end_of_turn_kept += closed
    if not rows:
        raise no_row_left(report, data)
    return with_mismatched(rows, data.cutoff_len) if stage == "kto" else rows


def no_row_left(report: Report, data: DataConfig) -> UserError:
    """The error that says what became of all rows."""
    if not report.dropped:
        return UserError("no row is left to use: the dataset is empty")
    reason, count = report.dropped.most_common(1)[0]
    fix = f" Raise cutoff_len (now {data.cutoff_len})." if encode.TOO_LONG in reason else ""
    return UserError(f"no row is left to use: {count} dropped: {reason} (first: {report.first_dropped[reason]}).{fix}")


def encode_example(
    example: Example, data: DataConfig, tokenizer: PreTrainedTokenizerBase, template: Template | None
) -> tuple[Encoded, bool, bool] | str:
    """(encoded, was it cut, does it end with its end-of-turn token), or why it cannot train.

    Raises:
        UserError: the template refuses it; the message names the row.
    """
    try:
        return _encode(example, tokenizer, template, data)
    except UnusableRowError as unusable:
        return unusable.reason
    except UserError as error:
        raise UserError(f"{example.where}: {error}") from error


def _shared_out(
    function: Callable[..., Any],
    examples: Sequence[Example],
    data: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    template: Template | None,
) -> Iterator[Any]:
    return mapped(
        function,
        examples,
        (replace(data, dataset=(), eval_dataset=()), tokenizer, template),
        workers=data.preprocessing_num_workers or 1,
        chunk=data.preprocessing_batch_size,
    )


def _document(
    example: Example, data: DataConfig, tokenizer: PreTrainedTokenizerBase, template: Template | None
) -> list[int]:
    assert isinstance(example, TextExample)
    return encode.encode_text(example, tokenizer)


def _maker(
    layout: Layout, stage: str, text_column: str | None, margin_column: str | None
) -> Callable[[dict[str, Any], str], Example | tuple[Example, ...]]:
    if stage == "pt" or (stage == "sft" and text_column is not None):
        return lambda row, where: text_example(row, layout, where, text_column)
    if stage == "sft":
        return lambda row, where: chat_example(row, layout, where)
    if stage == "kto":
        return lambda row, where: unpaired_examples(row, layout, where)
    if stage in PAIR_STAGES:
        return partial(_preference, layout=layout, stage=stage, margin_column=margin_column)
    return lambda row, where: prompt_example(row, layout, where)


def _preference(
    row: dict[str, Any], where: str, *, layout: Layout, stage: str, margin_column: str | None
) -> Example | tuple[Example, ...]:
    """A pair; of a ranking, stage rm takes the whole, and the others every pair in it."""
    if not is_ranking(row, layout):
        return pair_example(row, layout, where, margin_column)
    ranking = ranking_example(row, layout, where)
    return ranking if stage == "rm" else pairs_of(ranking)


def _encode(
    example: Example, tokenizer: PreTrainedTokenizerBase, template: Template | None, data: DataConfig
) -> tuple[Encoded, bool, bool]:
    """(encoded, was it cut, does it end with its end-of-turn token)."""
    if isinstance(example, TextExample):
        ids = encode.encode_text(example, tokenizer)
        if len(ids) < 2:
            raise UnusableRowError("fewer than two tokens")
        return encode.row_of_text(ids[: data.cutoff_len]), len(ids) > data.cutoff_len, False
    assert template is not None
    if isinstance(example, PromptExample):
        side = data.truncation_side if data.cut_prompts else None
        prompt, cut = encode.encode_prompt(example, template, data.cutoff_len, side)
        return prompt, cut, False
    if isinstance(example, PairExample):
        pair, cut = encode.encode_pair(example, template, data.cutoff_len, data.truncation_side)
        return pair, cut, all(_is_closed(row, template) for row in (pair.chosen, pair.rejected))
    if isinstance(example, RankingExample):
        ranking, cut = encode_ranking(example, template, data.cutoff_len, data.truncation_side)
        return ranking, cut, all(_is_closed(row, template) for row in ranking.rows)
    if isinstance(example, UnpairedExample):
        answer, cut = encode_unpaired(example, template, data.cutoff_len, data.truncation_side)
        return answer, cut, _is_closed(answer.row, template)
    assert isinstance(example, ChatExample)
    row, cut = encode.encode_chat(
        example,
        template,
        data.cutoff_len,
        train_on_prompt=data.train_on_prompt,
        mask_history=data.mask_history,
        side=data.truncation_side,
    )
    return row, cut, _is_closed(row, template)


def _is_closed(row: EncodedRow, template: Template) -> bool:
    closing = list(template.closing)
    return row.input_ids[-len(closing) :] == closing and row.loss_mask[-1]


def _documents(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, data: DataConfig, report: Report
) -> list[EncodedRow]:
    documents = list(_shared_out(_document, examples, data, tokenizer, None))
    report.kept += len(documents)
    separator = tokenizer.eos_token_id
    if data.neat_packing or data.packing is False:
        rows = [row for ids in documents for row in encode.blocks([ids], data.cutoff_len)]
    else:
        rows = encode.blocks(documents, data.cutoff_len, separator)
    report.sequences = len(rows)
    return rows

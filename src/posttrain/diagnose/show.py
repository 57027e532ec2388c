"""`posttrain data show`: rows printed token by token."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

from posttrain.config import RunConfig
from posttrain.data.template import EncodedRow
from posttrain.diagnose.paint import Paint
from posttrain.diagnose.pieces import pieces
from posttrain.diagnose.rows import TWIN, Shown, ShownRow, samples_from, shown_rows
from posttrain.models.fetch import resolve_model
from posttrain.models.load import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LONGEST_EXTRA = 200


def show(
    config: RunConfig,
    count: int = 3,
    *,
    start: int = 1,
    held_out: bool = False,
    only_cut: bool = False,
    colours: bool = False,
    ids: bool = False,
) -> Iterator[str]:
    """The lines that show rows of a run's data as its model will see them.

    Args:
        config: of the run. count: rows. start, held_out, only_cut: as for ``shown_rows``.
        colours: for a terminal; else marks. ids: token ids below each text.

    Raises:
        UserError: bad data, or a model without a readable tokenizer.
    """
    model = config.model
    folder = resolve_model(model.model_name_or_path, revision=model.model_revision, cache_dir=model.cache_dir)
    tokenizer = load_tokenizer(folder, use_fast=model.use_fast_tokenizer, trust_remote_code=model.trust_remote_code)
    paint = Paint(colours)
    shown = shown_rows(config, tokenizer, count, start=start, held_out=held_out, only_cut=only_cut)
    yield from _head(config, shown, paint, held_out)
    for row in shown.rows:
        yield from _lines(row, tokenizer, paint, ids=ids, samples=samples_from(config))


def _head(config: RunConfig, shown: Shown, paint: Paint, held_out: bool) -> Iterator[str]:
    stage, data = config.method.stage, config.data
    kind = "held-out" if held_out else "training"
    yield paint.title(f"stage {stage}: {shown.num_examples} {kind} rows of {', '.join(data.dataset)}")
    if shown.template is not None:
        name = data.template or "of the tokenizer"
        ending = shown.template.tokenizer.decode(list(shown.template.closing))
        yield f"template {name}, cutoff_len {data.cutoff_len}, an answer ends with {ending!r}"
    else:
        yield f"documents without a template, cutoff_len {data.cutoff_len}"
    yield f"for what is shown here: {shown.report.sentence()}"
    yield paint.legend()


def _lines(
    row: ShownRow, tokenizer: PreTrainedTokenizerBase, paint: Paint, *, ids: bool, samples: bool
) -> Iterator[str]:
    facts = [f"row {row.number}", row.where, *row.notes]
    yield ""
    yield paint.title("-- " + " | ".join(fact for fact in facts if fact))
    for sequence in row.sequences:
        trained, total = sum(sequence.row.loss_mask), len(sequence.row)
        verb = "measured" if sequence.label == TWIN else "train"
        counts = f"{total} tokens" if samples else f"{total} tokens, {trained} {verb} ({trained / total:.0%})"
        missing = sum(sequence.cuts.values())
        cut = f", {missing} cut out of {total + missing}" if missing else ""
        yield paint.faint(f"{sequence.label + ': ' if sequence.label else ''}{counts}{cut}")
        row_shown = sequence.row
        if sequence.label == TWIN:
            row_shown = EncodedRow(row_shown.input_ids, [False] * total)
        found = pieces(tokenizer, row_shown, dict(sequence.cuts))
        yield paint.text(found) + (paint.faint("<the model goes on from here>") if samples else "")
        if ids:
            yield paint.ids(found)
    for name, value in row.extras.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
        yield paint.faint(f"  {name}: ") + (text if len(text) <= _LONGEST_EXTRA else text[: _LONGEST_EXTRA - 3] + "...")

"""Whether chats become the tokens that they should: template, end of turn, special tokens, masks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.config import RunConfig, is_online
from posttrain.data.datasets import Splits
from posttrain.data.formats import Message
from posttrain.data.template import EncodedRow, Template
from posttrain.diagnose.findings import Finding, share
from posttrain.diagnose.paint import Paint
from posttrain.diagnose.pieces import Piece, pieces
from posttrain.diagnose.rows import TWIN, sequences_of
from posttrain.models.load import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LOOKED_AT = 20
_FEW_TRAINED = 0.05
_MANY_CUT = 0.1
_MANY_DROPPED = 0.2
_SHOWN_CHARACTERS = 700
_CHAT = (Message("user", "What is 2 + 3? 二加三？"), Message("assistant", "2 + 3 = 5。\n"))


def template(rendering: Template, splits: Splits, config: RunConfig) -> Iterator[Finding]:
    """Whether training text begins with what sampling starts from, and decodes to what was written."""
    name = config.data.template or "the tokenizer's own"
    prompt, answer = _CHAT[:1], _CHAT[1].content
    trained = rendering.encode_chat(_CHAT).input_ids
    sampled = [*rendering.encode_prompt(prompt), *rendering.encode_answer(answer)]
    if trained != sampled:
        yield Finding(
            level="error",
            check="template",
            message=f"{name}: training renders a chat otherwise than sampling does",
            fix="Choose another `template`",
        )
    else:
        message = f"{name}: prompt, answer and end of turn are the tokens that sampling starts from and ends with"
        yield Finding(level="ok", check="template", message=message)
    closing = tokenizer_text(rendering.tokenizer, rendering.closing)
    written = rendering.prompt_text(prompt) + answer + closing
    read = tokenizer_text(rendering.tokenizer, trained)
    if read != written and read.lstrip() != written.lstrip():
        yield _lossy(read, written)
    yield from _unknown(rendering.tokenizer, splits)


def _lossy(read: str, written: str) -> Finding:
    place = next((i for i, (a, b) in enumerate(zip(read, written, strict=False)) if a != b), len(read))
    start = max(0, place - 10)
    return Finding(
        level="warning",
        check="template",
        message=f"decoding gives {read[start : place + 20]!r} where {written[start : place + 20]!r} was encoded",
        fix="The tokenizer changes text (lower case, blanks, unknown characters); answers can be no better than that",
    )


def _unknown(tokenizer: PreTrainedTokenizerBase, splits: Splits) -> Iterator[Finding]:
    unknown = tokenizer.unk_token_id
    if unknown is None:
        return
    tokens = [t for row in splits.train[:_LOOKED_AT] for s in sequences_of(row) for t in s.row.input_ids]
    count = tokens.count(unknown) if unknown not in (tokenizer.pad_token_id, tokenizer.eos_token_id) else 0
    if count:
        yield Finding(
            level="warning",
            check="template",
            message=f"{share(count, len(tokens))} tokens of the first rows are {tokenizer.unk_token}",
            fix="The tokenizer does not know the language of the data: take another model",
            count=count,
        )


def special_tokens(
    tokenizer: PreTrainedTokenizerBase, rendering: Template | None, folder: Path, rows: Sequence[Any]
) -> Iterator[Finding]:
    """Padding, end of sequence and end of turn, and whether the model has an embedding for every token."""
    pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
    parts = [f"pad {tokenizer.pad_token!r} ({pad})", f"end of sequence {tokenizer.eos_token!r} ({eos})"]
    if rendering is not None:
        parts.append(f"end of turn {tokenizer_text(tokenizer, rendering.end_of_turn)!r} {list(rendering.end_of_turn)}")
    if pad == eos:
        parts.append("pad is end of sequence, which is fine: masks come from lengths")
    yield Finding(level="ok", check="special tokens", message=", ".join(parts))
    stops = _stops(folder)
    if rendering is not None and stops and not stops & set(rendering.stop_token_ids):
        yield Finding(
            level="warning",
            check="special tokens",
            message=f"the model's generation_config.json stops at {sorted(stops)}, answers here end with "
            f"{rendering.end_of_turn[-1]}",
            fix="Other programs will not stop: give them this token too, or choose the model's own template",
        )
    config = read_json(folder / "config.json")
    size = config.get("vocab_size", (config.get("text_config") or {}).get("vocab_size"))
    highest = max((max(s.row.input_ids) for row in rows for s in sequences_of(row)), default=0)
    if isinstance(size, int) and highest >= size:
        yield Finding(
            level="error",
            check="special tokens",
            message=f"token {highest} ({tokenizer.convert_ids_to_tokens(highest)!r}) occurs and the model has {size} "
            "embeddings",
            fix="Tokenizer and model do not belong together: take both from one folder",
        )


def _stops(folder: Path) -> set[int]:
    path = folder / "generation_config.json"
    found = read_json(path).get("eos_token_id") if path.is_file() else None
    return set(found) if isinstance(found, list) else {found} if isinstance(found, int) else set()


def end_of_turn(splits: Splits, config: RunConfig) -> Finding | None:
    """Whether every row that trains an answer teaches to stop after it; None where there are no answers."""
    if splits.template is None or is_online(config.method.stage):
        return None
    closing = list(splits.template.closing)
    rows = [s.row for row in splits.train for s in sequences_of(row) if s.label != TWIN]
    lacking = [n for n, row in enumerate(rows, start=1) if not _closes(row, closing)]
    if lacking:
        return Finding(
            level="error",
            check="end of turn",
            message=f"{share(len(lacking), len(rows))} rows do not train the end of turn as their last token (first: "
            f"row {lacking[0]})",
            fix="A model trained so does not stop: choose another `template`",
            count=len(lacking),
        )
    return Finding(level="ok", check="end of turn", message=f"the last token that trains in each of {len(rows)} rows")


def _closes(row: EncodedRow, closing: list[int]) -> bool:
    return row.input_ids[-len(closing) :] == closing and all(row.loss_mask[-len(closing) :])


def labels(splits: Splits, config: RunConfig, tokenizer: PreTrainedTokenizerBase, paint: Paint) -> Iterator[Finding]:
    """One row with what trains in it, and how much trains in all."""
    sequences = [s for row in splits.train[:200] for s in sequences_of(row) if s.label != TWIN]
    first = sequences[0]
    block = _beginning(pieces(tokenizer, first.row), paint)
    if is_online(config.method.stage):
        message = f"a prompt of {len(first.row)} tokens, from whose end the model goes on"
        yield Finding(level="ok", check="prompt", message=message, block=block)
        return
    trained = sum(sum(s.row.loss_mask) for s in sequences)
    total = sum(len(s.row) for s in sequences)
    message = (
        f"{trained / total:.0%} of the tokens train; the first {first.label or 'row'} has {len(first.row)}, "
        f"{sum(first.row.loss_mask)} of which train"
    )
    level, fix = "ok", ""
    if trained / total < _FEW_TRAINED:
        level, fix = "warning", "Most of the work goes into prompts: shorten them, or check which column is the answer"
    yield Finding(level=level, check="labels", message=message, fix=fix, block=block)  # type: ignore[arg-type]


def _beginning(row: Sequence[Piece], paint: Paint) -> tuple[str, ...]:
    """The row in lines; of a long one, its beginning and its end, which is what trains."""
    size = sum(len(piece.text) for piece in row)
    if size > _SHOWN_CHARACTERS:
        head = _within(row, _SHOWN_CHARACTERS // 2)
        tail = _within(row[::-1], _SHOWN_CHARACTERS // 2)[::-1]
        return (*paint.text(head).split("\n"), "...", *paint.text(tail).split("\n"))
    return tuple(paint.text(row).split("\n"))


def _within(row: Sequence[Piece], limit: int) -> list[Piece]:
    """The first pieces, as many as ``limit`` characters hold."""
    ends = accumulate(len(piece.text) for piece in row)
    return [piece for piece, end in zip(row, ends, strict=True) if end <= limit]


def account(splits: Splits, num_rows: int, config: RunConfig) -> Iterator[Finding]:
    """How many rows were cut or dropped.

    Args:
        splits: of the rows looked at. num_rows: of the training set. config: of the run.
    """
    report = splits.report
    looked = "" if num_rows <= report.kept + sum(report.dropped.values()) else f" (looked at some of {num_rows} rows)"
    read = max(report.kept + sum(report.dropped.values()), 1)
    dropped = sum(report.dropped.values())
    level, fix = "ok", ""
    if report.truncated > _MANY_CUT * read:
        level, fix = (
            "warning",
            f"Raise cutoff_len ({config.data.cutoff_len}); posttrain data show CONFIG --cut shows them",
        )
    if dropped > _MANY_DROPPED * read:
        level, fix = "warning", "posttrain data check CONFIG says what is wrong with them"
    details = {"kept": report.kept, "cut": report.truncated, "dropped": dict(report.dropped), "rows": num_rows}
    message = f"{report.sentence()}{looked}"
    yield Finding(level=level, check="rows", message=message, fix=fix, details=details)  # type: ignore[arg-type]
    if splits.validation_report is not None:
        yield Finding(level="ok", check="held-out rows", message=splits.validation_report.sentence())


def tokenizer_text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of tokens, special ones included, nothing tidied up."""
    options: dict[str, Any] = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    return str(tokenizer.decode(list(ids), **options))

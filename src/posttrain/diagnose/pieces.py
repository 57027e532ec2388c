"""Token ids -> pieces of text that can be printed one after the other, each with whether it trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Any

from posttrain.data.template import EncodedRow

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# A character has at most four bytes, and a tokenizer may spend a token on each.
_LONGEST_CHARACTER = 4
# Decoders look back: SentencePiece writes the blank before a word only where something stands before it.
_LOOK_BACK = 4
# Beyond so many comparisons what was cut is told as one gap.
_MOST_COMPARED = 4_000_000
_BROKEN = "\ufffd"


@dataclass(frozen=True, slots=True)
class Piece:
    """Neighbouring tokens that make whole characters together, usually one.

    Attributes:
        text: as it reads. ids: its tokens; none in a gap. trains: whether they train.
        is_special: a special token. cut: tokens that were cut out here.
    """

    text: str
    ids: tuple[int, ...] = ()
    trains: bool = False
    is_special: bool = False
    cut: int = 0


def pieces(tokenizer: PreTrainedTokenizerBase, row: EncodedRow, cuts: dict[int, int] | None = None) -> list[Piece]:
    """A row as pieces; joined, their texts are the text of the row with its special tokens.

    Args:
        tokenizer: that made the row. row: what to show.
        cuts: place in the row -> tokens that were cut out before it.
    """
    special = _special_ids(tokenizer)
    cuts = cuts or {}
    found: list[Piece] = []
    pending: list[int] = []
    for place, (token, trains) in enumerate(zip(row.input_ids, row.loss_mask, strict=True)):
        if cut := cuts.get(place):
            found.append(Piece("", cut=cut))
        if token in special:
            found.append(Piece(str(tokenizer.convert_ids_to_tokens(token)), (token,), trains, is_special=True))
            continue
        pending.append(token)
        start = place + 1 - len(pending)
        text = _decoded(tokenizer, row.input_ids[max(0, start - _LOOK_BACK) : start], pending)
        goes_on = place + 1 < len(row) and row.input_ids[place + 1] not in special
        goes_on = goes_on and row.loss_mask[place + 1] == trains and place + 1 not in cuts
        if text.endswith(_BROKEN) and goes_on and len(pending) < _LONGEST_CHARACTER:
            continue
        found.append(Piece(text, tuple(pending), trains))
        pending = []
    if cut := cuts.get(len(row)):
        found.append(Piece("", cut=cut))
    return found


def cuts_of(full: Sequence[int], kept: Sequence[int]) -> dict[int, int]:
    """Where tokens of a row were cut out.

    Args:
        full: the row as it would be without a limit. kept: what was left of it.

    Returns:
        place in ``kept`` -> number of tokens that are missing before it.
    """
    start = 0
    while start < min(len(full), len(kept)) and full[start] == kept[start]:
        start += 1
    end = 0
    while end < min(len(full), len(kept)) - start and full[-1 - end] == kept[-1 - end]:
        end += 1
    inner, rest = full[start : len(full) - end], kept[start : len(kept) - end]
    if len(inner) * len(rest) > _MOST_COMPARED:
        return {start: len(inner) - len(rest)}
    cuts = {}
    for kind, i, j, a, b in SequenceMatcher(None, inner, rest, autojunk=False).get_opcodes():
        if kind != "equal" and (j - i) > (b - a):
            cuts[start + a] = (j - i) - (b - a)
    return cuts


def _decoded(tokenizer: PreTrainedTokenizerBase, before: Sequence[int], ids: Sequence[int]) -> str:
    """The text that ``ids`` add behind ``before``."""

    def text(tokens: Sequence[int]) -> str:
        options: dict[str, Any] = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
        return str(tokenizer.decode(list(tokens), **options))

    earlier, both = text(before), text([*before, *ids])
    return both[len(earlier) :] if both.startswith(earlier) else text(ids)


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    added: Any = tokenizer.added_tokens_decoder
    return {int(i) for i in tokenizer.all_special_ids} | {int(i) for i, token in added.items() if token.special}

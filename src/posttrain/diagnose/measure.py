"""The lengths of rows as a stage would encode them, and what ``cutoff_len`` does to them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from posttrain.config import DataConfig, is_online
from posttrain.data import encode
from posttrain.data.datasets import encode_examples
from posttrain.data.encode import Report
from posttrain.data.formats import TextExample
from posttrain.data.template import Template
from posttrain.diagnose.findings import Finding, first, share
from posttrain.diagnose.lengths import Lengths
from posttrain.diagnose.rows import NO_LIMIT
from posttrain.diagnose.tables import Item
from posttrain.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Rows that are tokenised; more of them would change the quantiles little and take long.
SAMPLE = 2000
_LONGEST = 50
_MANY_CUT = 0.05


def characters(items: Sequence[Item]) -> Lengths:
    """Prompt and longest answer in characters."""
    values = sorted(_size(item) for item in items)
    return Lengths(unit="characters", values=values, longest=values[-1])


def tokens(
    items: Sequence[Item], tokenizer: PreTrainedTokenizerBase, template: Template | None, data: DataConfig, stage: str
) -> tuple[Lengths, list[Finding]]:
    """Rows in tokens, template included, and what a limit of ``cutoff_len`` would cut.

    All rows are measured where they are few, else an even draw of them and, for the maximum, the longest texts.

    Raises:
        UserError: the template refuses the messages.
    """
    chosen = _even(range(len(items)), SAMPLE)
    longest = sorted(range(len(items)), key=lambda i: -_size(items[i]))[:_LONGEST]
    measured = {
        i: _encoded_length(items[i], tokenizer, template, data, stage) for i in dict.fromkeys([*chosen, *longest])
    }
    values = sorted(measured[i] for i in chosen)
    sampled = len(items) if len(chosen) < len(items) else None
    lengths = Lengths(unit="tokens", values=values, longest=max(measured.values()), sampled_of=sampled)
    if stage == "pt":
        return lengths, []
    return lengths, list(_cutting(items, measured, lengths, data.cutoff_len, is_online(stage)))


def _cutting(
    items: Sequence[Item], measured: dict[int, int], lengths: Lengths, limit: int, drops: bool
) -> Iterator[Finding]:
    above = [i for i in sorted(measured) if measured[i] > limit]
    verb, key = ("dropped", "prompts") if drops else ("cut", "rows")
    if not above:
        message = f"no row is longer than cutoff_len {limit} (longest: {lengths.longest} tokens)"
        yield Finding(level="ok", check="cutoff_len", message=message, count=0)
        return
    count, total = lengths.above(limit), len(lengths.values)
    about = "" if lengths.sampled_of is None else "about "
    known = about + share(count, total) if count else f"{len(above)}"
    among = "" if lengths.sampled_of is None or not count else f" {key} looked at"
    wanted = lengths.quantile(0.99)
    suggestion = f"cutoff_len: {-(-wanted // 64) * 64} holds 99% of them, {lengths.longest} all"
    yield Finding(
        level="warning" if count > _MANY_CUT * total or drops else "ok",
        check="cutoff_len",
        message=f"{known}{among or ' ' + key} are longer than cutoff_len {limit} and would be {verb}",
        fix=suggestion,
        count=count,
        places=first(f"{items[i].where}, {measured[i]} tokens" for i in above),
        details={"cutoff_len": limit, "measured": total},
    )


def _encoded_length(
    item: Item, tokenizer: PreTrainedTokenizerBase, template: Template | None, data: DataConfig, stage: str
) -> int:
    if isinstance(item.example, TextExample):
        return len(encode.encode_text(item.example, tokenizer))
    unlimited: Any = replace(data, cutoff_len=NO_LIMIT)
    try:
        row: Any = encode_examples([item.example], tokenizer, template, unlimited, stage, Report())[0]
    except UserError as error:
        raise UserError(f"{item.where}: {error}" if item.where not in str(error) else str(error)) from error
    return len(row)


def _even(numbers: Sequence[int], count: int) -> list[int]:
    """At most ``count`` of them, evenly spread."""
    if len(numbers) <= count:
        return list(numbers)
    return [numbers[i * len(numbers) // count] for i in range(count)]


def _size(item: Item) -> int:
    return len(item.prompt) + max((len(answer) for answer in item.answers), default=0)

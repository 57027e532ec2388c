"""Names of what is measured, the same in every run that measures it, so that results can be compared item by item."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from posttrain.data.formats import ChatExample, Example, Messages, PairExample, PromptExample, TextExample
from posttrain.data.template import EncodedRow

_DIGITS = 12


def ids_of_examples(examples: Iterable[Example]) -> tuple[str, ...]:
    """A name for each example, made of what is asked and what counts as right, not of its place in a file.

    Returns:
        Twelve hexadecimal digits each; of equal examples the second ends in ``-2``, the third in ``-3`` ...
    """
    return numbered(_digest(_content(example)) for example in examples)


def ids_of_rows(rows: Iterable[EncodedRow]) -> tuple[str, ...]:
    """Names of blocks of text, which are cut by tokens: another tokenizer makes other items."""
    return numbered(_digest([row.input_ids, row.loss_mask]) for row in rows)


def id_of_prompt(messages: Messages | str, reference: Any = None, database: Any = None) -> str:
    """The name of a prompt (a chat, or text where no more is known) with the answer that counts as right."""
    asked = messages if isinstance(messages, str) else [[m.role, m.content] for m in messages]
    return _digest([asked, reference, database])


def numbered(names: Iterable[str]) -> tuple[str, ...]:
    """The names, repeated ones told apart by their number."""
    seen: Counter[str] = Counter()
    found = []
    for name in names:
        seen[name] += 1
        found.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return tuple(found)


def digest_of(ids: Sequence[str]) -> str:
    """One name for a set of items, whatever their order."""
    return _digest(sorted(ids))


def _content(example: Example) -> Any:
    if isinstance(example, TextExample):
        return example.text
    if isinstance(example, ChatExample):
        return [[m.role, m.content] for m in example.messages]
    if isinstance(example, PairExample):
        return [[[m.role, m.content] for m in example.prompt], example.chosen, example.rejected]
    if isinstance(example, PromptExample):
        extras = example.extras
        asked = [[m.role, m.content] for m in example.prompt]
        return [asked, extras.get("reference"), extras.get("db")]
    raise TypeError(f"no evaluation measures a {type(example).__name__}")


def _digest(content: Any) -> str:
    text = json.dumps(content, ensure_ascii=True, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:_DIGITS]

"""The datasets of a configuration, row by row, whatever single rows are like."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from posttrain.config import DataConfig
from posttrain.data.datasets import dataset_table, example_maker
from posttrain.data.formats import (
    PROMPT_COLUMNS,
    RESPONSE_COLUMNS,
    ChatExample,
    Example,
    PairExample,
    PromptExample,
    RankingExample,
    TextExample,
    UnpairedExample,
    UnusableRowError,
)
from posttrain.data.unpaired import BAD, GOOD, LABEL_COLUMNS
from posttrain.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Item:
    """An example as the checks look at it.

    Attributes:
        where: file and row. prompt: its text with roles. answers: one; of pairs and rankings all, the best first.
        label: of a judged answer. example: what it was made from.
    """

    where: str
    prompt: str
    answers: tuple[str, ...]
    label: bool | None
    example: Example

    @property
    def group(self) -> str:
        """What ``split_key`` splits it by."""
        return self.example.group


@dataclass(kw_only=True)
class Table:
    """One dataset.

    Attributes:
        name: as configured. place: where it lies, None where it cannot be read. held_out: it is for evaluation.
        num_rows: that were read. columns: name -> type -> rows. items: usable examples.
        malformed: (place, message) of rows that a run stops at. unusable: reason -> places of rows that it drops.
        failure: why nothing could be read.
    """

    name: str
    place: str | None = None
    held_out: bool = False
    num_rows: int = 0
    columns: dict[str, Counter[str]] = field(default_factory=dict)
    items: list[Item] = field(default_factory=list)
    malformed: list[tuple[str, str]] = field(default_factory=list)
    unusable: dict[str, list[str]] = field(default_factory=dict)
    failure: str | None = None


def read_table(name: str, data: DataConfig, stage: str, *, margin_column: str, held_out: bool = False) -> Table:
    """A dataset with every row looked at; a row that is malformed does not hide the next."""
    table = Table(name=name, held_out=held_out)
    try:
        spec, found = dataset_table(name, data)
        rows = [row for _, row in found]
        table.place, table.num_rows = spec.place, len(rows)
        table.columns = columns_of(rows)
        make = example_maker(spec, rows, data, stage, margin_column=margin_column)
    except UserError as error:
        table.failure = str(error)
        return table
    for where, row in found:
        try:
            table.items += [_item(example, where) for example in make(row, where)]
        except UnusableRowError as unusable:
            table.unusable.setdefault(unusable.reason, []).append(where)
        except UserError as error:
            table.malformed.append((where, str(error)))
    return table


def columns_of(rows: Sequence[dict[str, Any]]) -> dict[str, Counter[str]]:
    """name -> type -> number of rows, ``missing`` where a row lacks the column; as JSON calls the types."""
    columns: dict[str, Counter[str]] = {}
    for row in rows:
        for name, value in row.items():
            columns.setdefault(name, Counter())[_kind(value)] += 1
    for kinds in columns.values():
        if missing := len(rows) - sum(kinds.values()):
            kinds["missing"] = missing
    return columns


def guessed_stage(rows: Sequence[dict[str, Any]]) -> str:
    """The stage that rows like these are for."""
    row, names = rows[0], set().union(*rows[:100])
    if "chosen" in names and "rejected" in names:
        return "dpo"
    if any(str(row.get(name)).strip().lower() in GOOD + BAD for name in LABEL_COLUMNS):
        return "kto"
    answers = [row[name] for name in RESPONSE_COLUMNS if name in row]
    if any(isinstance(answer, list) for answer in answers):
        return "rm"
    messages = next((value for value in row.values() if isinstance(value, list) and value), None)
    if messages and isinstance(messages[-1], dict):
        role = messages[-1].get("role", messages[-1].get("from"))
        return "sft" if role in ("assistant", "gpt") else "ppo"
    if not answers and "text" in names and not any(name in names for name in PROMPT_COLUMNS):
        return "pt"
    return "sft" if answers else "ppo"


def _item(example: Example, where: str) -> Item:
    prompt, label = "", None
    answers: tuple[str, ...] = ()
    if isinstance(example, TextExample):
        answers = (example.text,)
    elif isinstance(example, ChatExample):
        prompt, answers = _text(example.messages[:-1]), (example.messages[-1].content,)
    elif isinstance(example, PairExample):
        prompt, answers = _text(example.prompt), (example.chosen, example.rejected)
    elif isinstance(example, RankingExample):
        prompt, answers = _text(example.prompt), example.answers
    elif isinstance(example, UnpairedExample):
        prompt, answers, label = _text(example.prompt), (example.answer,), example.desirable
    elif isinstance(example, PromptExample):
        prompt = _text(example.prompt)
    return Item(where=where, prompt=prompt, answers=answers, label=label, example=example)


def _text(messages: Sequence[Any]) -> str:
    """Messages in one text; a system message and earlier turns are part of the prompt."""
    if len(messages) == 1:
        return str(messages[0].content)
    return "\n".join(f"{message.role}: {message.content}" for message in messages)


def _kind(value: Any) -> str:
    names = {str: "text", bool: "true/false", int: "number", float: "number", list: "list", dict: "object"}
    return "null" if value is None else names.get(type(value), type(value).__name__)

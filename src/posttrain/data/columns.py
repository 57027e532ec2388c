"""Which column of a row is what, where the configuration says so: `columns`, `question_template`, `prompt_template`."""

from __future__ import annotations

import difflib
import json
import re
import string
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from posttrain.data.formats import OPTIONAL_COLUMNS, RESPONSE_COLUMNS, Layout, guess_layout
from posttrain.errors import UserError

if TYPE_CHECKING:
    from posttrain.config import DataConfig

PURPOSES = (
    *("prompt", "query", "response", "history", "system", "messages", "chosen", "rejected", "kto_tag"),
    *("tools", "images", "videos", "audios"),
)
QUESTION = "\ue000question"
"""The column that holds what a template made of others; no file has one of that name."""
_ESCAPES = {r"\n": "\n", r"\t": "\t", r"\r": "\r", r"\\": "\\"}
_ESCAPED = re.compile(r"\\[ntr\\]")

Piece = tuple[str, str | None]
"""Text, and the name in braces behind it, if there is one."""


def pieces_of(text: str, key: str) -> list[Piece]:
    r"""A text with names in braces, cut at them; a brace that is meant literally is written twice, a line end ``\n``.

    Raises:
        UserError: a brace on its own, or more than a name in braces.
    """
    text = _ESCAPED.sub(lambda found: _ESCAPES[found[0]], text)
    try:
        parsed = list(string.Formatter().parse(text))
    except ValueError as error:
        raise UserError(f"{key}: {error}; a brace that is meant literally is written twice, {{{{ or }}}}") from None
    for _, name, shape, change in parsed:
        if name is not None and (shape or change):
            raise UserError(
                f"{key}: {{{name}}} is put in as it is; leave out what stands behind its name in the braces"
            )
    return [(literal, name) for literal, name, _, _ in parsed]


@dataclass(frozen=True)
class Question:
    """A user's message made of columns of its row; ``key`` is the one that asks for it."""

    pieces: tuple[Piece, ...]
    key: str

    @classmethod
    def configured(cls, data: DataConfig) -> Question | None:
        """What ``question_template`` says, or a ``prompt_template`` that names columns; None without either.

        Raises:
            UserError: it cannot be read, or names no column.
        """
        inner = None if data.prompt_template is None else spanned(pieces_of(data.prompt_template, "prompt_template"))
        if data.question_template is None:
            return None if inner is None else cls(inner[1], "prompt_template")
        if inner is not None:
            raise UserError(
                "question_template and prompt_template both name columns; write {prompt} into prompt_template where "
                "the question goes, or leave question_template out"
            )
        pieces = pieces_of(data.question_template, "question_template")
        if not any(name for _, name in pieces):
            raise UserError(
                "question_template: no column stands in it, so that all rows would ask the same; as in "
                '"{title}\\n{text}"'
            )
        return cls(tuple(pieces), "question_template")

    def put_into(self, row: Mapping[str, Any], where: str) -> dict[str, Any]:
        """The row with its question in a column of its own.

        Raises:
            UserError: it lacks a column.
        """
        parts: list[str] = []
        for literal, name in self.pieces:
            parts.append(literal)
            if name is not None:
                if name not in row:
                    near = difflib.get_close_matches(name, list(map(str, row)), n=1, cutoff=0.6)
                    hint = f"did you mean {{{near[0]}}}?" if near else f"it has: {', '.join(map(str, row)) or 'none'}."
                    raise UserError(f"{self.key}: {where}: no column {name!r}; {hint}")
                parts.append(_shown(row[name]))
        return {**row, QUESTION: "".join(parts)}


def spanned(pieces: Sequence[Piece]) -> tuple[list[Piece], tuple[Piece, ...]] | None:
    """A prompt template that names columns: with {prompt} in the place of all from the first to the last, and those.

    None where it has {prompt} itself, or no column.
    """
    names = [name for _, name in pieces]
    columns = [place for place, name in enumerate(names) if name is not None and _may_be_column(name)]
    if "prompt" in names or not columns:
        return None
    first, last = columns[0], columns[-1]
    if "system" in names[first:last]:
        return None  # a message stands in one place
    inside = ((("", pieces[first][1])), *pieces[first + 1 : last + 1])
    return [*pieces[:first], (pieces[first][0], "prompt"), *pieces[last + 1 :]], inside


def row_layout(
    layout: Layout | None, rows: Sequence[Mapping[str, Any]], where: str, data: DataConfig, names: Collection[str] = ()
) -> Layout:
    """How rows are laid out: as ``columns`` says, else as the dataset's entry does, else by the first row's columns.

    Args:
        layout: of the entry in ``dataset_info.json``; None without one.
        rows: of the dataset. where: the first of them stands there. data: the configuration.
        names: columns that occur in any row.

    Raises:
        UserError: ``columns`` is malformed, or no known shape fits.
    """
    named = configured_layout(data.columns) or layout
    question = Question.configured(data)
    if question is None:
        return named or guess_layout(rows[0], where, names)
    question.put_into(rows[0], where)  # says what is missing
    found: dict[str, str] = {}
    if named is not None:
        found = {purpose: name for purpose, name in named.columns.items() if purpose not in ("query", "messages")}
    else:
        known = {*rows[0], *names}
        found = {name: name for name in (*OPTIONAL_COLUMNS, "chosen", "rejected") if name in known}
        if response := next((name for name in RESPONSE_COLUMNS if name in known), None):
            found["response"] = response
    return Layout(columns={**found, "prompt": QUESTION})


def configured_layout(columns: Sequence[str]) -> Layout | None:
    """The layout that ``columns`` gives; None where it is empty.

    Raises:
        UserError: an entry is not purpose=column, or its purpose is none.
    """
    found: dict[str, str] = {}
    for entry in columns:
        purpose, separator, column = (part.strip() for part in entry.partition("="))
        if not separator or not purpose or not column:
            raise UserError(f"columns: `{entry}` is not purpose=column; write, for example, columns: prompt=question")
        check_purpose(purpose, "columns")
        found[purpose] = column
    if not found:
        return None
    layout = Layout(columns=found)
    return replace(layout, formatting="sharegpt") if "messages" in found else layout


def check_purpose(purpose: str, place: str) -> None:
    """Refuse a purpose that nobody knows: its column would be left out without a word."""
    if purpose not in PURPOSES:
        near = difflib.get_close_matches(purpose, PURPOSES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"it is one of {', '.join(PURPOSES)}"
        raise UserError(f"{place}: `columns` gives a column for {purpose!r}; {hint}")


def _may_be_column(name: str) -> bool:
    """Whether a name in braces can be meant for a column, and is no slip of a name that templates have."""
    is_slip = difflib.get_close_matches(name, ("prompt", "system"), n=1, cutoff=0.8)
    return bool(name.strip()) and "%" not in name and not is_slip


def _shown(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

"""What the readers of benchmarks find: questions, and the databases that they are about."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from posttrain.data.files import read_text
from posttrain.data.text2sql.benchmarks.schema import Schema
from posttrain.errors import UserError

Rows = Mapping[str, Sequence[Sequence[Any]]]
"""Table -> its rows, cells in the order of the columns."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One question.

    Attributes:
        split: name of the file that it goes into. where: it stood. level: its hardness where the benchmark says.
        tables: of the database that are shown with it; None for all. hint: what the benchmark adds to the question.
        prompt: the whole of what is asked, where the rows say; else it is made of question, hint and schema.
    """

    split: str
    where: str
    db_id: str
    text: str
    sql: str
    level: str | None = None
    tables: tuple[str, ...] | None = None
    hint: str = ""
    prompt: str = ""


@dataclass(frozen=True, kw_only=True)
class Held:
    """One database: an SQLite file that is there, or what one is built from.

    Attributes:
        schema: None where only the file knows. file: to be used as it is. rows: to be filled in.
        ignores_case: whether comparisons of text do.
    """

    schema: Schema | None = None
    file: Path | None = None
    rows: Rows = field(default_factory=dict)
    ignores_case: bool = False


class Benchmark(Protocol):
    """A benchmark on disk."""

    def questions(self) -> Iterator[Asked]:
        """All questions, file by file."""

    def database(self, db_id: str) -> Held | None:
        """A database; None where the benchmark has none of this name."""


def json_of(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        UserError: it cannot be read or is malformed; the message names the line.
    """
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}, line {error.lineno}: not valid JSON ({error.msg}); was it downloaded completely?"
        ) from error


def entries_of(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where each object of a JSON list stands, and the object.

    Raises:
        UserError: the file holds something else.
    """
    found = json_of(path)
    if not isinstance(found, list):
        raise UserError(f"{path}: must be a list of objects, found {type(found).__name__}")
    for number, entry in enumerate(found, start=1):
        if not isinstance(entry, dict):
            raise UserError(f"{path}, row {number}: must be an object, found {type(entry).__name__}")
        yield f"{path}, row {number}", entry


def text_of(entry: Mapping[str, Any], names: Sequence[str], where: str) -> str:
    """The first of these keys that holds text.

    Raises:
        UserError: none does.
    """
    for name in names:
        if isinstance(entry.get(name), str) and entry[name].strip():
            return str(entry[name]).strip()
    raise UserError(
        f"{where}: no text under `{'` or `'.join(names)}` (found: {', '.join(map(str, entry)) or 'nothing'})"
    )

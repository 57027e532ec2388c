"""Predicted SQL in the forms that benchmarks hand it in: lines, lists of texts, numbered answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from posttrain.data.files import Row, kind_of, read_text, rows_of_file
from posttrain.errors import UserError

_BIRD_MARK = "\t----- bird -----\t"


def rows_of_sql_file(path: Path) -> list[Row]:
    """Where each answer stands, and its columns.

    Beside the usual rows these are read: ``.sql`` and ``.txt`` with a statement on each line, an empty line where there
    is no answer, and Spider's ``<tab>db_id`` behind it; a JSON list of texts; BIRD's JSON object from numbers to
    answers.

    Raises:
        UserError: the file cannot be read or is malformed.
    """
    kind = kind_of(path)
    if kind in (".sql", ".txt"):
        lines = read_text(path).rstrip().splitlines()
        return [(f"{path}, line {number}", _answer(line)) for number, line in enumerate(lines, start=1)]
    if kind == ".json":
        try:
            found = json.loads(read_text(path))
        except ValueError as error:
            raise UserError(f"{path}: not valid JSON ({error}); was the run that writes it interrupted?") from error
        if isinstance(found, dict) and found and all(key.isdecimal() for key in found):
            found = [found[key] for key in sorted(found, key=int)]
        if isinstance(found, list) and all(isinstance(answer, str) for answer in found):
            return [(f"{path}, row {number}", _answer(text)) for number, text in enumerate(found, start=1)]
    return list(rows_of_file(path)) if path.stat().st_size else []


def _answer(text: str) -> dict[str, Any]:
    statement = text.partition(_BIRD_MARK)[0]
    before, tab, behind = statement.rpartition("\t")
    return {"predict": before if tab and behind.strip() and " " not in behind.strip() else statement}

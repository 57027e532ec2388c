"""Rows that are in memory, handed in from Python: checked, and kept as a file of the run directory."""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from posttrain.errors import UserError

_TOKENS = ("input_ids", "input_ids_chosen", "input_ids_rejected")


class GivenRows:
    """A list of mappings, a mapping of columns, or a dataset of any library that yields mappings.

    Attributes:
        key: the argument that named it.
    """

    def __init__(self, data: object, key: str, *, text_column: str | None = None) -> None:
        """Look at the first row.

        Args:
            data: the rows.
            key: the argument that named it, for messages.
            text_column: column that every row must have.

        Raises:
            UserError: it is empty, holds no rows of columns, rows of token ids, or no such column.
        """
        self.key = key
        self._rows = _iterable(data, key)
        first = next(iter(self), None)
        if first is None:
            raise UserError(f"{key} is empty: there is no row to train or to measure on")
        columns = ", ".join(map(str, first)) or "none"
        if text_column is not None and text_column not in first:
            raise UserError(
                f"{key}, row 1: no column {text_column!r} (found: {columns}); name the column that holds the texts, "
                "dataset_text_field=..."
            )
        if text_column is None and any(name in first for name in _TOKENS):
            raise UserError(
                f"{key} holds token ids (columns: {columns}); give the rows with their texts: they are rendered, "
                "tokenised and cut into blocks here"
            )

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        for number, row in enumerate(self._rows, start=1):
            if not isinstance(row, Mapping):
                raise UserError(
                    f"{self.key}, row {number}: expected a mapping such as {{'text': ...}}, found "
                    f"{type(row).__name__}{_splits(row)}"
                )
            yield row

    def columns(self) -> dict[str, list[Any]]:
        """The same rows as columns; None where a row has no value.

        Raises:
            UserError: a row is no mapping.
        """
        rows = list(self)
        names = dict.fromkeys(name for row in rows for name in row)
        return {str(name): [row.get(name) for row in rows] for name in names}

    def keep(self, path: Path, *, continues: bool) -> int:
        """Write one JSON object per line, whole or not at all; a file that holds the same rows stays.

        Args:
            path: the file.
            continues: a run is going to be continued on it, so other rows than those in it are a mistake.

        Returns:
            The number of rows.

        Raises:
            UserError: a row is no mapping, a value is nothing that JSON holds, or the file holds other rows.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.partial")
        count = 0
        with partial.open("w", encoding="utf-8", newline="\n") as file:
            for count, row in enumerate(self, start=1):
                file.write(_line(row, f"{self.key}, row {count}") + "\n")
        if continues and path.is_file() and path.read_bytes() != partial.read_bytes():
            partial.unlink()
            raise UserError(
                f"{self.key} holds other rows than those that the run in {path.parent.parent} began with ({path}): "
                "give the same rows to continue it, another output_dir, or overwrite_output_dir=True to start afresh"
            )
        os.replace(partial, path)
        return count


def is_named(data: object) -> bool:
    """Whether a dataset is given by name or path, or by several of them, rather than as rows."""
    if isinstance(data, str | Path):
        return True
    return isinstance(data, list | tuple) and bool(data) and all(isinstance(name, str | Path) for name in data)


def _iterable(data: object, key: str) -> Iterable[Any]:
    if isinstance(data, Mapping):
        values = list(data.values())
        if any(not isinstance(value, list | tuple) for value in values):
            splits = ", ".join(map(str, data))
            raise UserError(
                f'{key} is a mapping with {splits}: give one split of it ({key}=data["{next(iter(data))}"]), or a '
                "mapping of columns, each a list"
            )
        lengths = {str(name): len(value) for name, value in data.items()}
        if len(set(lengths.values())) > 1:
            counts = ", ".join(f"{name} {count}" for name, count in lengths.items())
            raise UserError(f"{key}: its columns have different numbers of values ({counts})")
        return [dict(zip(data, row, strict=True)) for row in zip(*values, strict=True)]
    if isinstance(data, str | bytes) or not isinstance(data, Iterable):
        raise UserError(
            f"{key} is a {type(data).__name__}; give a path, a list of rows such as [{{'text': ...}}], or a "
            "datasets.Dataset"
        )
    return list(data) if isinstance(data, Iterator) else data


def _splits(row: object) -> str:
    return "; texts are rows with a column each" if isinstance(row, str) else ""


def _line(row: Mapping[str, Any], where: str) -> str:
    def plain(value: Any) -> Any:
        if isinstance(value, datetime.date | datetime.datetime):
            return value.isoformat()
        convert = getattr(value, "tolist", None)  # numpy's numbers and arrays, and tensors
        if convert is None:
            raise TypeError(type(value).__name__)
        return convert()

    try:
        return json.dumps(dict(row), ensure_ascii=False, default=plain)
    except (TypeError, ValueError) as error:
        column = next((name for name, value in row.items() if not _fits(value, plain)), "")
        raise UserError(
            f"{where}: column {column!r} holds a {type(row.get(column)).__name__}, which is no text, number or list of "
            "them; remove the column"
        ) from error


def _fits(value: Any, plain: Any) -> bool:
    try:
        json.dumps(value, default=plain)
    except (TypeError, ValueError):
        return False
    return True

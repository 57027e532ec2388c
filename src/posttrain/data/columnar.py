"""Parquet and Arrow files -> rows in the types that JSON has."""

from __future__ import annotations

import base64
import importlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from posttrain.errors import UserError

_ROWS_AT_ONCE = 1000
_FILE_MAGIC = b"ARROW1"


def parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file, some at a time.

    Raises:
        UserError: no pyarrow, or a file that is no Parquet file or damaged.
    """
    arrow, parquet = _library(path, "pyarrow"), _library(path, "pyarrow.parquet")

    def batches() -> Iterator[Any]:
        with parquet.ParquetFile(path) as file:
            yield from file.iter_batches(batch_size=_ROWS_AT_ONCE)

    return _rows(batches(), path, "Parquet", arrow)


def arrow_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of an Arrow file, in the file format or the stream format (``datasets`` writes streams).

    Raises:
        UserError: no pyarrow, or a file that is no Arrow file or damaged.
    """
    arrow, ipc = _library(path, "pyarrow"), _library(path, "pyarrow.ipc")

    def batches() -> Iterator[Any]:
        with arrow.memory_map(str(path)) as file:
            is_file = file.read(len(_FILE_MAGIC)) == _FILE_MAGIC
            file.seek(0)
            with ipc.open_file(file) if is_file else ipc.open_stream(file) as reader:
                found = (reader.get_batch(i) for i in range(reader.num_record_batches)) if is_file else reader
                for batch in found:
                    for start in range(0, batch.num_rows, _ROWS_AT_ONCE):
                        yield batch.slice(start, _ROWS_AT_ONCE)

    return _rows(batches(), path, "Arrow", arrow)


def plain_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row in the types that JSON has: dates and decimals as text, bytes as base64, tuples as lists."""
    return {str(name): _plain(value) for name, value in row.items()}


def _rows(batches: Iterable[Any], path: Path, kind: str, arrow: Any) -> Iterator[dict[str, Any]]:
    count = 0
    try:
        for batch in batches:
            for row in batch.to_pylist():
                count += 1
                yield plain_row(row)
    except (arrow.ArrowException, OSError) as error:
        place = f"{path}, after row {count}" if count else str(path)
        raise UserError(
            f"{place}: not a whole {kind} file ({str(error).splitlines()[0]}); copy or write it again"
        ) from error


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, Mapping):
        return plain_row(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return base64.b64encode(value).decode("ascii") if isinstance(value, bytes) else str(value)


def _library(path: Path, name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        raise UserError(
            f'{path}: reading Parquet and Arrow files needs the pyarrow library: pip install "posttrain[data]"'
        ) from None

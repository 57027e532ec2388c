"""Data files -> rows, one after the other, with messages that name the file and the line."""

from __future__ import annotations

import csv
import gzip
import importlib
import io
import json
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import IO, Any

from posttrain.data.columnar import arrow_rows, parquet_rows
from posttrain.errors import UserError

TEXT_SUFFIXES = (".json", ".jsonl", ".txt", ".csv", ".tsv")
SUFFIXES = (*TEXT_SUFFIXES, ".parquet", ".arrow", ".feather")
PACKED = (".gz", ".zst")
_CHUNK = 1 << 16

Row = tuple[str, dict[str, Any]]
"""Where it stands, and its columns."""


def kind_of(path: Path) -> str:
    """The suffix that says what a file holds: ``.jsonl`` of ``train.jsonl.gz``; empty where there is none."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in PACKED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def rows_of_file(path: Path) -> Iterator[Row]:
    """The rows of one file, read as they are asked for (a JSON list is one value and is read whole).

    Raises:
        UserError: it cannot be read or is malformed; the message names the file and the line or row.
    """
    kind = kind_of(path)
    if kind not in SUFFIXES:
        raise UserError(
            f"{path}: cannot read {kind or 'files without suffix'}; known: {', '.join(SUFFIXES)} (text also as "
            f"{', '.join(PACKED)})"
        )
    if kind not in TEXT_SUFFIXES:
        if path.suffix.lower() in PACKED:
            raise UserError(f"{path}: {kind} files are packed inside already; unpack this one")
        found = parquet_rows(path) if kind == ".parquet" else arrow_rows(path)
        return ((f"{path}, row {number}", row) for number, row in enumerate(found, start=1))
    return _text_rows(path, kind)


def read_text(path: Path) -> str:
    """A whole text file in UTF-8.

    Raises:
        UserError: it cannot be read, or is not UTF-8.
    """
    with _opened(path, newline=None) as lines:
        return lines.read()


def _text_rows(path: Path, kind: str) -> Iterator[Row]:
    with _opened(path, newline="" if kind in (".csv", ".tsv") else "\n") as lines:
        if kind in (".csv", ".tsv"):
            rows: Iterator[dict[str, Any]] = _table(lines, path, "\t" if kind == ".tsv" else ",")
        elif kind == ".txt":
            # as splitlines() of the whole would cut it, a line feed at a time
            rows = ({"text": line} for part in lines for line in part.splitlines() if line.strip())
        else:
            rows = _json_rows(lines, path, lines_expected=kind == ".jsonl")
        for number, row in enumerate(rows, start=1):
            yield f"{path}, row {number}", row


@contextmanager
def _opened(path: Path, *, newline: str | None) -> Iterator[IO[str]]:
    """The text of a file, packed or not; whatever reading it meets is said with the file's name."""
    try:
        with _unpacked(path) as binary:
            yield io.TextIOWrapper(binary, encoding="utf-8-sig", newline=newline)
    except UnicodeDecodeError:
        raise UserError(f"{path}, line {_line_that_is_no_text(path)}: not UTF-8 text; save the file in UTF-8") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error


def _unpacked(path: Path) -> IO[bytes]:
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return gzip.open(path, "rb")  # type: ignore[return-value]
    return io.BufferedReader(_Zstandard(path)) if suffix == ".zst" else path.open("rb")


class _Zstandard(io.RawIOBase):
    """The unpacked bytes of a .zst file; unlike the library's own reader it notices a file that ends too early."""

    def __init__(self, path: Path) -> None:
        try:
            self._library = importlib.import_module("zstandard")
        except ModuleNotFoundError:
            raise UserError(
                f'{path}: reading .zst files needs the zstandard library: pip install "posttrain[data]"'
            ) from None
        self._file = path.open("rb")
        self._frame: Any = None
        self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            packed = self._file.read(_CHUNK)
            if not packed:
                if self._frame is not None:
                    raise EOFError("the file ends in the middle of its packed data; copy it again")
                return 0
            self._ready = self._unpack(packed)
        count = min(len(buffer), len(self._ready))
        buffer[:count], self._ready = self._ready[:count], self._ready[count:]
        return count

    def close(self) -> None:
        self._file.close()
        super().close()

    def _unpack(self, packed: bytes) -> bytes:
        parts = []
        while packed:
            if self._frame is None:
                self._frame = self._library.ZstdDecompressor().decompressobj()
            try:
                parts.append(self._frame.decompress(packed))
            except self._library.ZstdError as error:
                raise OSError(str(error)) from None
            packed = self._frame.unused_data if self._frame.eof else b""
            if self._frame.eof:
                self._frame = None
        return b"".join(parts)


def _line_that_is_no_text(path: Path) -> int:
    with _unpacked(path) as binary:
        for number, line in enumerate(binary, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                return number
    return 1


def _table(lines: IO[str], path: Path, delimiter: str) -> Iterator[dict[str, Any]]:
    reader = csv.DictReader(lines, delimiter=delimiter)
    try:
        for row in reader:
            if None in row:
                raise UserError(f"{path}, line {reader.line_num}: more cells than the header has columns")
            yield {key: value for key, value in row.items() if value is not None}
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: malformed table ({error})") from None


def _json_rows(lines: IO[str], path: Path, *, lines_expected: bool) -> Iterator[dict[str, Any]]:
    """A JSON list, or one JSON object per line, whatever the suffix promises."""
    # Lines end at line feeds only: JSON strings may hold U+2028 and other line ends that are none in JSON Lines.
    start = _up_to_text(lines)
    first = "".join(start).strip()
    if not first:
        return
    if not first.startswith("["):
        more = [] if lines_expected else _up_to_text(lines)
        start += more
        if lines_expected or ("".join(more).strip() and _is_object(first)):
            yield from _json_lines(chain(start, lines), path)
            return
    rows = _parsed("".join(start) + lines.read(), path)
    if not isinstance(rows, list):
        keys = f"an object with keys {', '.join(rows)}" if isinstance(rows, dict) else type(rows).__name__
        raise UserError(f"{path}: expected a list of rows, [{{...}}, ...], found {keys}")
    for number, row in enumerate(rows, start=1):
        yield _columns(row, f"{path}, row {number}")


def _up_to_text(lines: IO[str]) -> list[str]:
    """The next lines up to the first that is not blank; none at the end."""
    found = []
    for line in lines:
        found.append(line)
        if line.strip():
            break
    return found


def _json_lines(lines: Iterable[str], path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield _columns(_parse_line(line, number, path), f"{path}, line {number}")


def _columns(row: Any, place: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise UserError(f"{place}: expected an object with columns, found {type(row).__name__}")
    return row


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except json.JSONDecodeError:
        return False


def _parsed(text: str, path: Path) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: malformed JSON ({error.msg})") from None


def _parse_line(line: str, number: int, path: Path) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {number}: malformed JSON ({error.msg} at column {error.colno})") from None

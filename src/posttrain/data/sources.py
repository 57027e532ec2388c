"""Files -> rows: where a dataset lies, and reading it with messages that name the file and the line."""

from __future__ import annotations

import csv
import difflib
import gzip
import io
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.data.formats import ROLE_NAMES, ChatRole, Layout
from posttrain.errors import UserError

SUFFIXES = (".json", ".jsonl", ".txt", ".csv", ".tsv")
INFO_FILE = "dataset_info.json"
_HUBS = ("hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name")
_ALPACA_COLUMNS = {"prompt": "instruction", "query": "input", "response": "output"}


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """A dataset's file and how its rows are laid out.

    Attributes:
        name: as the user wrote it. path: its file, or a folder of files.
        layout: None where the first row's columns decide.
        num_samples: read at most so many rows.
    """

    name: str
    path: Path
    layout: Layout | None = None
    num_samples: int | None = None


def resolve_dataset(name: str, dataset_dir: str | Path = "data") -> DatasetSpec:
    """Find a dataset by its name in ``dataset_info.json``, or by its path.

    Args:
        name: an entry of ``dataset_dir/dataset_info.json``; or a path, from the working directory or from
            ``dataset_dir``, with or without its suffix.
        dataset_dir: the folder with the datasets.

    Raises:
        UserError: unknown name (with the nearest), missing file (with near names in the folder), broken entry.
    """
    folder = Path(dataset_dir).expanduser()
    info = _read_info(folder / INFO_FILE)
    if name in info:
        return _spec_of_entry(name, info[name], folder)
    beside = [folder / f"{name}{suffix}{zipped}" for zipped in ("", ".gz") for suffix in SUFFIXES]
    for path in (Path(name).expanduser(), folder / name, *beside):
        if path.exists():
            return DatasetSpec(name=name, path=path)
    if Path(name).suffix or "/" in name or "\\" in name:
        raise UserError(_missing_file(Path(name).expanduser(), f"dataset {name!r}"))
    files = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    near = difflib.get_close_matches(name, [*info, *files], n=3, cutoff=0.5)
    place = f"{folder / INFO_FILE} has {len(info)} datasets" if info else f"there is no {folder / INFO_FILE}"
    hint = f"Did you mean {' or '.join(near)}?" if near else "Give an entry of that file or the path of a data file."
    raise UserError(f"unknown dataset {name!r}: {place}, none of that name, and no file of that name. {hint}")


def read_rows(path: str | Path, *, name: str | None = None, split: str = "train") -> list[dict[str, Any]]:
    """All rows of a data file, or of the files in a folder.

    Read: .json (a list of objects, or one object per line), .jsonl, .csv, .tsv, .txt (one row ``{"text": line}``
    per line that is not blank), each also as .gz. In a folder with files named after splits (train.jsonl ...) those
    of ``split`` are read, else all of them.

    Raises:
        UserError: missing, empty, unreadable or malformed file; the message names the file and the line or row.
    """
    path = Path(path).expanduser()
    label = f"dataset {name!r}" if name else "data file"
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if _kind(p) in SUFFIXES and p.name != INFO_FILE)
        files = [p for p in files if p.name.startswith(split)] or files
        if not files:
            raise UserError(f"{label}: no data files ({', '.join(SUFFIXES)}) in the folder {path}")
        return [row for file in files for row in read_rows(file, name=name)]
    if not path.is_file():
        raise UserError(_missing_file(path, label))
    kind = _kind(path)
    if kind not in SUFFIXES:
        raise UserError(f"{path}: cannot read {kind or 'files without suffix'}; known: {', '.join(SUFFIXES)} (and .gz)")
    text = _read_text(path)
    if not text.strip():
        raise UserError(f"{label} is empty: {path} holds no rows")
    if kind in (".csv", ".tsv"):
        rows = _read_table(text, path, "\t" if kind == ".tsv" else ",")
    elif kind == ".txt":
        rows = [{"text": line} for line in text.splitlines() if line.strip()]
    else:
        rows = _read_json(text, path, lines=kind == ".jsonl")
    if not rows:
        raise UserError(f"{label} is empty: {path} holds no rows")
    return rows


def _kind(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    return suffixes[-1] if suffixes else ""


def _read_text(path: Path) -> str:
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix.lower() == ".gz" else path.read_bytes()
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise UserError(f"{path}, line {line}: not UTF-8 text; save the file in UTF-8") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error


def _read_table(text: str, path: Path, delimiter: str) -> list[dict[str, Any]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    rows = []
    try:
        for row in reader:
            if None in row:
                raise UserError(f"{path}, line {reader.line_num}: more cells than the header has columns")
            rows.append({key: value for key, value in row.items() if value is not None})
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: malformed table ({error})") from None
    return rows


def _read_json(text: str, path: Path, *, lines: bool) -> list[dict[str, Any]]:
    """A JSON list, or one JSON object per line, whatever the suffix promises."""
    if text.lstrip()[0] == "[":
        try:
            rows: list[Any] = json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {error.lineno}: malformed JSON ({error.msg})") from None
        places = [f"row {i + 1}" for i in range(len(rows))]
    elif lines or _is_lines(text):
        # Not splitlines(): JSON strings may hold U+2028 and other line ends that are none in JSON Lines.
        numbered = [(i, line) for i, line in enumerate(text.split("\n"), start=1) if line.strip()]
        rows, places = [_parse_line(line, i, path) for i, line in numbered], [f"line {i}" for i, _ in numbered]
    else:
        try:
            found = json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {error.lineno}: malformed JSON ({error.msg})") from None
        keys = f"an object with keys {', '.join(found)}" if isinstance(found, dict) else type(found).__name__
        raise UserError(f"{path}: expected a list of rows, [{{...}}, ...], found {keys}")
    for row, place in zip(rows, places, strict=True):
        if not isinstance(row, dict):
            raise UserError(f"{path}, {place}: expected an object with columns, found {type(row).__name__}")
    return rows


def _is_lines(text: str) -> bool:
    """True if the first line alone is a JSON object and more follows."""
    first, _, rest = text.strip().partition("\n")
    try:
        return isinstance(json.loads(first), dict) and bool(rest.strip())
    except json.JSONDecodeError:
        return False


def _parse_line(line: str, number: int, path: Path) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {number}: malformed JSON ({error.msg} at column {error.colno})") from None


def _read_info(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        info = json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: malformed JSON ({error.msg})") from None
    if not isinstance(info, dict):
        raise UserError(f"{path}: expected an object, dataset name -> entry, found {type(info).__name__}")
    return info


def _spec_of_entry(name: str, entry: Any, folder: Path) -> DatasetSpec:
    place = f"{folder / INFO_FILE}, dataset {name!r}"
    if not isinstance(entry, Mapping):
        raise UserError(f"{place}: expected an object, found {type(entry).__name__}")
    if "file_name" not in entry:
        if any(hub in entry for hub in _HUBS):
            raise UserError(f"{place}: only a hub or script is named; download its file and name it as `file_name`")
        raise UserError(f"{place}: no `file_name`")
    path = Path(str(entry["file_name"])).expanduser()
    path = path if path.is_absolute() else folder / path
    if not path.exists():
        raise UserError(_missing_file(path, place))
    limit = entry.get("num_samples")
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise UserError(f"{place}: num_samples must be a whole number above 0, found {limit!r}")
    return DatasetSpec(name=name, path=path, layout=_layout_of_entry(entry, place), num_samples=limit)


def _layout_of_entry(entry: Mapping[str, Any], place: str) -> Layout | None:
    formatting = entry.get("formatting", "alpaca")
    if formatting not in ("alpaca", "sharegpt", "openai"):
        raise UserError(f"{place}: unknown formatting {formatting!r}; known: alpaca, sharegpt, openai")
    columns, tags = entry.get("columns"), entry.get("tags", {})
    if not all(isinstance(part, Mapping) for part in (columns or {}, tags)):
        raise UserError(f"{place}: `columns` and `tags` must be objects")
    if columns is None and formatting == "alpaca" and not entry.get("ranking"):
        return None
    messages = "messages" if formatting == "openai" else "conversations"
    columns = dict(columns if columns is not None else _ALPACA_COLUMNS if formatting == "alpaca" else {})
    if formatting != "alpaca":
        columns.setdefault("messages", messages)
    if entry.get("ranking") and "response" not in columns:
        columns.setdefault("chosen", "chosen")
        columns.setdefault("rejected", "rejected")
    roles: dict[str, ChatRole] = dict(ROLE_NAMES)
    kinds: Sequence[tuple[str, ChatRole]] = (
        *(("user_tag", "user"), ("assistant_tag", "assistant"), ("system_tag", "system")),
        *(("observation_tag", "tool"), ("function_tag", "assistant")),
    )
    roles.update({str(tags[tag]): role for tag, role in kinds if tag in tags})
    return Layout(
        formatting="alpaca" if formatting == "alpaca" else "sharegpt",
        columns={str(purpose): str(column) for purpose, column in columns.items() if column},
        role_tag=str(tags.get("role_tag", "role" if formatting == "openai" else "from")),
        content_tag=str(tags.get("content_tag", "content" if formatting == "openai" else "value")),
        roles=roles,
    )


def _missing_file(path: Path, label: str) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"{label}: no such file: {path} (there is no folder {folder} either)"
    names = sorted(p.name for p in folder.iterdir())
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
    hint = f"Near names there: {', '.join(near)}." if near else f"{folder} holds: {', '.join(names[:8]) or 'nothing'}."
    return f"{label}: no such file: {path}. {hint}"

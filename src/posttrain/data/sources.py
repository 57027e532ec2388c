"""Where a dataset lies: names, paths, folders and hubs -> rows."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.data.columns import check_purpose
from posttrain.data.files import PACKED, SUFFIXES, Row, kind_of, read_text, rows_of_file
from posttrain.data.formats import ROLE_NAMES, ChatRole, Layout
from posttrain.data.hub import NAME, HubSource, rows_of_hub
from posttrain.errors import UserError

INFO_FILE = "dataset_info.json"
ONLINE = "ONLINE"
_ALPACA_COLUMNS = {"prompt": "instruction", "query": "input", "response": "output"}
# What stands beside the data in a folder and is none.
_NO_DATA = re.compile(
    r"\.|(dataset_infos?|dataset_dict|state)\.json$|(readme|licen[cs]e)\b|(source|notice|requirements)\.(txt|md|rst)$",
    re.IGNORECASE,
)
_SPLITS = re.compile(r"(train|training|test|testing|valid|validation|dev|eval)(?![A-Za-z])", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """Where a dataset lies and how its rows are laid out.

    Attributes:
        name: as the user wrote it. path: its file, or a folder of files; None where it lies on a hub.
        hub: its place on a hub.
        layout: None where the first row's columns decide.
        num_samples: read at most so many rows.
        split: of the dataset; None is the ``split`` of the configuration.
    """

    name: str
    path: Path | None = None
    hub: HubSource | None = None
    layout: Layout | None = None
    num_samples: int | None = None
    split: str | None = None

    @property
    def place(self) -> str:
        """Where it lies, for messages."""
        return str(self.path) if self.hub is None else self.hub.label


def resolve_dataset(name: str, dataset_dir: str | Path = "data") -> DatasetSpec:
    """Find a dataset by its name in ``dataset_info.json``, by its path, or on the Hugging Face hub.

    Args:
        name: an entry of ``dataset_dir/dataset_info.json``; or a path, from the working directory or from
            ``dataset_dir``, with or without its suffix; or ``owner/name`` or ``owner/name:subset`` of the hub.
        dataset_dir: the folder with the datasets; ``ONLINE`` takes every name for one of the hub.

    Raises:
        UserError: unknown name (with the nearest), missing file (with near names in the folder), broken entry.
    """
    if str(dataset_dir).startswith("REMOTE:"):
        raise UserError(
            f"dataset_dir: {dataset_dir}: an index that lies on a hub is not read; download its {INFO_FILE} into a "
            "folder and name that"
        )
    if str(dataset_dir) == ONLINE:
        return _spec_on_hub(name)
    folder = Path(dataset_dir).expanduser()
    info = _read_info(folder / INFO_FILE)
    if name in info:
        return _spec_of_entry(name, info[name], folder)
    beside = [folder / f"{name}{suffix}{packed}" for packed in ("", *PACKED) for suffix in SUFFIXES]
    for path in (Path(name).expanduser(), folder / name, *beside):
        if path.exists():
            return DatasetSpec(name=name, path=path)
    is_file_name = kind_of(Path(name)) in SUFFIXES or Path(name).expanduser().parent.is_dir()
    if NAME.fullmatch(name) and not is_file_name:
        return _spec_on_hub(name)
    if Path(name).suffix or "/" in name or "\\" in name:
        raise UserError(_missing_file(Path(name).expanduser(), f"dataset {name!r}"))
    files = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    near = difflib.get_close_matches(name, [*info, *files], n=3, cutoff=0.5)
    place = f"{folder / INFO_FILE} has {len(info)} datasets" if info else f"there is no {folder / INFO_FILE}"
    hint = (
        f"Did you mean {' or '.join(near)}?"
        if near
        else ("Give an entry of that file, the path of a data file, or owner/name of a dataset on the hub.")
    )
    raise UserError(f"unknown dataset {name!r}: {place}, none of that name, and no file of that name. {hint}")


def rows_of(spec: DatasetSpec, split: str = "train", *, streaming: bool = False) -> Iterator[Row]:
    """The rows of a dataset with where they stand, read as they are asked for.

    Args:
        spec: where it lies. split: to take where it does not say so itself. streaming: of hubs, download no more
            than is asked for.

    Raises:
        UserError: as ``iter_rows``, or as ``rows_of_hub``.
    """
    if spec.hub is not None:
        return rows_of_hub(spec.hub, spec.split or split, streaming=streaming)
    assert spec.path is not None
    return iter_rows(spec.path, name=spec.name, split=spec.split or split)


def read_rows(path: str | Path, *, name: str | None = None, split: str = "train") -> list[dict[str, Any]]:
    """All rows of a data file, or of the files in a folder; see ``iter_rows``."""
    return [row for _, row in iter_rows(path, name=name, split=split)]


def iter_rows(path: str | Path, *, name: str | None = None, split: str = "train") -> Iterator[Row]:
    """The rows of a data file, or of the files in a folder, one after the other, with where they stand.

    Read: .json (a list of objects, or one object per line), .jsonl, .csv, .tsv, .txt (one row ``{"text": line}``
    per line that is not blank), each also as .gz or .zst; .parquet, .arrow and .feather.

    Raises:
        UserError: missing, empty, unreadable or malformed file; the message names the file and the line or row.
    """
    path = Path(path).expanduser()
    label = f"dataset {name!r}" if name else "data file"
    is_empty = True
    for file in data_files(path, label, split):
        for row in rows_of_file(file):
            is_empty = False
            yield row
    if is_empty:
        raise UserError(f"{label} is empty: {path} holds no rows")


def data_files(path: Path, label: str, split: str = "train") -> list[Path]:
    """The file itself, or those of a folder that belong to ``split``, folders in it included.

    A file belongs to a split when its name begins with it (``train-00000-of-00004.parquet``) or a folder on the way
    to it is called so; where no file is named after any split, all are read. A folder that ``datasets.save_to_disk``
    wrote gives the files that it lists.

    Raises:
        UserError: nothing there, or other splits only.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(_missing_file(path, label))
    below = sorted(file for file in path.rglob("*") if file.is_file() and kind_of(file) in SUFFIXES)
    saved = {file.parent: _saved_files(file) for file in path.rglob("state.json")}
    files = [
        file
        for file in below
        if not any(_NO_DATA.match(part) for part in file.relative_to(path).parts)
        and file.name in (saved.get(file.parent) or (file.name,))
    ]
    if not files:
        raise UserError(f"{label}: no data files ({', '.join(SUFFIXES)}) in the folder {path}")
    chosen = [file for file in files if _belongs(file.relative_to(path), split)]
    if chosen:
        return chosen
    named = sorted({match[1] for file in files for part in file.relative_to(path).parts if (match := _split(part))})
    if named:
        raise UserError(
            f"{label}: the folder {path} has no split {split!r}; its files are named after {', '.join(named)} "
            "(choose one with `split`)"
        )
    return files


def _split(part: str) -> re.Match[str] | None:
    return _SPLITS.match(part)


def _belongs(file: Path, split: str) -> bool:
    *folders, name = file.parts
    after = name[len(split) :]
    return split in folders or (name.startswith(split) and not after[:1].isalpha())


def _saved_files(state: Path) -> tuple[str, ...]:
    """The files that ``datasets.save_to_disk`` names beside themselves; empty where another program wrote this."""
    try:
        listed = json.loads(read_text(state))["_data_files"]
        return tuple(str(item["filename"]) for item in listed)
    except (ValueError, KeyError, TypeError):
        return ()


def _spec_on_hub(name: str) -> DatasetSpec:
    repo, _, subset = name.partition(":")
    return DatasetSpec(name=name, hub=HubSource(repo=repo, subset=subset or None))


def _read_info(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        info = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: malformed JSON ({error.msg})") from None
    if not isinstance(info, dict):
        raise UserError(f"{path}: expected an object, dataset name -> entry, found {type(info).__name__}")
    return info


def _spec_of_entry(name: str, entry: Any, folder: Path) -> DatasetSpec:
    place = f"{folder / INFO_FILE}, dataset {name!r}"
    if not isinstance(entry, Mapping):
        raise UserError(f'{place}: expected an object such as {{"file_name": "a.json"}}, found {_short(entry)}')
    for key in ("subset", "split", "folder", "file_name", "hf_hub_url", "ms_hub_url"):
        if entry.get(key) is not None and not isinstance(entry[key], str):
            raise UserError(f"{place}: {key} must be text, found {entry[key]!r}")
    limit = entry.get("num_samples")
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise UserError(f"{place}: num_samples must be a whole number above 0, found {limit!r}")
    path, hub = (_file_of_entry(entry, place, folder), None) if "file_name" in entry else (None, _hub_of(entry, place))
    return DatasetSpec(
        name=name,
        path=path,
        hub=hub,
        layout=_layout_of_entry(entry, place),
        num_samples=limit,
        split=entry.get("split"),
    )


def _file_of_entry(entry: Mapping[str, Any], place: str, folder: Path) -> Path:
    path = Path(entry["file_name"]).expanduser()
    path = path if path.is_absolute() else folder / path
    if not path.exists():
        raise UserError(_missing_file(path, place))
    for key in ("folder", "subset"):
        if entry.get(key) and path.is_dir():
            path = path / entry[key]
            if not path.is_dir():
                raise UserError(f"{place}: {key}: {_missing_file(path, 'folder')}")
    return path


def _hub_of(entry: Mapping[str, Any], place: str) -> HubSource:
    for key in ("hf_hub_url", "ms_hub_url"):
        if entry.get(key):
            return HubSource(
                repo=entry[key],
                subset=entry.get("subset"),
                folder=entry.get("folder"),
                modelscope=key == "ms_hub_url",
            )
    for key in ("om_hub_url", "script_url", "cloud_file_name"):
        if entry.get(key):
            raise UserError(f"{place}: `{key}` is not read; download the data and name the file as `file_name`")
    raise UserError(f"{place}: no `file_name`, and no `hf_hub_url` either")


def _layout_of_entry(entry: Mapping[str, Any], place: str) -> Layout | None:
    formatting = entry.get("formatting", "alpaca")
    if formatting not in ("alpaca", "sharegpt", "openai"):
        raise UserError(f"{place}: unknown formatting {formatting!r}; known: alpaca, sharegpt, openai")
    columns, tags = entry.get("columns"), entry.get("tags", {})
    if not all(isinstance(part, Mapping) for part in (columns or {}, tags)):
        raise UserError(f"{place}: `columns` and `tags` must be objects")
    for purpose in columns or {}:
        check_purpose(str(purpose), place)
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


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _missing_file(path: Path, label: str) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"{label}: no such file: {path} (there is no folder {folder} either)"
    names = sorted(p.name for p in folder.iterdir())
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
    hint = f"Near names there: {', '.join(near)}." if near else f"{folder} holds: {', '.join(names[:8]) or 'nothing'}."
    return f"{label}: no such file: {path}. {hint}"

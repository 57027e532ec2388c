"""Folders of finished evaluations and training runs, read back to be compared."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from posttrain.errors import UserError
from posttrain.evaluate.items import digest_of

RESULTS, PREDICTIONS = "eval_results.json", "predictions.jsonl"
TRAINING = ("all_results.json", "trainer_log.jsonl")


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """One run.

    Attributes:
        name: in tables: as given, else that of the folder. path: of the folder.
        kind: what it holds. results: of the evaluation, or all those of training.
        records: of an evaluation, one for each variant and item. log: lines of a training's log.
    """

    name: str
    path: Path
    kind: Literal["evaluation", "training"]
    results: Mapping[str, Any]
    records: Sequence[Mapping[str, Any]] = ()
    log: Sequence[Mapping[str, Any]] = field(default_factory=tuple)


def read_folders(named: Sequence[str]) -> list[RunFolder]:
    """The runs of ``folder`` or ``name=folder``; folders of the same name are told apart by those above them.

    Raises:
        UserError: a folder is missing, holds no finished run, or is damaged; or two have one name.
    """
    places = [_place(text) for text in named]
    names = _names(places)
    found = [_read(name, path) for name, (_, path) in zip(names, places, strict=True)]
    kinds = {folder.kind for folder in found}
    if len(kinds) > 1:
        trained = next(folder for folder in found if folder.kind == "training")
        evaluated = next(folder for folder in found if folder.kind == "evaluation")
        raise UserError(
            f"{trained.path} is a training run and {evaluated.path} an evaluation: they hold different figures. Give "
            "the folders of evaluations, or those of training runs"
        )
    return found


def _place(text: str) -> tuple[str | None, Path]:
    name, separator, path = text.partition("=")
    if not separator or Path(text).expanduser().exists():
        return None, _folder(Path(text).expanduser())
    if not name.strip() or not path.strip():
        raise UserError(f"`{text}` is neither a folder nor name=folder")
    return name.strip(), _folder(Path(path.strip()).expanduser())


def _folder(path: Path) -> Path:
    """The folder, also where a file of results in it was named."""
    return path.parent if path.is_file() and path.name in (RESULTS, PREDICTIONS, *TRAINING) else path


def _names(places: Sequence[tuple[str | None, Path]]) -> list[str]:
    given = [name for name, _ in places if name]
    twice = sorted({name for name in given if given.count(name) > 1})
    if twice:
        raise UserError(f"two runs are called {twice[0]}; give each a name of its own")
    paths = [path.resolve() for _, path in places]
    same = [path for path in paths if paths.count(path) > 1]
    if same:
        raise UserError(f"{same[0]} is named twice; a run cannot be compared with itself")
    depth = 1
    while depth < 6 and len({path.parts[-depth:] for path in paths}) < len(paths):
        depth += 1
    return [name or "/".join(path.parts[-depth:]) for (name, _), path in zip(places, paths, strict=True)]


def _read(name: str, path: Path) -> RunFolder:
    if not path.is_dir():
        raise UserError(f"there is no folder {path}")
    results = _json(path / RESULTS) if (path / RESULTS).is_file() else {}
    if "task" in results:
        return RunFolder(name=name, path=path, kind="evaluation", results=results, records=_records(path, results))
    if any((path / file).is_file() for file in TRAINING):
        whole = path / TRAINING[0]
        log = _lines(path / TRAINING[1]) if (path / TRAINING[1]).is_file() else []
        numbers = _json(whole) if whole.is_file() else {}
        return RunFolder(name=name, path=path, kind="training", results=numbers, log=log)
    raise UserError(
        f"{path} holds neither a finished evaluation ({RESULTS}) nor a training run ({TRAINING[0]}); give the "
        "output_dir of `posttrain eval` or `posttrain train`"
    )


def _records(path: Path, results: Mapping[str, Any]) -> list[dict[str, Any]]:
    file = path / PREDICTIONS
    if not file.is_file():
        raise UserError(f"{path} has no {PREDICTIONS}, by which items are paired; evaluate again with this version")
    records = _lines(file)
    if not records:
        raise UserError(f"{file} is empty; evaluate again")
    if any("id" not in record or "variant" not in record for record in records):
        raise UserError(f"{file} was written by an earlier version: its records name no items; evaluate again")
    ids = sorted({str(record["id"]) for record in records})
    if results.get("items") != digest_of(ids):
        raise UserError(
            f"{file} does not belong to {RESULTS} beside it: was an evaluation into this folder interrupted? Evaluate "
            "again"
        )
    return records


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); was the run interrupted?") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no results (expected one JSON object)")
    return found


def _lines(path: Path) -> list[dict[str, Any]]:
    found = []
    try:
        with path.open(encoding="utf-8", newline="\n") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    found.append(_record(path, number, line))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error})") from error
    return found


def _record(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise UserError(f"{path}, line {number}: malformed JSON ({error}); was the run interrupted?") from None
    if not isinstance(record, dict):
        raise UserError(f"{path}, line {number}: expected an object, found {type(record).__name__}")
    return record

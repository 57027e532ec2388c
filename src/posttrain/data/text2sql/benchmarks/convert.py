"""A benchmark as a data set of ours: rows for training and evaluation beside the databases they are about."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from posttrain.data.text2sql.benchmarks.databases import (
    complaint,
    num_rows,
    place_database,
    shown_schema,
    written_schema,
)
from posttrain.data.text2sql.benchmarks.invented import asked_values, invented_rows
from posttrain.data.text2sql.benchmarks.prompts import Prompted
from posttrain.data.text2sql.benchmarks.sources import Asked, Benchmark, Held
from posttrain.data.text2sql.benchmarks.spider import SpiderLike
from posttrain.data.text2sql.benchmarks.wikisql import WikiSQL
from posttrain.data.text2sql.hardness import hardness
from posttrain.errors import UserError

FORMATS: Mapping[str, Callable[[Path], Benchmark]] = {
    "spider": SpiderLike,
    "cspider": SpiderLike,
    "bird": SpiderLike,
    "dusql": SpiderLike,
    "wikisql": WikiSQL,
    "prompts": Prompted,
}
LEFT_OUT = "left_out.jsonl"
_CHINESE = re.compile("[\u4e00-\u9fff]")
_SAFE = re.compile(r"[^\w.-]")


@dataclass(frozen=True, kw_only=True)
class Converted:
    """What was written.

    Attributes:
        counts: file name -> rows. left_out: where -> why its gold SQL is not in the data.
        num_databases: in all. num_built: of them not linked to a file. num_empty: without a single row.
    """

    counts: Mapping[str, int]
    left_out: Mapping[str, str]
    num_databases: int
    num_built: int
    num_empty: int


def convert(
    name: str,
    source: Path,
    directory: Path,
    *,
    invent_rows: int = 0,
    max_rows: int = 0,
    dialect: str = "sqlite",
    progress: Callable[[int, int], None] | None = None,
) -> Converted:
    """Write a benchmark's questions as rows with schema, gold SQL and database, and its databases as SQLite files.

    Args:
        name: one of ``FORMATS``. source: the benchmark's folder. directory: to write, made where it is missing.
        invent_rows: of each table of a database that comes without content; 0 leaves it empty.
        max_rows: at most so many questions of each file; 0 takes all.
        dialect: in which gold SQL is written; only SQLite's is tried on its database.
        progress: called with (questions done, in all).

    Raises:
        UserError: files are missing or malformed, or no question is left.
    """
    if not source.is_dir():
        raise UserError(f"{source}: there is no such folder")
    benchmark = FORMATS[name](source)
    asked = list(_first(benchmark.questions(), max_rows))
    made = _Databases(benchmark, directory, asked, invent_rows, dialect)
    rows: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    left_out: dict[str, dict[str, Any]] = {}
    for number, question in enumerate(asked, start=1):
        path = made.path(question)
        error = complaint(directory / path, question.sql) if dialect == "sqlite" else None
        if error is None:
            rows[question.split].append(_row(question, path, made.shown(question), dialect))
        else:
            reason = {"where": question.where, "db_id": question.db_id, "error": error}
            left_out[question.where] = {**reason, "question": question.text, "gold": question.sql}
        if progress:
            progress(number, len(asked))
    if not rows:
        first = next(iter(left_out.values()), None)
        why = f" {first['where']}: {first['error']}: {first['gold']}" if first else ""
        raise UserError(f"{source}: none of the {len(asked)} questions can be used.{why}")
    return Converted(
        counts=_write(directory, name, rows, list(left_out.values())),
        left_out={where: item["error"] for where, item in left_out.items()},
        num_databases=len(made.known),
        num_built=made.num_built,
        num_empty=sum(num_rows(directory / path) == 0 for path in made.known.values()),
    )


def _first(questions: Iterable[Asked], max_rows: int) -> Iterator[Asked]:
    counts: defaultdict[str, int] = defaultdict(int)
    for question in questions:
        counts[question.split] += 1
        if not max_rows or counts[question.split] <= max_rows:
            yield question


class _Databases:
    """The databases that questions need, put into the folder when the first question needs them."""

    def __init__(
        self, benchmark: Benchmark, directory: Path, asked: list[Asked], invent_rows: int, dialect: str
    ) -> None:
        self.known: dict[str, str] = {}
        self.num_built = 0
        self._benchmark, self._directory, self._invent_rows = benchmark, directory, invent_rows
        self._dialect = dialect
        self._held: dict[str, Held] = {}
        self._written: dict[str, Mapping[str, str]] = {}
        self._golds: defaultdict[str, list[str]] = defaultdict(list)
        for question in asked if invent_rows else ():
            self._golds[question.db_id].append(question.sql)

    def path(self, question: Asked) -> str:
        """Where the database of a question lies, seen from the folder."""
        db_id = question.db_id
        if db_id in self.known:
            return self.known[db_id]
        held = self._benchmark.database(db_id)
        if held is None:
            raise UserError(
                f"{question.where}: there is no database {db_id}, neither its file (database/{db_id}/{db_id}.sqlite) "
                "nor its schema; is tables.json of the same version as the questions?"
            )
        path = f"databases/{_SAFE.sub('_', db_id)}.sqlite"
        extra = {}
        if held.schema and held.file is None and not any(held.rows.values()) and self._invent_rows:
            extra = invented_rows(
                held.schema, self._invent_rows, asked_values(self._golds[db_id], self._dialect), db_id
            )
        place_database(held, self._directory / path, extra)
        self.num_built += held.file is None
        self._held[db_id], self.known[db_id] = held, path
        return path

    def shown(self, question: Asked) -> str:
        """The schema that a question is shown with."""
        held = self._held[question.db_id]
        if held.schema:
            return shown_schema(held.schema, question.tables)
        if question.db_id not in self._written:
            self._written[question.db_id] = written_schema(self._directory / self.known[question.db_id])
        return "\n".join(self._written[question.db_id].values())


def _row(question: Asked, path: str, schema: str, dialect: str) -> dict[str, Any]:
    hint = f"\n<evidence>:{question.hint}" if question.hint else ""
    level = question.level or (hardness(question.sql, dialect) if find_spec("sqlglot") else None)
    return {
        "instruction": question.prompt or f"<question>:{question.text}{hint}\n{schema}",
        "input": "",
        "output": question.sql,
        "db": path,
        "db_id": question.db_id,
        "language": "zh" if _CHINESE.search(question.text) else "en",
        **({"hardness": level} if level else {}),
    }


def _write(
    directory: Path, name: str, rows: Mapping[str, list[dict[str, Any]]], left_out: list[dict[str, Any]]
) -> dict[str, int]:
    counts = {}
    info = {f"{name}_{split}": {"file_name": f"{split}.jsonl"} for split in rows}
    for file, content in [*((f"{split}.jsonl", part) for split, part in rows.items()), (LEFT_OUT, left_out)]:
        if content:
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content)
            (directory / file).write_text(text, encoding="utf-8", newline="\n")
            counts[file] = len(content)
        else:
            (directory / file).unlink(missing_ok=True)
    text = json.dumps(info, ensure_ascii=False, indent=2) + "\n"
    (directory / "dataset_info.json").write_text(text, encoding="utf-8", newline="\n")
    return counts

"""Draws questions, documents and preference pairs over the databases of one side of the split."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

from posttrain.data.text2sql.documents import write_document
from posttrain.data.text2sql.mistakes import broken_answers
from posttrain.data.text2sql.queries import Query
from posttrain.data.text2sql.questions import ask
from posttrain.data.text2sql.sampling import draw_query
from posttrain.data.text2sql.tables import Database
from posttrain.errors import UserError

_ATTEMPTS = 400


@dataclass(frozen=True)
class Example:
    """A question over a database with the query that answers it."""

    database: Database
    question: str
    query: Query

    @property
    def instruction(self) -> str:
        return f"<question>:{self.question}\n{self.database.schema}"


class Pool:
    """The databases of one side of the split, by language, with examples that never repeat."""

    def __init__(self, databases: Sequence[Database], directory: Path, chinese_share: float, rng: Random) -> None:
        self.databases = databases
        self._by_language = {language: [d for d in databases if d.language == language] for language in ("en", "zh")}
        self._directory = directory
        self._chinese_share = chinese_share
        self._rng = rng
        self._seen: set[str] = set()
        self._turns = {"en": 0, "zh": 0}

    def examples(self, count: int) -> Iterator[Example]:
        """``count`` new examples, languages mixed by share, databases taken in turn."""
        for i in range(count):
            chinese = int((i + 1) * self._chinese_share) > int(i * self._chinese_share)
            yield self._example("zh" if chinese else "en")

    def _example(self, language: str) -> Example:
        for _ in range(_ATTEMPTS):
            database = self._next_database(language)
            example = self.draw(database)
            if example is not None and example.instruction not in self._seen:
                self._seen.add(example.instruction)
                return example
        raise UserError(
            f"the {language} tables hold too few different questions: ask for fewer rows or raise num_tables"
        )

    def _next_database(self, language: str) -> Database:
        databases = self._by_language[language]
        database = databases[self._turns[language] % len(databases)]
        self._turns[language] += 1
        return database

    def draw(self, database: Database) -> Example | None:
        """A question over ``database`` whose answer is neither empty nor the same without its filter."""
        query = draw_query(database, self._rng)
        if query is None:
            return None
        rows = self.result(database, query.sql())
        if not rows or all(cell is None for row in rows for cell in row):
            return None
        if rows == [(0,)]:
            return None
        unfiltered = replace(query, where=()).sql()
        if query.where and _fingerprint(rows, query) == _fingerprint(self.result(database, unfiltered) or [], query):
            return None
        return Example(database, ask(query, database, self._rng), query)

    def documents(self, count: int) -> Iterator[dict[str, Any]]:
        """``count`` documents about these databases."""
        for i in range(count):
            chinese = int((i + 1) * self._chinese_share) > int(i * self._chinese_share)
            database = self._next_database("zh" if chinese else "en")
            drawn = (self.draw(database) for _ in range(_ATTEMPTS))
            found = (example for example in drawn if example is not None)
            answered = [(e.question, e.query) for e in islice(found, self._rng.choice((2, 2, 3)))]
            yield {"text": write_document(database, answered, self._rng)}

    def pair(self, example: Example) -> dict[str, Any] | None:
        """The example as a preference pair, or None when no mistake changes its result."""
        database, query = example.database, example.query
        gold = self.result(database, query.sql())
        for mistake, wrong in broken_answers(query, database, self._rng):
            rows = self.result(database, wrong)
            if rows is None or (_fingerprint(rows, query) != _fingerprint(gold or [], query)):
                return {
                    "conversations": [{"from": "human", "value": example.instruction}],
                    "chosen": {"from": "gpt", "value": query.sql()},
                    "rejected": {"from": "gpt", "value": wrong},
                    "mistake": mistake,
                    "db": database.file,
                    "language": database.language,
                    "kind": query.kind,
                }
        return None

    def pairs(self, count: int) -> Iterator[dict[str, Any]]:
        """``count`` preference pairs."""
        rows = (self.pair(example) for example in self.examples(3 * count))
        return islice((row for row in rows if row is not None), count)

    def result(self, database: Database, sql: str) -> list[tuple[Any, ...]] | None:
        """The rows of ``sql``, or None when it fails. Only for statements that this package wrote."""
        connection = sqlite3.connect(self._directory / database.file)
        try:
            return connection.execute(sql).fetchall()
        except sqlite3.Error:
            return None
        finally:
            connection.close()


def _fingerprint(rows: Sequence[tuple[Any, ...]], query: Query) -> list[str]:
    """Rows as comparable text (5 and 5.0 alike); in order only where the correct query orders them."""
    said = [repr(tuple(round(float(c), 6) if isinstance(c, int | float) else c for c in row)) for row in rows]
    return said if query.order else sorted(said)

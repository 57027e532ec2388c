"""The database as the reward: a completion is worth what its SQL gives when it is run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from posttrain.config import RunConfig
from posttrain.errors import RewardError, UserError
from posttrain.rewards.sql.cache import CachedExecutions
from posttrain.rewards.sql.columns import Databases, reference_sql
from posttrain.rewards.sql.places import Place
from posttrain.rewards.sql.rules import SqlRules
from posttrain.rewards.sql.sandbox import Execution, table_names
from posttrain.types import RolloutBatch

_AT_ONCE = 256
RIGHT, RUNS, FAILS = 1.0, 0.2, 0.0
_SHOWN = 20


@dataclass(frozen=True)
class FailedReference:
    """A reference that does not run: on which database, which statement, and why."""

    db: str
    sql: str
    reason: str


class SqlExecutionReward:
    """1 for SQL that gives the rows of the reference, 0.2 for SQL that runs, 0 for what does not.

    Each prompt's row names its database in the column ``db`` and its reference SQL in ``gold`` or ``output``.
    Statements are run read-only under limits, as in ``posttrain eval`` with task sql; those of a batch beside each
    other, and none twice that is still known.
    """

    is_apart = True

    def __init__(self, databases: Databases | Path, rules: SqlRules | None = None) -> None:
        """Take the rules.

        Args:
            databases: where they are; a folder for SQLite files in it. rules: limits, dialect, order of columns.
        """
        self._rules = rules or SqlRules()
        self._databases = databases if isinstance(databases, Databases) else Databases(databases)
        self._executions = CachedExecutions(time_limit_s=self._rules.time_limit_s, row_limit=self._rules.row_limit)
        self._has_scored = False

    @classmethod
    def configured(cls, config: RunConfig) -> SqlExecutionReward:
        """With the databases and the rules that the configuration names."""
        return cls(Databases.configured(config), SqlRules.configured(config))

    def check(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Refuse rows that could not be judged, before time is spent on answers to them.

        Args:
            rows: the columns of each prompt's row, in order.

        Raises:
            UserError: names the first row without reference, or whose database cannot be used.
        """
        listed = list(rows)
        for number, row in enumerate(listed, start=1):
            reference_sql(row, number)
        self._databases.check(listed)

    def failing(self, rows: Sequence[Mapping[str, Any]]) -> dict[int, FailedReference]:
        """Those rows, by their number from 1, whose reference does not run, so that no answer can be judged by it.

        Raises:
            UserError: as ``check``; or none runs.
        """
        self.check(rows)
        found: dict[int, FailedReference] = {}
        for start in range(0, len(rows), _AT_ONCE):
            numbered = list(enumerate(rows[start : start + _AT_ONCE], start=start + 1))
            asked = [(self._databases.of(row, number), reference_sql(row, number)) for number, row in numbered]
            for (number, _), (db, sql), result in zip(numbered, asked, self._expected(asked), strict=True):
                if result.error is not None:
                    found[number] = FailedReference(str(db), sql, _reason(db, result))
        if rows and len(found) == len(rows):
            raise UserError(
                f"none of the {len(rows)} reference statements runs, so that no answer can be judged. Row 1, on "
                f"{found[1].db}: {found[1].reason}: {found[1].sql}"
            )
        return found

    def __call__(self, batch: RolloutBatch) -> Tensor:
        """[B] rewards.

        Raises:
            UserError: a row of the first batch has no database or no reference that runs.
            RewardError: one of a later batch, whose run is worth a checkpoint.
        """
        try:
            rewards = self._worths(batch.extras, batch.completions, range(1, len(batch.completions) + 1))
        except UserError as mistake:
            if not self._has_scored:
                raise
            raise RewardError(str(mistake)) from mistake
        self._has_scored = True
        return torch.tensor(rewards, dtype=torch.float32, device=batch.input_ids.device)

    def worth(self, row: Mapping[str, Any], completion: str, number: int) -> float:
        """The reward of one completion.

        Args:
            row: the columns of its prompt's row. completion: the answer. number: of the row, for messages.

        Raises:
            UserError: as a call.
        """
        return self._worths([row], [completion], [number])[0]

    def _worths(
        self, rows: Sequence[Mapping[str, Any]], completions: Sequence[str], numbers: Sequence[int]
    ) -> list[float]:
        numbered = list(zip(rows, numbers, strict=True))
        places = [self._databases.of(row, number) for row, number in numbered]
        references = [reference_sql(row, number) for row, number in numbered]
        expected = self._expected(list(zip(places, references, strict=True)))
        for db, reference, wanted in zip(places, references, expected, strict=True):
            if wanted.error is not None:  # what cannot be judged must not pass for wrong
                raise UserError(f"the reference SQL does not run on {db}: {_reason(db, wanted)}: {reference}")
        found = self._executions([self._rules.statement(*each) for each in zip(places, completions, strict=True)])
        return [
            FAILS if result.error is not None else RIGHT if self._rules.is_right(reference, wanted, result) else RUNS
            for reference, wanted, result in zip(references, expected, found, strict=True)
        ]

    def _expected(self, references: Sequence[tuple[Place, str]]) -> list[Execution]:
        """What reference statements give on their databases."""
        return self._executions([self._rules.statement(*each, is_reference=True) for each in references])


def _reason(db: Place, failed: Execution) -> str:
    """What the database says, and which tables there are where one is missing."""
    if failed.error_class != "no_such_table":
        return str(failed.error)
    names = table_names(db)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{failed.error} (there are: {', '.join(names[:_SHOWN]) or 'none'}{more})"

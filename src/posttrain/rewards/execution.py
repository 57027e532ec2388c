"""The database as the reward: a completion is worth what its SQL gives when it is run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from posttrain.config import RunConfig
from posttrain.errors import RewardError, UserError
from posttrain.rewards.sql.columns import database, reference_sql
from posttrain.rewards.sql.compare import extract_sql, is_ordered, same_result
from posttrain.rewards.sql.sandbox import Execution, execute
from posttrain.types import RolloutBatch

RIGHT, RUNS, FAILS = 1.0, 0.2, 0.0


class SqlExecutionReward:
    """1 for SQL that gives the rows of the reference, 0.2 for SQL that runs, 0 for what does not.

    Each prompt's row names its database in the column ``db`` and its reference SQL in ``gold`` or ``output``.
    Statements are run read-only under limits, as in ``posttrain eval`` with task sql.
    """

    is_apart = True

    def __init__(self, folder: Path, *, time_limit_s: float = 2.0, row_limit: int = 10_000) -> None:
        """Take the limits.

        Args:
            folder: what the column ``db`` is relative to. time_limit_s, row_limit: of one statement.
        """
        self._folder = folder
        self._limits: dict[str, Any] = {"time_limit_s": time_limit_s, "row_limit": row_limit}
        self._references: dict[tuple[Path, str], Execution] = {}
        self._has_scored = False

    @classmethod
    def configured(cls, config: RunConfig) -> SqlExecutionReward:
        """With the folder and the limits that the configuration names."""
        limits = config.evaluate
        folder = Path(limits.database_dir or config.data.dataset_dir)
        return cls(folder, time_limit_s=limits.sql_time_limit, row_limit=limits.sql_row_limit)

    def check(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Refuse rows that could not be judged, before time is spent on answers to them.

        Args:
            rows: the columns of each prompt's row, in order.

        Raises:
            UserError: names the first row without database file or reference.
        """
        for number, row in enumerate(rows, start=1):
            reference_sql(row, number)
            path = database(row, self._folder, number)
            if not path.is_file():
                raise UserError(
                    f"row {number} of the data names the database {row['db']!r}, but there is no {path}; correct the "
                    "column `db`, or name the folder that it is seen from in `database_dir`"
                )

    def __call__(self, batch: RolloutBatch) -> Tensor:
        """[B] rewards.

        Raises:
            UserError: a row of the first batch has no database or no reference that runs.
            RewardError: one of a later batch, whose run is worth a checkpoint.
        """
        rows = zip(batch.extras, batch.completions, strict=True)
        try:
            rewards = [self.worth(row, completion, number) for number, (row, completion) in enumerate(rows, start=1)]
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
        path, reference = database(row, self._folder, number), extract_sql(reference_sql(row, number))
        expected = self._expected(path, reference)  # first: what cannot be judged must not pass for wrong
        result = execute(path, extract_sql(completion), **self._limits)
        if result.error is not None:
            return FAILS
        return RIGHT if same_result(expected, result, ordered=is_ordered(reference)) else RUNS

    def _expected(self, path: Path, reference: str) -> Execution:
        key = (path, reference)
        if key not in self._references:
            expected = execute(path, reference, **self._limits)
            if expected.error is not None:
                raise UserError(f"the reference SQL does not run on {path}: {expected.error}: {reference}")
            self._references[key] = expected
        return self._references[key]

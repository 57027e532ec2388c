"""How statements reach a database and when its answers count as the same: one object for the reward and the measure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from posttrain.config import RunConfig
from posttrain.rewards.sql.compare import ColumnOrder, difference, extract_sql, is_ordered, same_result
from posttrain.rewards.sql.dialects import exact_form, require_sqlglot, target_of, translated
from posttrain.rewards.sql.failures import finer_class
from posttrain.rewards.sql.places import Place
from posttrain.rewards.sql.sandbox import Execution, execute_all

_AT_ONCE = 64


@dataclass(frozen=True, kw_only=True)
class SqlRules:
    """What is decided before a statement is run.

    Attributes:
        time_limit_s, row_limit: of one statement.
        dialect: in which statements are written; None is the database's own.
        reference_dialect: in which references are, where that is another one.
        column_order: as in ``same_result``.
    """

    time_limit_s: float = 2.0
    row_limit: int = 10_000
    dialect: str | None = None
    reference_dialect: str | None = None
    column_order: ColumnOrder = "position"

    @classmethod
    def configured(cls, config: RunConfig) -> SqlRules:
        """Those that a configuration names.

        Raises:
            UserError: a dialect is named and sqlglot, which translates it, is not installed.
        """
        keys = config.evaluate
        for name in ("sql_dialect", "sql_reference_dialect"):
            if getattr(keys, name):
                require_sqlglot(f"{name}: {getattr(keys, name)}")
        return cls(
            time_limit_s=keys.sql_time_limit,
            row_limit=keys.sql_row_limit,
            dialect=keys.sql_dialect,
            reference_dialect=keys.sql_reference_dialect,
            column_order=keys.sql_column_order,
        )

    def dialect_of(self, db: Place, *, is_reference: bool) -> str:
        """In which dialect an answer or a reference about a database is written."""
        own = self.reference_dialect if is_reference else None
        return own or self.dialect or target_of(db)

    def statement(self, db: Place, answer: str, *, is_reference: bool = False) -> tuple[Place, str]:
        """What is run for an answer: its statement, translated where the database speaks another dialect."""
        return db, translated(extract_sql(answer), self.dialect_of(db, is_reference=is_reference), target_of(db))

    def executed(
        self,
        answers: Sequence[tuple[Place, str]],
        progress: Callable[[int, int], None] | None = None,
        *,
        are_references: bool = False,
    ) -> list[Execution]:
        """What the statements of answers give, equal ones run once.

        Args:
            answers: database and answer of each. progress: called with (answers done, in all).
            are_references: whether they are gold statements.

        Raises:
            UserError: a database is missing or cannot be used.
        """
        statements = [self.statement(db, answer, is_reference=are_references) for db, answer in answers]
        known: dict[tuple[Place, str], Execution] = {}
        for start in range(0, len(statements), _AT_ONCE):
            part = statements[start : start + _AT_ONCE]
            new = [statement for statement in dict.fromkeys(part) if statement not in known]
            results = execute_all(new, time_limit_s=self.time_limit_s, row_limit=self.row_limit)
            known |= dict(zip(new, results, strict=True))
            if progress:
                progress(start + len(part), len(statements))
        return [known[statement] for statement in statements]

    def is_right(self, gold_sql: str, gold: Execution, predicted: Execution) -> bool:
        """Whether a result is that of the reference."""
        return same_result(gold, predicted, ordered=is_ordered(gold_sql), column_order=self.column_order)

    def error_class(self, gold_sql: str, gold: Execution, predicted: Execution) -> str | None:
        """Why a prediction is wrong, from the database's message or from the two results; None where it is right."""
        if predicted.rows is None:
            return finer_class(predicted)
        return difference(gold, predicted, ordered=is_ordered(gold_sql), column_order=self.column_order) or None

    def is_exact(self, gold_sql: str, answer: str, db: Place) -> bool:
        """Whether two statements are the same but for spelling: case, white space, quotes, comments."""
        _, own = self.statement(db, answer)
        _, wanted = self.statement(db, gold_sql, is_reference=True)
        return exact_form(own, target_of(db)) == exact_form(wanted, target_of(db))

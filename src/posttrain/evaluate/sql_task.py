"""Text-to-SQL as a task: every variant answers the held-out questions, and its SQL is run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from typing import Any

from posttrain.config import RunConfig
from posttrain.config.addresses import without_password
from posttrain.data.text2sql.hardness import hardness
from posttrain.evaluate.bench import Bench, Found, as_records
from posttrain.evaluate.bootstrap import Measure, Record, ratio
from posttrain.evaluate.paired import paired_counts
from posttrain.evaluate.responses import read_responses
from posttrain.evaluate.sql import GOLD_FAILS, Outcome, Reference, SqlReport, references, score_sql
from posttrain.evaluate.text_tasks import ABOUT_ANSWERS
from posttrain.rewards.sql.columns import Databases, reference_sql
from posttrain.rewards.sql.dialects import has_sqlglot
from posttrain.rewards.sql.rules import SqlRules

Progress = Callable[[str, int, int], None]

GROUPS = ("language", "kind", "hardness")
"""Columns of a row by which the scores are broken down."""

_MAX_NAMED = 5


def _of_judged(key: str) -> Callable[[Record], Sequence[float]]:
    """A mean over questions whose reference runs."""
    return lambda record: (0.0, 0.0) if record.get("error_class") == GOLD_FAILS else (float(record[key]), 1.0)


MEASURES = (
    *(
        Measure(name=name, title=title, columns=_of_judged(key), value=ratio, is_share=True, unit="share")
        for name, title, key in (
            ("execution_accuracy", "execution accuracy", "correct"),
            ("valid_rate", "valid SQL", "valid"),
            ("exact_match", "exact match", "exact"),
        )
    ),
    *ABOUT_ANSWERS,
)
_COMPARED = tuple(measure for measure in MEASURES if measure.name in ("execution_accuracy", "reward"))


def sql(bench: Bench) -> Found:
    """How often the SQL that models write, or wrote into files, gives the rows of the reference."""
    prepared: list[SqlQuestions] = []

    def check(rows: Sequence[Mapping[str, Any]]) -> None:
        prepared.append(SqlQuestions.prepared(bench.config, rows, bench.progress))
        for sentence in prepared[-1].notes():
            bench.notify(sentence)

    responses = read_responses(bench, check)
    questions, found, metrics = prepared[-1], {}, {}
    for name, texts in responses.texts.items():
        report = questions.report(texts, partial(bench.progress, f"run the SQL of {name}"))
        found[name] = [
            responses.record(name, place) | questions.record(place, outcome)
            for place, outcome in enumerate(report.outcomes)
        ]
        metrics[name] = {
            "num_questions": report.num_questions,
            "num_excluded": report.num_excluded,
            **bench.figures(MEASURES, found[name]),
            "error_classes": report.error_classes,
            "groups": {key: {v: asdict(part) for v, part in parts.items()} for key, parts in report.groups.items()},
        }
    return Found(
        variants=metrics,
        num_rows=len(responses),
        records=as_records(responses.ids, found),
        differences=_with_counts(bench.differences(_COMPARED, found), found),
        decoding=responses.decoding,
        settings={"sql_column_order": questions.rules.column_order},
        more={"excluded": questions.excluded} if questions.excluded else {},
    )


@dataclass(frozen=True, kw_only=True)
class SqlQuestions:
    """Questions that can be judged: their rows, and what their gold statements give.

    Attributes:
        rows: columns of the data. references: gold statements, run.
        groups: column -> one value for each question. rules: how statements are run and compared.
    """

    rows: tuple[Mapping[str, Any], ...]
    references: tuple[Reference, ...]
    groups: Mapping[str, Sequence[str]]
    rules: SqlRules

    @classmethod
    def prepared(cls, config: RunConfig, rows: Sequence[Mapping[str, Any]], progress: Progress) -> SqlQuestions:
        """Run the gold statements, before anything is asked of a model.

        Args:
            config: limits, dialect, the folder of the databases.
            rows: with the columns ``db`` and ``output`` (or ``gold``).
            progress: told of every query: what, done, in all.

        Raises:
            UserError: a column or a database is missing, or no gold statement runs.
        """
        rules = SqlRules.configured(config)
        databases = Databases.configured(config)
        column = config.evaluate.reference_column
        golds = [reference_sql(row, number, column) for number, row in enumerate(rows, start=1)]
        databases.check(rows)
        dbs = [databases.of(row, number) for number, row in enumerate(rows, start=1)]
        found = references(golds, dbs, rules, partial(progress, "run the gold SQL"))
        groups = {name: [str(row[name]) for row in rows] for name in GROUPS if all(name in row for row in rows)}
        if "hardness" not in groups and has_sqlglot():
            dialects = [rules.dialect_of(db, is_reference=True) for db in dbs]
            groups["hardness"] = [hardness(gold, dialect) for gold, dialect in zip(golds, dialects, strict=True)]
        return cls(rows=tuple(rows), references=tuple(found), groups=groups, rules=rules)

    @property
    def excluded(self) -> list[dict[str, Any]]:
        """One entry for each question whose gold statement does not run."""
        return [
            {"row": number, "db": str(reference.db), "error": reference.result.error, "gold": reference.sql}
            for number, reference in enumerate(self.references, start=1)
            if not reference.runs
        ]

    def notes(self) -> list[str]:
        """Sentences about gold statements that judge nothing or little."""
        said, excluded, of = [], self.excluded, len(self.references)
        if excluded:
            named = "; ".join(f"row {item['row']}: {item['error']}" for item in excluded[:_MAX_NAMED])
            more = f"; and {len(excluded) - _MAX_NAMED} more" if len(excluded) > _MAX_NAMED else ""
            said.append(
                f"{len(excluded)} of {of} gold statements do not run; their questions are left out and listed in the "
                f"results under `excluded` ({named}{more})"
            )
        empty = sum(reference.result.rows == () for reference in self.references)
        if empty:
            said.append(f"{empty} of {of} gold statements find no row: whatever finds none counts as right there")
        return said

    def report(self, texts: Sequence[str], progress: Callable[[int, int], None]) -> SqlReport:
        """Run one answer to each question."""
        return score_sql(
            texts,
            [reference.sql for reference in self.references],
            [reference.db for reference in self.references],
            groups=self.groups,
            rules=self.rules,
            known=self.references,
            progress=progress,
        )

    def record(self, place: int, outcome: Outcome) -> dict[str, Any]:
        """What a line of the predictions says of one outcome."""
        row = self.rows[place]
        return {
            **({"db": without_password(str(row["db"]))} if "db" in row else {}),
            **{key: values[place] for key, values in self.groups.items()},
            **asdict(outcome),
        }


def _with_counts(
    differences: Sequence[Mapping[str, Any]], found: Mapping[str, Sequence[Record]]
) -> list[dict[str, Any]]:
    """The differences, those in accuracy with how many questions one, the other or both answer right."""
    counts = {}
    for minus, of in pairwise(found):
        right = [[bool(r["correct"]) for r in found[name] if r["error_class"] != GOLD_FAILS] for name in (of, minus)]
        counts[of, minus] = paired_counts(*right)
    told = []
    for item in differences:
        pair = counts[item["of"], item["minus"]]
        more: dict[str, Any] = {
            "both_right": pair.both,
            "only_of_right": pair.only_first,
            "only_minus_right": pair.only_second,
        }
        more |= {"both_wrong": pair.neither, "mcnemar_p": pair.p_value}
        told.append({**item, **(more if item["metric"] == "execution_accuracy" else {})})
    return told

"""Text-to-SQL as a task: every variant answers the held-out questions, and its SQL is run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from statistics import fmean
from typing import Any

from posttrain.config import RunConfig
from posttrain.config.addresses import without_password
from posttrain.data.encode import EncodedPrompt
from posttrain.evaluate.completions import Completed
from posttrain.evaluate.intervals import bootstrap_interval, paired_difference_interval, wilson_interval
from posttrain.evaluate.sql import SqlReport, score_sql
from posttrain.rewards.sql.columns import Databases, reference_sql

Progress = Callable[[str, int, int], None]

GROUPS = ("language", "kind", "hardness")
"""Columns of a row by which the scores are broken down."""


def score(
    config: RunConfig, prompts: Sequence[EncodedPrompt], completed: Mapping[str, Completed], progress: Progress
) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """Run every completion on its row's database.

    Args:
        config: limits, the folder of the databases, the level of the intervals.
        prompts: rows with the columns ``db`` and ``output`` (or ``gold``) among their extras.
        completed: variant -> its answers.
        progress: told of every query: what, done, in all.

    Returns:
        Variant -> metrics; differences of neighbouring variants; one record per variant and row.

    Raises:
        UserError: a column or a database is missing.
    """
    databases = Databases.configured(config)
    golds = [reference_sql(prompt.extras, number) for number, prompt in enumerate(prompts, start=1)]
    dbs = [databases.of(prompt.extras, number) for number, prompt in enumerate(prompts, start=1)]
    groups = {
        name: [str(prompt.extras[name]) for prompt in prompts]
        for name in GROUPS
        if all(name in prompt.extras for prompt in prompts)
    }
    metrics, records, reports = {}, [], {}
    for name, answers in completed.items():
        report = score_sql(
            answers.texts,
            golds,
            dbs,
            groups=groups,
            time_limit_s=config.evaluate.sql_time_limit,
            row_limit=config.evaluate.sql_row_limit,
            progress=partial(progress, f"run the SQL of {name}"),
        )
        reports[name] = report
        metrics[name] = _metrics(config, report, answers)
        records += _records(name, prompts, report, answers)
    return metrics, _differences(config, reports, completed), records


def _metrics(config: RunConfig, report: SqlReport, answers: Completed) -> dict[str, Any]:
    level, seed, count = config.evaluate.confidence, config.train.seed, report.num_questions
    correct = sum(outcome.correct for outcome in report.outcomes)
    valid = sum(outcome.valid for outcome in report.outcomes)
    found: dict[str, Any] = {
        "num_questions": count,
        "execution_accuracy": report.execution_accuracy,
        "execution_accuracy_interval": wilson_interval(correct, count, level=level),
        "valid_rate": report.valid_rate,
        "valid_rate_interval": wilson_interval(valid, count, level=level),
        "exact_match": report.exact_match,
        "response_length": fmean(answers.lengths),
        "ended_share": fmean(answers.ended),
    }
    for name, values in (("reward", answers.rewards), ("kl", answers.kls)):
        if values is not None:
            found[name] = fmean(values)
            found[f"{name}_interval"] = bootstrap_interval(values, seed=seed, level=level)
    details = report.to_dict()
    return found | {"error_classes": details["error_classes"], "groups": details["groups"]}


def _differences(
    config: RunConfig, reports: Mapping[str, SqlReport], completed: Mapping[str, Completed]
) -> list[dict[str, Any]]:
    """Each variant against the one before it, question by question."""
    found = []
    for before, after in pairwise(reports):
        correct = [[float(outcome.correct) for outcome in reports[name].outcomes] for name in (after, before)]
        found.append(_difference(config, after, before, "execution_accuracy", *correct))
        new, old = completed[after].rewards, completed[before].rewards
        if new is not None and old is not None:
            found.append(_difference(config, after, before, "reward", new, old))
    return found


def _difference(
    config: RunConfig, of: str, minus: str, metric: str, a: Sequence[float], b: Sequence[float]
) -> dict[str, Any]:
    interval = paired_difference_interval(a, b, seed=config.train.seed, level=config.evaluate.confidence)
    return {"metric": metric, "of": of, "minus": minus, "difference": fmean(a) - fmean(b), "interval": interval}


def _records(
    name: str, prompts: Sequence[EncodedPrompt], report: SqlReport, answers: Completed
) -> list[dict[str, Any]]:
    rows = []
    for i, (prompt, outcome) in enumerate(zip(prompts, report.outcomes, strict=True)):
        rows.append(
            {
                "index": i,
                "variant": name,
                "prompt": prompt.messages[-1].content,
                **{key: prompt.extras[key] for key in GROUPS if key in prompt.extras},
                **({"db": without_password(str(prompt.extras["db"]))} if "db" in prompt.extras else {}),
                "gold": outcome.gold,
                "completion": answers.texts[i],
                "predicted": outcome.predicted,
                "correct": outcome.correct,
                "valid": outcome.valid,
                "exact": outcome.exact,
                "error_class": outcome.error_class,
                "error": outcome.error,
                "response_length": answers.lengths[i],
                "ended": answers.ended[i],
                "reward": answers.rewards[i] if answers.rewards else None,
                "kl": answers.kls[i] if answers.kls else None,
            }
        )
    return rows

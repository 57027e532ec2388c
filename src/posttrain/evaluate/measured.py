"""By which figures two evaluations of a task are compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from posttrain.evaluate import likelihood, match, preference, sql_task, text_scores, win_rate
from posttrain.evaluate.bootstrap import Measure, Record, ratio
from posttrain.evaluate.frontier import MEASURES as FRONTIER
from posttrain.evaluate.text_tasks import ABOUT_ANSWERS

_COMPARED: Mapping[str, tuple[Measure, ...]] = {
    # perplexity is loss on another scale: one test is enough
    "loss": tuple(measure for measure in likelihood.MEASURES if measure.name != "perplexity"),
    "perplexity": tuple(measure for measure in likelihood.MEASURES if measure.name != "loss"),
    "reward": preference.MEASURES,
    "sql": sql_task.MEASURES,
    "generation": (*text_scores.MEASURES, *ABOUT_ANSWERS),
    "match": (*match.MEASURES, *ABOUT_ANSWERS),
    "win_rate": win_rate.MEASURES,
    "frontier": FRONTIER,
}


def measures_of(task: str, records: Sequence[Record]) -> tuple[Measure, ...]:
    """The figures of a task; () for a task that is not known. Those that the records do not know are left out later."""
    return _of_harness(records) if task == "lm_eval" else _COMPARED.get(task, ())


def _of_harness(records: Sequence[Record]) -> tuple[Measure, ...]:
    """A mean for each task and metric of lm-evaluation-harness."""
    names = dict.fromkeys((record["task"], metric) for record in records for metric in record["metrics"])
    return tuple(
        Measure(name=f"{task}/{metric}", title=f"{task} {metric}", columns=_in_task(task, metric), value=ratio)
        for task, metric in names
    )


def _in_task(task: str, metric: str) -> Callable[[Record], Sequence[float]]:
    def columns(record: Record) -> Sequence[float]:
        known = record["task"] == task and metric in record["metrics"]
        return (float(record["metrics"][metric]), 1.0) if known else (0.0, 0.0)

    return columns

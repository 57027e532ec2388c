"""The tasks of `posttrain eval`, by name: each measures the models of a bench on its rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import fmean

from posttrain.evaluate import likelihood, preference
from posttrain.evaluate.bench import Bench, Found, as_records
from posttrain.evaluate.frontier import frontier
from posttrain.evaluate.items import digest_of
from posttrain.evaluate.lm_harness import lm_eval
from posttrain.evaluate.preference_plot import plot_preference
from posttrain.evaluate.sql_task import sql
from posttrain.evaluate.text_tasks import generation, matching
from posttrain.evaluate.win_rate import win_rate

Task = Callable[[Bench], Found]

PLOT = "reward.png"


def perplexity(bench: Bench) -> Found:
    """How probable documents are, or answers where the configuration names stage sft."""
    return _likelihood(bench, "pt" if _named_stage(bench) != "sft" else "sft")


def loss(bench: Bench) -> Found:
    """How probable answers are, or documents where the configuration names stage pt."""
    return _likelihood(bench, "sft" if _named_stage(bench) != "pt" else "pt")


def reward(bench: Bench) -> Found:
    """How well reward models rank pairs, of a ranking every pair."""
    items = bench.items("dpo")
    found = preference.preference_records(
        bench.wardrobe, items.rows, batch_size=bench.batch_size, progress=bench.progress
    )
    metrics = {}
    for name, records in found.items():
        means = {key: fmean(record[key] for record in records) for key in ("chosen_score", "rejected_score")}
        groups = preference.preference_groups(records, level=bench.level)
        figures = bench.figures(preference.MEASURES, records)
        metrics[name] = {**figures, **means, "num_pairs": len(records), **groups}
    if bench.folder is not None:
        plot_preference(metrics, bench.folder / PLOT)
        bench.notify(f"drew {bench.folder / PLOT}")
    return Found(
        variants=metrics,
        num_rows=len(items.rows),
        records=as_records(items.ids, found),
        differences=bench.differences(preference.MEASURES, found),
    )


TASKS: Mapping[str, Task] = {
    "perplexity": perplexity,
    "loss": loss,
    "reward": reward,
    "sql": sql,
    "generation": generation,
    "match": matching,
    "win_rate": win_rate,
    "frontier": frontier,
    "lm_eval": lm_eval,
}


def _likelihood(bench: Bench, stage: str) -> Found:
    items, vocabulary = bench.items(stage), bench.wardrobe.tokenizer.get_vocab()
    found = likelihood.likelihood_records(
        bench.wardrobe, items.rows, batch_size=bench.batch_size, progress=bench.progress
    )
    metrics = {
        name: {
            **bench.figures(likelihood.MEASURES, records),
            "num_tokens": int(sum(record["num_tokens"] for record in records)),
        }
        for name, records in found.items()
    }
    return Found(
        variants=metrics,
        num_rows=len(items.rows),
        records=as_records(items.ids, found),
        differences=bench.differences(likelihood.MEASURES, found),
        settings={"tokenizer": digest_of([f"{number} {token}" for token, number in vocabulary.items()])},
    )


def _named_stage(bench: Bench) -> str | None:
    config = bench.config
    return config.method.stage if "stage" in config.sources else None

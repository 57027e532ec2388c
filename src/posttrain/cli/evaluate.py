"""``posttrain eval``: measure a model on data."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from posttrain.cli.arguments import add_configured
from posttrain.cli.output import number, print_block, print_table, say
from posttrain.cli.progress import ProgressLine


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    add_configured(commands, "eval", execute, help="Measure loss, rewards, answers, win rates, SQL ... with intervals.")


def breakdowns(results: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, dict[str, Any]]]]:
    """What task sql adds: accuracy of each group, wrong answers by class, differences of neighbouring variants."""
    variants = results.get("variants", {})
    names = list(dict.fromkeys(name for metrics in variants.values() for name in metrics.get("groups", {})))
    for group in names:
        table = {}
        for variant, metrics in variants.items():
            parts = metrics["groups"].get(group, {})
            table[variant] = {f"{part} ({score['num_questions']})": score for part, score in parts.items()}
        yield (
            f"execution accuracy by {group}",
            {
                variant: {part: with_interval(score) for part, score in parts.items()}
                for variant, parts in table.items()
            },
        )
    classes = {variant: metrics.get("error_classes", {}) for variant, metrics in variants.items()}
    if any(classes.values()):
        known = dict.fromkeys(name for counts in classes.values() for name in counts)
        yield "wrong answers", {v: {name: counts.get(name, 0) for name in known} for v, counts in classes.items()}
    for item in results.get("differences", []) if results.get("task") == "sql" else ():
        shown = {key: value for key, value in item.items() if key not in ("of", "minus", "metric")}
        yield f"{item['metric']}: {item['of']} - {item['minus']}", {"": shown}


def with_interval(score: Mapping[str, Any]) -> str:
    """An accuracy and its interval."""
    low, high = score["interval"]
    return f"{number(score['execution_accuracy'])} [{number(low)}, {number(high)}]"


def execute(args: argparse.Namespace) -> int:
    """Evaluate, then print what was measured."""
    from posttrain.config import load_config

    config = load_config(args.config, args.overrides, command="eval")
    args.output_dir = config.train.output_dir or None

    from posttrain.evaluate.run import evaluate

    with ProgressLine() as progress:
        results = evaluate(config, notify=say, progress=progress)
    variants = results.get("variants", {})
    print_table(variants)
    for title, table in breakdowns(results):
        print(f"***** {title} *****")
        print_table(table)
    if results.get("task") != "sql":
        _print_differences(results.get("differences", []))
    print_block("eval metrics", {key: value for key, value in results.items() if not isinstance(value, dict | list)})
    return 0


def _print_differences(differences: Sequence[Mapping[str, Any]]) -> None:
    """How variants differ on the same rows, a line for each figure."""
    for each in differences:
        low, high = (f"{bound:+.4g}" for bound in each["interval"])
        p = f", p {each['p']:.3f}" if "p" in each else ""
        print(f"{each['of']} - {each['minus']}: {each['metric']} {each['difference']:+.4g} [{low}, {high}]{p}")

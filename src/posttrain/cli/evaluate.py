"""``posttrain eval``: measure a model on data."""

from __future__ import annotations

import argparse

from posttrain.cli.arguments import add_configured
from posttrain.cli.output import print_block, print_table, say
from posttrain.cli.progress import ProgressLine


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    add_configured(commands, "eval", execute, help="Measure loss, rewards, answers, win rates, SQL ... with intervals.")


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
    print_block("eval metrics", {key: value for key, value in results.items() if not isinstance(value, dict | list)})
    return 0

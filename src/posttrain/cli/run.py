"""``posttrain run``: stages chained by one pipeline file."""

from __future__ import annotations

import argparse

from posttrain.cli.arguments import add_configured


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    add_configured(
        commands,
        "run",
        execute,
        help="Run a pipeline of stages, skipping those that are done.",
        metavar="PIPELINE",
        epilog="stage.key=value sets a key of one stage, key=value of all: posttrain run pipeline.yaml sft.max_steps=2",
    )


def execute(args: argparse.Namespace) -> int:
    """Run the pipeline."""
    from posttrain.config import load_pipeline

    args.output_dir = load_pipeline(args.config, args.overrides).output_dir

    from posttrain.pipeline.run import run_pipeline

    run_pipeline(args.config, args.overrides, notify=lambda line: print(line, flush=True))
    return 0

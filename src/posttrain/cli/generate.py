"""``posttrain generate``: completions of a dataset, written to one file."""

from __future__ import annotations

import argparse

from posttrain.cli.arguments import add_configured, configured
from posttrain.cli.output import print_block, say
from posttrain.cli.progress import ProgressLine


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    text = "Complete the rows of a dataset and write them to a file."
    add_configured(commands, "generate", execute, help=text, needs_file=False)


def execute(args: argparse.Namespace) -> int:
    """Generate, then print how long it took."""
    config = configured(args, "generate")
    args.output_dir = config.train.output_dir or None

    from posttrain.serve.generate import generate

    with ProgressLine() as progress:
        results = generate(config, notify=say, progress=progress)
    print_block("predict metrics", results)
    return 0

"""``posttrain generate``: completions of a dataset, written to one file."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from posttrain.cli.arguments import add_configured, configured
from posttrain.cli.output import print_block, say
from posttrain.cli.progress import ProgressLine
from posttrain.errors import UserError

_SHOWN = 3


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    text = "Complete the rows of a dataset and write them to a file."
    parser = add_configured(commands, "generate", execute, help=text, needs_file=False)
    parser.add_argument(
        "--show",
        type=int,
        metavar="N",
        help=f"print the first N rows with their answers (default: {_SHOWN} where num_return_sequences is more than 1)",
    )


def execute(args: argparse.Namespace) -> int:
    """Generate, then print how long it took, and some answers."""
    if args.show is not None and args.show < 0:
        raise UserError(f"--show {args.show}: give a number from 0 on")
    config = configured(args, "generate")
    args.output_dir = config.train.output_dir or None

    from posttrain.data.files import rows_of_file
    from posttrain.serve.generate import PREDICTIONS, SUFFIXES, generate
    from posttrain.serve.output_file import output_file

    with ProgressLine() as progress:
        results = generate(config, notify=say, progress=progress)
    show = args.show if args.show is not None else _SHOWN * (config.generation.num_return_sequences > 1)
    if show:
        written = output_file(config, command="generate", default=PREDICTIONS, suffixes=SUFFIXES)
        print_answers([row for _, row in rows_of_file(written)][:show])
    print_block("predict metrics", results)
    return 0


def print_answers(rows: Sequence[Mapping[str, Any]]) -> None:
    """Each row's last message, and its answers under it, one a line."""
    for number, row in enumerate(rows, start=1):
        print(f"[{number}] {_line(row['messages'][-1]['content'])}")
        answers = row["predict"] if isinstance(row["predict"], list) else [row["predict"]]
        for place, answer in enumerate(answers, start=1):
            print(f"  {place}. {_line(answer)}")


def _line(text: str) -> str:
    return " ".join(text.split())

"""``posttrain label``: preference pairs by a judge."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from posttrain.cli.arguments import add_configured
from posttrain.cli.output import print_block, say
from posttrain.cli.progress import ProgressLine


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = add_configured(
        commands, "label", execute, help="Turn prompts or sampled answers into preference pairs, by a judge."
    )
    parser.add_argument(
        "--judge", metavar="URL|FOLDER", help="OpenAI-compatible server or reward model; wins over `judge`"
    )
    _take_anywhere(parser, "--judge")


def execute(args: argparse.Namespace) -> int:
    """Label, then print the account."""
    from posttrain.config import load_config

    overrides = [*args.overrides, *([] if args.judge is None else [f"judge={args.judge}"])]
    config = load_config(args.config, overrides, command="label")
    args.output_dir = config.train.output_dir or None

    from posttrain.serve.label import label

    with ProgressLine() as progress:
        results = label(config, notify=say, progress=progress)
    print_block("label metrics", results)
    return 0


def _take_anywhere(parser: argparse.ArgumentParser, option: str) -> None:
    """Let an option stand before, between and behind the overrides.

    argparse takes CONFIG together with the overrides that follow it at once, and refuses those behind an option.
    """
    alone = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    alone.add_argument(option, nargs=1, default=[])
    parse = parser.parse_known_args

    def rearranged(args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        given = list(args or ())
        if given[-1:] == [option]:
            return parse(given, namespace)  # its value is missing, which argparse says
        found, rest = alone.parse_known_args(given)
        values = [f"{option}={value}" for value in vars(found)[option.lstrip("-")]]
        return parse([*values, *rest], namespace)

    parser.parse_known_args = rearranged  # type: ignore[method-assign, assignment]

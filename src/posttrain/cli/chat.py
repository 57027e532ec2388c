"""``posttrain chat``: talk to a model in the terminal."""

from __future__ import annotations

import argparse

from posttrain.cli.arguments import add_configured, configured
from posttrain.cli.output import say


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    text = "Talk to a model; one message per line where input is a pipe."
    add_configured(commands, "chat", execute, help=text, needs_file=False)


def execute(args: argparse.Namespace) -> int:
    """Load the model, then talk until the input ends."""
    config = configured(args, "chat")

    from posttrain.serve.chat import talk
    from posttrain.serve.lineup import Lineup

    talk(Lineup(config, notify=say))
    return 0

"""``posttrain chat``: talk to a model in the terminal."""

from __future__ import annotations

import argparse

from posttrain.cli.arguments import add_configured
from posttrain.cli.output import say


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    add_configured(commands, "chat", execute, help="Talk to a model; one message per line where input is a pipe.")


def execute(args: argparse.Namespace) -> int:
    """Load the model, then talk until the input ends."""
    from posttrain.config import load_config

    config = load_config(args.config, args.overrides, command="chat")

    from posttrain.serve.chat import talk
    from posttrain.serve.model import ChatModel

    talk(ChatModel(config, notify=say))
    return 0

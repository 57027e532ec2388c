"""``posttrain export``: a model and its adapters as one Hugging Face folder."""

from __future__ import annotations

import argparse

from posttrain.cli.arguments import add_configured
from posttrain.cli.output import say


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    add_configured(commands, "export", execute, help="Merge adapters into their base, check the result, write it.")


def execute(args: argparse.Namespace) -> int:
    """Export; print the folder."""
    from posttrain.config import load_config

    config = load_config(args.config, args.overrides, command="export")

    from posttrain.models.export import export_model

    print(export_model(config, notify=say))
    return 0

"""Arguments that several commands share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any


def add_configured(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    run: Callable[[argparse.Namespace], int],
    *,
    help: str,
    metavar: str = "CONFIG",
    **texts: Any,
) -> argparse.ArgumentParser:
    """A command that takes a configuration file and overrides."""
    parser = commands.add_parser(name, help=help, description=help, **texts)
    parser.add_argument("config", metavar=metavar, help="YAML or JSON file")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="settings that win over the file")
    parser.set_defaults(run=run)
    return parser

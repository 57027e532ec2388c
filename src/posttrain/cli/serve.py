"""``posttrain serve``: an OpenAI-compatible server."""

from __future__ import annotations

import argparse
import importlib.util

from posttrain.cli.arguments import add_configured
from posttrain.cli.output import say
from posttrain.errors import UserError

_LIBRARIES = ("fastapi", "uvicorn")


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command, and the name that LLaMA-Factory has for it."""
    add_configured(commands, "serve", execute, help="Serve models to OpenAI's clients until Ctrl-C.", aliases=["api"])


def execute(args: argparse.Namespace) -> int:
    """Serve until told to stop."""
    from posttrain.config import load_config

    config = load_config(args.config, args.overrides, command="serve")
    missing = [name for name in _LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f'posttrain serve needs {" and ".join(missing)}: pip install "posttrain[serve]"')

    from posttrain.serve.server.run import serve

    return serve(config, notify=say)

"""The command line: one thin file per command, heavy imports inside its function."""

from posttrain.cli.main import main

__all__ = ["main"]

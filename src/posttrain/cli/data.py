"""``posttrain data``: make data sets with the project's own generators."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from posttrain.cli.output import say

_NOT_FLAGS = ("directory", "domains", "progress")


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = commands.add_parser("data", help="Make a data set, such as text-to-SQL with its databases.")
    generators = parser.add_subparsers(
        dest="generator", metavar="GENERATOR", title="generators", required=True, parser_class=GeneratorParser
    )
    text2sql = generators.add_parser("text2sql", help="Questions, pairs, documents and SQLite databases.")
    text2sql.set_defaults(run=make_text2sql)


class GeneratorParser(argparse.ArgumentParser):
    """Imports its generator, and declares the generator's flags, only when it is the one that was asked for."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As the parser's own; the flags are declared first."""
        from posttrain.data.text2sql import generate

        add_flags(self, generate)
        return super().parse_known_args(args, namespace)


def make_text2sql(args: argparse.Namespace) -> int:
    """Write the text-to-SQL data set; print how many rows each file has."""
    from posttrain.data.text2sql import generate

    folder = Path(args.output).expanduser()
    manifest = generate(folder, **{name: getattr(args, name) for name in _flags(generate)})
    for name, count in manifest.counts.items():
        print(f"{count:>8}  {folder / name}")
    say(f"{manifest.num_databases} SQLite databases; use the files with dataset_dir: {folder}")
    return 0


def add_flags(parser: argparse.ArgumentParser, function: Any) -> None:
    """``--output`` and one flag for each keyword argument of a generator, with its type and default."""
    lines = (inspect.getdoc(function) or "").splitlines()
    parser.description = lines[0] if lines else None
    parser.add_argument("--output", metavar="DIR", required=True, help="folder to write, made when missing")
    for name, default in _flags(function).items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(default, Sequence) and not isinstance(default, str):
            given = " ".join(map(str, default))
            parser.add_argument(flag, nargs="+", default=default, metavar="NAME", help=f"default: {given}")
        else:
            kind = type(default)
            parser.add_argument(flag, type=kind, default=default, metavar=kind.__name__, help=f"default: {default}")


def _flags(function: Any) -> dict[str, Any]:
    """The keyword arguments that a command line can give, with their defaults."""
    parameters = inspect.signature(function).parameters
    return {name: parameter.default for name, parameter in parameters.items() if name not in _NOT_FLAGS}

"""Arguments that several commands share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any


class OverridingParser(argparse.ArgumentParser):
    """Takes ``key=value`` behind options too, where argparse itself expects no more of them."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As the parser's own."""
        found, unknown = super().parse_known_args(args, namespace)
        if getattr(found, "overrides", None) is not None and self.get_default("run") is not None:
            late = [text for text in unknown if "=" in text and not text.startswith("-")]
            found.overrides = [*found.overrides, *late]
            unknown = [text for text in unknown if text not in late]
        return found, unknown


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

"""Arguments that several commands share."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from posttrain.config import RunConfig
    from posttrain.config.run import Command


class OverridingParser(argparse.ArgumentParser):
    """Takes ``key=value`` behind options too, where argparse itself expects no more of them.

    Attributes:
        takes_keys: whether ``--key value`` is read as ``key=value``.
    """

    takes_keys = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As the parser's own."""
        if self.takes_keys and any(word.startswith("--") for word in args or ()):
            args = with_keys(args, own=frozenset(self._option_string_actions))
        found, unknown = super().parse_known_args(args, namespace)
        if getattr(found, "overrides", None) is not None and self.get_default("run") is not None:
            late = [text for text in unknown if "=" in text and not text.startswith("-")]
            found.overrides = [*found.overrides, *late]
            unknown = [text for text in unknown if text not in late]
        return found, unknown


def with_keys(words: Sequence[str], *, own: frozenset[str] = frozenset()) -> list[str]:
    """Every ``--key value`` as ``key=value``, and a ``--key`` without a value as ``key=true``; keys come last.

    Args:
        words: of a command line. own: options that are not keys.
    """
    plain: list[str] = []
    keys: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        key = name.removeprefix("--").replace("-", "_")
        if not word.startswith("--") or not key.isidentifier() or _is_own(name, own):
            (keys if _is_override(word) else plain).append(word)
            continue
        if not equals:
            value = rest.pop(0) if _has_value(key, rest) else "true"
        keys.append(f"{key}={value}")
    return [*plain, *keys]


def _has_value(key: str, rest: Sequence[str]) -> bool:
    """Whether the next word is the value of a flag."""
    from posttrain.config.run import KEYS

    if not rest or rest[0].startswith("--") or _is_override(rest[0]):
        return False
    is_switch = key in KEYS and KEYS[key].hint is bool
    return not is_switch or rest[0].lower() in ("true", "false", "yes", "no", "on", "off", "1", "0")


def _is_own(name: str, own: frozenset[str]) -> bool:
    """Whether it is argparse's to read: an option, the beginning of one, or one that was misspelt."""
    if name in own or (len(name) > 3 and any(option.startswith(name) for option in own)):
        return True
    from posttrain.config.run import KEYS

    return name.removeprefix("--") not in KEYS and bool(difflib.get_close_matches(name, own, n=1, cutoff=0.8))


def _is_override(text: str) -> bool:
    key, equals, _ = text.partition("=")
    return bool(equals) and key.isidentifier() and not Path(text).exists()


def configured(args: argparse.Namespace, command: Command) -> RunConfig:
    """The configuration that a file and what stands behind it describe; without a file, that of the words alone.

    Where these are flags of a script that is known, what it leaves out has the script's defaults.

    Raises:
        UserError: as ``load_config``; or there are no words either.
    """
    from posttrain.config import load_config
    from posttrain.config.loader import split_override
    from posttrain.config.script import ALIASES, IMPLIED, SCRIPT, is_of_the_script
    from posttrain.errors import UserError

    words = list(args.overrides)
    if args.config is not None and _is_override(args.config):
        words.insert(0, args.config)
        args.config = None
    if args.config is not None:
        return load_config(args.config, words, command=command)
    if not words:
        raise UserError(
            f"posttrain {command}: give a configuration file, keys such as --model_name_or_path, or both; recipes/ has "
            "a file for each purpose"
        )
    flags = dict(split_override(word) for word in words)
    source: dict[str, Any] = {}
    if command == "train" and is_of_the_script(flags):
        given = {*flags, *(ALIASES[flag] for flag in flags if flag in ALIASES)}
        source = {key: value for key, value in {**IMPLIED, **SCRIPT}.items() if ALIASES.get(key, key) not in given}
        source = {key: value for key, value in source.items() if key not in given}
    return load_config(source, words, command=command)


def add_configured(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    run: Callable[[argparse.Namespace], int],
    *,
    help: str,
    metavar: str = "CONFIG",
    needs_file: bool = True,
    **texts: Any,
) -> argparse.ArgumentParser:
    """A command that takes a configuration file and overrides; ``needs_file`` False: or keys alone."""
    parser = commands.add_parser(name, help=help, description=help, **texts)
    file: dict[str, Any] = {} if needs_file else {"nargs": "?"}
    parser.add_argument("config", metavar=metavar, help="YAML or JSON file", **file)
    parser.add_argument(
        "overrides", metavar="key=value", nargs="*", help="settings that win over the file; also --key value"
    )
    parser.set_defaults(run=run)
    if isinstance(parser, OverridingParser):
        parser.takes_keys = True
    return parser

"""``posttrain doctor``: whether a run can work, before it is started."""

from __future__ import annotations

import argparse
import json
from typing import Any

from posttrain.cli.arguments import add_configured
from posttrain.cli.output import has_colours
from posttrain.errors import UserError


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = add_configured(
        commands,
        "doctor",
        examine,
        help="Look whether a run can work: data, template, memory, disk, one real step ...",
        epilog="Exit status: 0 without errors, 2 with one.",
    )
    parser.add_argument("--fast", action="store_true", help="leave out what loads the model")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")


def examine(args: argparse.Namespace) -> int:
    """Print what is found, as soon as it is; 2 where something would stop the run or make it worthless."""
    from posttrain.config import load_config
    from posttrain.diagnose.findings import Finding, has_errors, summary

    found = []
    colours = has_colours() and not args.json
    try:
        config = load_config(args.config, args.overrides, command="train")
    except UserError as error:
        found = [Finding(level="error", check="configuration", message=str(error))]
    if not found:
        from posttrain.diagnose.doctor import Doctor
        from posttrain.diagnose.paint import Paint

        for finding in Doctor(config, Paint(colours)).findings(fast=args.fast):
            found.append(finding)
            if not args.json:
                _print(finding, colours)
    elif not args.json:
        _print(found[0], colours)
    if args.json:
        results = {"findings": [finding.plain() for finding in found], "summary": summary(found)}
        print(json.dumps({**results, "ok": not has_errors(found)}, ensure_ascii=False, indent=2))
    else:
        print(summary(found))
    return 2 if has_errors(found) else 0


def _print(finding: Any, colours: bool) -> None:
    styles = {"ok": "32", "warning": "33", "error": "1;31"}
    line = finding.line()
    if colours:
        length = len(finding.level)
        line = f"\x1b[{styles[finding.level]}m{line[:length]}\x1b[0m{line[length:]}"
    print(line, flush=True)
    for below in finding.block:
        print(f"         {below}")

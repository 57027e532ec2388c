"""Reads the command line, runs the command, and turns every end into an exit status and at most one message."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

import posttrain
from posttrain.cli import (
    chat,
    compare,
    config,
    data,
    doctor,
    environment,
    evaluate,
    export,
    generate,
    label,
    model,
    reward_parity,
    run,
    serve,
    train,
)
from posttrain.cli.arguments import OverridingParser
from posttrain.cli.failures import explained, failed
from posttrain.cli.output import is_first_process, num_processes

_FIRST_SPEAKS_SECONDS = 3.0
COMMANDS = (
    *(train, run, doctor, export, chat, generate, serve, label, evaluate, compare),
    *(reward_parity, model, config, data, environment),
)

_EPILOG = "Values on the command line win over the file: posttrain train sft.yaml learning_rate=1e-4 max_steps=100"


def main(argv: Sequence[str] | None = None) -> int:
    """The command ``posttrain``.

    Args:
        argv: the arguments after the program's name; None takes those of the process.

    Returns:
        The exit status: 0, 2 on bad input, 1 on a failed run, 130 on Ctrl-C.
    """
    _prepare_process()
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.command is None:
        parser.print_help(sys.stderr)
        return 2
    if num_processes() == 1:
        return explained(args)
    return _one_of_several(args)


def _one_of_several(args: argparse.Namespace) -> int:
    """A command that torchrun started more than once: training alone can share its work."""
    if args.command == "train":
        status = explained(args)
        if status:
            # threads that wait for the other processes would hold this one up
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        return 0
    if is_first_process():
        return failed(f"posttrain {args.command} is one process: start it without torchrun, or unset WORLD_SIZE", 2)
    # torchrun ends all processes when one ends, and the first must have spoken
    time.sleep(_FIRST_SPEAKS_SECONDS)
    return 2


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands; each parsed result carries ``run``, the function of its command."""
    parser = argparse.ArgumentParser(
        prog="posttrain",
        description="From raw text to an aligned language model: pretraining, SFT, reward model, PPO, export, chat.",
        epilog=_EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"posttrain {posttrain.__version__}")
    commands: Any = parser.add_subparsers(
        dest="command", metavar="COMMAND", title="commands", parser_class=OverridingParser
    )
    for command in COMMANDS:
        command.add_command(commands)
    return parser


def _prepare_process() -> None:
    """Settings that the libraries read when they are imported; what the user has set stays."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # OpenMP threads that spin for long while they wait stall each other beside other work; threads that do not spin
    # at all train at 0.73 of this speed (benchmarks/cpu_settings.py).
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    for stream in (sys.stdout, sys.stderr):
        # a Windows console of another code page prints a question mark instead of ending the run
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")

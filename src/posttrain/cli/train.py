"""``posttrain train``: one stage from one configuration file."""

from __future__ import annotations

import argparse
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from posttrain.cli.arguments import add_configured, configured
from posttrain.cli.output import is_first_process, num_processes, print_results, say
from posttrain.errors import UserError


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    text = "Run one stage: pt, sft, rm, dpo, kto, ppo, rloo, grpo ..."
    add_configured(commands, "train", execute, help=text, needs_file=False)


def execute(args: argparse.Namespace) -> int:
    """Train, then print the metrics."""
    try:
        config = configured(args, "train")
    except UserError as error:
        _refused_together(error)
        raise
    args.output_dir = config.train.output_dir

    from posttrain.train.run import train

    with _terminated_as_interrupted():
        results = train(config, notify=say)
    if is_first_process():
        print_results(results)
        say(f"the run is in {config.train.output_dir}")
    return 0


def _refused_together(error: UserError) -> None:
    """Where several processes were started, let the first one say what is wrong for all that find it."""
    if num_processes() > 1:
        from posttrain.engine import joined

        with joined(timeout=60, say=say):
            raise error


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM is Ctrl-C from somewhere else: the same checkpoint, message and exit status."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN:  # else processes are ending together
            signal.signal(signal.SIGTERM, before)

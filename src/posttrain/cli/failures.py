"""How a command can end: done, bad input, failed run, interrupted, or a fault of our own."""

from __future__ import annotations

import argparse
import datetime
import os
import sys
import tempfile
import traceback
from pathlib import Path

from posttrain.cli.output import is_first_process, say
from posttrain.errors import PosttrainError

INTERRUPTED = 130


def explained(args: argparse.Namespace) -> int:
    """Run ``args.run(args)``; whatever happens, say it in one message and return the exit status.

    A command sets ``args.output_dir`` once it knows it; that is where the traceback of a fault goes.
    """
    try:
        return int(args.run(args) or 0)
    except PosttrainError as error:
        return error.exit_status if error.is_said else failed(str(error), error.exit_status)
    except KeyboardInterrupt:
        if is_first_process():
            print(file=sys.stderr)
            say(_farewell(args))
        return INTERRUPTED
    except BrokenPipeError:
        # the reader of our output has gone; nothing more can be said there
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if os.environ.get("POSTTRAIN_DEBUG"):
            traceback.print_exc()
            return 1
        return failed(_unexpected(error, args), 1)


def failed(message: str, status: int) -> int:
    """Print an error; returns the exit status."""
    print(f"posttrain: error: {message}", file=sys.stderr, flush=True)
    return status


def _farewell(args: argparse.Namespace) -> str:
    if args.command in ("label", "generate"):
        return "interrupted. The same command goes on where this one was."
    folder = getattr(args, "output_dir", None)
    # a checkpoint of the model alone cannot be continued from
    state = "**/checkpoint-*/trainer_state.json"
    if args.command not in ("train", "run") or not folder or not any(Path(folder).expanduser().glob(state)):
        return "interrupted."
    how = "The same command" if args.command == "run" else "The same command with resume_from_checkpoint=true"
    return f"interrupted. {how} continues from the newest checkpoint in {folder}."


def _unexpected(error: Exception, args: argparse.Namespace) -> str:
    """A sentence about an error nobody foresaw, and where its traceback lies."""
    lines = str(error).strip().splitlines()
    first = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    place = _write_traceback(error, getattr(args, "output_dir", None))
    hint = "set POSTTRAIN_DEBUG=1 to see the traceback"
    return f"unexpected {first}\n  The traceback is in {place}; please report it." if place else f"{first}; {hint}."


def _write_traceback(error: Exception, folder: str | None) -> Path | None:
    text = "".join(traceback.format_exception(error))
    name = f"error-{datetime.datetime.now():%Y%m%d-%H%M%S}.txt"
    own = [Path(folder).expanduser()] if folder else []
    for place in (*own, Path(tempfile.gettempdir())):
        if not place.is_dir():
            continue
        try:
            (place / f"posttrain-{name}").write_text(text, encoding="utf-8")
        except OSError:
            continue
        return place / f"posttrain-{name}"
    return None

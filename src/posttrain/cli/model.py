"""``posttrain model``: obtain models by name."""

from __future__ import annotations

import argparse
import sys
import time

from posttrain.cli.output import say


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command and its two actions."""
    parser = commands.add_parser("model", help="Fetch a catalogued model, or list them.")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", title="actions", required=True)
    fetch = actions.add_parser("fetch", help="Obtain a model once and print its folder.")
    fetch.add_argument("name", metavar="NAME", help="a name that `posttrain model list` shows")
    fetch.add_argument("--cache-dir", metavar="DIR", help="where models are kept (default: POSTTRAIN_HOME or a cache)")
    fetch.set_defaults(run=fetch_model)
    listing = actions.add_parser("list", help="Show the models known by name and where they lie.")
    listing.set_defaults(run=list_models)


def fetch_model(args: argparse.Namespace) -> int:
    """Fetch; print the folder on standard output."""
    from posttrain.models.fetch import fetch

    progress = FetchProgress()
    folder = fetch(args.name, cache_dir=args.cache_dir, progress=progress)
    progress.close()
    print(folder)
    return 0


def list_models(args: argparse.Namespace) -> int:
    """One line for each catalogued model."""
    from posttrain.models.fetch import CATALOGUE, PROVENANCE, cache_home

    for name, entry in CATALOGUE.items():
        folder = cache_home() / "models" / name
        state = str(folder) if (folder / PROVENANCE).is_file() else "not fetched"
        print(f"{name}  {entry.hub.num_bytes / 1e6:.0f} MB  {entry.license}  {state}")
    return 0


class FetchProgress:
    """How far a download is: rewritten in place on a terminal, a line every ten seconds elsewhere."""

    def __init__(self, interval: float = 10.0) -> None:
        self._in_place = sys.stderr.isatty()
        self._interval = 0.2 if self._in_place else interval
        self._what = ""
        self._shown = -float("inf")
        self._open = False

    def __call__(self, what: str, done: int, total: int) -> None:
        """See ``posttrain.models.fetch.Progress``."""
        now = time.monotonic()
        if what == self._what and done < total and now - self._shown < self._interval:
            return
        if what == self._what and done >= total and not self._in_place:
            return
        if what != self._what:
            self.close()
        self._what, self._shown = what, now
        text = f"{what}: {done / 1e6:.0f} of {total / 1e6:.0f} MB" if total > 1 else what
        if self._in_place:
            print(f"\rposttrain: {text}\x1b[K", end="", file=sys.stderr, flush=True)
            self._open = True
        else:
            say(text)

    def close(self) -> None:
        """End the line that is being rewritten."""
        if self._open:
            print(file=sys.stderr)
        self._open = False

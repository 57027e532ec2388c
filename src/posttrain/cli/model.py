"""``posttrain model``: obtain models by name."""

from __future__ import annotations

import argparse

from posttrain.cli.progress import ProgressLine


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

    with ProgressLine(amount=lambda done, total: f"{done / 1e6:.0f} of {total / 1e6:.0f} MB") as progress:
        folder = fetch(args.name, cache_dir=args.cache_dir, progress=progress)
    print(folder)
    return 0


def list_models(args: argparse.Namespace) -> int:
    """One line for each catalogued model."""
    from posttrain.config.home import cache_home
    from posttrain.models.fetch import CATALOGUE, PROVENANCE

    for name, entry in CATALOGUE.items():
        folder = cache_home() / "models" / name
        state = str(folder) if (folder / PROVENANCE).is_file() else "not fetched"
        print(f"{name}  {entry.hub.num_bytes / 1e6:.0f} MB  {entry.license}  {state}")
    return 0

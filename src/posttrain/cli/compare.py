"""``posttrain compare``: finished runs side by side, and which differences are more than chance."""

from __future__ import annotations

import argparse
from pathlib import Path

from posttrain.cli.output import say
from posttrain.errors import UserError


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "compare",
        help="Compare evaluations item by item: a table, a plot, and which differences are significant.",
        description="Compare the folders that `posttrain eval` wrote (or training runs). Items are paired; "
        "differences have a paired bootstrap interval, and their p-values are corrected after Holm for all "
        "comparisons of the table.",
        epilog="Exit status: 0, or 2 where runs are not comparable (other tasks, settings or items).",
    )
    parser.add_argument(
        "runs", metavar="RUN", nargs="+", help="output_dir of a run, or name=output_dir; the first is the baseline"
    )
    parser.add_argument(
        "--output", metavar="DIR", default="comparison", help="folder for comparison.md, .json and .png (comparison)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    parser.add_argument("--all-pairs", action="store_true", help="compare every pair, not only with the first system")
    parser.add_argument("--common-items", action="store_true", help="compare on the items that all runs measured")
    parser.add_argument("--seed", type=int, default=42, help="of the bootstrap (42)")
    parser.add_argument("--confidence", type=float, default=0.95, help="level of intervals and tests (0.95)")
    parser.set_defaults(run=execute)


def execute(args: argparse.Namespace) -> int:
    """Compare, print, write."""
    if not 0.5 <= args.confidence < 1:
        raise UserError(f"--confidence {args.confidence:g} must lie between 0.5 and 1, such as 0.95")
    if args.seed < 0:
        raise UserError(f"--seed {args.seed} must not be negative")
    from posttrain.evaluate.run_folders import read_folders

    folders = read_folders(args.runs)
    from posttrain.evaluate.compare import compare
    from posttrain.evaluate.compare_training import compare_training
    from posttrain.pipeline.comparison import as_json, shown, write_comparison

    choice = {"all_pairs": args.all_pairs, "common_items": args.common_items}
    tested = folders[0].kind == "evaluation"
    found = compare(folders, seed=args.seed, level=args.confidence, **choice) if tested else compare_training(folders)
    written = write_comparison(found, Path(args.output).expanduser())
    if args.json:
        print(as_json(found))
    else:
        for text in shown(found):
            print(text)
    say(f"wrote {', '.join(str(path) for path in written)}")
    return 0

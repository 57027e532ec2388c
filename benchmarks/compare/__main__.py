"""Measure posttrain beside another framework on this machine, stage by stage.

    python -m benchmarks.compare --stage sft --peer trl --pairs 5
    python -m benchmarks.compare --stage ppo --peer llamafactory --rows 1x8,4x2
    python -m benchmarks.compare --table                     writes the table of docs/performance.md

Pairs are added to benchmarks/results/compare/STAGE.json; run the same command again to go on after an interruption.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.compare import venvs
from benchmarks.compare.blocks import BlockError, Blocks, environment
from benchmarks.compare.calibration import calibrated
from benchmarks.compare.measuring import ROOT, code_fingerprint, measure
from benchmarks.compare.rows import STAGES, Row, chosen
from benchmarks.compare.table import PAGE, RESULTS, table, with_table

MODEL = "smollm2-135m-instruct"
DATA = ROOT.parent / "shared" / "data" / "llamafactory-demo"


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0, 1 if a side failed, 2 for arguments that cannot be used."""
    args = _parser().parse_args(arguments)
    if args.table:
        PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), table()), encoding="utf-8", newline="\n")
        print(table())
        return 0
    try:
        if not args.stage or not args.peer:
            raise ValueError("--stage and --peer are needed (or --table)")
        rows = chosen(args.stage, args.peer, tuple(args.rows.split(",")) if args.rows else ())
        changes = dict(_change(text) for text in args.set)
        if not (args.data / "dataset_info.json").is_file():
            raise ValueError(f"{args.data} has no dataset_info.json: --data names LLaMA-Factory's folder of demo data")
    except ValueError as error:
        print(f"benchmarks.compare: {error}", file=sys.stderr)
        return 2
    output = args.output or RESULTS / f"{args.stage}.json"
    try:
        for row in rows:
            _measure(row, args, changes, output)
    except BlockError as error:
        print(f"benchmarks.compare: {error}", file=sys.stderr)
        return 1
    return 0


def _measure(row: Row, args: argparse.Namespace, changes: dict[str, Any], output: Path) -> None:
    from benchmarks.compare.inputs import prepared

    from posttrain.models.fetch import resolve_model

    spec = row.settings(changes)
    folders = {"model": str(resolve_model(args.model))}
    inputs = prepared({**spec, **folders}, args.data, args.venvs / "inputs")
    with tempfile.TemporaryDirectory(prefix="posttrain-compare-") as temporary:
        blocks = Blocks({**spec, **folders, **inputs}, partial(venvs.interpreter, folder=args.venvs), Path(temporary))
        measure(
            row,
            {**spec, "model": args.model},
            args.pairs,
            output,
            blocks,
            partial(calibrated, environment(spec["threads"])),
            code=code_fingerprint(),
            say=partial(print, flush=True),
        )


def _change(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--set {text}: expected KEY=VALUE, such as steps=2")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def _parser() -> argparse.ArgumentParser:
    lines = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("benchmarks.compare", description=__doc__, formatter_class=lines)
    parser.add_argument("--stage", choices=STAGES)
    parser.add_argument("--peer", help="trl, llamafactory or transformers")
    parser.add_argument("--rows", help="names of rows, separated by commas; all unless given")
    parser.add_argument("--pairs", type=int, default=5, help="pairs of blocks that the file holds in the end")
    parser.add_argument("--output", type=Path, help="JSON file; benchmarks/results/compare/STAGE.json unless given")
    parser.add_argument("--venvs", type=Path, default=venvs.default_folder(), help="folder of environments and inputs")
    parser.add_argument("--model", default=MODEL, help="a folder, or a name that `posttrain model fetch` knows")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of LLaMA-Factory's demo data")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="another value in SPEC.json")
    parser.add_argument("--table", action="store_true", help="write the table of docs/performance.md from the results")
    return parser


if __name__ == "__main__":
    sys.exit(main())

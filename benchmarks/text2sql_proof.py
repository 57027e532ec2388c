"""The table of docs/results/text2sql.md, recomputed from the predictions that are kept beside this file.

    python benchmarks/text2sql_proof.py                           runs every prediction again and prints the table
    python benchmarks/text2sql_proof.py --check docs/results/text2sql.md    ... and fails if the page says otherwise
    python benchmarks/text2sql_proof.py --keep outputs/text2sql-full/seed-1 takes the predictions of a run in

A predictions file holds, for each held-out question of one seed, the reference and what each model answered. The
databases are not kept: the generator makes them anew from the seed, and the questions must come out the same.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from posttrain.config.pipeline import load_pipeline
from posttrain.data.text2sql import generate
from posttrain.evaluate.intervals import paired_difference_interval, wilson_interval
from posttrain.evaluate.sql import score_sql

ROOT = Path(__file__).resolve().parent
RECIPE = ROOT.parent / "recipes" / "text2sql" / "full.yaml"
KEPT = ROOT / "results" / "text2sql"
MODELS = {"base": "base", "sft": "SFT", "ppo": "PPO, reward model", "ppo_execution": "PPO, database"}
COMPARED = (("sft", "base"), ("ppo", "sft"), ("ppo_execution", "sft"))
QUESTION = ("index", "db", "kind", "gold")
BOOTSTRAP_SEED = 0


@dataclass(frozen=True)
class Seed:
    """What the models of one seed did: model -> right (1.0) or not (0.0), and share of SQL that runs."""

    number: int
    right: dict[str, list[float]]
    runs: dict[str, float]


def main() -> None:
    """Print the table, check it against a page, or keep the predictions of a run."""
    parser = argparse.ArgumentParser(description="Recompute the text-to-SQL results from the kept predictions.")
    parser.add_argument("--predictions", type=Path, default=KEPT, help="folder with seed-N.jsonl files")
    parser.add_argument("--check", type=Path, help="a page that must hold the table as it is printed")
    parser.add_argument("--keep", type=Path, help="output_dir of a finished run of recipes/text2sql/full.yaml")
    args = parser.parse_args()
    if args.keep:
        print(f"kept {keep(args.keep, args.predictions)}")
        return
    files = sorted(args.predictions.glob("seed-*.jsonl"))
    if not files:
        sys.exit(f"{args.predictions} holds no seed-N.jsonl: run the recipe, then --keep its output_dir")
    table = markdown([scored(file) for file in files])
    print(table)
    if args.check and table.strip() not in args.check.read_text(encoding="utf-8"):
        sys.exit(f"{args.check} does not hold this table")


def keep(run: Path, folder: Path) -> Path:
    """Take what a run predicted into one small file, a question a line."""
    manifest = json.loads((run / "data" / "manifest.json").read_text(encoding="utf-8"))
    rows: dict[int, dict[str, Any]] = {}
    for line in (run / "evaluate" / "predictions.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        row = rows.setdefault(record["index"], {key: record[key] for key in QUESTION})
        row[record["variant"]] = record["completion"]
    path = folder / f"seed-{manifest['seed']}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(rows[index], ensure_ascii=False) + "\n" for index in sorted(rows))
    path.write_text(text, encoding="utf-8", newline="\n")
    return path


def scored(file: Path, recipe: Path = RECIPE) -> Seed:
    """Make the databases of the seed, as the recipe draws them, anew and run every prediction on them."""
    number = int(file.stem.removeprefix("seed-"))
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    with tempfile.TemporaryDirectory() as temporary:
        data = Path(temporary)
        generate(data, seed=number, **load_pipeline(recipe).prepare[0].options)
        heldout = [json.loads(line) for line in (data / "heldout.jsonl").read_text(encoding="utf-8").splitlines()]
        if [(row["db"], row["gold"]) for row in rows] != [(row["db"], row["output"]) for row in heldout]:
            sys.exit(f"{file}: its questions are not those that the generator makes from seed {number} today")
        golds, dbs = [row["gold"] for row in rows], [data / row["db"] for row in rows]
        models = [name for name in rows[0] if name not in QUESTION]
        reports = {model: score_sql([row[model] for row in rows], golds, dbs) for model in models}
    return Seed(
        number,
        {model: [float(outcome.correct) for outcome in report.outcomes] for model, report in reports.items()},
        {model: report.valid_rate for model, report in reports.items()},
    )


def markdown(seeds: Sequence[Seed]) -> str:
    """Accuracy of every seed, then all seeds pooled with intervals, then the differences."""
    pooled = {model: [x for seed in seeds for x in seed.right[model]] for model in MODELS}
    lines = [
        "| execution accuracy | questions | " + " | ".join(MODELS.values()) + " |",
        "| --- | ---: |" + " ---: |" * len(MODELS),
    ]
    for seed in seeds:
        cells = " | ".join(_percent(fmean(seed.right[model])) for model in MODELS)
        lines.append(f"| seed {seed.number} | {len(seed.right['base'])} | {cells} |")
    cells = " | ".join(_share(pooled[model]) for model in MODELS)
    lines.append(f"| all [95 %] | {len(pooled['base'])} | {cells} |")
    cells = " | ".join(_percent(fmean(seed.runs[model] for seed in seeds)) for model in MODELS)
    lines += [f"| SQL that runs | {len(pooled['base'])} | {cells} |", ""]
    seed_names = " | ".join(f"seed {seed.number}" for seed in seeds)
    lines += [
        f"| difference in points | {seed_names} | all [95 %] | better : worse |",
        "| --- |" + " ---: |" * (len(seeds) + 2),
    ]
    for better, worse in COMPARED:
        by_seed = " | ".join(f"{100 * _difference(seed.right[better], seed.right[worse]):+.1f}" for seed in seeds)
        low, high = paired_difference_interval(pooled[better], pooled[worse], seed=BOOTSTRAP_SEED)
        both = list(zip(pooled[better], pooled[worse], strict=True))
        turned = f"{sum(a > b for a, b in both)} : {sum(a < b for a, b in both)}"
        total = f"{100 * _difference(pooled[better], pooled[worse]):+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
        lines.append(f"| {MODELS[better]} − {MODELS[worse]} | {by_seed} | {total} | {turned} |")
    return "\n".join(lines)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _share(right: Sequence[float]) -> str:
    low, high = wilson_interval(int(sum(right)), len(right))
    return f"{_percent(fmean(right))} [{100 * low:.1f}, {100 * high:.1f}]"


def _difference(a: Sequence[float], b: Sequence[float]) -> float:
    return fmean(x - y for x, y in zip(a, b, strict=True))


if __name__ == "__main__":
    main()

"""The table of docs/results/algorithms.md: every algorithm on one task, from kept predictions.

posttrain run recipes/text2sql/algorithms.yaml
python benchmarks/algorithms.py --keep outputs/algorithms/seed-11    takes what the run predicted and cost
python benchmarks/algorithms.py                                      runs every prediction again, prints the table
python benchmarks/algorithms.py --check docs/results/algorithms.md   ... and fails if the page says otherwise
python benchmarks/algorithms.py --plot docs/images/algorithms.png    ... and draws it
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from text2sql_proof import BOOTSTRAP_SEED, Seed, keep, scored

from posttrain.evaluate.intervals import paired_difference_interval, wilson_interval

ROOT = Path(__file__).resolve().parent
RECIPE = ROOT.parent / "recipes" / "text2sql" / "algorithms.yaml"
KEPT = ROOT / "results" / "algorithms"
START = "sft"
Costs = Mapping[str, Mapping[str, float]]


def main() -> None:
    """Print the table, check it against a page, or keep what a run predicted and cost."""
    parser = argparse.ArgumentParser(description="Compare the algorithms from the kept predictions.")
    parser.add_argument("--results", type=Path, default=KEPT, help="folder with seed-N.jsonl and costs-N.json")
    parser.add_argument("--check", type=Path, help="a page that must hold the table as it is printed")
    parser.add_argument("--keep", type=Path, help="output_dir of a finished run of recipes/text2sql/algorithms.yaml")
    parser.add_argument("--plot", type=Path, help="a picture of accuracy and cost to write")
    args = parser.parse_args()
    if args.keep:
        predictions = keep(args.keep, args.results)
        costs = json.dumps(costs_of(args.keep), indent=2) + "\n"
        (args.results / f"costs-{_number(predictions)}.json").write_text(costs, encoding="utf-8", newline="\n")
        print(f"kept {predictions} and what it cost")
        return
    files = sorted(args.results.glob("seed-*.jsonl"), key=_number)
    if not files:
        sys.exit(f"{args.results} holds no seed-N.jsonl: run the recipe, then --keep its output_dir")
    costs = [json.loads((args.results / f"costs-{_number(file)}.json").read_text(encoding="utf-8")) for file in files]
    seeds = [scored(file, RECIPE) for file in files]
    table = markdown(seeds, costs)
    print(table)
    if args.plot:
        plot(seeds, costs, args.plot)
    if args.check and table.strip() not in args.check.read_text(encoding="utf-8"):
        sys.exit(f"{args.check} does not hold this table")


def costs_of(run: Path) -> dict[str, dict[str, float]]:
    """Stage -> seconds of training, tokens trained, completions sampled, most memory held in gigabytes."""
    found: dict[str, dict[str, float]] = {}
    for path in sorted(run.glob("*/train_results.json")):
        results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        completions = path.parent / "completions.jsonl"
        sampled = len(completions.read_text(encoding="utf-8").splitlines()) if completions.is_file() else 0
        found[path.parent.name] = {
            "seconds": round(results["train_runtime"], 1),
            "trained_tokens": results["train_tokens"],
            "completions": sampled,
            "gigabytes": round(results["peak_memory_bytes"] / 1e9, 2),
        }
    return found


def markdown(seeds: Sequence[Seed], costs: Sequence[Costs]) -> str:
    """A line for each algorithm, the best first: accuracy by seed and pooled, its gain over SFT, what it cost."""
    pooled = _pooled(seeds)
    names = " | ".join(f"seed {seed.number}" for seed in seeds)
    lines = [
        f"| execution accuracy | {names} | all [95 %] | − SFT, points [95 %] | better : worse | completions | "
        "trained tokens | minutes | GB |",
        "| --- |" + " ---: |" * (len(seeds) + 7),
    ]
    for model in sorted(pooled, key=lambda name: -fmean(pooled[name])):
        by_seed = " | ".join(f"{100 * fmean(seed.right[model]):.1f} %" for seed in seeds)
        low, high = wilson_interval(int(sum(pooled[model])), len(pooled[model]))
        share = f"{100 * fmean(pooled[model]):.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
        lines.append(
            f"| {model} | {by_seed} | {share} | {_gain(pooled[model], pooled[START])} | {_cost(model, costs)} |"
        )
    return "\n".join(lines)


def plot(seeds: Sequence[Seed], costs: Sequence[Costs], path: Path) -> None:
    """Accuracy over all seeds with its interval, and minutes of training, the best on top."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pooled = _pooled(seeds)
    names = sorted(pooled, key=lambda name: fmean(pooled[name]))
    shares = [100 * fmean(pooled[name]) for name in names]
    bounds = [wilson_interval(int(sum(pooled[name])), len(pooled[name])) for name in names]
    errors = [
        [share - 100 * low for share, (low, _) in zip(shares, bounds, strict=True)],
        [100 * high - share for share, (_, high) in zip(shares, bounds, strict=True)],
    ]
    minutes = [fmean(cost[name]["seconds"] for cost in costs) / 60 if name in costs[0] else 0.0 for name in names]
    size = (9, 0.32 * len(names) + 1.2)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=size, sharey=True, width_ratios=(2, 1))
    left.barh(names, shares, xerr=errors, color=["#999999" if n in ("base", START) else "#3b6ea5" for n in names])
    left.set_xlabel("execution accuracy, %, with 95 % interval")
    right.barh(names, minutes, color="#c08a3e")
    right.set_xlabel("minutes of training")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _pooled(seeds: Sequence[Seed]) -> dict[str, list[float]]:
    return {model: [x for seed in seeds for x in seed.right[model]] for model in seeds[0].right}


def _gain(mine: Sequence[float], start: Sequence[float]) -> str:
    low, high = paired_difference_interval(mine, start, seed=BOOTSTRAP_SEED)
    both = list(zip(mine, start, strict=True))
    turned = f"{sum(a > b for a, b in both)} : {sum(a < b for a, b in both)}"
    return f"{100 * (fmean(mine) - fmean(start)):+.1f} [{100 * low:+.1f}, {100 * high:+.1f}] | {turned}"


def _cost(model: str, costs: Sequence[Costs]) -> str:
    """Means over the seeds; a model that was not trained cost nothing."""
    if not all(model in cost for cost in costs):
        return "– | – | – | –"
    mean = {key: fmean(cost[model][key] for cost in costs) for key in costs[0][model]}
    sampled, trained = f"{mean['completions']:.0f}", f"{mean['trained_tokens']:.0f}"
    return f"{sampled} | {trained} | {mean['seconds'] / 60:.1f} | {mean['gigabytes']:.1f}"


def _number(file: Path) -> int:
    return int(file.stem.rpartition("-")[2])


if __name__ == "__main__":
    main()

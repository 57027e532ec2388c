"""Adapters on all layers against the last third: what PPO gains on one task, and in what time, with the same seeds.

posttrain run recipes/text2sql/algorithms.yaml                       makes the data and the SFT model it starts from
python -m benchmarks.trainable_layers outputs/algorithms/seed-11     trains, prints the table, keeps the curves

The reward is the database itself, so that both curves have one scale.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results" / "trainable_layers.json"
SIDES: Mapping[str, dict[str, Any]] = {"all layers": {}, "last third": {"trainable_layers": 0.34}}
COMMON = {
    "model_name_or_path": "smollm2-135m-instruct",
    "finetuning_type": "lora",
    "lora_target": "all",
    "lora_rank": 16,
    "cutoff_len": 256,
    "default_system": "Write SQL.",
    "create_new_adapter": True,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}
PPO = {
    "stage": "ppo",
    "dataset": "text2sql_prompts",
    "num_return_sequences": 4,
    "per_device_train_batch_size": 32,
    "ppo_epochs": 4,
    "ppo_score_norm": True,
    "kl_coef": 0.1,
    "temperature": 0.7,
    "learning_rate": 1.5e-4,
    "value_learning_rate": 1e-3,
    "lr_scheduler_type": "constant",
    "max_new_tokens": 48,
    "reward_funcs": ["sql_execution"],
}


def main() -> None:
    """Train every side with every seed, print the table, keep the curves."""
    parser = argparse.ArgumentParser(description="PPO with adapters on all layers against the last third of them.")
    parser.add_argument("start", type=Path, help="output_dir of recipes/text2sql/algorithms.yaml")
    parser.add_argument("--seeds", type=int, nargs="+", default=[11, 12, 13])
    parser.add_argument("--iterations", type=int, default=12)
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/trainable_layers"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument(
        "--keys", nargs="*", default=[], metavar="key=value", help="keys of both sides, such as another model"
    )
    args = parser.parse_args()
    runs = []
    for seed in args.seeds:
        for name, keys in SIDES.items():  # in turn, so that both sides see the same machine
            folder = args.output_dir / f"{name.replace(' ', '-')}-{seed}"
            overrides = dict(pair.split("=", 1) for pair in args.keys)
            run = trained(folder, args.start, {**keys, **overrides, "seed": seed}, args.iterations)
            runs.append({"side": name, "seed": seed, **run})
            args.results.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps({"iterations": args.iterations, "runs": runs}, indent=2)
            args.results.write_text(text + "\n", encoding="utf-8", newline="\n")
    print(markdown(runs))


def trained(folder: Path, start: Path, keys: Mapping[str, Any], iterations: int) -> dict[str, Any]:
    """The curve of one run: reward, and seconds of each phase, by iteration."""
    where = {"dataset_dir": str(start / "data"), "adapter_name_or_path": str(start / "sft")}
    own = {"max_steps": iterations, "output_dir": str(folder)}
    posttrain(folder.with_suffix(".json"), {**COMMON, **where, **PPO, **own, **keys})
    return curve(folder)


def posttrain(path: Path, keys: Mapping[str, Any]) -> None:
    """Run one configuration in a process of its own, unless it is finished."""
    if (Path(keys["output_dir"]) / "train_results.json").is_file():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dict(keys), indent=2), encoding="utf-8", newline="\n")
    subprocess.run([sys.executable, "-m", "posttrain", "train", str(path)], check=True)


def curve(folder: Path) -> dict[str, Any]:
    """What a finished online run logged."""
    lines = [json.loads(line) for line in (folder / "trainer_log.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = [line for line in lines if "seconds_train" in line]
    phases = sorted({name for row in rows for name in row if re.fullmatch("seconds_(generate|score|train)", name)})
    results = json.loads((folder / "train_results.json").read_text(encoding="utf-8"))
    return {
        "reward": [round(row["reward_mean"], 4) for row in rows],
        **{phase: [round(row[phase], 3) for row in rows] for phase in phases},
        "peak_gigabytes": round(results["peak_memory_bytes"] / 1e9, 2),
    }


def markdown(runs: Sequence[Mapping[str, Any]]) -> str:
    """A line for each side: reward at the beginning and the end, seconds of an iteration by phase, memory."""
    lines = [
        "| adapters | first three rewards | last three rewards | generate, s | score, s | train, s | peak GB |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in SIDES:
        own = [run for run in runs if run["side"] == name]
        first, last = (fmean(fmean(run["reward"][part]) for run in own) for part in (slice(0, 3), slice(-3, None)))
        seconds = [
            f"{fmean(fmean(run[f'seconds_{phase}']) for run in own):.2f}" for phase in ("generate", "score", "train")
        ]
        memory = max(run["peak_gigabytes"] for run in own)
        lines.append(f"| {name} | {first:.3f} | {last:.3f} | {' | '.join(seconds)} | {memory:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

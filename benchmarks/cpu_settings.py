"""What our CPU defaults are worth: the same short SFT run under other thread and micro-batch settings.

    python benchmarks/cpu_settings.py [--steps 10] [--rounds 3] [--output benchmarks/results/cpu_settings.json]

Every setting runs in a process of its own, in turn (A B C, A B C ...), on SmolLM2-135M-Instruct with LoRA of rank 16
and the recipe's text-to-SQL rows. Printed are live tokens per second of the training phase and peak memory, the median
of the rounds, and the ratio to the first setting, taken round by round.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

SETTINGS: dict[str, tuple[dict[str, str], dict[str, int]]] = {
    "default": ({}, {}),
    "OMP_WAIT_POLICY=passive": ({"OMP_WAIT_POLICY": "passive"}, {}),
    "OMP_WAIT_POLICY=active": ({"OMP_WAIT_POLICY": "active"}, {}),
    "max_tokens_per_microbatch=1024": ({}, {"max_tokens_per_microbatch": 1024}),
    "max_tokens_per_microbatch=256": ({}, {"max_tokens_per_microbatch": 256}),
}


def measured(folder: Path, steps: int, environment: dict[str, str], keys: dict[str, int]) -> dict[str, float]:
    """Tokens per second and peak gigabytes of one run."""
    config = {
        "model_name_or_path": "smollm2-135m-instruct",
        "stage": "sft",
        "dataset": "text2sql_sft",
        "dataset_dir": str(folder / "data"),
        "output_dir": str(folder / "run"),
        "overwrite_output_dir": True,
        "lora_rank": 16,
        "per_device_train_batch_size": 16,
        "max_steps": steps,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        **keys,
    }
    path = folder / "run.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    command = [sys.executable, "-m", "posttrain", "train", str(path)]
    subprocess.run(command, env=os.environ | environment, check=True, capture_output=True)
    results = json.loads((folder / "run" / "train_results.json").read_text(encoding="utf-8"))
    return {"tokens_per_second": results["train_tokens_per_second"], "peak_gb": results["peak_memory_bytes"] / 1e9}


def main() -> None:
    """Measure all settings in turn and print the table."""
    parser = argparse.ArgumentParser(description="Training speed and memory under CPU settings.")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    from posttrain.data.text2sql import generate

    runs: dict[str, list[dict[str, float]]] = {name: [] for name in SETTINGS}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        generate(folder / "data", num_sft=16 * args.steps, num_pairs=1, num_prompts=1, num_heldout=1)
        for _ in range(args.rounds):
            for name, (environment, keys) in SETTINGS.items():
                runs[name].append(measured(folder, args.steps, environment, keys))
    first = next(iter(runs.values()))
    table = {}
    for name, rounds in runs.items():
        pairs = zip(rounds, first, strict=True)
        table[name] = {
            "tokens_per_second": statistics.median(run["tokens_per_second"] for run in rounds),
            "peak_gb": statistics.median(run["peak_gb"] for run in rounds),
            "ratio": statistics.median(a["tokens_per_second"] / b["tokens_per_second"] for a, b in pairs),
        }
        print(f"{name:32} " + "  ".join(f"{key} {value:8.2f}" for key, value in table[name].items()), flush=True)
    if args.output:
        args.output.write_text(json.dumps({"steps": args.steps, "settings": table}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

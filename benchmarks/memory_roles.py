"""What PPO's four roles cost beside plain fine-tuning: peak memory of both on the same model and lengths.

    python benchmarks/memory_roles.py [--model smollm2-135m-instruct] [--output benchmarks/results/memory_roles.json]
    python benchmarks/memory_roles.py --model FOLDER --data FOLDER --length 64 --new 8         small

SFT with LoRA of rank 8 on all linear layers, and PPO whose actor, reference, reward and critic are LoRA roles on one
backbone (``critic: adapter``), a process each; rows of both, prompt and answer, hold ``--length`` tokens. Peaks are
VmHWM, by phase: Linux resets the mark on request. The last line is the ratio of the whole runs' peaks.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PROC = Path("/proc/self")
TEMPLATE = 36
"""Tokens of a chat template around a prompt."""
COMMON = ("the", "of", "and", "to", "in", "is", "you", "that", "it", "he", "was", "for", "on", "are", "as", "with")


def resident(field: str) -> int:
    """A field of this process's status in bytes, such as VmHWM, the peak since the last ``forget_peak``."""
    lines = (PROC / "status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) * 1024


def forget_peak() -> None:
    """Let VmHWM begin anew at what is resident now."""
    (PROC / "clear_refs").write_text("5", encoding="ascii")


class Phases:
    """The peak of each phase, what lies between phases counted as ``other``."""

    def __init__(self) -> None:
        self.peaks: dict[str, int] = {}

    def mark(self, name: str) -> None:
        """End a phase of this name."""
        self.peaks[name] = max(self.peaks.get(name, 0), resident("VmHWM"))
        forget_peak()

    def around(self, owner: Any, method: str, name: str) -> None:
        """Make every call of a method a phase."""
        inside: Callable[..., Any] = getattr(owner, method)

        def measured(*args: Any, **kwargs: Any) -> Any:
            self.mark("other")
            try:
                return inside(*args, **kwargs)
            finally:
                self.mark(name)

        setattr(owner, method, measured)


def write_rows(folder: Path, args: argparse.Namespace, count: int = 16, seed: int = 0) -> None:
    """``sft.json`` and ``ppo.json``: common English words.

    Rows of SFT are longer than ``--length`` and cut. Prompts of PPO would not be: they leave room for the template.
    """
    from posttrain.models.fetch import resolve_model
    from posttrain.models.load import load_tokenizer

    tokenizer, generator = load_tokenizer(resolve_model(args.model)), random.Random(seed)
    for stage, limit in (("sft", args.length), ("ppo", max(4, args.length - args.new - TEMPLATE))):
        rows = []
        for _ in range(count):
            words = generator.choices(COMMON, k=limit)
            while stage == "ppo" and len(tokenizer(" ".join(words)).input_ids) > limit:
                words.pop()
            rows.append({"instruction": " ".join(words), "input": "", "output": " ".join(words)})
        (folder / f"{stage}.json").write_text(json.dumps(rows), encoding="utf-8")


def keys(stage: str, args: argparse.Namespace) -> dict[str, Any]:
    """One run; the longest row of both stages has as many tokens."""
    length = args.length if stage == "sft" else args.length - args.new
    shared = {
        **{"model_name_or_path": args.model, "stage": stage, "finetuning_type": "lora", "lora_rank": 8},
        **{"dataset": str(args.data / f"{stage}.json"), "cutoff_len": length, "output_dir": str(args.data / stage)},
        **{"per_device_train_batch_size": 4, "max_steps": 2, "learning_rate": 1e-5, "save_strategy": "no"},
        **{"overwrite_output_dir": True, "report_to": "none", "disable_tqdm": True, "logging_steps": 1},
    }
    if stage == "sft":
        return shared
    return {
        **shared,
        **{"reward_model": str(args.reward), "allow_mismatch": True, "critic": "adapter", "ppo_epochs": 1},
        **{"gradient_accumulation_steps": args.rows // 4, "max_new_tokens": args.new, "min_new_tokens": args.new},
    }


def measured(stage: str, args: argparse.Namespace) -> dict[str, Any]:
    """Run one stage in this process."""
    import posttrain
    from posttrain.engine import Engine
    from posttrain.rollout import SlotSampler

    phases = Phases()
    phases.mark("imports")
    phases.around(SlotSampler, "generate", "sample")
    for name in ("consult", "scores", "accumulate", "optimizer_step"):
        phases.around(Engine, name, name)
    posttrain.run_exp(keys(stage, args))
    phases.mark("other")
    return {"stage": stage, "peak_rss_bytes": max(phases.peaks.values()), "phases": phases.peaks}


def in_process_of_its_own(stage: str, args: argparse.Namespace) -> dict[str, Any]:
    """``measured``, in a fresh interpreter."""
    command = [sys.executable, __file__, "--inside", stage, "--model", args.model, "--length", str(args.length)]
    command += ["--new", str(args.new), "--rows", str(args.rows)]
    command += ["--data", str(args.data), "--reward", str(args.reward)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, encoding="utf-8")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def random_reward(args: argparse.Namespace) -> Path:
    """A reward adapter of rank 8 whose weights are random: what it says costs as much as if it were trained."""
    import posttrain

    rows = [{"instruction": f"is it {word}", "chosen": "it is", "rejected": "no"} for word in COMMON[:4]]
    (args.data / "pairs.json").write_text(json.dumps(rows), encoding="utf-8")
    posttrain.run_exp(keys("sft", args) | {"stage": "rm", "dataset": str(args.data / "pairs.json"), "max_steps": 1})
    return args.data / "sft"


def main() -> None:
    """Measure both and write the ratio."""
    parser = argparse.ArgumentParser(description="Peak memory of PPO with four LoRA roles over that of SFT.")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--length", type=int, default=512, help="tokens of a row, prompt and answer")
    parser.add_argument("--new", type=int, default=128, help="tokens of a sampled answer")
    parser.add_argument("--rows", type=int, default=8, help="answers sampled side by side, a multiple of 4")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "memory_roles.json")
    parser.add_argument("--inside", choices=("sft", "ppo", "reward"), help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--reward", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside == "reward":
        print(json.dumps(str(random_reward(args))))
    elif args.inside:
        print(json.dumps(measured(args.inside, args)))
    else:
        compare(args)


def compare(args: argparse.Namespace) -> None:
    """Both stages, each in its own process, and the ratio of their peaks."""
    with tempfile.TemporaryDirectory() as temporary:
        args.data = Path(temporary)
        write_rows(args.data, args)
        args.reward = args.data / "reward"
        in_process_of_its_own("reward", args)
        (args.data / "sft").rename(args.reward)  # a folder of its own, for SFT to have that one
        runs = [in_process_of_its_own(stage, args) for stage in ("sft", "ppo")]
    ratio = runs[1]["peak_rss_bytes"] / runs[0]["peak_rss_bytes"]
    result = {
        "command": f"python benchmarks/memory_roles.py {' '.join(sys.argv[1:])}".strip(),
        **{"model": args.model, "tokens_of_a_row": args.length, "ppo_over_sft": ratio, "runs": runs},
    }
    args.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    for run in runs:
        print(run["stage"], {name: f"{peak / 1e9:.2f} GB" for name, peak in run["phases"].items()})
    print(f"PPO over SFT {ratio:.2f}")


if __name__ == "__main__":
    main()

"""How far SFT and PPO are from the least time that this machine could need, against two measures of the machine.

    python benchmarks/x_of_limit.py --data LLaMA-Factory/data [--model smollm2-135m-instruct] [--steps 6]

SFT and PPO (actor, reference, reward and value head on one backbone) with LoRA of rank 8 on all linear layers, batch 4
and 4 x 2, answers of up to 48 tokens, the rows of ``alpaca_en_demo`` cut at 512; a process each. A run's own log gives
``x_of_limit`` against the fastest product that it can reach, see docs/limits.md. On some processors torch's own product
is far slower than that one, so that the same run is closer to what a program on torch alone could reach: both are said.
Writes ``benchmarks/results/x_of_limit.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PHASES = ("train", "score", "prefill", "decode", "generate")


def keys(stage: str, args: argparse.Namespace) -> dict[str, Any]:
    """The configuration of one run."""
    shared = {
        **{"model_name_or_path": args.model, "stage": stage, "finetuning_type": "lora", "lora_rank": 8},
        **{"dataset": "alpaca_en_demo", "dataset_dir": str(args.data), "cutoff_len": 512, "max_steps": args.steps},
        **{"per_device_train_batch_size": 4, "learning_rate": 1e-5, "save_strategy": "no", "report_to": "none"},
        **{"output_dir": str(args.work / stage), "measure_limits": True, "disable_tqdm": True, "logging_steps": 1},
    }
    if args.budget:
        shared["max_tokens_per_microbatch"] = args.budget
    if stage == "sft":
        return shared
    if stage == "rm":
        return {**shared, "dataset": "dpo_en_demo", "max_steps": 2}
    online = {"gradient_accumulation_steps": 2, "max_new_tokens": 48, "ppo_epochs": 4, "critic": "value_head"}
    return {**shared, **online, "reward_model": str(args.work / "rm"), "allow_mismatch": True}


def measured(stage: str, args: argparse.Namespace) -> dict[str, Any]:
    """Run one stage in this process."""
    import torch

    import posttrain
    from posttrain.engine.limits import Limits
    from posttrain.train import pace

    found: dict[str, Any] = {}
    inside = pace.Pace.results

    def results(self: pace.Pace) -> dict[str, float]:
        if self.limits is not None:
            plain = Limits(torch_flops_per_second(torch), self.limits.bytes_per_second)
            against = {"own": self.limits, "torch": plain}
            for name, limits in against.items():
                numbers = pace.statistics(self.totals, limits)
                found[name] = {
                    **{key.removesuffix("_x_of_limit"): numbers[key] for key in numbers if key.endswith("_x_of_limit")},
                    **{"all": numbers["x_of_limit"], "flops_per_second": limits.flops_per_second},
                }
            found["flops_of_ideal"] = pace.statistics(self.totals, self.limits)["flops_of_ideal"]
            found["seconds"] = {name: work.seconds for name, work in self.totals.items()}
        return inside(self)

    pace.Pace.results = results  # type: ignore[method-assign]
    posttrain.run_exp(keys(stage, args))
    return {"stage": stage, **found}


def torch_flops_per_second(torch: Any, size: int = 1024, tries: int = 12) -> float:
    """The best of several products of two square matrices, by torch alone."""
    import time

    left, right = torch.full((size, size), 0.5), torch.full((size, size), 0.25)
    times = []
    for _ in range(tries):
        began = time.perf_counter()
        left @ right
        times.append(time.perf_counter() - began)
    return float(2 * size**3 / min(times))


def in_process_of_its_own(stage: str, args: argparse.Namespace) -> dict[str, Any]:
    """``measured``, in a fresh interpreter."""
    command = [sys.executable, __file__, "--inside", stage, "--model", args.model, "--data", str(args.data)]
    command += ["--work", str(args.work), "--steps", str(args.steps), "--budget", str(args.budget)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, encoding="utf-8")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Measure both stages, print them and keep them."""
    parser = argparse.ArgumentParser(description="SFT and PPO against the least time that this machine could need.")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    data = ROOT.parent / "shared" / "data" / "llamafactory-demo"
    parser.add_argument("--data", type=Path, default=data, help="folder of LLaMA-Factory's demo data")
    parser.add_argument("--steps", type=int, default=6, help="optimizer steps of SFT, iterations of PPO")
    parser.add_argument("--budget", type=int, default=0, help="tokens of a micro-batch; 0 leaves it to the run")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "x_of_limit.json")
    parser.add_argument("--inside", choices=("sft", "rm", "ppo"), help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside:
        print(json.dumps(measured(args.inside, args)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        args.work = Path(temporary)
        runs = [in_process_of_its_own(stage, args) for stage in ("sft", "rm", "ppo")]
    runs = [run for run in runs if run["stage"] != "rm"]
    result = {
        "command": f"python benchmarks/x_of_limit.py {' '.join(sys.argv[1:])}".strip(),
        **{"model": args.model, "threads": args.threads, "runs": runs},
    }
    args.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    for run in runs:
        for name, says in (("own", "the fastest product it can reach"), ("torch", "torch's own product")):
            times = ", ".join(f"{phase} {run[name][phase]:.2f}" for phase in (*PHASES, "all") if phase in run[name])
            print(f"{run['stage']}: x of limit by {says} ({run[name]['flops_per_second'] / 1e9:.0f} GFLOP/s): {times}")


if __name__ == "__main__":
    main()

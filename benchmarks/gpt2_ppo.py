"""PPO with full fine-tuning of a GPT-2 of 102M at batch 16, in little memory, beside the plain way of doing it.

    python benchmarks/gpt2_ppo.py                                   every side once, about an hour on two cores
    python benchmarks/gpt2_ppo.py --sides head --iterations 1       one side
    python benchmarks/gpt2_ppo.py --size tiny --output ...          the same path in a minute

The workload is a widely copied Chinese tutorial's: 12 layers of width 768 over 21,128 words, questions of up to 64
tokens drawn for texts of up to 701, two epochs, all in float32, all weights training. Weights are random and texts are
CMRC 2018's where ``../shared/data/cmrc2018`` is there, else random characters of the same lengths; neither changes what
is computed. Sides:

    head, models     posttrain at batch 16: the value head on the actor's trunk, with checkpointing; four models
    plain-2, -4      four models in plain transformers and torch, padded, two Adams (``gpt2_plain.py``), at batch 2, 4

Every side runs in a process of its own, in turn. Reported are its peak resident memory (VmHWM), and seconds and CPU
seconds of a sample, loading left out, all sides on texts of one distribution.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TEXTS = ROOT.parent / "shared" / "data" / "cmrc2018" / "cmrc2018_dev.json"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SIDES = ("head", "models", "plain-2", "plain-4")
SIZES: dict[str, dict[str, Any]] = {
    "full": {
        "model": {"n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024},
        **{"vocabulary": 21_128, "batch": 16, "max_len": 768, "query_len": 64},
    },
    "tiny": {
        "model": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128},
        **{"vocabulary": 4_000, "batch": 4, "max_len": 64, "query_len": 8},
    },
}


def texts(count: int, limit: int, seed: int) -> list[str]:
    """Chinese texts, cut to ``limit`` characters."""
    generator = random.Random(seed)
    if TEXTS.is_file():
        rows = json.loads(TEXTS.read_text(encoding="utf-8"))["data"]
        found = [row["paragraphs"][0]["context"] for row in rows]
        return [text[:limit] for text in generator.sample(found, count)]
    lengths = [min(limit, max(8, round(generator.gauss(0.7, 0.22) * limit))) for _ in range(count)]
    return ["".join(chr(0x4E00 + generator.randrange(3500)) for _ in range(n)) for n in lengths]


def write_inputs(folder: Path, size: dict[str, Any], count: int, seed: int = 2048) -> None:
    """``sft_model``, ``rm_model`` and ``ppo_train.json``: random weights, a vocabulary of characters, texts."""
    import torch
    from safetensors.torch import save_file
    from transformers import GPT2Config, GPT2LMHeadModel

    characters = [chr(0x4E00 + number) for number in range(size["vocabulary"] - len(SPECIAL) - 200)]
    others = [chr(number) for number in range(33, 127) if not chr(number).isupper()]
    others += list("。,、:;?!()《》“”·—…「」")
    words = list(dict.fromkeys(SPECIAL + others + characters))
    words += [f"[unused{number}]" for number in range(size["vocabulary"] - len(words))]
    tokens = {"bos_token_id": 2, "eos_token_id": 3}
    config = GPT2Config(vocab_size=len(words), **size["model"], **tokens)
    for number, name in enumerate(("sft_model", "rm_model")):
        torch.manual_seed(seed + number)
        model = GPT2LMHeadModel(config)
        model.save_pretrained(folder / name)
        (folder / name / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
        if name == "rm_model":
            state = {key: value for key, value in model.state_dict().items() if key != "lm_head.weight"}
            value = torch.nn.Linear(config.n_embd, 1)
            state |= {"value_fn.weight": value.weight.detach(), "value_fn.bias": value.bias.detach()}
            save_file(state, folder / name / "model.safetensors", metadata={"format": "pt"})
    found = texts(count, size["max_len"] - size["query_len"] - 5, seed)
    rows = [{"instruction": text, "input": "", "output": ""} for text in found]
    (folder / "ppo_train.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")


def keys(folder: Path, size: dict[str, Any], critic: str, iterations: int) -> dict[str, Any]:
    """The tutorial's command line in our keys; an iteration is one batch."""
    return {
        "model_name_or_path": str(folder / "sft_model"),
        "reward_model": str(folder / "rm_model"),
        **{"reward_model_type": "full", "stage": "ppo", "finetuning_type": "full", "critic": critic},
        **{"template": "empty", "dataset": str(folder / "ppo_train.json"), "output_dir": str(folder / "run")},
        **{"cutoff_len": size["max_len"] - size["query_len"] - 3, "max_new_tokens": size["query_len"]},
        **{"per_device_train_batch_size": size["batch"], "ppo_buffer_size": 1, "ppo_epochs": 2},
        **{"repetition_penalty": 1.4, "top_p": 1.0, "top_k": 0, "temperature": 1.0, "num_return_sequences": 1},
        **{"kl_coef": 0.02, "ppo_target": 0, "clip_range": 0.2, "clip_range_value": 0.2, "reward_clip": 5.0},
        **{"gae_lambda": 0.95, "gamma": 1.0, "value_coef": 1.0, "learning_rate": 1e-5, "adam_epsilon": 1e-5},
        **{"lr_scheduler_type": "constant", "max_grad_norm": 1.0, "clip_grad_per_role": True},
        **{"max_steps": iterations, "save_strategy": "no", "logging_steps": 1, "seed": 2048},
        "gradient_checkpointing": critic == "value_head",
        **{"overwrite_output_dir": True, "report_to": "none", "disable_tqdm": True},
    }


def ours(folder: Path, size: dict[str, Any], side: str, iterations: int) -> dict[str, Any]:
    """One run of posttrain in this process; times are the log's own."""
    import posttrain

    critic = {"head": "value_head", "models": "model"}[side]
    posttrain.run_exp(keys(folder, size, critic, iterations))
    lines = (folder / "run" / "trainer_log.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [row for row in map(json.loads, lines) if "seconds_train" in row]
    samples = size["batch"] * len(steps)
    phases = {name: sum(row[f"seconds_{name}"] for row in steps) / samples for name in ("generate", "score", "train")}
    return {"batch": size["batch"], "samples": samples, "seconds_per_sample": sum(phases.values()), "phases": phases}


def measured(side: str, folder: Path, size_name: str, iterations: int) -> dict[str, Any]:
    """What one side took, in this process."""
    from gpt2_plain import plain

    size = SIZES[size_name]
    began, cpu = time.perf_counter(), time.process_time()
    if side.startswith("plain-"):
        found = plain(folder, size, int(side.removeprefix("plain-")), iterations)
    else:
        found = ours(folder, size, side, iterations)
    status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024
    whole = {"whole_seconds": time.perf_counter() - began, "whole_cpu_seconds": time.process_time() - cpu}
    return {"side": side, **found, "peak_rss_bytes": peak, **whole}


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The medians of each side, and how many times faster than the fastest plain side a sample is."""
    table: dict[str, Any] = {}
    for side in dict.fromkeys(run["side"] for run in runs):
        of_side = [run for run in runs if run["side"] == side]
        table[side] = {
            "batch": of_side[0]["batch"],
            "seconds_per_sample": statistics.median(run["seconds_per_sample"] for run in of_side),
            "peak_gb": max(run["peak_rss_bytes"] for run in of_side) / 1e9,
        }
    plain = [row["seconds_per_sample"] for side, row in table.items() if side.startswith("plain")]
    for side, row in table.items():
        if plain and not side.startswith("plain"):
            row["times_faster"] = min(plain) / row["seconds_per_sample"]
    return table


def main() -> None:
    """Make the inputs, run the sides in turn, write and print what they took."""
    parser = argparse.ArgumentParser(description="PPO with full fine-tuning of a GPT-2 of 102M at batch 16.")
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--iterations", type=int, default=2, help="batches of each side; the second meets full Adams")
    parser.add_argument("--rounds", type=int, default=1, help="times that each side runs, in turn")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "gpt2_ppo.json")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside:
        print(json.dumps(measured(args.sides[0], args.inside, args.size, args.iterations)))
        return
    runs = []
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "CUDA_VISIBLE_DEVICES": ""}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_inputs(folder, SIZES[args.size], SIZES[args.size]["batch"] * args.iterations)
        for _ in range(args.rounds):
            for side in args.sides:
                command = [sys.executable, __file__, "--inside", str(folder), "--sides", side, "--size", args.size]
                command += ["--iterations", str(args.iterations)]
                done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, encoding="utf-8")
                runs.append(json.loads(done.stdout.splitlines()[-1]))
                print(runs[-1], flush=True)
    result = {
        "command": f"python benchmarks/gpt2_ppo.py {' '.join(sys.argv[1:])}".strip(),
        **{"size": args.size, "texts": "CMRC 2018" if TEXTS.is_file() else "random characters"},
        **{"threads": args.threads, "sides": summary(runs), "runs": runs},
    }
    args.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result["sides"], indent=2))


if __name__ == "__main__":
    main()

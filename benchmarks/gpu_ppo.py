"""PPO with LoRA on a model of 7B shape on one GPU in at most 18 GB: seconds per rollout, decoding, training, limits.

    python benchmarks/gpu_ppo.py                                      on a GPU, about 20 minutes
    python benchmarks/gpu_ppo.py --size tiny --output FILE            the same path on a CPU, in a minute

A tutorial trains Qwen2-7B with LLaMA-Factory on 2,000 prompts, twice, with answers of up to 512 tokens, in 4.5 hours
on a card of 24 GB: 4.05 s a rollout, 18 GB. Here are its shape with random weights, its lengths (prompts of 50 to 200
tokens, answers of which half have ended by the 80th token), rank 8 on all linear layers, four epochs over eight
answers, a reward adapter on the same base and a value head on the actor's trunk. ``--iterations`` of them are measured
behind one that is not; the whole workload is as many rollouts as the tutorial's.

Limits are measured in the same process: a large square product, and a read of 4 GB. Decoding is bound by reading the
weights once a step: its limit is slots times bandwidth over bytes of the weights. Training of LoRA does 4 N operations
a token, N the numbers of the linear layers; MFU is their share of the measured product's speed.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
ROLLOUTS, PEER_SECONDS = 4000, 4.05
SIZES: dict[str, dict[str, Any]] = {
    "full": {
        "model": {
            **{"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28},
            **{"num_key_value_heads": 4, "vocab_size": 152_064, "max_position_embeddings": 32_768},
        },
        **{"prompt": (50, 200), "median": 80, "new": 512, "batch": 8, "buffer": 4, "slots": 32, "product": 8192},
    },
    "tiny": {
        "model": {
            **{"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
            **{"num_key_value_heads": 2, "vocab_size": 600, "max_position_embeddings": 512},
        },
        **{"prompt": (5, 12), "median": 6, "new": 16, "batch": 4, "buffer": 2, "slots": 4, "product": 256},
    },
}


def write_model(folder: Path, size: dict[str, Any]) -> None:
    """Random weights in bfloat16 and a tokenizer that makes a token of each letter."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokens = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0, "tie_word_embeddings": False}
    with torch.device(device):
        torch.manual_seed(0)
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16 if device == "cuda" else torch.float32)
        model = Qwen2ForCausalLM(Qwen2Config(**size["model"], **tokens))
        torch.set_default_dtype(before)
    model.save_pretrained(folder)
    letters = ["[PAD]", "[END]", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    words = letters + [f"[unused{number}]" for number in range(size["model"]["vocab_size"] - len(letters))]
    inner = Tokenizer(models.BPE(vocab={word: number for number, word in enumerate(words)}, merges=[]))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[PAD]", eos_token="[END]").save_pretrained(folder)


def write_rows(folder: Path, size: dict[str, Any], count: int) -> None:
    """Prompts of the tutorial's lengths, and a few pairs for the reward adapter."""
    generator = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    texts = ["".join(generator.choices(letters, k=generator.randint(*size["prompt"]))) for _ in range(count)]
    rows = [{"instruction": text, "input": "", "output": ""} for text in texts]
    pairs = [{"instruction": text, "chosen": "yes", "rejected": "no"} for text in texts[:4]]
    (folder / "prompts.json").write_text(json.dumps(rows), encoding="utf-8")
    (folder / "pairs.json").write_text(json.dumps(pairs), encoding="utf-8")


def keys(folder: Path, size: dict[str, Any], stage: str, steps: int) -> dict[str, Any]:
    """The tutorial's file; four batches of eight are answered side by side where its program answers one by one."""
    shared = {
        **{"model_name_or_path": str(folder / "model"), "stage": stage, "finetuning_type": "lora", "lora_rank": 8},
        **{"template": "empty", "cutoff_len": 1024, "bf16": True, "max_steps": steps, "learning_rate": 1e-5},
        **{"output_dir": str(folder / stage), "save_strategy": "no", "report_to": "none", "disable_tqdm": True},
        **{"overwrite_output_dir": True, "logging_steps": 1},
    }
    if stage == "rm":
        return {**shared, "dataset": str(folder / "pairs.json"), "per_device_train_batch_size": 2}
    return {
        **shared,
        **{"dataset": str(folder / "prompts.json"), "reward_model": str(folder / "rm"), "critic": "value_head"},
        **{"per_device_train_batch_size": size["batch"], "ppo_buffer_size": size["buffer"], "ppo_epochs": 4},
        **{"max_new_tokens": size["new"], "num_rollout_slots": size["slots"], "gradient_checkpointing": True},
    }


def end_answers(size: dict[str, Any]) -> None:
    """Let so many words of the vocabulary end an answer that half of the answers have ended at the median length.

    Random weights draw all words about equally often; the end of text alone would come after as many tokens as there
    are words.
    """
    from posttrain.train import stages

    words = size["model"]["vocab_size"]
    ends = tuple(range(1, 1 + max(1, round(words * (1 - 0.5 ** (1 / size["median"]))))))
    made = stages.sampling_params
    stages.sampling_params = lambda parts: replace(made(parts), stop_token_ids=ends)


def limits(size: dict[str, Any]) -> dict[str, float]:
    """``flops`` of a square product and ``bytes`` per second of a read, each the best of a few."""
    device, half = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    n = size["product"]
    a = torch.ones(n, n, dtype=half, device=device)
    stream = torch.ones((1 << 30) if device == "cuda" else (1 << 22), dtype=torch.float32, device=device)
    found = {"flops": 2 * n**3 / _quickest(lambda: a @ a), "bytes": stream.nbytes / _quickest(lambda: stream.sum())}
    return {name: round(value, 0) for name, value in found.items()}


def _quickest(work: Any, tries: int = 8) -> float:
    best = float("inf")
    for _ in range(tries):
        began = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return best


def report(steps: list[dict[str, Any]], model: dict[str, int], size: dict[str, Any], found: dict[str, float]) -> dict:
    """Seconds of a rollout, and each phase against its limit.

    Args:
        steps: the run's log lines that count. model: its numbers, ``trunk`` and ``head``, and ``width`` in bytes.
        size: of the workload. found: the measured limits.
    """
    rollouts = size["batch"] * size["buffer"] * len(steps)
    phases = {name: sum(row[f"seconds_{name}"] for row in steps) for name in ("generate", "score", "train")}
    sampled = sum(row["seconds_generate"] * row["generate_tokens_per_second"] for row in steps)
    trained = sum(row["seconds_train"] * row["train_tokens_per_second"] for row in steps)
    weights = (model["trunk"] + model["head"]) * model["width"]
    decode, limit = sampled / phases["generate"], size["slots"] * found["bytes"] / weights
    useful = 4 * model["trunk"] * trained / phases["train"]
    seconds = sum(phases.values()) / rollouts
    return {
        **{"rollouts": rollouts, "seconds_per_rollout": seconds, "phases": phases},
        **{"hours_of_the_whole_workload": seconds * ROLLOUTS / 3600, "times_faster": PEER_SECONDS / seconds},
        **{"decode_tokens_per_second": decode, "decode_limit": limit, "share_of_bandwidth": decode / limit},
        **{"train_tokens_per_second": trained / phases["train"], "mfu": useful / found["flops"]},
    }


def measured(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Make the inputs, train a reward adapter for a step, run PPO and read its log."""
    import posttrain
    from posttrain.models.skeleton import num_linear, skeleton

    size = SIZES[args.size]
    gpu = torch.cuda.is_available()
    found = limits(size)
    write_model(folder / "model", size)
    write_rows(folder, size, size["batch"] * size["buffer"] * (args.iterations + 1))
    if gpu:
        torch.cuda.empty_cache()
        whole = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, args.memory_gb * 1e9 / whole))
    posttrain.run_exp(keys(folder, size, "rm", 1))
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    end_answers(size)
    results = posttrain.run_exp(keys(folder, size, "ppo", args.iterations + 1))
    text = (folder / "ppo" / "trainer_log.jsonl").read_text(encoding="utf-8")
    steps = [row for row in map(json.loads, text.splitlines()) if "seconds_train" in row][1:]
    plan = skeleton(folder / "model", dtype=torch.bfloat16)
    head = plan.get_output_embeddings().weight.numel()
    model = {"trunk": num_linear(plan)[1], "head": head, "width": 2 if gpu else 4}
    return {
        **{"size": args.size, "card": torch.cuda.get_device_name(0) if gpu else "none: CPU, float32"},
        **{"torch": torch.__version__, "memory_cap_gb": args.memory_gb if gpu else None},
        **{"peak_memory_gb": results["peak_memory_bytes"] / 1e9, "limits": found},
        **report(steps, model, size, found),
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description="PPO of 7B shape with LoRA on one GPU, in at most 18 GB.")
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--iterations", type=int, default=4, help="measured ones; one more comes before them")
    parser.add_argument("--memory-gb", type=float, default=18.0, help="what the process may take of the GPU")
    parser.add_argument("--folder", type=Path, help="for the model of 15 GB; a temporary one unless given")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "gpu_ppo.json")
    args = parser.parse_args()
    if args.size == "full" and not torch.cuda.is_available():
        sys.exit("gpu_ppo.py: --size full needs a GPU; --size tiny runs the same path on a CPU")
    with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
        found = measured(args, Path(temporary))
    command = f"python benchmarks/gpu_ppo.py {' '.join(sys.argv[1:])}".strip()
    args.output.write_text(json.dumps({"command": command, **found}, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()

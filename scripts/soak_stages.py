"""What ``soak.py`` trains: a tiny model, its tokenizer and data, made on the spot, and one configuration per stage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

FRUITS = ["apple", "pear", "plum", "fig", "lime", "kiwi", "date", "peach", "melon", "grape", "mango", "berry"]
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SHARED = {
    "cutoff_len": 64,
    "per_device_train_batch_size": 2,
    "learning_rate": 5e-3,
    "lr_scheduler_type": "cosine",
    "lora_rank": 4,
    "logging_steps": 3,
    "save_steps": 2,
    "save_total_limit": 3,
    "val_size": 2,
    "report_to": "none",
    "output_dir": "out",
}
STAGES: dict[str, dict[str, Any]] = {
    "pt": {"dataset": "text.jsonl", "finetuning_type": "full", "learning_rate": 1e-3, "weight_decay": 0.1},
    # the best checkpoint is kept and loaded at the end; averages and evaluations lie between checkpoints
    "sft": {
        **{"dataset": "chat.json", "lora_dropout": 0.1, "gradient_accumulation_steps": 4, "plot_loss": True},
        **{"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True, "save_total_limit": 2},
    },
    "rm": {"dataset": "pairs.json", "lora_dropout": 0.1, "center_rewards_coef": 0.01, "save_steps": 1},
    # an experience of two optimizer steps, adaptive KL, running statistics of the rewards, a critic of its own
    "ppo": {
        **{"dataset": "prompts.json", "ppo_buffer_size": 2, "ppo_epochs": 2, "num_return_sequences": 2},
        **{"ppo_score_norm": True, "ppo_target": 0.05, "kl_horizon": 20, "critic": "adapter", "learning_rate": 1e-3},
        **{"max_new_tokens": 16, "num_rollout_slots": 2, "logging_steps": 1, "save_steps": 1},
    },
}


def write_configuration(folder: Path, place: Path, stage: str, *, steps: int, seed: int, **keys: Any) -> Path:
    """``train.yaml`` of a stage in ``folder``; its output is ``folder/out``.

    Args:
        folder: made if it is not there.
        place: with the model and the data, see ``make_place``.
        stage: one of ``STAGES``.
        steps, seed: of the run.
        keys: win over those of the stage.
    """
    folder.mkdir(parents=True, exist_ok=True)
    values = {**SHARED, **STAGES[stage], "stage": stage, "max_steps": steps, "seed": seed, **keys}
    values["model_name_or_path"] = str((place / "model").resolve())
    values["dataset"] = str((place / "data" / values["dataset"]).resolve())
    if "reward_model" in values:
        values["reward_model"] = str(Path(values["reward_model"]).resolve())
    path = folder / "train.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def make_place(place: Path, seed: int) -> None:
    """Make the model and the data of every stage."""
    write_data(place / "data")
    write_model(place / "model", seed)


def write_data(folder: Path) -> None:
    """Twelve rows for each stage."""
    folder.mkdir(parents=True, exist_ok=True)
    asked = [f"name a fruit like {fruit}" for fruit in FRUITS]
    rows = list(zip(asked, FRUITS[1:] + FRUITS[:1], strict=True))
    tables = {
        "chat.json": [{"instruction": q, "input": "", "output": a} for q, a in rows],
        "pairs.json": [{"prompt": q, "chosen": f"{a}!", "rejected": f"no {a}"} for q, a in rows],
        "prompts.json": [{"instruction": q, "input": "", "output": ""} for q, _ in rows],
    }
    for name, table in tables.items():
        (folder / name).write_text(json.dumps(table), encoding="utf-8")
    text = "\n".join(json.dumps({"text": f"{q} {a} " * 3}) for q, a in rows)
    (folder / "text.jsonl").write_text(text, encoding="utf-8")


def write_model(folder: Path, seed: int) -> None:
    """A random Llama of two layers and a byte-level tokenizer, as a hub would give them."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([f"user assistant name a fruit like {fruit}\n" for fruit in FRUITS], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        additional_special_tokens=["<|im_start|>"],
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
    )
    fast.chat_template = CHATML
    torch.manual_seed(seed)
    config = LlamaConfig(
        **{"vocab_size": len(fast), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256},
        **{"initializer_range": 0.2, "bos_token_id": None},
        **{"eos_token_id": fast.eos_token_id, "pad_token_id": fast.pad_token_id},
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)

"""TRL's SFTTrainer, RewardTrainer or DPOTrainer on rows of token ids.

``tuned``: float32, no gradient checkpointing. ``default``: TRL's own settings, but for bf16, which a CPU without bf16
units only emulates, hundreds of times slower.
"""

from __future__ import annotations

from typing import Any

import torch
import trl
from datasets import Dataset
from peft import LoraConfig
from start import set_start
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
from window import Window, read_rows, read_spec, write_result

KINDS = {"sft": "SFT", "rm": "Reward", "dpo": "DPO"}


def dataset(stage: str, rows: list[dict[str, Any]]) -> Dataset:
    """The rows in the columns that each trainer takes for tokenised ones."""
    if stage == "sft":
        return Dataset.from_list([{"input_ids": row["input_ids"], "labels": labels(row)} for row in rows])
    if stage == "rm":
        names = ("chosen_ids", "rejected_ids")
        return Dataset.from_list([{name: row["prompt_ids"] + row[name] for name in names} for row in rows])
    return Dataset.from_list(rows)


def labels(row: dict[str, Any]) -> list[int]:
    """The tokens that count, -100 for the others."""
    return [t if counts else -100 for t, counts in zip(row["input_ids"], row["loss_mask"], strict=True)]


def settings(spec: dict[str, Any]) -> dict[str, Any]:
    """Arguments of every trainer of TRL; the same schedule, optimizer and order of rows as on the other side."""
    given = {
        "output_dir": spec["work"],
        "per_device_train_batch_size": spec["batch"],
        "gradient_accumulation_steps": spec["accumulation"],
        "max_steps": spec["steps"],
        "learning_rate": spec["learning_rate"],
        "lr_scheduler_type": "constant",
        "max_grad_norm": 1.0,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        "seed": spec["seed"],
        "dataloader_pin_memory": False,
    }
    if spec["variant"] == "tuned":
        given |= {"gradient_checkpointing": False, "logging_strategy": "no"}
    return given


def adapter(spec: dict[str, Any], task: str) -> LoraConfig:
    """LoRA on all linear layers."""
    return LoraConfig(
        r=spec["lora_rank"],
        lora_alpha=spec["lora_alpha"],
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type=task,
    )


class Measured(TrainerCallback):
    """Opens the window when the loop begins and closes it behind the last step."""

    def __init__(self, window: Window) -> None:
        self.window = window

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.window.__enter__()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.window.__exit__()


class First:
    """The loss and the gradient norm of the first optimizer step."""

    def __init__(self, trainer: Any) -> None:
        self.losses: list[float] = []
        self.norms: list[float] = []
        clip, step = trainer.accelerator.clip_grad_norm_, trainer.training_step

        def clipped(*args: Any, **kwargs: Any) -> Any:
            norm = clip(*args, **kwargs)
            if not self.norms:
                self.norms.append(float(norm))
            return norm

        def stepped(*args: Any, **kwargs: Any) -> Any:
            loss = step(*args, **kwargs)
            if not self.norms:
                self.losses.append(float(loss))
            return loss

        trainer.accelerator.clip_grad_norm_, trainer.training_step = clipped, stepped


def make_trainer(spec: dict[str, Any], rows: list[dict[str, Any]]) -> Any:
    stage = spec["stage"]
    tokenizer = AutoTokenizer.from_pretrained(spec["model"])
    more = {"train_sampling_strategy": "sequential"}
    if stage == "rm":
        # rows end with the token that pads, which a sequence classifier would take for padding
        tokenizer.pad_token = next(token for token in tokenizer.all_special_tokens if token != tokenizer.eos_token)
        model = AutoModelForSequenceClassification.from_pretrained(spec["model"], num_labels=1, dtype=torch.float32)
        model.config.pad_token_id = tokenizer.pad_token_id
    else:
        model = AutoModelForCausalLM.from_pretrained(spec["model"], dtype=torch.float32)
    if stage == "dpo":
        more["beta"] = spec["beta"]
    kind = KINDS[stage]
    arguments = getattr(trl, f"{kind}Config")(**settings(spec), max_length=spec["cutoff_len"], **more)

    class Trainer(getattr(trl, f"{kind}Trainer")):  # type: ignore[misc]
        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            """DPO's has no way to say that rows are tokenised."""
            return dataset if stage == "dpo" else super()._prepare_dataset(dataset, *args, **kwargs)

    task = "SEQ_CLS" if stage == "rm" else "CAUSAL_LM"
    return Trainer(
        model,
        args=arguments,
        train_dataset=dataset(stage, rows),
        processing_class=tokenizer,
        peft_config=adapter(spec, task),
    )


def live_tokens(stage: str, row: dict[str, Any]) -> int:
    """Tokens of a row, of both rows of a pair."""
    if stage == "sft":
        return len(row["input_ids"])
    return 2 * len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"])


def main() -> None:
    spec = read_spec()
    torch.set_num_threads(spec["threads"])
    rows = read_rows(spec)
    trainer = make_trainer(spec, rows)
    trained = [(name, p) for name, p in trainer.model.named_parameters() if p.requires_grad]
    set_start(trained)
    first, window = First(trainer), Window()
    trainer.add_callback(Measured(window))
    trainer.train()
    used = rows[: spec["batch"] * spec["accumulation"] * spec["steps"]]
    write_result(
        window,
        live_tokens=sum(live_tokens(spec["stage"], row) for row in used),
        samples=len(used),
        first_loss=sum(first.losses),  # of one step: each is its share already
        first_grad_norm=first.norms[0],
        notes=[f"{sum(p.numel() for _, p in trained)} numbers train"],
    )


if __name__ == "__main__":
    main()

"""LLaMA-Factory 0.8.2's PPO: its own ``run_exp``, measured from the first batch of prompts to the last step.

Only the prompts are handed over as token ids, for both sides to have the same ones; the reward is a LoRA adapter on the
shared base. ``default`` checkpoints activations as it does out of the box, ``tuned`` does not.

What must agree before the first step, for given answers: ``first_loss``, the mean log-probability of a token under the
policy as it starts, and ``first_grad_norm``, the mean score of the reward model, which no gradient has to do with.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from llamafactory.train.ppo import workflow
from llamafactory.train.ppo.trainer import CustomPPOTrainer
from llamafactory.train.tuner import run_exp
from older_folder import older_folder
from window import Window, read_rows, read_spec, write_result

NOTES = [
    "first_loss is the mean log-probability of given answers, first_grad_norm their mean score",
    "prompts are handed over as token ids, so that both sides complete the same ones",
    "the end of an answer is its padding token, which LLaMA-Factory takes off: answers are one token shorter",
]


def arguments(spec: dict[str, Any], model: Path) -> dict[str, Any]:
    """Its keys; those of sampling are the ones that the other side has too."""
    return {
        **{"stage": "ppo", "do_train": True, "finetuning_type": "lora", "lora_target": "all"},
        **{"model_name_or_path": str(model), "reward_model": spec["reward_folder"], "reward_model_type": "lora"},
        **{"lora_rank": spec["lora_rank"], "lora_alpha": spec["lora_alpha"], "lora_dropout": 0.0},
        **{"dataset": spec["dataset"], "dataset_dir": spec["data"], "template": "default"},
        **{"cutoff_len": spec["cutoff_len"], "output_dir": f"{spec['work']}/run", "overwrite_output_dir": True},
        **{"per_device_train_batch_size": spec["batch"], "gradient_accumulation_steps": spec["accumulation"]},
        **{"learning_rate": spec["learning_rate"], "max_steps": spec["steps"], "lr_scheduler_type": "constant"},
        **{"ppo_epochs": spec["epochs"], "ppo_buffer_size": 1, "max_new_tokens": spec["max_new_tokens"]},
        **{
            "top_k": spec.get("top_k", 0),
            "top_p": spec.get("top_p", 0.9),
            "temperature": spec.get("temperature", 0.95),
        },
        **{"logging_steps": 1, "save_steps": 1_000_000, "report_to": "none", "seed": spec["seed"]},
        **{"disable_gradient_checkpointing": spec["variant"] == "tuned"},
    }


def given_logps(trainer: Any, rows: list[dict[str, Any]], temperature: float) -> float:
    """Mean log-probability of the rows' given answers at the temperature of sampling, as the policy starts."""
    model, total, count = trainer.accelerator.unwrap_model(trainer.model), 0.0, 0
    for row in rows:
        ids = torch.tensor([row["prompt_ids"] + row["answer_ids"]])
        answer = len(row["answer_ids"])
        with torch.no_grad():
            logits = (
                model(input_ids=ids, attention_mask=torch.ones_like(ids))[0][0, -answer - 1 : -1].float() / temperature
            )
        total += float(logits.log_softmax(-1).gather(-1, ids[0, -answer:, None]).sum())
        count += answer
    return total / count


def given_scores(trainer: Any, rows: list[dict[str, Any]]) -> float:
    """Mean score of the rows' given answers, by the very function that scores sampled ones."""
    pairs = [(torch.tensor(row["prompt_ids"]), torch.tensor(row["answer_ids"])) for row in rows]
    scores = [trainer.get_rewards([prompt], [answer])[0] for prompt, answer in pairs]
    return float(torch.stack(scores).mean())


def main() -> None:
    spec = read_spec()
    torch.set_num_threads(spec["threads"])
    rows = read_rows(spec)
    window, lengths, first = Window(), [], {}
    ids = [{"input_ids": row["prompt_ids"], "attention_mask": [1] * len(row["prompt_ids"])} for row in rows]
    workflow.get_dataset = lambda *_, **__: Dataset.from_list(ids)
    stops = set(spec["stop_token_ids"])  # its padding, too: a score is read before it here, at it on the other side
    open_rows = [{**row, "answer_ids": [t for t in row["answer_ids"] if t not in stops]} for row in rows]
    step, train = CustomPPOTrainer.step, CustomPPOTrainer.ppo_train

    def counted(self: Any, queries: list[Any], responses: list[Any], scores: list[Any], *rest: Any) -> Any:
        lengths.extend((len(query), len(response)) for query, response in zip(queries, responses, strict=True))
        return step(self, queries, responses, scores, *rest)

    def measured(self: Any, *rest: Any, **more: Any) -> Any:
        self.model.eval()
        self.tokenizer.padding_side = "right"
        logps, scores = given_logps(self, open_rows, spec["temperature"]), given_scores(self, open_rows)
        first.update(first_loss=logps, first_grad_norm=scores)
        self.tokenizer.padding_side = "left"
        return window.around(train)(self, *rest, **more)

    CustomPPOTrainer.step, CustomPPOTrainer.ppo_train = counted, measured
    run_exp(arguments(spec, older_folder(Path(spec["model"]), Path(spec["work"]) / "model")))
    write_result(
        window,
        live_tokens=sum(query + response for query, response in lengths),
        generated_tokens=sum(response for _, response in lengths),
        samples=len(lengths),
        lengths=[response for _, response in lengths],
        notes=NOTES,
        **first,
    )


if __name__ == "__main__":
    main()

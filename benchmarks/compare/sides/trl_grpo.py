"""TRL's GRPOTrainer with transformers' generation, and a deterministic reward.

One iteration is one optimizer step on all its answers, so that neither side has to recompute old log-probabilities.
What agrees before it are the log-probabilities of given answers: samples differ, as random numbers do.
"""

from __future__ import annotations

from typing import Any

import torch
import trl
from datasets import Dataset
from start import set_start
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl_offline import Measured, adapter, settings
from window import Window, read_rows, read_spec, write_result

from rewards import distinct_share


def reward(completions: list[list[dict[str, str]]], **_: Any) -> list[float]:
    """TRL hands chats over."""
    return distinct_share([completion[-1]["content"] for completion in completions])


def counted(trainer: Any, found: list[tuple[int, int]], rows: list[dict[str, Any]]) -> None:
    """Write down the lengths of every prompt and answer; the prompts must be the other side's."""
    generate = trainer._generate
    known = {tuple(row["prompt_ids"]) for row in rows}

    def generated(prompts: Any) -> Any:
        result = generate(prompts)
        for prompt, completion in zip(result[0], result[1], strict=True):
            if tuple(prompt) not in known:
                raise RuntimeError("a prompt is rendered to other tokens here than on the other side")
            found.append((len(prompt), len(completion)))
        return result

    trainer._generate = generated


def given_logps(model: Any, rows: list[dict[str, Any]]) -> float:
    """Mean log-probability of the rows' given answers, as the policy starts."""
    total, count = 0.0, 0
    for row in rows:
        ids = torch.tensor([row["prompt_ids"] + row["answer_ids"]])
        answer = len(row["answer_ids"])
        with torch.no_grad():
            logits = model(input_ids=ids, logits_to_keep=answer + 1).logits[0, :-1].float()
        total += float(logits.log_softmax(-1).gather(-1, ids[0, -answer:, None]).sum())
        count += answer
    return total / count


def main() -> None:
    spec = read_spec()
    torch.set_num_threads(spec["threads"])
    rows = read_rows(spec)
    tokenizer = AutoTokenizer.from_pretrained(spec["model"])
    tuned = {"disable_dropout": True} if spec["variant"] == "tuned" else {}
    arguments = trl.GRPOConfig(
        **settings(spec),
        num_generations=spec["group_size"],
        max_completion_length=spec["max_new_tokens"],
        beta=spec["beta"],
        temperature=1.0,
        shuffle_dataset=False,
        **tuned,
    )
    trainer = trl.GRPOTrainer(
        AutoModelForCausalLM.from_pretrained(spec["model"], dtype=torch.float32),
        reward_funcs=reward,
        args=arguments,
        train_dataset=Dataset.from_list([{"prompt": row["messages"]} for row in rows]),
        processing_class=tokenizer,
        peft_config=adapter(spec, "CAUSAL_LM"),
    )
    set_start((name, p) for name, p in trainer.model.named_parameters() if p.requires_grad)
    first = given_logps(trainer.model, rows)
    lengths: list[tuple[int, int]] = []
    counted(trainer, lengths, rows)
    window = Window()
    trainer.add_callback(Measured(window))
    trainer.train()
    write_result(
        window,
        live_tokens=sum(prompt + answer for prompt, answer in lengths),
        generated_tokens=sum(answer for _, answer in lengths),
        samples=len(lengths),
        first_loss=first,
        notes=["first_loss is the mean log-probability of given answers under the policy as it starts"],
    )


if __name__ == "__main__":
    main()

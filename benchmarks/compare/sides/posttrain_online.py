"""posttrain's stage grpo or ppo: a run as ``run_exp`` makes it, of which the iterations are measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from posttrain_offline import begun, keys
from window import Window, read_rows, read_spec, write_result

from posttrain.data.batches import collate
from posttrain.data.template import EncodedRow, pad_token_id
from posttrain.train import online, run
from posttrain.types import RolloutBatch

REWARD = f"{Path(__file__).with_name('rewards.py')}:distinct_share"


def online_keys(spec: dict[str, Any]) -> dict[str, Any]:
    """The configuration: the offline one, and how answers are sampled, rewarded and learned."""
    found = keys(spec) | {"max_new_tokens": spec["max_new_tokens"], "ppo_epochs": spec["epochs"]}
    found |= {"num_rollout_slots": spec["slots"]} if spec.get("slots") else {}
    if spec["stage"] == "grpo":
        found |= {"num_return_sequences": spec["group_size"], "kl_coef": spec["beta"], "reward_funcs": REWARD}
    else:
        found |= {"reward_model": spec["reward_folder"], "kl_coef": spec["beta"]}
    if spec["variant"] == "ours_top_third":
        found["trainable_layers"] = spec["trainable_layers"]
    return found


def given_logps(parts: Any, rows: list[dict[str, Any]]) -> float:
    """Mean log-probability of the rows' given answers, as the policy starts."""
    encoded = [
        EncodedRow(
            row["prompt_ids"] + row["answer_ids"],
            [False] * len(row["prompt_ids"]) + [True] * len(row["answer_ids"]),
        )
        for row in rows
    ]
    total = parts.engine.sequence_logps(collate(encoded, pad_token_id(parts.tokenizer))).sum()
    return float(total) / sum(len(row["answer_ids"]) for row in rows)


def main() -> None:
    spec = read_spec()
    torch.set_num_threads(spec["threads"])
    rows = read_rows(spec)
    parts = begun(online_keys(spec))
    if [list(row.input_ids) for row in parts.splits.train] != [row["prompt_ids"] for row in rows]:
        raise RuntimeError("the run samples from other prompts than those that the other side is given")
    first = given_logps(parts, rows)
    window, batches = Window(), []
    fit, learn = online.fit, online.learn

    def learned(*args: Any, **kwargs: Any) -> tuple[RolloutBatch, dict[str, float]]:
        found = learn(*args, **kwargs)
        batches.append((int(found[0].attention_mask.sum()), int(found[0].loss_mask.sum()), len(found[0]), found[1]))
        return found

    online.learn = learned
    online.fit = window.around(fit)  # type: ignore[assignment]
    run.fit(parts, print)
    phases = [{k: round(v, 2) for k, v in stats.items() if k.startswith("seconds_")} for *_, stats in batches]
    write_result(
        window,
        live_tokens=sum(live for live, *_ in batches),
        generated_tokens=sum(sampled for _, sampled, *_ in batches),
        samples=sum(count for *_, count, _ in batches),
        first_loss=first,
        notes=[
            "first_loss is the mean log-probability of given answers under the policy as it starts",
            *map(str, phases),
        ],
    )


if __name__ == "__main__":
    main()

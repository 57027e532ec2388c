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
from posttrain.types import Batch, Role, RolloutBatch

REWARD = f"{Path(__file__).with_name('rewards.py')}:distinct_share"


def online_keys(spec: dict[str, Any]) -> dict[str, Any]:
    """The configuration: the offline one, and how answers are sampled, rewarded and learned."""
    found = keys(spec) | {"max_new_tokens": spec["max_new_tokens"], "ppo_epochs": spec["epochs"]}
    found |= {"num_rollout_slots": spec["slots"]} if spec.get("slots") else {}
    if spec["stage"] == "grpo":
        found |= {"num_return_sequences": spec["group_size"], "kl_coef": spec["beta"], "reward_funcs": REWARD}
    else:
        found |= {"reward_model": spec["reward_folder"], "critic": "value_head", "kl_coef": spec["beta"]}
        found |= {name: spec[name] for name in ("ppo_target", "temperature", "top_p", "top_k")}
    if spec["variant"] == "ours_top_third":
        found["trainable_layers"] = spec["trainable_layers"]
    return found


def given(parts: Any, rows: list[dict[str, Any]]) -> Batch:
    """Prompts with their given answers."""
    encoded = [
        EncodedRow(
            row["prompt_ids"] + row["answer_ids"],
            [False] * len(row["prompt_ids"]) + [True] * len(row["answer_ids"]),
        )
        for row in rows
    ]
    return collate(encoded, pad_token_id(parts.tokenizer))


def before(parts: Any, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What both sides must agree on before they sample: what policy and reward say of given answers."""
    batch = given(parts, rows)
    found = {"first_loss": float(parts.engine.sequence_logps(batch).sum() / batch.loss_mask.sum())}
    notes = ["first_loss is the mean log-probability of given answers under the policy as it starts"]
    if Role.REWARD in parts.engine.roles:
        found["first_grad_norm"] = float(parts.engine.scores(batch.to(parts.engine.device)).mean())
        notes.append("first_grad_norm is their mean score: no gradient can be compared")
    return {**found, "notes": notes}


def main() -> None:
    spec = read_spec()
    torch.set_num_threads(spec["threads"])
    rows = read_rows(spec)
    parts = begun(online_keys(spec))
    if [list(row.input_ids) for row in parts.splits.train] != [row["prompt_ids"] for row in rows]:
        raise RuntimeError("the run samples from other prompts than those that the other side is given")
    stops = set(spec["stop_token_ids"]) if spec["stage"] == "ppo" else set()  # see llamafactory_ppo.py
    first = before(parts, [{**row, "answer_ids": [t for t in row["answer_ids"] if t not in stops]} for row in rows])
    window, batches = Window(), []
    fit, learn = online.fit, online.learn

    def learned(*args: Any, **kwargs: Any) -> tuple[RolloutBatch, dict[str, float]]:
        found = learn(*args, **kwargs)
        batches.append((int(found[0].attention_mask.sum()), found[0].loss_mask.sum(dim=1).tolist(), found[1]))
        return found

    online.learn = learned
    online.fit = window.around(fit)  # type: ignore[assignment]
    run.fit(parts, print)
    phases = [{k: round(v, 2) for k, v in stats.items() if k.startswith("seconds_")} for *_, stats in batches]
    write_result(
        window,
        live_tokens=sum(live for live, *_ in batches),
        generated_tokens=sum(sum(answers) for _, answers, _ in batches),
        samples=sum(len(answers) for _, answers, _ in batches),
        lengths=[int(length) for _, answers, _ in batches for length in answers],
        **{**first, "notes": [*first["notes"], *map(str, phases)]},
    )


if __name__ == "__main__":
    main()

"""Defaults that depend on the stage, and values that follow from others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from posttrain.config.run import KEYS, Command

_TASKS = {"pt": "perplexity", "sft": "loss", "rm": "reward", "ppo": "reward"}


def stage_defaults(stage: str) -> dict[str, Any]:
    """Keys whose default differs in this stage, with the value they take when a file leaves them out.

    PPO samples from the policy itself: a cut or sharpened distribution is not the one whose log-probabilities train.
    """
    if stage == "ppo":
        return {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "metric_for_best_model": "eval_reward", "packing": False}
    return {"metric_for_best_model": "eval_loss", "packing": stage == "pt"}


def fill(values: Mapping[str, Any], command: Command) -> dict[str, Any]:
    """The given values with stage defaults added and everything derived filled in; unset keys may stay absent."""
    filled = dict(values)

    def value(key: str) -> Any:
        return filled.get(key, KEYS[key].default)

    def default(key: str, derived: Any) -> None:
        if filled.get(key) is None:
            filled[key] = derived

    if value("neat_packing"):
        default("packing", True)
    for key, preset in stage_defaults(value("stage")).items():
        default(key, preset)
    if "do_train" not in filled:
        filled["do_train"] = not (value("do_eval") or value("do_predict"))
    default("lora_alpha", 2 * value("lora_rank"))
    default("data_seed", value("seed"))
    if value("eval_strategy") == "steps":
        default("eval_steps", value("logging_steps"))
    metric = value("metric_for_best_model")
    filled["metric_for_best_model"] = metric if metric.startswith("eval_") else f"eval_{metric}"
    default("greater_is_better", not filled["metric_for_best_model"].endswith(("loss", "perplexity")))
    if command == "eval":
        default("task", _TASKS[value("stage")])
        default("do_sample", False)
    return filled

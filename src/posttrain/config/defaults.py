"""Defaults that depend on the stage, and values that follow from others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from posttrain.config.run import KEYS, Command
from posttrain.config.stages import is_online

_TASKS = {"pt": "perplexity", "sft": "loss", "rm": "reward"}

BETTER_WHEN_LOWER = ("loss", "perplexity", "nll")
"""How names of metrics end that should fall."""

_SAMPLING = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "metric_for_best_model": "eval_reward", "packing": False}

_ONLINE: Mapping[str, Mapping[str, Any]] = {
    "ppo": {"kl_coef": 0.2, "ppo_target": 6.0, "ppo_epochs": 4},
    "rloo": {"num_return_sequences": 4, "whiten_advantages": False},
    "grpo": {
        "num_return_sequences": 8,
        "kl_coef": 0.04,
        "kl_in": "loss",
        "kl_estimator": "k3",
        "loss_average": "sequence",
    },
    "reinforce": {"kl_coef": 0.01},
    "remax": {},
    "online_dpo": {"num_return_sequences": 2, "kl_coef": 0.0},
    "rejection": {"num_return_sequences": 4, "kl_coef": 0.0},
}


def stage_defaults(stage: str) -> dict[str, Any]:
    """Keys whose default differs in this stage, with the value they take when a file leaves them out.

    The online stages sample from the policy itself: a cut or sharpened distribution is not the one whose
    log-probabilities train.
    """
    if is_online(stage):
        return {**_SAMPLING, **_ONLINE[stage]}
    return {"metric_for_best_model": "eval_loss", "packing": stage == "pt"}


def fill(values: Mapping[str, Any], command: Command) -> dict[str, Any]:
    """The given values with stage defaults added and everything derived filled in; unset keys may stay absent."""
    filled = _concerning(values, command)

    def value(key: str) -> Any:
        return filled.get(key, KEYS[key].default)

    def default(key: str, derived: Any) -> None:
        if filled.get(key) is None:
            filled[key] = derived

    if value("neat_packing"):
        default("packing", True)
    if is_online(value("stage")) and value("alarm_reward_funcs"):
        default("metric_for_best_model", "eval_judge_reward")
    if value("stage") == "sft" and value("use_dft_loss"):
        default("metric_for_best_model", "eval_nll")  # the weighed loss is small where the model is wrong
    for key, preset in stage_defaults(value("stage")).items():
        if key != "ppo_target" or key not in values:  # null is an answer there: no target
            default(key, preset)
    if value("kl_in") == "loss" and "ppo_target" not in values:
        filled["ppo_target"] = None  # it steers the penalty in the reward
    if "do_train" not in filled:
        filled["do_train"] = not (value("do_eval") or value("do_predict"))
    if value("stage") == "dpo" and value("pref_loss") == "cpo":
        default("pref_ftx", 1.0)
    default("lora_alpha", 2 * value("lora_rank"))
    default("data_seed", value("seed"))
    if value("eval_strategy") == "steps":
        default("eval_steps", value("logging_steps"))
    metric = value("metric_for_best_model")
    filled["metric_for_best_model"] = metric if metric.startswith("eval_") else f"eval_{metric}"
    default("greater_is_better", not filled["metric_for_best_model"].endswith(BETTER_WHEN_LOWER))
    if command == "eval":
        default("task", _TASKS.get(value("stage"), "reward" if is_online(value("stage")) else "loss"))
        for key, preset in _drawing(value("task")).items():
            default(key, preset)
    return filled


def _drawing(task: str) -> dict[str, Any]:
    """How an evaluation draws answers: greedy, but the KL of a policy is that of what it draws itself."""
    if task == "frontier":
        return {"do_sample": True, **{key: _SAMPLING[key] for key in ("temperature", "top_p", "top_k")}}
    return {"do_sample": False}


def _concerning(values: Mapping[str, Any], command: Command) -> dict[str, Any]:
    """The values without a secret that is another command's: they are copied into folders and sent to trackers."""
    return dict(values) if command == "serve" else {key: value for key, value in values.items() if key != "api_key"}

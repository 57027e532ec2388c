"""Which algorithm a configuration asks for, with the hyperparameters that its keys give."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from posttrain.algorithms.protocol import Algorithm
from posttrain.algorithms.registry import ALGORITHMS
from posttrain.config import KEYS, RunConfig, is_online
from posttrain.config.own_code import load_own
from posttrain.errors import UserError

HYPERPARAMETER_KEYS = {
    "clip": "clip_range",
    "clip_high": "clip_range_high",
    "value_clip": "clip_range_value",
    "kl_target": "ppo_target",
    "normalize_rewards": "ppo_score_norm",
    "whiten_rewards": "ppo_whiten_rewards",
    "group_size": "num_return_sequences",
    "budget": "max_new_tokens",
    "importance": "importance_sampling_level",
    "baseline": "reinforce_baseline",
    "beta": "pref_beta",
    "sft_coef": "pref_ftx",
    "label_smoothing": "dpo_label_smoothing",
    "desirable_weight": "kto_chosen_weight",
    "undesirable_weight": "kto_rejected_weight",
}
"""Hyperparameters whose keys have other names, those that users of LLaMA-Factory and TRL know."""


def algorithm_class(config: RunConfig) -> type[Any]:
    """The class of the stage's algorithm: the user's own, that of ``pref_loss`` in stage dpo, or the stage's.

    Raises:
        UserError: a class of the user's that is no algorithm.
    """
    method, pref_loss = config.method, config.preference.pref_loss
    if method.algorithm is not None:
        return _own(method.algorithm, method.stage)
    return ALGORITHMS[pref_loss if method.stage == "dpo" and pref_loss in ALGORITHMS else method.stage]


def make_algorithm(config: RunConfig) -> Algorithm:
    """The algorithm, every hyperparameter from the key of its name.

    Raises:
        UserError: as ``algorithm_class``, or a hyperparameter of the user's class that has neither key nor default.
    """
    kind = algorithm_class(config)
    keys = {f.name: HYPERPARAMETER_KEYS.get(f.name, f.name) for f in dataclasses.fields(kind)}
    try:
        made: Algorithm = kind(**{name: config.value(key) for name, key in keys.items() if key in KEYS})
    except (TypeError, ValueError) as error:
        raise UserError(f"algorithm: {config.method.algorithm or kind.__name__} cannot be made: {error}") from error
    return made


def _own(written: str, stage: str) -> type[Any]:
    file, _, name = written.rpartition(":")
    if not file.endswith(".py") or not name.isidentifier():
        raise UserError(f"algorithm: {written} names no class; write path/to/file.py:Class")
    kind: type[Any] = load_own(Path(file), name, key="algorithm", kind="class")
    needs = ["trains", "consults", "rows_together", "loss"]
    needs += ["credit", "initial_state", "statistics", "greedy_baseline", "trained_group"] if is_online(stage) else []
    missing = [need for need in needs if not hasattr(kind, need)]
    if missing or not dataclasses.is_dataclass(kind):
        lacks = f"lacks {', '.join(missing)}" if missing else "is no dataclass"
        base = "ClippedPolicy or ShapedRewards" if is_online(stage) else "SFT or DPO"
        raise UserError(
            f"algorithm: {written} {lacks}, so stage {stage} cannot run it; derive it from {base} of "
            "posttrain.algorithms (docs/new-algorithm.md)"
        )
    return kind

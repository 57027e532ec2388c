"""Arguments of the trainers of transformers and TRL as keys of a configuration."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain.config import KEYS
from posttrain.config.documents import read_document
from posttrain.errors import UserError

_SYNONYMS = {
    "dataset_text_field": "text_column",
    "max_seq_length": "cutoff_len",
    "max_length": "cutoff_len",
    "block_size": "cutoff_len",
    "center_rewards_coefficient": "center_rewards_coef",
    "beta": "pref_beta",
    "loss_type": "pref_loss",
}
_ELSEWHERE = {
    "data_collator": "batches are made from the rows here",
    "compute_metrics": "held-out rows are measured by the loss and the figures of the stage",
    "compute_loss_func": "write a class of your own and name it with algorithm (docs/new-algorithm.md)",
    "preprocess_logits_for_metrics": "held-out rows are measured by the loss and the figures of the stage",
    "callbacks": "the log is trainer_log.jsonl, and alarms watch the run (docs/alarms.md)",
    "optimizers": "the optimizer is given by optim, learning_rate, weight_decay and lr_scheduler_type",
    "optimizer_cls_and_kwargs": "the optimizer is given by optim, learning_rate, weight_decay and lr_scheduler_type",
    "formatting_func": "map the rows first, to a column of text or to messages",
    "model_init": "give the model itself",
    "ref_model": "the reference is the model as it starts",
    "reward_funcs": "a loop with rewards is PPOTrainer; functions in a file are reward_funcs of run_exp",
}
# what a trainer's own methods decide
_DECIDED = ("do_train", "do_eval", "do_predict")
# a default of transformers that asks for nothing: the fused form of the same update
_ASKED_ONLY = ("optim",)
_LENGTHS = ("max_length", "max_seq_length")


def keys_of(args: object) -> dict[str, Any]:
    """The keys that ``args`` stands for.

    Of a ``TrainingArguments``, every field that has a meaning here, and of the others those that differ from their
    default, so that the configuration says what becomes of them.

    Args:
        args: None, flat keys, the path of a YAML file, or a ``TrainingArguments`` of transformers.

    Raises:
        UserError: it is something else.
    """
    if args is None:
        return {}
    if isinstance(args, Mapping):
        return {str(key): value for key, value in args.items()}
    if isinstance(args, str | Path):
        return {str(key): value for key, value in read_document(args).data.items()}
    flat: Any = getattr(args, "to_dict", None)
    if not dataclasses.is_dataclass(args) or isinstance(args, type) or flat is None:
        raise UserError(
            f"args is a {type(args).__name__}; give keys as a mapping, the path of a YAML file, or a TrainingArguments"
        )
    values: dict[str, Any] = flat()
    kind: Any = type(args)
    defaults: dict[str, Any] = kind(output_dir=values.get("output_dir") or "runs").to_dict()
    always = {*KEYS, *_LENGTHS} - {*_ASKED_ONLY}
    return {
        key: value
        for key, value in values.items()
        if key not in _DECIDED and (key in always or value != defaults.get(key))
        if not (key in _LENGTHS and value is None)
    }


def renamed(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Keys under our names.

    Raises:
        UserError: an argument that has no place here, or two that mean the same.
    """
    found: dict[str, Any] = {}
    for name, value in keys.items():
        if name in _ELSEWHERE and value not in (None, [], ()):
            raise UserError(f"`{name}` has no place here: {_ELSEWHERE[name]}")
        if name in _ELSEWHERE:
            continue
        key = _SYNONYMS.get(name, name)
        if key in found and found[key] != value:
            raise UserError(f"`{name}={value!r}` and `{key}={found[key]!r}` mean the same; keep one")
        found[key] = value
    return found

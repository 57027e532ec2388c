"""`posttrain reward-parity`: does a reward model say the same in PPO, in an evaluation and after its export?"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from posttrain.algorithms import SFT
from posttrain.config import RunConfig, is_online
from posttrain.data.batches import collate
from posttrain.data.columns import row_layout
from posttrain.data.datasets import dataset_rows
from posttrain.data.template import EncodedRow, Template, pad_token_id
from posttrain.engine import Engine, OptimizerSettings
from posttrain.errors import UserError
from posttrain.evaluate.rows import read_rows
from posttrain.evaluate.wardrobe import load_wearing
from posttrain.models.assemble import online_assembly
from posttrain.models.classifier import load_classifier
from posttrain.models.probe import largest_gap
from posttrain.models.reward_folder import read_reward_folder
from posttrain.types import Batch

Notify = Callable[[str], None]
Progress = Callable[[str, int, int], None]

TOLERANCE = {torch.float32: 1e-4}
"""Largest difference of two scores that is summation order, relative to the largest score (at least 1)."""
HALF_TOLERANCE = 0.05


@dataclass(frozen=True, kw_only=True)
class Parity:
    """What the ways of scoring said of the same rows.

    Attributes:
        scores: way -> [N]. differences: pair of ways -> largest difference.
        tolerance: largest difference that is rounding. num_rows: N.
    """

    scores: Mapping[str, Tensor]
    differences: Mapping[tuple[str, str], float]
    tolerance: float

    @property
    def num_rows(self) -> int:
        """N."""
        return len(next(iter(self.scores.values())))

    @property
    def largest(self) -> float:
        """The largest of all differences."""
        return max(self.differences.values())

    @property
    def holds(self) -> bool:
        """Whether all ways agree."""
        return self.largest <= self.tolerance


def reward_parity(
    config: RunConfig,
    notify: Notify = lambda sentence: None,
    progress: Progress = lambda what, done, total: None,
) -> Parity:
    """Score rows with ``reward_model`` in every way that there is.

    "ppo": as a role beside actor, critic and reference, by the engine. "eval": as ``posttrain eval`` loads it.
    "export", with ``export_dir``: by the sequence classifier that ``posttrain export`` wrote, in transformers' own
    code; the constant of a head, which a classifier has no place for, is added to what it says.

    Args:
        config: of stage ppo, loaded with ``command="eval"``; its rows are pairs, or prompts with answers.
        notify: receives sentences for the user. progress: told what is going on.

    Raises:
        UserError: there is no reward model, no row, or the exported folder is no sequence classifier.
    """
    if config.reward.model_folder is None:
        raise UserError("reward_model is missing: name the folder of the reward model whose scores are compared")
    exported = _exported(config)
    for sentence in config.warnings:
        notify(sentence)
    progress("score as posttrain eval does", 0, 0)
    scores: dict[str, Tensor] = {}
    rows, template, scores["eval"], dtype = _as_evaluated(config, notify)
    gc.collect()  # one copy of the model at a time
    progress("score as PPO does", 0, 0)
    scores["ppo"] = _as_in_ppo(config, rows, template)
    gc.collect()
    if exported is not None:
        progress("score as exported", 0, 0)
        scores["export"] = _as_exported(config, exported, rows, notify)
    scores = {name: scores[name] for name in ("ppo", "eval", "export") if name in scores}
    size = max(1.0, *(float(found.abs().max()) for found in scores.values()))
    return Parity(
        scores=scores,
        differences={(a, b): largest_gap(scores[a], scores[b]) for a, b in combinations(scores, 2)},
        tolerance=TOLERANCE.get(dtype, HALF_TOLERANCE) * size,
    )


def _as_evaluated(config: RunConfig, notify: Notify) -> tuple[list[EncodedRow], Template, Tensor, torch.dtype]:
    """The rows, what rendered them, their scores, and the precision of the model."""
    wardrobe = load_wearing(config)
    assert wardrobe.reward is not None
    found, template, report = read_rows(config, wardrobe.tokenizer, _kind(config))
    assert template is not None
    notify(report.sentence())
    rows: list[EncodedRow] = []
    for item in found:
        rows += [item] if isinstance(item, EncodedRow) else [item.chosen, item.rejected]
    scores = wardrobe.scores(wardrobe.reward, _batch(rows, wardrobe.tokenizer))
    return rows, template, scores, wardrobe.backbone.dtype


def _as_in_ppo(config: RunConfig, rows: Sequence[EncodedRow], template: Template) -> Tensor:
    if not is_online(config.method.stage):
        config = replace(config, method=replace(config.method, stage="ppo"))
    assembly = online_assembly(config).under_template(template, allow_mismatch=config.model.allow_mismatch)
    # nothing is trained, and the reward's role does not depend on what would be
    engine = Engine(
        assembly.roles,
        SFT(),
        OptimizerSettings(learning_rate=0.0),
        lambda step: 1.0,
        max_tokens=config.train.max_tokens_per_microbatch,
    )
    return engine.scores(_batch(rows, template.tokenizer).to(engine.device)).float().cpu()


def _as_exported(config: RunConfig, folder: Path, rows: Sequence[EncodedRow], notify: Notify) -> Tensor:
    assert config.reward.model_folder is not None
    bias = read_reward_folder(config.reward.model_folder).found.bias
    constant = 0.0 if bias is None else float(bias)
    if constant:
        notify(f"the constant {constant:.4g} of the head is added to what {folder} says, which has no place for it")
    classifier = load_classifier(
        str(folder), label="0", dtype="float32", trust_remote_code=config.model.trust_remote_code
    )
    size = config.train.per_device_eval_batch_size
    return classifier.scores([row.input_ids for row in rows], size) + constant


def _exported(config: RunConfig) -> Path | None:
    """The folder to compare with; None where none is named."""
    if not config.export.export_dir:
        return None
    folder = Path(config.export.export_dir).expanduser()
    if not (folder / "config.json").is_file():
        raise UserError(
            f"export_dir: {folder} holds no exported model; write it with `posttrain export` (stage: rm) first"
        )
    return folder


def _kind(config: RunConfig) -> str:
    """How the rows are read: as pairs where they are some, else as prompts with answers."""
    names = config.data.eval_dataset or config.data.dataset
    if not names:
        return "rm"  # which then says that there are none
    spec, rows = dataset_rows(names[0], config.data)
    layout = row_layout(spec.layout, rows, f"{spec.place}, row 1", config.data, set().union(*rows))
    answers = rows[0].get(layout.columns.get("response", ""))
    return "rm" if "chosen" in layout.columns or isinstance(answers, list) else "sft"


def _batch(rows: Sequence[EncodedRow], tokenizer: Any) -> Batch:
    return collate(rows, pad_token_id(tokenizer))

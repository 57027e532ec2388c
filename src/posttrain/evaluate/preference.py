"""How well a reward model ranks held-out pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from posttrain.data.batches import collate_pairs
from posttrain.data.template import pad_token_id
from posttrain.errors import UserError
from posttrain.evaluate.intervals import wilson_interval
from posttrain.evaluate.wardrobe import Outfit, Wardrobe
from posttrain.functional import bradley_terry_loss

Progress = Callable[[str, int, int], None]


def measure_preference(
    wardrobe: Wardrobe, pairs: Sequence[Any], *, batch_size: int, level: float, progress: Progress
) -> tuple[dict[str, dict[str, Any]], dict[str, Tensor]]:
    """Variant -> accuracy, loss and margin; a tie counts as wrong.

    Args:
        wardrobe: its ``reward`` is measured where there is one, else every variant, each of which needs a head.
        pairs: encoded pairs. batch_size: pairs of one batch.
        level: of the interval around the accuracy.
        progress: told of every batch: what, done, in all.

    Returns:
        Metrics, and variant -> [P, 2] scores of chosen and rejected.

    Raises:
        UserError: a variant has no reward head.
    """
    measured = {"reward": wardrobe.reward} if wardrobe.reward else wardrobe.variants
    found: dict[str, dict[str, Any]] = {}
    scores: dict[str, Tensor] = {}
    for name, outfit in measured.items():
        if outfit.head is None:
            raise UserError(
                f"variant {name} has no reward head (value_head.safetensors), so it cannot score pairs. Give the "
                "folder that stage rm wrote as adapter_name_or_path or reward_model."
            )
        scores[name] = _scores(wardrobe, outfit, pairs, batch_size, partial(progress, f"score {name}"))
        found[name] = _metrics(scores[name], _margins(pairs), level)
    return found, scores


def _scores(
    wardrobe: Wardrobe, outfit: Outfit, pairs: Sequence[Any], size: int, progress: Callable[[int, int], None]
) -> Tensor:
    pad = pad_token_id(wardrobe.tokenizer)
    parts = []
    for start in range(0, len(pairs), size):
        batch = collate_pairs(pairs[start : start + size], pad)
        parts.append(wardrobe.scores(outfit, batch).reshape(-1, 2))
        progress(min(start + size, len(pairs)), len(pairs))
    return torch.cat(parts)


def _margins(pairs: Sequence[Any]) -> Tensor | None:
    if all(pair.margin is None for pair in pairs):
        return None
    return torch.tensor([pair.margin or 0.0 for pair in pairs])


def _metrics(scores: Tensor, margins: Tensor | None, level: float) -> dict[str, Any]:
    chosen, rejected = scores[:, 0], scores[:, 1]
    right = int((chosen > rejected).sum())
    return {
        "accuracy": right / len(scores),
        "accuracy_interval": list(wilson_interval(right, len(scores), level=level)),
        "loss": float(bradley_terry_loss(chosen, rejected, margins).mean()),
        "margin": float((chosen - rejected).mean()),
        "chosen_score": float(chosen.mean()),
        "rejected_score": float(rejected.mean()),
        "num_pairs": len(scores),
    }

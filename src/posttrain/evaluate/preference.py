"""How well a reward model ranks held-out pairs, how sure it may be of it, and what it makes of length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from posttrain.data.batches import collate_pairs
from posttrain.data.template import pad_token_id
from posttrain.errors import UserError
from posttrain.evaluate.bootstrap import Measure, Record, mean_of
from posttrain.evaluate.intervals import wilson_interval
from posttrain.evaluate.wardrobe import Outfit, Wardrobe
from posttrain.functional import bradley_terry_loss

Progress = Callable[[str, int, int], None]

NUM_BINS = 10
"""Of the confidence, between 0.5 and 1, for the calibration error."""
PER_TOKENS = 100
"""Tokens of length that the slope is given for."""
_GROUPS = 4


def preference_records(
    wardrobe: Wardrobe, pairs: Sequence[Any], *, batch_size: int, progress: Progress
) -> dict[str, list[dict[str, Any]]]:
    """Variant -> a record for each pair: both scores, what follows from them, and both lengths in tokens.

    Args:
        wardrobe: its ``reward`` is measured where there is one, else every variant, each of which needs a head.
        pairs: encoded pairs. batch_size: pairs of one batch.
        progress: told of every batch: what, done, in all.

    Raises:
        UserError: a variant has no reward head.
    """
    measured = {"reward": wardrobe.reward} if wardrobe.reward else wardrobe.variants
    found: dict[str, list[dict[str, Any]]] = {}
    for name, outfit in measured.items():
        if outfit.head is None:
            raise UserError(
                f"variant {name} has no reward head (value_head.safetensors), so it cannot score pairs. Give the "
                "folder that stage rm wrote as adapter_name_or_path or reward_model."
            )
        scores = _scores(wardrobe, outfit, pairs, batch_size, partial(progress, f"score {name}"))
        found[name] = _records(pairs, scores)
    return found


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


def _records(pairs: Sequence[Any], scores: Tensor) -> list[dict[str, Any]]:
    margins = None
    if any(pair.margin is not None for pair in pairs):
        margins = torch.tensor([pair.margin or 0.0 for pair in pairs])
    losses = bradley_terry_loss(scores[:, 0], scores[:, 1], margins)
    return [
        {
            "chosen_score": chosen,
            "rejected_score": rejected,
            "correct": chosen > rejected,  # a tie is wrong
            "loss": loss,
            "margin": chosen - rejected,
            "data_margin": pair.margin,
            "chosen_length": sum(pair.chosen.loss_mask),
            "rejected_length": sum(pair.rejected.loss_mask),
        }
        for pair, (chosen, rejected), loss in zip(pairs, scores.tolist(), losses.tolist(), strict=True)
    ]


def confidence(record: Record) -> float:
    """How sure the model is of the answer that it prefers: σ(|score difference|), between 0.5 and 1."""
    return float(torch.sigmoid(torch.tensor(abs(record["margin"]), dtype=torch.float64)))


def _calibration_columns(record: Record) -> list[float]:
    sure = confidence(record)
    columns = [0.0] * NUM_BINS
    columns[_bin(sure)] = float(record["correct"]) - sure
    return [*columns, 1.0]


def _bin(sure: float) -> int:
    return min(int((sure - 0.5) * 2 * NUM_BINS), NUM_BINS - 1)


def _calibration_error(sums: Tensor) -> Tensor:
    """ECE = Σ_b (n_b / N) |accuracy_b − mean confidence_b|, where each term is |Σ (correct − confidence)| / N."""
    return sums[:, :-1].abs().sum(dim=1) / sums[:, -1]


def _length_columns(record: Record) -> list[float] | None:
    if "chosen_length" not in record:
        return None
    length, score = record["chosen_length"] - record["rejected_length"], record["margin"]
    return [1.0, length, score, length * length, length * score, score * score]


def _length_slope(sums: Tensor) -> Tensor:
    """Least-squares slope of score difference on length difference, per ``PER_TOKENS`` tokens; NaN for one length."""
    covariance, length_variance, _ = _moments(sums)
    return PER_TOKENS * covariance / length_variance


def _length_correlation(sums: Tensor) -> Tensor:
    covariance, length_variance, score_variance = _moments(sums)
    return covariance / (length_variance * score_variance).sqrt()


def _moments(sums: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    n, length, score, lengths, products, scores = (sums / sums[:, :1]).unbind(dim=1)
    del n
    tiny = 1e-12  # what rounding leaves of a variance that is 0
    length_variance, score_variance = lengths - length.square(), scores - score.square()
    nothing = torch.full_like(length_variance, torch.nan)
    length_variance = torch.where(length_variance > tiny * (1 + lengths), length_variance, nothing)
    score_variance = torch.where(score_variance > tiny * (1 + scores), score_variance, nothing)
    return products - length * score, length_variance, score_variance


MEASURES = (
    mean_of("correct", name="accuracy", title="pairs ranked correctly", is_share=True, unit="share"),
    mean_of("loss", better="lower"),
    mean_of("margin", title="score difference", unit="score"),
    Measure(
        name="calibration_error",
        title="calibration error (ECE)",
        columns=_calibration_columns,
        value=_calibration_error,
        better="lower",
    ),
    Measure(
        name="length_slope",
        title=f"score per {PER_TOKENS} tokens more",
        columns=_length_columns,
        value=_length_slope,
        better="",
    ),
    Measure(
        name="length_correlation",
        title="correlation of score and length",
        columns=_length_columns,
        value=_length_correlation,
        better="",
    ),
)


def preference_groups(records: Sequence[Record], *, level: float) -> dict[str, dict[str, Any]]:
    """Accuracy in parts of the pairs, and how often the longer answer wins.

    Returns:
        ``by_confidence``: bins of the calibration; ``by_margin``: quarters of |score difference|; ``by_length``: by how
        much longer chosen is; ``by_data_margin``: quarters of the data's own margin, where the rows have one. Each part
        -> its pairs, accuracy with interval, and for the bins the mean confidence. ``longer_preferred`` and
        ``longer_chosen``: shares among the pairs of different lengths, by the model and by the data.
    """
    sure = [confidence(record) for record in records]
    bins = {
        f"{0.5 + number / NUM_BINS / 2:.2f}-{0.5 + (number + 1) / NUM_BINS / 2:.2f}": [
            i for i, each in enumerate(sure) if _bin(each) == number
        ]
        for number in range(NUM_BINS)
    }
    by_confidence = {
        name: {**_part(records, members, level), "mean_confidence": sum(sure[i] for i in members) / len(members)}
        for name, members in bins.items()
        if members
    }
    found: dict[str, dict[str, Any]] = {
        "by_confidence": by_confidence,
        "by_margin": _quarters(records, [abs(record["margin"]) for record in records], level),
        "by_length": _by_length(records, level),
    }
    if all(record.get("data_margin") is not None for record in records):
        found["by_data_margin"] = _quarters(records, [float(record["data_margin"]) for record in records], level)
    differing = [r for r in records if r["chosen_length"] != r["rejected_length"] and r["margin"]]
    if differing:
        longer = [record["chosen_length"] > record["rejected_length"] for record in differing]
        preferred = [is_longer == record["correct"] for is_longer, record in zip(longer, differing, strict=True)]
        found["longer"] = {
            "num_pairs": len(differing),
            "longer_chosen": sum(longer) / len(differing),
            "longer_preferred": sum(preferred) / len(differing),
            "longer_preferred_interval": list(wilson_interval(sum(preferred), len(differing), level=level)),
        }
    return found


def _by_length(records: Sequence[Record], level: float) -> dict[str, Any]:
    """Parts by length difference, cut at 0 and at the median of its size."""
    differences = [record["chosen_length"] - record["rejected_length"] for record in records]
    sizes = sorted(abs(difference) for difference in differences if difference)
    middle = sizes[len(sizes) // 2] if sizes else 1
    parts = {
        f"shorter by {middle} or more": [i for i, d in enumerate(differences) if d <= -middle],
        "shorter": [i for i, d in enumerate(differences) if -middle < d < 0],
        "same": [i for i, d in enumerate(differences) if d == 0],
        "longer": [i for i, d in enumerate(differences) if 0 < d < middle],
        f"longer by {middle} or more": [i for i, d in enumerate(differences) if d >= middle],
    }
    return {f"chosen {name}": _part(records, members, level) for name, members in parts.items() if members}


def _quarters(records: Sequence[Record], values: Sequence[float], level: float) -> dict[str, Any]:
    """Parts of about the same number of pairs, from the smallest values to the largest; equal values stay together."""
    ordered = sorted(values)
    edges = sorted({ordered[len(ordered) * part // _GROUPS] for part in range(1, _GROUPS)} - {ordered[0]})
    parts: dict[int, list[int]] = {}
    for place, value in enumerate(values):
        parts.setdefault(sum(value >= edge for edge in edges), []).append(place)
    found = {}
    for part in sorted(parts):
        inside = [values[i] for i in parts[part]]
        found[f"{min(inside):.3g} to {max(inside):.3g}"] = _part(records, parts[part], level)
    return found


def _part(records: Sequence[Record], members: Sequence[int], level: float) -> dict[str, Any]:
    right = sum(records[i]["correct"] for i in members)
    return {
        "num_pairs": len(members),
        "accuracy": right / len(members),
        "accuracy_interval": list(wilson_interval(right, len(members), level=level)),
    }

"""Losses over pairs: one answer preferred to another."""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

DPOKind = Literal["sigmoid", "ipo", "hinge", "robust"]


def bradley_terry_loss(chosen_scores: Tensor, rejected_scores: Tensor, margin: Tensor | None = None) -> Tensor:
    """Negative log-likelihood that the chosen answer wins.

        L = −log σ(r_chosen − r_rejected − margin)

    Papers: Ouyang et al., 2022, eq. 1 (arXiv:2203.02155); the margin: Touvron et al., 2023, eq. 2 (arXiv:2307.09288).

    Args:
        chosen_scores: [P].
        rejected_scores: [P].
        margin: [P], by how much chosen should win; None is 0.

    Returns:
        [P], never negative; log 2 where both scores are equal and the margin is 0.
    """
    difference = chosen_scores - rejected_scores
    if margin is not None:
        difference = difference - margin
    return -F.logsigmoid(difference)


def dpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: float,
    kind: DPOKind = "sigmoid",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Preference loss on the policy's own log-probabilities; the reward is implicit.

    With h = (log π(y_c) − log π_ref(y_c)) − (log π(y_r) − log π_ref(y_r)) and label smoothing s:

        sigmoid: −(1 − s) log σ(β h) − s log σ(−β h)
        robust:  (−(1 − s) log σ(β h) + s log σ(−β h)) / (1 − 2 s)
        hinge:   max(0, 1 − β h)
        ipo:     (h − 1/(2β))²

    Papers: Rafailov et al., 2023, eq. 7 (arXiv:2305.18290); robust: Chowdhury et al., 2024 (arXiv:2403.00409);
    hinge: Zhao et al., 2023, SLiC-HF (arXiv:2305.10425); ipo: Azar et al., 2023, eq. 17 (arXiv:2310.12036), whose
    β is the paper's τ. ``s`` with the sigmoid kind is the conservative DPO of Mitchell, 2023.

    Args:
        chosen_logps: [P] log-probability of the chosen answer, summed over its tokens.
        rejected_logps: [P].
        ref_chosen_logps: [P] under the reference.
        ref_rejected_logps: [P].
        beta: β, how strongly the policy is held to the reference.
        kind: the shape of the loss.
        label_smoothing: s, the share of labels that are taken to be flipped; sigmoid and robust only, robust below ½.

    Returns:
        [P]; sigmoid is log 2 where the policy equals the reference.

    Raises:
        ValueError: for an unknown ``kind``, or a smoothing that the kind does not have.
    """
    if kind not in get_args(DPOKind):
        raise ValueError(f"unknown DPO loss {kind!r}: one of {', '.join(get_args(DPOKind))}")
    _check_smoothing(kind, label_smoothing)
    h = (chosen_logps - ref_chosen_logps) - (rejected_logps - ref_rejected_logps)  # [P]
    if kind == "hinge":
        return torch.relu(1 - beta * h)
    if kind == "ipo":
        return (h - 1 / (2 * beta)).square()
    kept = (1 - label_smoothing) * F.logsigmoid(beta * h)
    flipped = label_smoothing * F.logsigmoid(-beta * h)
    if kind == "robust":
        return (flipped - kept) / (1 - 2 * label_smoothing)
    return -kept - flipped


def _check_smoothing(kind: str, label_smoothing: float) -> None:
    limits = {"sigmoid": "between 0 and 1", "robust": "at least 0 and below 0.5"}
    valid = {
        "sigmoid": 0 <= label_smoothing <= 1,
        "robust": 0 <= label_smoothing < 0.5,
    }.get(kind, label_smoothing == 0)
    if not valid:
        expected = limits.get(kind, "0")
        raise ValueError(f"label_smoothing of the {kind} loss must be {expected}, not {label_smoothing}")

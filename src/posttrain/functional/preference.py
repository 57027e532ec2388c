"""Losses over pairs: one answer preferred to another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

# hinge: Zhao et al., 2023, SLiC-HF (arXiv:2305.10425). ipo: Azar et al., 2023, eq. 17 (arXiv:2310.12036); β is its τ.
# robust: Chowdhury et al., 2024 (arXiv:2403.00409). exo_pair: Ji et al., 2024, eq. 16 (arXiv:2402.00856).
# nca_pair: Chen et al., 2024 (arXiv:2402.05369). sppo_hard: Wu et al., 2024, eq. 4.7 with P in {0, 1}
# (arXiv:2405.00675). apo_zero, apo_down: D'Oosterlinck et al., 2024, eq. 7 and 8 (arXiv:2408.06266).
DPOKind = Literal["sigmoid", "ipo", "hinge", "robust", "exo_pair", "nca_pair", "sppo_hard", "apo_zero", "apo_down"]
CPOKind = Literal["sigmoid", "hinge"]


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


def ranking_pairs(sizes: Sequence[int], *, device: torch.device | str | None = None) -> tuple[Tensor, Tensor]:
    """All (better, worse) pairs inside rankings whose answers stand one behind the other, best first.

    A ranking of K answers has K(K − 1)/2 pairs, each of weight 1 over that number, so that every prompt counts the
    same, while each answer needs one forward only.

    Paper: Ouyang et al., 2022, eq. 1 (arXiv:2203.02155).

    Args:
        sizes: answers of each ranking, at least 1; a lone answer has no pair.
        device: where both tensors are put; None is the CPU.

    Returns:
        Rows [P, 2] int64, better then worse, and weights [P] float32, which sum to 1 over a ranking.

    Raises:
        ValueError: if a ranking has no answer.
    """
    if any(size < 1 for size in sizes):
        raise ValueError(f"a ranking needs at least one answer, sizes are {list(sizes)}")
    starts = [sum(sizes[:group]) for group in range(len(sizes))]
    pairs = [torch.triu_indices(size, size, offset=1).T + start for start, size in zip(starts, sizes, strict=False)]
    weights = [torch.full((len(pair),), 1 / max(1, len(pair))) for pair in pairs]
    index = torch.cat([torch.zeros(0, 2, dtype=torch.int64), *pairs])  # [P, 2]
    return index.to(device), torch.cat([torch.zeros(0), *weights]).to(device)


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

    With c = log π(y_c) − log π_ref(y_c), r likewise for the rejected answer, h = c − r and label smoothing s:

        sigmoid:   −(1 − s) log σ(β h) − s log σ(−β h)
        robust:    (−(1 − s) log σ(β h) + s log σ(−β h)) / (1 − 2 s)
        hinge:     max(0, 1 − β h)
        ipo:       (h − 1/(2β))²
        exo_pair:  σ(β h) log(σ(β h) / (1 − s)) + σ(−β h) log(σ(−β h) / s)
        nca_pair:  −log σ(β c) − ½ log σ(−β c) − ½ log σ(−β r)
        sppo_hard: (c − 1/(2β))² + (r + 1/(2β))²
        apo_zero:  σ(−β c) + σ(β r)
        apo_down:  σ(β c) + σ(−β h)

    Papers: Rafailov et al., 2023, eq. 7 (arXiv:2305.18290); its ``s``: Mitchell, 2023; the others: ``DPOKind``.

    Args:
        chosen_logps: [P] log-probability of the chosen answer, summed over its tokens. (TRL and LLaMA-Factory give
            ipo the mean over tokens.)
        rejected_logps: [P].
        ref_chosen_logps: [P] under the reference.
        ref_rejected_logps: [P].
        beta: β, how strongly the policy is held to the reference.
        kind: the shape of the loss.
        label_smoothing: s, the share of labels that are taken to be flipped; sigmoid, robust (below ½) and exo_pair
            (above 0, below ½) only.

    Returns:
        [P]; sigmoid is log 2 where the policy equals the reference.

    Raises:
        ValueError: for an unknown ``kind``, or a smoothing that the kind does not have.
    """
    if kind not in get_args(DPOKind):
        raise ValueError(f"unknown DPO loss {kind!r}: one of {', '.join(get_args(DPOKind))}")
    _check_smoothing(kind, label_smoothing)
    chosen, rejected = chosen_logps - ref_chosen_logps, rejected_logps - ref_rejected_logps  # [P]
    if kind in ("sppo_hard", "nca_pair", "apo_zero", "apo_down"):
        return _loss_of_sides(chosen, rejected, beta, kind)
    return _loss_of_difference(chosen - rejected, beta, kind, label_smoothing)


def _loss_of_sides(c: Tensor, r: Tensor, beta: float, kind: str) -> Tensor:
    """The losses that say where each answer should go, not only how far apart."""
    if kind == "sppo_hard":
        return (c - 1 / (2 * beta)).square() + (r + 1 / (2 * beta)).square()
    if kind == "nca_pair":
        return -F.logsigmoid(beta * c) - 0.5 * F.logsigmoid(-beta * c) - 0.5 * F.logsigmoid(-beta * r)
    if kind == "apo_zero":
        return torch.sigmoid(-beta * c) + torch.sigmoid(beta * r)
    return torch.sigmoid(beta * c) + torch.sigmoid(-beta * (c - r))


def _loss_of_difference(h: Tensor, beta: float, kind: str, label_smoothing: float) -> Tensor:
    """The losses in which only the difference of both answers counts."""
    if kind == "hinge":
        return torch.relu(1 - beta * h)
    if kind == "ipo":
        return (h - 1 / (2 * beta)).square()
    kept, flipped = F.logsigmoid(beta * h), F.logsigmoid(-beta * h)
    if kind == "exo_pair":
        straight = kept.exp() * (kept - math.log1p(-label_smoothing))
        return straight + flipped.exp() * (flipped - math.log(label_smoothing))
    kept, flipped = (1 - label_smoothing) * kept, label_smoothing * flipped
    if kind == "robust":
        return (flipped - kept) / (1 - 2 * label_smoothing)
    return -kept - flipped


def _check_smoothing(kind: str, label_smoothing: float) -> None:
    limits = {
        "sigmoid": "between 0 and 1",
        "robust": "at least 0 and below 0.5",
        "exo_pair": "above 0 and below 0.5",
    }
    valid = {
        "sigmoid": 0 <= label_smoothing <= 1,
        "robust": 0 <= label_smoothing < 0.5,
        "exo_pair": 0 < label_smoothing < 0.5,
    }.get(kind, label_smoothing == 0)
    if not valid:
        expected = limits.get(kind, "0")
        raise ValueError(f"label_smoothing of the {kind} loss must be {expected}, not {label_smoothing}")


def cpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    *,
    beta: float,
    kind: CPOKind = "sigmoid",
    label_smoothing: float = 0.0,
) -> Tensor:
    """The preference part of CPO: DPO with a reference that finds all answers equally likely.

        sigmoid: −(1 − s) log σ(β (log π(y_c) − log π(y_r))) − s log σ(−β (log π(y_c) − log π(y_r)))
        hinge:   max(0, 1 − β (log π(y_c) − log π(y_r)))

    Paper: Xu et al., 2024, eq. 3 (arXiv:2401.08417); the negative log-likelihood of the chosen answer, which the paper
    adds, is the caller's. hinge: Zhao et al., 2023, SLiC-HF (arXiv:2305.10425).

    Args:
        chosen_logps: [P] log-probability of the chosen answer, summed over its tokens.
        rejected_logps: [P].
        beta: β, the scale of the implicit reward.
        kind: the shape of the loss.
        label_smoothing: s, the share of labels that are taken to be flipped; sigmoid only.

    Returns:
        [P]; sigmoid is log 2 where both answers are equally likely.

    Raises:
        ValueError: for an unknown ``kind``, or a smoothing that the kind does not have.
    """
    if kind not in get_args(CPOKind):
        raise ValueError(f"unknown CPO loss {kind!r}: one of {', '.join(get_args(CPOKind))}")
    _check_smoothing(kind, label_smoothing)
    return _loss_of_difference(chosen_logps - rejected_logps, beta, kind, label_smoothing)


def simpo_loss(chosen_mean_logps: Tensor, rejected_mean_logps: Tensor, *, beta: float, gamma: float) -> Tensor:
    """Preference loss whose reward is the mean log-probability of a token, with a margin to be won by.

        L = −log σ(β/|y_c| log π(y_c) − β/|y_r| log π(y_r) − γ)

    Paper: Meng et al., 2024, eq. 6 (arXiv:2405.14734). γ stands beside the scaled difference, as in the paper;
    ``simpo_gamma`` of LLaMA-Factory and TRL is this γ (they divide it by β inside the bracket that β multiplies).

    Args:
        chosen_mean_logps: [P] log-probability of the chosen answer, averaged over its tokens.
        rejected_mean_logps: [P].
        beta: β, the scale of the reward; 2 to 10 is usual, far more than in DPO.
        gamma: γ, the target margin.

    Returns:
        [P], never negative; log 2 where the scaled difference equals γ.
    """
    return -F.logsigmoid(beta * (chosen_mean_logps - rejected_mean_logps) - gamma)


def odds_ratio_loss(chosen_mean_logps: Tensor, rejected_mean_logps: Tensor) -> Tensor:
    """The preference part of ORPO: the odds of the chosen answer should exceed those of the rejected one.

        p = exp(1/|y| log π(y))        log odds = log p − log(1 − p)        L = −log σ(log odds_c − log odds_r)

    Paper: Hong et al., 2024, eq. 4 and 7 (arXiv:2403.07691), whose eq. 6 adds λ times this to the negative
    log-likelihood of the chosen answer; λ is called beta by TRL and LLaMA-Factory.

    Args:
        chosen_mean_logps: [P] log-probability of the chosen answer, averaged over its tokens.
        rejected_mean_logps: [P].

    Returns:
        [P], never negative, finite also where an answer is certain (p = 1 counts as the number below it).
    """
    return -F.logsigmoid(_log_odds(chosen_mean_logps) - _log_odds(rejected_mean_logps))


def _log_odds(logps: Tensor) -> Tensor:
    logps = logps.clamp(max=-torch.finfo(logps.dtype).eps)
    # expm1 keeps the digits that 1 - exp cancels near p = 1; far from there an error in log(1 - p) is below rounding.
    return logps - torch.log(-torch.expm1(logps))

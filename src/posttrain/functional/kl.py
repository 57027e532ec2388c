"""Estimates of the KL divergence from samples."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

KLKind = Literal["k1", "k2", "k3", "abs"]


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, kind: KLKind) -> Tensor:
    """Per-token estimate of KL(π ‖ π_ref) from tokens sampled by π.

    With d = log π − log π_ref of the sampled token:

        k1 = d        k2 = d²/2        k3 = e^{−d} − 1 + d        abs = |d|

    k1 and k3 are unbiased, k3 with less variance near d = 0; k2 is biased, but has the right gradient when it is used
    as a loss; k2, k3 and abs are never negative.

    Source: Schulman, 2020, "Approximating KL divergence" (joschu.net/blog/kl-approx.html).

    Args:
        logprobs: [B, T] under the policy that sampled the tokens.
        ref_logprobs: [B, T] under the reference.
        kind: the estimator.

    Returns:
        [B, T]. Masking is the caller's.

    Raises:
        ValueError: for an unknown ``kind``.
    """
    d = logprobs - ref_logprobs
    if kind == "k1":
        return d
    if kind == "k2":
        return d.square() / 2
    if kind == "k3":
        # expm1 keeps the digits that exp(-d) - 1 cancels near d = 0.
        return torch.expm1(-d) + d
    if kind == "abs":
        return d.abs()
    raise ValueError(f"unknown KL estimator {kind!r}: one of {', '.join(get_args(KLKind))}")

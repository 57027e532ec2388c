"""From logits to tokens: pure functions on [S, V], one row per sequence; processors in Hugging Face's order.

Drawing is inverse-CDF in vocabulary order with one uniform number per (sequence, position), so a sample is a function
of its own logits and numbers alone, never of the rows beside it.
"""

from __future__ import annotations

import hashlib
import math
import random

import torch
from torch import Tensor

from posttrain.rollout.protocol import SamplingParams

_FIRST_CANDIDATES = 256  # top_p rarely keeps more; sorting a whole vocabulary costs more than a decode step
_MINUS_INFINITY = -torch.inf


def uniforms(count: int, *, seed: int, iteration: int, prompt_index: int, sample_index: int) -> list[float]:
    """The random numbers of one sequence, one per position, in [0, 1).

    The generator is seeded by a BLAKE2b hash of the four numbers: the same on every platform and rank.
    """
    name = f"{seed}/{iteration}/{prompt_index}/{sample_index}".encode()
    generator = random.Random(int.from_bytes(hashlib.blake2b(name, digest_size=16).digest(), "little"))
    return [generator.random() for _ in range(count)]


def penalise_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Divide positive logits of tokens seen before by ``penalty``, multiply negative ones.

    Paper: Keskar et al., 2019, section 4.1 (arXiv:1909.05858), with Hugging Face's treatment of negative logits.

    Args:
        logits: [S, V].
        seen: [S, V] bool, True on tokens of the prompt or the completion so far.
        penalty: above 0; above 1 discourages.
    """
    penalised = torch.where(logits < 0, logits * penalty, logits / penalty)
    return torch.where(seen, penalised, logits)


def forbid(logits: Tensor, rows: Tensor, token_ids: Tensor) -> Tensor:
    """Make tokens impossible in some rows.

    Args:
        logits: [S, V]. rows: [R] int64 row numbers. token_ids: [K] int64.
    """
    out = logits.clone()
    out[rows[:, None], token_ids[None, :]] = _MINUS_INFINITY
    return out


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Only the k largest logits of each row (and ties with the k-th); the rest become minus infinity. [S, V]."""
    kth = logits.topk(min(k, logits.shape[-1])).values[:, -1:]
    return _keep_from(logits, kth)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Only the smallest set of most probable tokens with mass at least p.

    A token stays iff the mass of all more probable tokens is below p; so the most probable one always stays, and so
    do ties with the last that stays.
    Paper: Holtzman et al., 2020, eq. 2 (arXiv:1904.09751).

    Args:
        logits: [S, V].
        p: above 0; 1 or more keeps all.

    Returns:
        [S, V], minus infinity on what was dropped.
    """
    if p >= 1:
        return logits
    normaliser = logits.logsumexp(-1, keepdim=True)
    best = logits.topk(min(_FIRST_CANDIDATES, logits.shape[-1])).values  # [S, C]
    lowest, mass = _last_of_mass(best, normaliser, p)
    flat = (mass < p).nonzero().squeeze(-1)  # rows that need more candidates
    if len(flat) and best.shape[-1] < logits.shape[-1]:
        lowest[flat] = _last_of_mass(_descending(logits[flat]), normaliser[flat], p)[0]
    return _keep_from(logits, lowest)


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Only tokens at least p times as probable as the most probable one. [S, V].

    Paper: Nguyen et al., 2024, section 3 (arXiv:2407.01082).
    """
    return _keep_from(logits, logits.amax(-1, keepdim=True) + math.log(p)) if p > 0 else logits


def draw(logits: Tensor, numbers: Tensor) -> Tensor:
    """Inverse-CDF draw: the first token, in vocabulary order, whose cumulative probability exceeds the number.

    Args:
        logits: [S, V], minus infinity on impossible tokens.
        numbers: [S] in [0, 1).

    Returns:
        [S] int64; never a token of probability 0. A row of NaN gives some valid token.
    """
    return pick(logits.softmax(-1), numbers)


def pick(weights: Tensor, numbers: Tensor) -> Tensor:
    """``draw`` from what is proportional to the probabilities; [S, V] and [S] -> [S]."""
    cumulative = weights.cumsum(-1)
    total = cumulative[:, -1:]
    wanted = numbers.to(cumulative.dtype)[:, None] * total
    below = torch.minimum(wanted, torch.nextafter(total, torch.zeros_like(total)))  # rounding may reach the total
    return torch.searchsorted(cumulative, below, right=True).squeeze(-1).clamp(max=weights.shape[-1] - 1)


def sample(
    logits: Tensor,
    params: SamplingParams,
    *,
    numbers: Tensor | None = None,
    seen: Tensor | None = None,
    too_early: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One token per row, and its log-probability under the policy.

    Args:
        logits: [S, V] as the head gives them; computed on in at least fp32.
        params: how to draw.
        numbers: [S] uniform numbers; needed iff ``params.do_sample``.
        seen: [S, V] bool; needed iff ``params.repetition_penalty`` is not 1.
        too_early: [R] int64, the rows in which stop tokens are still impossible; None is no row.

    Returns:
        (tokens [S] int64, logprobs [S] = log_softmax(logits / temperature)[token], temperature 1 if greedy).
    """
    raw = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    temperature = params.temperature if params.do_sample else 1.0
    processed = raw
    if params.repetition_penalty != 1.0 and seen is not None:
        processed = penalise_repetition(processed, seen, params.repetition_penalty)
    if too_early is not None and len(too_early) and params.stop_token_ids:
        processed = forbid(processed, too_early, torch.tensor(params.stop_token_ids, device=raw.device))
    untouched = processed is raw
    scaled = raw if temperature == 1.0 else raw / temperature
    peak = scaled.amax(-1, keepdim=True)
    weights = (scaled - peak).exp_()  # for both the draw and what is recorded: each pass over a vocabulary costs
    if not params.do_sample:
        tokens = processed.argmax(-1)
    elif numbers is None:
        raise ValueError("do_sample needs one uniform number per row")
    elif untouched and not params.filters:
        tokens = pick(weights, numbers)
    else:
        tokens = draw(_filtered(scaled if untouched else processed / temperature, params), numbers)
    logprobs = (scaled.gather(-1, tokens[:, None]) - peak).squeeze(-1) - weights.sum(-1).log()
    return tokens, logprobs


def _filtered(logits: Tensor, params: SamplingParams) -> Tensor:
    if params.top_k:
        logits = keep_top_k(logits, params.top_k)
    if params.top_p < 1:
        logits = keep_top_p(logits, params.top_p)
    return keep_min_p(logits, params.min_p)


def _last_of_mass(best: Tensor, normaliser: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """The last logit [S, 1] such that all before it have a mass below p, and the mass [S] of all candidates.

    Args:
        best: [S, C] descending. normaliser: [S, 1] logsumexp of all logits.
    """
    probabilities = (best - normaliser).exp()
    mass = probabilities.cumsum(-1)
    last = (mass - probabilities < p).sum(-1, keepdim=True).clamp(min=1) - 1
    return best.gather(-1, last), mass[:, -1]


def _descending(logits: Tensor) -> Tensor:
    """[S, V] sorted. On a CPU by numpy, whose sort of values alone is many times faster than torch's."""
    if logits.device.type != "cpu":
        return logits.sort(-1, descending=True).values
    values = logits.detach().numpy().copy()
    values.sort(axis=-1)
    return torch.from_numpy(values).flip(-1)


def _keep_from(logits: Tensor, lowest: Tensor) -> Tensor:
    return torch.where(logits < lowest, _MINUS_INFINITY, logits)

"""From pairs of blocks to what the table says: medians of paired ratios, an interval, parity."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

RESAMPLES = 10_000
SEED = 20_240_501
LARGEST_DRIFT = 0.10
LOSS_TOLERANCE = 1e-4
NORM_TOLERANCE = 1e-3
Pair = Mapping[str, Any]


@dataclass(frozen=True)
class Ratio:
    """The median of the pairs' ratios, with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


def ratio(values: Sequence[float]) -> Ratio:
    """The median, and the 2.5 and 97.5 percentiles of the medians of resampled pairs.

    Raises:
        ValueError: there are no pairs.
    """
    if not values:
        raise ValueError("no pair to take a ratio of")
    generator = random.Random(SEED)
    medians = sorted(median(generator.choices(values, k=len(values))) for _ in range(RESAMPLES))
    return Ratio(median(values), medians[int(0.025 * RESAMPLES)], medians[int(0.975 * RESAMPLES) - 1])


def kept(pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs during which the machine stayed as it was."""
    return [pair for pair in pairs if pair["drift"] <= LARGEST_DRIFT]


def per_token(result: Mapping[str, Any], clock: str) -> float:
    """Seconds of this clock for each live token."""
    return float(result[clock]) / float(result["live_tokens"])


def summary(pairs: Sequence[Pair]) -> dict[str, Any]:
    """What the table needs of a row: ratios above 1 are in our favour, the memory ratio is ours over the peer's."""
    used = kept(pairs)
    found: dict[str, Any] = {"pairs": len(used), "discarded": len(pairs) - len(used)}
    if not used:
        return found
    for name, clock in (("wall", "seconds"), ("cpu", "cpu_seconds")):
        found[name] = vars(ratio([per_token(p["peer"], clock) / per_token(p["ours"], clock) for p in used]))
    found["memory"] = median(p["ours"]["peak_rss_bytes"] / p["peer"]["peak_rss_bytes"] for p in used)
    for side in ("peer", "ours"):
        found[side] = {
            "tokens_per_second": median(1 / per_token(p[side], "seconds") for p in used),
            "peak_rss_bytes": median(p[side]["peak_rss_bytes"] for p in used),
        }
    return found | {"void": _void(used)}


def _void(pairs: Sequence[Pair]) -> str | None:
    """Why the ratios say nothing: the sides did not do the same. None where they did, as far as it can be told."""
    for pair in pairs:
        for name, tolerance in (("first_loss", LOSS_TOLERANCE), ("first_grad_norm", NORM_TOLERANCE)):
            peer, ours = pair["peer"].get(name), pair["ours"].get(name)
            if (peer is None) != (ours is None):
                return f"{name} is known of one side only: {peer} and {ours}"
            if peer is not None and not abs(peer - ours) <= tolerance * max(abs(peer), abs(ours)):
                return f"{name} {peer:.6g} there, {ours:.6g} here"
        if not pair["sampled"] and pair["peer"]["live_tokens"] != pair["ours"]["live_tokens"]:
            return f"live tokens {pair['peer']['live_tokens']} there, {pair['ours']['live_tokens']} here"
    return None

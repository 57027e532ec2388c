"""Intervals around means, differences and shares, so that no number stands without its uncertainty."""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random
from statistics import NormalDist, fmean


def bootstrap_interval(
    values: Sequence[float], *, seed: int, level: float = 0.95, num_resamples: int = 2000
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean.

    Paper: Efron, 1979 (Bootstrap methods: another look at the jackknife).

    Args:
        values: one number per independent item, at least one.
        seed: of the resampling; the same seed gives the same interval.
        level: coverage, between 0 and 1.
        num_resamples: resampled means.

    Returns:
        (low, high); both equal the value when there is only one.

    Raises:
        ValueError: no values, a level outside (0, 1), or fewer than one resample.
    """
    _check_level(level)
    if not values or num_resamples < 1:
        raise ValueError("an interval needs at least one value and one resample")
    rng = Random(seed)
    size = len(values)
    means = sorted(fmean(rng.choices(values, k=size)) for _ in range(num_resamples))
    tail = (1 - level) / 2
    return _quantile(means, tail), _quantile(means, 1 - tail)


def paired_difference_interval(
    a: Sequence[float], b: Sequence[float], *, seed: int, level: float = 0.95, num_resamples: int = 2000
) -> tuple[float, float]:
    """Percentile bootstrap interval of mean(a - b), items paired; it excludes 0 when a and b differ reliably.

    Args:
        a, b: results of two systems on the same items, in the same order.
        seed, level, num_resamples: as in ``bootstrap_interval``.

    Returns:
        (low, high) of the mean difference.

    Raises:
        ValueError: different lengths, or as in ``bootstrap_interval``.
    """
    differences = [x - y for x, y in zip(a, b, strict=True)]
    return bootstrap_interval(differences, seed=seed, level=level, num_resamples=num_resamples)


def wilson_interval(successes: float, n: int, *, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share.

        (p + z²/2n ± z √(p(1−p)/n + z²/4n²)) / (1 + z²/n),  p = successes / n

    Paper: Wilson, 1927 (Probable inference, the law of succession, and statistical inference).

    Args:
        successes: between 0 and ``n``; a tie may be half of one, which makes it wider than need be.
        n: trials; with none the interval is (0, 1).
        level: coverage, between 0 and 1.

    Returns:
        (low, high) within [0, 1].

    Raises:
        ValueError: successes outside 0 .. n, or a level outside (0, 1).
    """
    _check_level(level)
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes in {n} trials")
    if n == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + level) / 2)
    share = successes / n
    center = share + z * z / (2 * n)
    spread = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # The bounds at 0 and n successes are exact; rounding would move them by an ulp.
    low = 0.0 if successes == 0 else max(0.0, (center - spread) / scale)
    high = 1.0 if successes == n else min(1.0, (center + spread) / scale)
    return low, high


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level is {level}: it must lie between 0 and 1")


def _quantile(ordered: Sequence[float], share: float) -> float:
    """Linear interpolation between the two nearest order statistics."""
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])

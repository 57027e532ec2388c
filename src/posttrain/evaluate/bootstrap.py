"""Figures that are made of sums over items; intervals and paired differences of all of them by one bootstrap."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from posttrain.evaluate.intervals import wilson_interval

NUM_RESAMPLES = 2000
_CELLS = 4_000_000
"""How many (resample, item) counts are held at once."""

Record = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A figure of a set of items, such as a mean, a ratio of sums, or BLEU.

    Attributes:
        name: in results. title: in tables and plots.
        columns: what a record adds to the sums; None where it does not know.
        value: sums [R, K] -> figures [R].
        better: which way is better; "" where neither is.
        is_share: a mean of values between 0 and 1, whose interval is Wilson's.
        unit: scale of plots: "share", or a word.
    """

    name: str
    title: str
    columns: Callable[[Record], Sequence[float] | None]
    value: Callable[[Tensor], Tensor]
    better: str = "higher"
    is_share: bool = False
    unit: str = ""


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval; None where it cannot be had, such as a slope over equal lengths."""

    value: float | None
    low: float | None
    high: float | None

    @property
    def interval(self) -> list[float | None]:
        """[low, high]."""
        return [self.low, self.high]


@dataclass(frozen=True)
class Difference:
    """How a figure of one system differs from that of another on the same items.

    ``p``: two-sided, of the hypothesis that they do not differ.
    """

    value: float
    low: float
    high: float
    p: float


def mean_of(key: str, *, title: str = "", name: str = "", better: str = "higher", **more: Any) -> Measure:
    """The mean over items of one number of their records."""

    def columns(record: Record) -> Sequence[float] | None:
        value = record.get(key)
        return None if value is None else (float(value), 1.0)

    shown = title or (name or key).replace("_", " ")
    return Measure(name=name or key, title=shown, columns=columns, value=ratio, better=better, **more)


def ratio(sums: Tensor) -> Tensor:
    """[R] the first column over the second."""
    return sums[:, 0] / sums[:, 1]


def table(measure: Measure, records: Sequence[Record]) -> Tensor | None:
    """[N, K] what the records add to the sums; None where one of them does not know, or there are none."""
    rows = [measure.columns(record) for record in records]
    if not rows or any(row is None for row in rows):
        return None
    return torch.tensor(rows, dtype=torch.float64)


def estimates(
    measures: Sequence[Measure], records: Sequence[Record], *, seed: int, level: float, num_resamples: int = 0
) -> dict[str, Estimate]:
    """Each measure that the records know, with the percentile bootstrap interval over items, Wilson's for shares.

    Paper: Efron, 1979 (Bootstrap methods: another look at the jackknife).

    Args:
        measures: the figures. records: one for each independent item.
        seed: of the resampling. level: coverage, between 0 and 1.
        num_resamples: 0 is ``NUM_RESAMPLES``.
    """
    tables = {m.name: known for m in measures if (known := table(m, records)) is not None}
    measured = [m for m in measures if m.name in tables]
    resampled = _resampled(list(tables.values()), seed, num_resamples or NUM_RESAMPLES)
    found: dict[str, Estimate] = {}
    for measure, sums in zip(measured, resampled, strict=True):
        whole = tables[measure.name].sum(dim=0, keepdim=True)
        value = float(measure.value(whole))
        if measure.is_share:
            low, high = wilson_interval(float(whole[0, 0]), round(float(whole[0, 1])), level=level)
        else:
            low, high = _percentiles(measure.value(sums), level)
        found[measure.name] = Estimate(_finite(value), _finite(low), _finite(high))
    return found


def paired_differences(
    measures: Sequence[Measure],
    of: Sequence[Record],
    minus: Sequence[Record],
    *,
    seed: int,
    level: float,
    num_resamples: int = 0,
) -> dict[str, Difference]:
    """``of`` less ``minus`` by each measure that both know, the same items drawn for both.

        p = min(1, 2 min(#{d* ≤ 0} + 1, #{d* ≥ 0} + 1) / (R + 1)),  d* the differences of R resamples

    Paper: Koehn, 2004 (Statistical significance tests for machine translation evaluation).

    Args:
        of, minus: records of the same items in the same order. seed, level, num_resamples: as for ``estimates``.

    Raises:
        ValueError: they are of different lengths.
    """
    if len(of) != len(minus):
        raise ValueError(f"{len(of)} items cannot be paired with {len(minus)}")
    pairs = {m.name: (table(m, of), table(m, minus)) for m in measures}
    known = [m for m in measures if all(side is not None for side in pairs[m.name])]
    tables = [side for m in known for side in pairs[m.name] if side is not None]
    resampled = list(_resampled(tables, seed, num_resamples or NUM_RESAMPLES))
    found = {}
    for place, measure in enumerate(known):
        a, b = tables[2 * place], tables[2 * place + 1]
        value = float(measure.value(a.sum(dim=0, keepdim=True)) - measure.value(b.sum(dim=0, keepdim=True)))
        drawn = measure.value(resampled[2 * place]) - measure.value(resampled[2 * place + 1])
        low, high = _percentiles(drawn, level)
        if all(map(math.isfinite, (value, low, high))):
            found[measure.name] = Difference(value, low, high, _p_value(drawn))
    return found


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values as they count when all these hypotheses are tested at once.

        p̃_(i) = max_{j ≤ i} min(1, (m − j + 1) p_(j)),  p_(1) ≤ ... ≤ p_(m)

    Paper: Holm, 1979 (A simple sequentially rejective multiple test procedure).
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    found, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        found[place] = largest
    return found


def _resampled(tables: Sequence[Tensor], seed: int, num_resamples: int) -> Iterator[Tensor]:
    """[R, K] of each table: its column sums over items drawn with replacement, the same items for all tables."""
    if not tables:
        return iter(())
    joined = torch.cat(list(tables), dim=1)
    size, generator = len(joined), torch.Generator().manual_seed(seed)
    at_once = max(1, _CELLS // size)
    parts = []
    for start in range(0, num_resamples, at_once):
        rows = min(at_once, num_resamples - start)
        drawn = torch.randint(size, (rows, size), generator=generator)
        counts = torch.zeros(rows, size, dtype=torch.float64)
        counts.scatter_add_(1, drawn, torch.ones(rows, size, dtype=torch.float64))
        parts.append(counts @ joined)
    return iter(torch.cat(parts).split([each.shape[1] for each in tables], dim=1))


def _percentiles(values: Tensor, level: float) -> tuple[float, float]:
    """Of the values that are numbers; NaN where none is."""
    values = values[values.isfinite()]
    if not len(values):
        return math.nan, math.nan
    tail = (1 - level) / 2
    low, high = torch.quantile(values, torch.tensor([tail, 1 - tail], dtype=values.dtype)).tolist()
    return low, high


def _p_value(drawn: Tensor) -> float:
    below, above = int((drawn <= 0).sum()), int((drawn >= 0).sum())
    return min(1.0, 2 * (min(below, above) + 1) / (len(drawn) + 1))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None

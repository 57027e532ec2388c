"""Several rewards as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from posttrain.rewards.apart import Begun, job
from posttrain.rewards.protocol import Reward
from posttrain.types import RolloutBatch

Norm = Literal["none", "batch"]


class WeightedReward:
    """The weighted sum of named parts.

        r = Σ_k w_k clip(n(s_k), ±c_k)          n(s) = s, or (s − mean s) / (std s + 1e-8) over the batch

    Attributes:
        last: name -> [B] scores of the last call as each part gave them, neither normalised, clipped nor weighted.
        weights: name -> w_k.
    """

    def __init__(
        self,
        parts: Mapping[str, Reward],
        weights: Sequence[float] = (),
        *,
        clips: Sequence[float] = (),
        norm: Norm = "none",
    ) -> None:
        """Take the parts.

        Args:
            parts: name -> reward, in the order of ``weights`` and ``clips``; each scores the whole batch.
            weights: one for each part; () is 1 each.
            clips: one for all or one for each; 0 clips nothing, () clips no part.
            norm: "batch" takes mean and deviation over the rows of a call, which hold whatever a checkpoint would have
                to; a part whose scores are all the same then counts 0.

        Raises:
            ValueError: numbers and parts do not match.
        """
        self._parts = dict(parts)
        count = len(self._parts)
        clips = tuple(clips) * count if len(clips) == 1 else tuple(clips)
        if len(weights) not in (0, count) or len(clips) not in (0, count):
            raise ValueError(f"{len(weights)} weights and {len(clips)} clips for {count} parts")
        self.weights = dict(zip(self._parts, weights or (1.0,) * count, strict=True))
        self._clips = dict(zip(self._parts, clips or (0.0,) * count, strict=True))
        self._norm = norm
        self.last: Mapping[str, Tensor] = {}

    def __call__(self, batch: RolloutBatch) -> Tensor:
        """[B] the weighted sum."""
        return self._sum({name: part(batch) for name, part in self._parts.items()}, batch)

    def begin(self, batch: RolloutBatch) -> Begun:
        """The same sum, begun: parts that need no model of the run work apart, the others are asked now."""
        jobs = {name: job(part, batch) for name, part in self._parts.items()}
        apart = {name: found for name, found in jobs.items() if found is not None}
        in_turn: dict[str, Tensor] = {}

        def finish(results: list[Any]) -> Tensor:
            for (name, found), result in zip(apart.items(), results, strict=True):
                in_turn[name] = found.finish(result)
            return self._sum({name: in_turn[name] for name in self._parts}, batch)

        begun = Begun([found.work for found in apart.values()], finish)
        try:
            in_turn |= {name: part(batch) for name, part in self._parts.items() if name not in apart}
        except BaseException:
            begun.give_up()
            raise
        return begun

    def _sum(self, scores_of: Mapping[str, Tensor], batch: RolloutBatch) -> Tensor:
        self.last = {name: scores.float() for name, scores in scores_of.items()}
        total = torch.zeros(len(batch), device=batch.input_ids.device)
        for name, scores in self.last.items():
            if self._norm == "batch":
                scores = (scores - scores.mean()) / (scores.std(correction=0) + 1e-8)
            clip = self._clips[name]
            total += self.weights[name] * (scores.clamp(-clip, clip) if clip else scores)
        return total

    def slope(self, name: str) -> float:
        """By how much the sum of the last call moves with one point of a part, clips aside."""
        deviation = float(self.last[name].std(correction=0)) + 1e-8 if self._norm == "batch" else 1.0
        return self.weights[name] / deviation

    def measured(self) -> WeightedReward:
        """The same parts, clips and weights without normalisation over the batch."""
        if self._norm == "none":
            return self
        return WeightedReward(self._parts, tuple(self.weights.values()), clips=tuple(self._clips.values()))


def measured(reward: Reward) -> Reward:
    """The reward on a scale that does not depend on the batch, to compare one batch with another."""
    return reward.measured() if isinstance(reward, WeightedReward) else reward

"""A reward given as a function."""

from __future__ import annotations

import torch

from posttrain.rewards import ScriptedReward


def test_it_sees_the_completion_and_nothing_else(make_batch) -> None:
    seen = []

    def score(ids):
        seen.append(list(ids))
        return len(ids) / 2

    batch = make_batch([[1, 2, 3, 4], [5, 6]], starts=[1, 1], pad=9)
    found = ScriptedReward(score)(batch)
    assert seen == [[2, 3, 4], [6]]
    assert torch.equal(found, torch.tensor([1.5, 0.5]))

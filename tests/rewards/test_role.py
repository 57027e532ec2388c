"""The reward model as a role."""

from __future__ import annotations

import torch

from posttrain.rewards import RoleReward


def test_it_passes_the_batch_on_and_answers_in_float32(make_batch) -> None:
    seen = []

    def scores(batch):
        seen.append(batch)
        return torch.tensor([1.5, -2.0], dtype=torch.bfloat16)

    batch = make_batch([[1, 2], [3]])
    found = RoleReward(scores)(batch)
    assert found.dtype == torch.float32
    assert found.tolist() == [1.5, -2.0]
    assert seen == [batch]

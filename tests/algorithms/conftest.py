"""Experience and answers made up by hand; NaN wherever nothing counts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from posttrain.types import Outputs, PreferenceBatch, RolloutBatch, UnpairedBatch

NAN = math.nan


def table(rows: list[list[float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def make_rollout(mask: Tensor, **columns: Any) -> RolloutBatch:
    """Experience; columns that are not given are 0."""
    zeros = torch.zeros(mask.shape, dtype=torch.float64)
    filled = {"logprobs": zeros, "ref_logprobs": zeros, "rewards": zeros.sum(dim=1), **columns}
    return RolloutBatch(
        input_ids=torch.zeros(mask.shape, dtype=torch.long),
        attention_mask=torch.ones_like(mask),
        loss_mask=mask,
        ended=torch.ones(len(mask), dtype=torch.bool),
        **filled,
    )


@pytest.fixture(scope="session")
def rollout() -> Callable[..., RolloutBatch]:
    return make_rollout


@pytest.fixture
def siblings() -> RolloutBatch:
    """Two completions each of two prompts, of 3, 1, 2 and 3 tokens behind one of the prompt.

    d = log π − log π_ref is (1, 0, 1), (2), (0, 0), (0, 1, 0): by k1 a sequence's KL is 2, 2, 0, 1. Rewards are
    10, −4, 1, 3; those of the greedy completions of both prompts 4 and 2.
    """
    return make_rollout(
        torch.tensor([[0, 1, 1, 1], [0, 1, 0, 0], [0, 1, 1, 0], [0, 1, 1, 1]], dtype=torch.bool),
        logprobs=table([[NAN, -1, -2, -1], [NAN, -1, NAN, NAN], [NAN, -1, -3, NAN], [NAN, -2, -1, -2]]),
        ref_logprobs=table([[NAN, -2, -2, -2], [NAN, -3, NAN, NAN], [NAN, -1, -3, NAN], [NAN, -2, -2, -2]]),
        rewards=torch.tensor([10.0, -4.0, 1.0, 3.0], dtype=torch.float64),
        baseline_rewards=torch.tensor([4.0, 4.0, 2.0, 2.0], dtype=torch.float64),
    )


def laid_out(rows: list[list[float]]) -> tuple[Outputs, dict[str, Tensor]]:
    """What a role says of answers whose tokens have these log-probabilities, behind one token of the prompt."""
    width = 1 + max(map(len, rows))
    logprobs = table([[NAN, *row, *[NAN] * (width - 1 - len(row))] for row in rows])
    mask = ~logprobs.isnan()
    real = mask | (torch.arange(width) == 0)
    columns = {"input_ids": torch.zeros(mask.shape, dtype=torch.long), "attention_mask": real, "loss_mask": mask}
    return Outputs(logprobs=logprobs), columns


@pytest.fixture(scope="session")
def answers() -> Callable[..., tuple[Outputs, PreferenceBatch]]:
    """(outputs, pairs) of answers given as rows of log-probabilities, chosen and rejected by turns."""

    def make(rows: list[list[float]], **columns: Any) -> tuple[Outputs, PreferenceBatch]:
        out, found = laid_out(rows)
        return out, PreferenceBatch(**found, **columns)

    return make


@pytest.fixture(scope="session")
def judged() -> Callable[..., tuple[Outputs, UnpairedBatch]]:
    """(outputs, batch) of answers judged one by one."""

    def make(rows: list[list[float]], desirable: list[bool], **columns: Any) -> tuple[Outputs, UnpairedBatch]:
        out, found = laid_out(rows)
        return out, UnpairedBatch(**found, desirable=torch.tensor(desirable), **columns)

    return make

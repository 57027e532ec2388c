from __future__ import annotations

import pytest
import torch

from posttrain.algorithms.columns import at_last_token, column, masked_column
from posttrain.types import Outputs


def test_scores_stand_at_the_last_trained_token() -> None:
    mask = torch.tensor([[False, True, True, False], [True, False, True, True], [False, False, False, False]])
    placed = at_last_token(torch.tensor([5.0, 7.0, 9.0]), mask)
    assert placed.tolist() == [[0.0, 0.0, 5.0, 0.0], [0.0, 0.0, 0.0, 7.0], [0.0, 0.0, 0.0, 0.0]]


def test_masked_column_stops_values_and_gradients() -> None:
    logprobs = torch.tensor([[1.0, torch.nan]], requires_grad=True)
    kept = masked_column(Outputs(logprobs=logprobs), "logprobs", torch.tensor([[True, False]]))
    assert kept.tolist() == [[1.0, 0.0]]
    (grad,) = torch.autograd.grad(kept.exp().sum(), logprobs)
    assert grad.tolist() == [[pytest.approx(2.718281828), 0.0]]


def test_an_empty_column_is_named() -> None:
    with pytest.raises(ValueError, match=r"Outputs\.scores"):
        column(Outputs(), "scores")

from __future__ import annotations

import torch

from posttrain.algorithms.sides import answer_logps, side_metrics
from posttrain.types import Outputs


def test_answers_are_summed_over_what_counts(answers) -> None:
    out, batch = answers([[-1, -2], [-4]])
    logps, lengths = answer_logps(out, batch)
    assert logps.tolist() == [-3, -4]
    assert lengths.tolist() == [2, 1]
    assert lengths.dtype == logps.dtype


def test_an_answer_cut_to_nothing_has_a_length_to_divide_by(answers) -> None:
    out, batch = answers([[-1, -2], [-4]])
    bare = batch.with_columns(loss_mask=batch.loss_mask & torch.tensor([[True], [False]]))
    logps, lengths = answer_logps(out, bare)
    assert (logps.tolist(), lengths.tolist()) == ([-3, 0], [2, 1])


def test_a_tie_is_no_success_and_nothing_has_a_gradient() -> None:
    chosen = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    rejected = torch.tensor([1.0, 1.0, 4.0], requires_grad=True)
    logps = Outputs(logprobs=torch.arange(6.0, requires_grad=True)).logprobs
    metrics = side_metrics(chosen, rejected, logps, torch.full((6,), 2.0))
    assert metrics["rewards/accuracies"].tolist() == [0, 1, 0]
    assert metrics["sft_loss"].tolist() == [0, -1, -2]
    assert not any(value.requires_grad for value in metrics.values())


def test_a_prompt_has_no_part_in_the_length(answers) -> None:
    # the first token of both answers becomes a part of the prompt
    out, batch = answers([[-1, -2, -4], [-4, -1]])
    columns = torch.arange(batch.loss_mask.shape[1])
    logps, lengths = answer_logps(out, batch.with_columns(loss_mask=batch.loss_mask & (columns > 1)))
    assert (logps.tolist(), lengths.tolist()) == ([-6, -1], [2, 1])

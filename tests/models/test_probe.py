"""The probe sequences and how answers on them are compared."""

import torch

from posttrain.models.probe import largest_gap, probe_batch, spare_token


def test_spare_tokens_avoid_what_texts_end_with():
    assert spare_token([None, 2, 900, 1], taken=[2], vocab_size=10) == 1
    assert spare_token([], taken=[9, 8], vocab_size=10) == 7


def test_not_a_number_is_the_largest_gap():
    assert largest_gap(torch.tensor([1.0, float("nan")]), torch.ones(2)) == float("inf")
    assert largest_gap(torch.tensor([1.0, 0.5]), torch.ones(2)) == 0.5


def test_probe_pads_with_a_token_that_occurs_nowhere_else():
    batch = probe_batch(7, pad_id=3, ending=2)
    assert torch.equal(batch.input_ids == 3, ~batch.attention_mask)
    assert batch.input_ids[1, batch.lengths[1] - 1] == 2

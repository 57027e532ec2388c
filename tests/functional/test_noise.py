"""The noise of NEFTune: its bound, and its independence of everything else."""

import math

import torch

from posttrain.functional import embedding_noise


def test_the_bound_by_hand():
    # alpha 5, rows of 4 and 16 tokens, 25 columns: 5 / sqrt(100) = 0.5 and 5 / sqrt(400) = 0.25
    torch.manual_seed(0)
    embedded = torch.zeros(2, 2000, 25)
    lengths = torch.tensor([[4], [16]]).expand(2, 2000)
    noise = embedding_noise(embedded, lengths, alpha=5.0)
    for row, bound in zip(noise, (0.5, 0.25), strict=True):
        assert 0.999 * bound < row.abs().max() <= bound
        assert abs(row.mean()) < 0.01 * bound
        assert math.isclose(row.std(), bound / math.sqrt(3), rel_tol=0.02)


def test_it_is_drawn_anew_and_repeats_with_the_seed():
    embedded, lengths = torch.ones(1, 3, 4), torch.full((1, 3), 3)
    torch.manual_seed(1)
    first, second = (embedding_noise(embedded, lengths, alpha=1.0) for _ in range(2))
    torch.manual_seed(1)
    assert torch.equal(embedding_noise(embedded, lengths, alpha=1.0), first)
    assert not torch.equal(first, second)


def test_long_rows_of_a_wide_model_have_noise_in_half_precision():
    # 100 tokens x 1024 columns is beyond float16's 65504; 5 / sqrt(102400) = 0.0156
    embedded = torch.zeros(1, 100, 1024, dtype=torch.float16)
    noise = embedding_noise(embedded, torch.full((1, 100), 100), alpha=5.0)
    assert noise.dtype == torch.float16
    assert math.isclose(noise.abs().max(), 5 / math.sqrt(102400), rel_tol=0.01)

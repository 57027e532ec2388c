"""Processors against transformers' own, the draw against the distribution."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from posttrain.rollout import SamplingParams, sampling


def random_logits(rows=8, width=300, spread=3.0, seed=0):
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) * spread


def params(**changes):
    return SamplingParams(**{"max_new_tokens": 8, "stop_token_ids": (2,), "seed": 0, **changes})


@pytest.mark.parametrize("k", [1, 5, 50, 299, 300, 4000])
def test_top_k_equals_transformers(k):
    logits = random_logits()
    assert torch.equal(sampling.keep_top_k(logits, k), TopKLogitsWarper(k)(None, logits))


@pytest.mark.parametrize("p", [0.01, 0.3, 0.7, 0.95, 0.999, 1.0])
@pytest.mark.parametrize("spread", [0.05, 1.0, 6.0])
def test_top_p_equals_transformers(p, spread):
    """A flat distribution over 3000 tokens needs more than the first candidates; fp64, as fp32 rounds the edge."""
    logits = random_logits(width=3000, spread=spread).double()
    assert torch.equal(sampling.keep_top_p(logits, p), TopPLogitsWarper(p)(None, logits))


@pytest.mark.parametrize("p", [0.0, 0.02, 0.3, 1.0])
def test_min_p_equals_transformers(p):
    logits = random_logits()
    assert torch.equal(sampling.keep_min_p(logits, p), MinPLogitsWarper(p)(None, logits))


def test_top_p_by_hand():
    """Probabilities 0.5, 0.3, 0.15, 0.05: the mass above the third is 0.8."""
    logits = torch.tensor([[0.15, 0.5, 0.05, 0.3]]).log()
    for p, kept in ((0.4, {1}), (0.51, {1, 3}), (0.79, {1, 3}), (0.81, {0, 1, 3}), (0.96, {0, 1, 2, 3})):
        assert set(sampling.keep_top_p(logits, p).isfinite()[0].nonzero().flatten().tolist()) == kept


def test_repetition_penalty_equals_transformers():
    logits = random_logits(width=40)
    ids = torch.randint(0, 40, (8, 12), generator=torch.Generator().manual_seed(1))
    seen = torch.zeros(8, 40, dtype=torch.bool).scatter_(1, ids, True)
    expected = RepetitionPenaltyLogitsProcessor(1.4)(ids, logits.clone())
    torch.testing.assert_close(sampling.penalise_repetition(logits, seen, 1.4), expected)


@pytest.mark.parametrize("p", [0.3, 0.9, 0.999])
def test_top_p_of_flat_rows_beside_peaked_ones(p):
    """Flat rows keep thousands of a wide vocabulary, peaked ones a few; each keeps what transformers keeps."""
    sharpness = torch.tensor([0.0, 0.1, 1.0, 20.0])[:, None]
    logits = random_logits(rows=4, width=5000).double() * sharpness + random_logits(rows=1, width=5000).double() * 1e-3
    kept = sampling.keep_top_p(logits, p)
    assert torch.equal(kept, TopPLogitsWarper(p)(None, logits))
    counts = kept.isfinite().sum(-1).tolist()
    assert counts[0] > 1000 * p
    assert counts[3] < 256


def test_forbid_touches_only_its_rows_and_tokens():
    logits = random_logits(rows=3, width=5)
    out = sampling.forbid(logits, torch.tensor([0, 2]), torch.tensor([1, 4]))
    hit = torch.zeros(3, 5, dtype=torch.bool)
    hit[[0, 0, 2, 2], [1, 4, 1, 4]] = True
    assert out[hit].isneginf().all()
    assert torch.equal(out[~hit], logits[~hit])
    assert logits.isfinite().all(), "the input must stay as it was"


def test_the_whole_chain_draws_from_transformers_distribution():
    """In every row the draw is the inverse of the distribution that transformers' processors leave."""
    logits = random_logits(rows=6, width=200)
    ids = torch.randint(3, 200, (6, 9), generator=torch.Generator().manual_seed(2))
    seen = torch.zeros(6, 200, dtype=torch.bool).scatter_(1, ids, True)
    how = params(
        temperature=0.8,
        top_k=40,
        top_p=0.9,
        min_p=0.03,
        repetition_penalty=1.2,
        min_new_tokens=4,
        stop_token_ids=(2, 5),
    )
    chain = LogitsProcessorList(
        [
            RepetitionPenaltyLogitsProcessor(1.2),
            MinNewTokensLengthLogitsProcessor(9, 4, [2, 5], device="cpu"),
            TemperatureLogitsWarper(0.8),
            TopKLogitsWarper(40),
            TopPLogitsWarper(0.9),
            MinPLogitsWarper(0.03),
        ]
    )
    edges = chain(ids, logits.clone()).softmax(-1).cumsum(-1)
    generator = torch.Generator().manual_seed(3)
    for _ in range(40):
        numbers = torch.rand(6, generator=generator)
        tokens, logprobs = sampling.sample(logits, how, numbers=numbers, seen=seen, too_early=torch.arange(6))
        expected = (edges <= numbers[:, None] * edges[:, -1:]).sum(-1)
        assert torch.equal(tokens, expected)
        raw = (logits / 0.8).log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
        torch.testing.assert_close(logprobs, raw)


def test_greedy_is_argmax_after_penalties_with_raw_logprobs():
    logits = torch.tensor([[4.0, 3.0, 1.0], [1.0, 3.5, 4.0]])
    seen = torch.tensor([[True, False, False], [False, False, False]])
    how = params(do_sample=False, repetition_penalty=2.0, temperature=5.0, min_new_tokens=1)
    tokens, logprobs = sampling.sample(logits, how, seen=seen, too_early=torch.tensor([1]))
    assert tokens.tolist() == [1, 1]  # row 0: 4 / 2 < 3; row 1: token 2 stops too early
    torch.testing.assert_close(logprobs, logits.log_softmax(-1)[:, 1])


def test_draw_follows_the_distribution():
    """40000 draws: each count within 5 standard deviations of its expectation."""
    probabilities = torch.tensor([0.02, 0.5, 0.0, 0.3, 0.18])
    count = 40_000
    numbers = torch.tensor(sampling.uniforms(count, seed=1, iteration=0, prompt_index=0, sample_index=0))
    tokens = sampling.draw(probabilities.log().expand(count, -1), numbers)
    counts = tokens.bincount(minlength=5).double()
    deviation = (count * probabilities * (1 - probabilities)).sqrt().double()
    assert ((counts - count * probabilities).abs() <= 5 * deviation).all()
    assert counts[2] == 0


def test_draw_edges():
    """Tokens 1 and 3 have probability 0.25 and 0.75, the others none: not even at 0, or where 1 is rounded to."""
    logits = torch.tensor([-math.inf, 0.25, -math.inf, 0.75, -math.inf])
    logits[[1, 3]] = logits[[1, 3]].log()
    numbers = torch.tensor([0.0, 0.2499, 0.2501, 0.999, 1.0])
    assert sampling.draw(logits.expand(5, -1), numbers).tolist() == [1, 1, 3, 3, 3]


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32), width=st.integers(1, 600), p=st.floats(0.01, 1.0), k=st.integers(0, 700))
def test_a_row_does_not_know_its_neighbours(seed, width, p, k):
    logits = random_logits(rows=5, width=width, seed=seed)
    numbers = torch.rand(5, generator=torch.Generator().manual_seed(seed))
    how = params(top_p=p, top_k=k)
    together, _ = sampling.sample(logits, how, numbers=numbers)
    alone = [sampling.sample(logits[i : i + 1], how, numbers=numbers[i : i + 1])[0].item() for i in range(5)]
    assert together.tolist() == alone


def test_half_precision_logits_are_computed_in_fp32():
    logits = random_logits(rows=4).bfloat16()
    numbers = torch.full((4,), 0.5)
    tokens, logprobs = sampling.sample(logits, params(temperature=0.7), numbers=numbers)
    expected = (logits.float() / 0.7).log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
    assert logprobs.dtype == torch.float32
    torch.testing.assert_close(logprobs, expected)


def test_uniforms_are_stable_and_distinct():
    """The first value is pinned: a changed hash or generator would silently change every seeded run."""
    base = {"seed": 1, "iteration": 2, "prompt_index": 3, "sample_index": 4}
    first = sampling.uniforms(5, **base)
    assert first[0] == pytest.approx(0.3673485158676636, abs=1e-15)
    assert sampling.uniforms(9, **base)[:5] == first
    for key in base:
        assert sampling.uniforms(5, **{**base, key: base[key] + 1}) != first
    assert sampling.uniforms(1, seed=11, iteration=1, prompt_index=0, sample_index=0) != sampling.uniforms(
        1, seed=1, iteration=11, prompt_index=0, sample_index=0
    )


def test_sampling_without_numbers_is_refused():
    with pytest.raises(ValueError, match="uniform number"):
        sampling.sample(random_logits(), params())

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.functional import kl_estimate

KINDS = ("k1", "k2", "k3", "abs")


def test_by_hand() -> None:
    # d = log 2 and -log 2: exp(-d) is 1/2 and 2
    logprobs = torch.tensor([[math.log(0.5), math.log(0.25)]], dtype=torch.float64)
    ref_logprobs = torch.tensor([[math.log(0.25), math.log(0.5)]], dtype=torch.float64)
    d = math.log(2)
    expected = {
        "k1": [d, -d],
        "k2": [d**2 / 2, d**2 / 2],
        "k3": [0.5 - 1 + d, 2 - 1 - d],
        "abs": [d, d],
    }
    for kind in KINDS:
        assert kl_estimate(logprobs, ref_logprobs, kind)[0].tolist() == pytest.approx(expected[kind])


@given(seed=st.integers(0, 9999))
@settings(deadline=None, max_examples=25)
def test_k1_and_k3_are_unbiased_and_all_but_k1_never_negative(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    policy, reference = torch.randn(2, 5, dtype=torch.float64, generator=generator).log_softmax(dim=-1)
    kl = (policy.exp() * (policy - reference)).sum()
    for kind in ("k1", "k3"):
        expectation = (policy.exp() * kl_estimate(policy, reference, kind)).sum()
        torch.testing.assert_close(expectation, kl)
    for kind in ("k2", "k3", "abs"):
        assert (kl_estimate(policy, reference, kind) >= 0).all()
    for kind in KINDS:
        assert not kl_estimate(policy, policy, kind).any()


def test_k3_keeps_its_digits_near_zero() -> None:
    # d²/2 - d³/6 + ... : 5e-9 at d = 1e-4, below what exp(-d) - 1 + d resolves in float32
    estimate = kl_estimate(torch.tensor([[-1.0]]), torch.tensor([[-1.0 - 1e-4]]), "k3")
    assert 0 < estimate.item() < 2e-8


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind: Any) -> None:
    logprobs, ref_logprobs = torch.randn(2, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    inputs = (logprobs.requires_grad_(), ref_logprobs.requires_grad_())
    assert torch.autograd.gradcheck(lambda a, b: kl_estimate(a, b, kind), inputs)


def test_unknown_estimator_is_refused() -> None:
    with pytest.raises(ValueError, match="k4"):
        kl_estimate(torch.zeros(1, 1), torch.zeros(1, 1), "k4")  # type: ignore[arg-type]

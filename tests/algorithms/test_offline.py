"""What holds for every algorithm that learns from judged answers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from posttrain.algorithms import CPO, DPO, KTO, ORPO, SimPO
from posttrain.types import Batch, Outputs, PreferenceBatch, Role, UnpairedBatch

CASES: dict[str, Any] = {
    **{f"dpo {loss}": DPO(pref_loss=loss) for loss in ("sigmoid", "hinge", "ipo", "nca_pair", "apo_zero", "sppo_hard")},
    "dpo robust": DPO(pref_loss="robust", label_smoothing=0.1),
    "dpo with sft": DPO(sft_coef=0.5),
    "orpo": ORPO(beta=0.5),
    "cpo": CPO(label_smoothing=0.1),
    "simpo": SimPO(sft_coef=0.3),
    "kto": KTO(desirable_weight=1.5, sft_coef=0.2),
}
GOOD = torch.tensor([True, False, True, True, False, False])


def made_up(algorithm: Any) -> tuple[Tensor, Batch]:
    """Log-probabilities of six answers, and their batch."""
    generator = torch.Generator().manual_seed(6)
    logprobs = -torch.rand(6, 5, dtype=torch.float64, generator=generator) - 0.1
    mask = torch.rand(6, 5, generator=generator) < 0.7
    mask[:, 0], mask[:, 1] = False, True
    columns: dict[str, Any] = {
        "input_ids": torch.zeros(6, 5, dtype=torch.long),
        "attention_mask": torch.ones(6, 5, dtype=torch.bool),
        "loss_mask": mask,
        "ref_logps": (logprobs * mask).sum(dim=1) + torch.randn(6, dtype=torch.float64, generator=generator),
    }
    if isinstance(algorithm, KTO):
        return logprobs, UnpairedBatch(**columns, desirable=GOOD, kl=torch.full((6,), 0.1))
    return logprobs, PreferenceBatch(**columns)


def sides(algorithm: Any) -> Tensor:
    """[6] which of the answers should become likelier."""
    return GOOD if isinstance(algorithm, KTO) else torch.tensor([True, False] * 3)


@pytest.mark.parametrize("name", CASES)
def test_padding_and_nan_outside_the_mask_change_nothing(name) -> None:
    algorithm = CASES[name]
    logprobs, batch = made_up(algorithm)
    pad = torch.zeros(6, 2, dtype=torch.bool)
    wide = batch.with_columns(
        input_ids=torch.zeros(6, 7, dtype=torch.long),
        attention_mask=torch.cat([batch.attention_mask, pad], dim=1),
        loss_mask=torch.cat([batch.loss_mask, pad], dim=1),
    )
    spoilt = torch.cat([torch.where(batch.loss_mask, logprobs, torch.nan), torch.full((6, 2), torch.nan)], dim=1)
    logprobs, spoilt = logprobs.requires_grad_(), spoilt.double().requires_grad_()
    plain = algorithm.loss(Role.ACTOR, Outputs(logprobs=logprobs), batch)
    other = algorithm.loss(Role.ACTOR, Outputs(logprobs=spoilt), wide)
    torch.testing.assert_close(other.loss, plain.loss)
    for key, value in plain.metrics.items():
        torch.testing.assert_close(other.metrics[key], value, equal_nan=True)
        assert value.shape == plain.loss.shape
        assert not value.requires_grad
    (grad,) = torch.autograd.grad(plain.loss.sum(), logprobs)
    (wide_grad,) = torch.autograd.grad(other.loss.sum(), spoilt)
    torch.testing.assert_close(wide_grad[:, :5], grad)
    assert not wide_grad[~wide.loss_mask].any()


@pytest.mark.parametrize("name", CASES)
def test_permuting_answers_permutes_the_loss(name) -> None:
    algorithm = CASES[name]
    logprobs, batch = made_up(algorithm)
    order = torch.tensor([5, 1, 3, 2, 0, 4]) if isinstance(algorithm, KTO) else torch.tensor([4, 5, 0, 1, 2, 3])
    units = order if isinstance(algorithm, KTO) else order[0::2] // 2
    term = algorithm.loss(Role.ACTOR, Outputs(logprobs=logprobs), batch)
    part = algorithm.loss(Role.ACTOR, Outputs(logprobs=logprobs[order]), batch.rows(order))
    torch.testing.assert_close(part.loss, term.loss[units])
    for key, value in term.metrics.items():
        torch.testing.assert_close(part.metrics[key], value[units], equal_nan=True)


@pytest.mark.parametrize("name", CASES)
def test_good_answers_rise_and_bad_ones_fall(name) -> None:
    algorithm = CASES[name]
    logprobs, batch = made_up(algorithm)
    logprobs.requires_grad_()
    loss = algorithm.loss(Role.ACTOR, Outputs(logprobs=logprobs), batch).loss
    (grad,) = torch.autograd.grad(loss.sum(), logprobs)
    towards = torch.where(sides(algorithm)[:, None], -1.0, 1.0) * batch.loss_mask
    assert torch.equal(grad.sign(), towards.double())
    # each answer's tokens move alike
    for row, mask in zip(grad, batch.loss_mask, strict=True):
        assert row[mask].tolist() == pytest.approx([float(row[mask][0])] * int(mask.sum()))


@pytest.mark.parametrize("name", CASES)
def test_gradcheck(name) -> None:
    algorithm = CASES[name]
    logprobs, batch = made_up(algorithm)
    assert torch.autograd.gradcheck(
        lambda new: algorithm.loss(Role.ACTOR, Outputs(logprobs=new), batch).loss, (logprobs.requires_grad_(),)
    )


@pytest.mark.parametrize("name", CASES)
def test_roles_and_units(name) -> None:
    algorithm = CASES[name]
    assert algorithm.trains == (Role.ACTOR,)
    needs = isinstance(algorithm, DPO | KTO)
    assert algorithm.consults == ((Role.REFERENCE,) if needs else ())
    assert algorithm.rows_together == (1 if isinstance(algorithm, KTO) else 2)
    logprobs, batch = made_up(algorithm)
    bare = batch.with_columns(ref_logps=None)
    if needs:
        with pytest.raises(ValueError, match=r"Batch\.ref_logps"):
            algorithm.loss(Role.ACTOR, Outputs(logprobs=logprobs), bare)
    else:
        algorithm.loss(Role.ACTOR, Outputs(logprobs=logprobs), bare)

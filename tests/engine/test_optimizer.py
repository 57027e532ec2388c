"""Which parameters AdamW gets, at which rate, with which decay, and how gradients are clipped."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from posttrain.engine import OptimizerSettings
from posttrain.engine.optimizer import clip_gradients, drop_early_gradients, parameter_groups
from posttrain.engine.optimizers import make_optimizer
from posttrain.types import Role


def adamw(parameters, settings):
    return make_optimizer(parameter_groups(parameters, settings), settings, torch.device("cpu"))


def parameter(*shape):
    return nn.Parameter(torch.ones(*shape))


def test_groups_by_role_and_decay() -> None:
    shared, matrix, bias, value = parameter(2, 2), parameter(3, 2), parameter(3), parameter(1, 2)
    owned = {
        Role.ACTOR: {"shared": shared, "matrix": matrix, "bias": bias},
        Role.CRITIC: {"shared": shared, "value": value},
    }
    settings = OptimizerSettings(
        learning_rate=0.1, weight_decay=0.3, betas=(0.8, 0.9), eps=1e-5, role_learning_rates={Role.CRITIC: 0.5}
    )
    groups = adamw(owned, settings).param_groups
    found = [(g["params"], g["lr"], g["initial_lr"], g["weight_decay"], g["betas"], g["eps"]) for g in groups]
    same = ((0.8, 0.9), 1e-5)
    assert [(len(p), *rest) for p, *rest in found] == [
        (2, 0.1, 0.1, 0.3, *same),
        (1, 0.1, 0.1, 0.0, *same),
        (1, 0.5, 0.5, 0.3, *same),
    ]
    assert found[0][0][0] is shared  # once, at the rate of the role that comes first
    assert found[0][0][1] is matrix
    assert found[1][0][0] is bias
    assert found[2][0][0] is value


def test_the_second_matrix_of_lora_has_a_rate_of_its_own() -> None:
    first, second, head = parameter(2, 3), parameter(3, 2), parameter(1, 2)
    owned = {
        Role.ACTOR: {"q_proj.lora_A.actor.weight": first, "q_proj.lora_B.actor.weight": second},
        Role.CRITIC: {"q_proj.lora_B.actor.weight": second, "head": head},
    }
    rates = {Role.CRITIC: 0.5}
    settings = OptimizerSettings(learning_rate=0.1, lora_b_ratio=8.0, role_learning_rates=rates, weight_decay=0.3)
    groups = adamw(owned, settings).param_groups
    assert [g["params"] for g in groups] == [[first], [second], [head]]
    assert [g["initial_lr"] for g in groups] == pytest.approx([0.1, 0.8, 0.5])
    assert {g["weight_decay"] for g in groups} == {0.3}


def test_nothing_to_train() -> None:
    with pytest.raises(ValueError, match="no parameter trains"):
        adamw({Role.ACTOR: {}}, OptimizerSettings(learning_rate=0.1))


def clipped(parameters, **settings):
    for number, parameter in enumerate({id(p): p for owned in parameters.values() for p in owned.values()}.values()):
        parameter.grad = torch.full_like(parameter, number + 1.0)
    return clip_gradients(parameters, OptimizerSettings(learning_rate=1.0, **settings))


def test_gradients_are_clipped_together_or_each_role_by_itself() -> None:
    """Norms 2 and 4 by hand: four entries of 1 and four of 2, together the root of 20."""
    one, two = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(4))
    parameters = {Role.ACTOR: {"one": one}, Role.CRITIC: {"two": two}}
    for per_role, expected in ((False, (2 / 20**0.5, 4 / 20**0.5)), (True, (1.0, 1.0))):
        norm = clipped(parameters, max_grad_norm=1.0, clip_per_role=per_role)
        assert norm == pytest.approx(20**0.5)
        assert (float(one.grad.norm()), float(two.grad.norm())) == pytest.approx(expected, rel=1e-4)
        assert clipped(parameters, max_grad_norm=0.0, clip_per_role=per_role) == pytest.approx(20**0.5)
        assert (float(one.grad.norm()), float(two.grad.norm())) == (2.0, 4.0)


def test_what_two_roles_train_is_clipped_once() -> None:
    one, two = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(4))
    parameters = {Role.ACTOR: {"one": one}, Role.CRITIC: {"one": one, "two": two}}
    assert clipped(parameters, clip_per_role=True) == pytest.approx(20**0.5)
    assert (float(one.grad.norm()), float(two.grad.norm())) == pytest.approx((1.0, 1.0), rel=1e-4)


def test_a_role_starts_at_its_step_and_what_two_roles_train_with_the_first() -> None:
    trunk, head, other = parameter(2, 2), parameter(1, 2), parameter(2)
    owned = {Role.ACTOR: {"trunk": trunk, "other": other}, Role.CRITIC: {"trunk": trunk, "head": head}}
    settings = OptimizerSettings(learning_rate=0.1, weight_decay=0.5, starts={Role.ACTOR: 2})
    optimizer = adamw(owned, settings)
    for step in range(4):
        for p in (trunk, head, other):
            p.grad = torch.ones_like(p)
        drop_early_gradients(owned, settings, step)
        assert [p.grad is not None for p in (trunk, head, other)] == [step >= 2, True, step >= 2]
        optimizer.step()
        # neither the step nor the decay reaches what does not move yet
        assert torch.equal(trunk, torch.ones(2, 2)) == torch.equal(other, torch.ones(2)) == (step < 2)
        assert not torch.equal(head, torch.ones(1, 2))
    assert float(optimizer.state[trunk]["step"]) == 2


def test_the_norm_is_of_what_moves() -> None:
    """Without a gradient a role counts nothing, also where each is clipped by itself."""
    one, two = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(4))
    parameters = {Role.ACTOR: {"one": one}, Role.CRITIC: {"two": two}}
    for per_role in (False, True):
        one.grad, two.grad = None, torch.full((4,), 2.0)
        settings = OptimizerSettings(learning_rate=1.0, max_grad_norm=1.0, clip_per_role=per_role)
        assert float(clip_gradients(parameters, settings)) == pytest.approx(4.0)
        assert float(two.grad.norm()) == pytest.approx(1.0, rel=1e-4)

"""Which parameters AdamW gets, at which rate, with which decay."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from posttrain.engine import OptimizerSettings
from posttrain.engine.optimizer import adamw
from posttrain.types import Role


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


def test_nothing_to_train() -> None:
    with pytest.raises(ValueError, match="no parameter trains"):
        adamw({Role.ACTOR: {}}, OptimizerSettings(learning_rate=0.1))

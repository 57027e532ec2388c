"""AdamW over what the roles train."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from posttrain.types import Role


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """AdamW's hyperparameters.

    Attributes:
        learning_rate: of every role not named in ``role_learning_rates``.
        role_learning_rates: role -> its own learning rate.
        max_grad_norm: clip the global norm to this; 0 leaves gradients alone.
    """

    learning_rate: float
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    max_grad_norm: float = 1.0
    role_learning_rates: Mapping[Role, float] = field(default_factory=dict)


def adamw(parameters: Mapping[Role, Mapping[str, nn.Parameter]], settings: OptimizerSettings) -> torch.optim.AdamW:
    """One optimizer; a role's matrices decay, its biases and norms do not.

    Raises:
        ValueError: if there is nothing to train.
    """
    groups = []
    seen: set[int] = set()
    for role, owned in parameters.items():
        rate = settings.role_learning_rates.get(role, settings.learning_rate)
        fresh = {name: p for name, p in owned.items() if id(p) not in seen}
        seen |= {id(p) for p in fresh.values()}
        for decays in (True, False):
            members = [p for p in fresh.values() if (p.dim() > 1) is decays]
            decay = settings.weight_decay if decays else 0.0
            if members:
                groups.append({"params": members, "lr": rate, "initial_lr": rate, "weight_decay": decay})
    if not groups:
        raise ValueError("no parameter trains: the role table has no trained role")
    return torch.optim.AdamW(groups, betas=settings.betas, eps=settings.eps, fused=True)

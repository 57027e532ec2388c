"""Groups of what the roles train, each with its learning rate, and how their gradients are clipped."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from posttrain.types import Role


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """An optimizer's hyperparameters.

    Attributes:
        name: as transformers has it, see ``make_optimizer``. options: arguments of the class beyond those below.
        learning_rate: of every role not named in ``role_learning_rates``.
        role_learning_rates: role -> its own learning rate.
        lora_b_ratio: learning rate of the B matrices of LoRA over that of everything else (LoRA+, Hayou et al., 2024,
            arXiv:2402.12354).
        max_grad_norm: clip the global norm to this; 0 leaves gradients alone.
        clip_per_role: clip the norm of each role by itself instead; what two roles train counts with the first.
        starts: role -> optimizer step from which its parameters move; what two roles train goes by the first.
    """

    learning_rate: float
    name: str = "adamw_torch"
    options: Mapping[str, Any] = field(default_factory=dict)
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    max_grad_norm: float = 1.0
    role_learning_rates: Mapping[Role, float] = field(default_factory=dict)
    clip_per_role: bool = False
    starts: Mapping[Role, int] = field(default_factory=dict)
    lora_b_ratio: float = 1.0


def parameter_groups(
    parameters: Mapping[Role, Mapping[str, nn.Parameter]], settings: OptimizerSettings
) -> list[dict[str, Any]]:
    """What one optimizer trains; a role's matrices decay, its biases and norms do not.

    Raises:
        ValueError: if there is nothing to train.
    """
    groups = []
    second = {id(p) for named in parameters.values() for name, p in named.items() if ".lora_B." in name}
    for role, owned in _each_once(parameters).items():
        rate = settings.role_learning_rates.get(role, settings.learning_rate)
        kinds = [(owned, rate)]
        if settings.lora_b_ratio != 1.0:
            rest = [p for p in owned if id(p) not in second]
            kinds = [(rest, rate), ([p for p in owned if id(p) in second], rate * settings.lora_b_ratio)]
        for some, own_rate in kinds:
            for decays in (True, False):
                members = [p for p in some if (p.dim() > 1) is decays]
                decay = settings.weight_decay if decays else 0.0
                if members:
                    groups.append({"params": members, "lr": own_rate, "initial_lr": own_rate, "weight_decay": decay})
    if not groups:
        raise ValueError("no parameter trains: the role table has no trained role")
    return groups


def drop_early_gradients(
    parameters: Mapping[Role, Mapping[str, nn.Parameter]], settings: OptimizerSettings, step: int
) -> None:
    """Forget the gradients of roles that do not move yet: neither weights nor moments see them."""
    for role, owned in _each_once(parameters).items():
        if step < settings.starts.get(role, 0):
            for parameter in owned:
                parameter.grad = None


def clip_gradients(parameters: Mapping[Role, Mapping[str, nn.Parameter]], settings: OptimizerSettings) -> Tensor:
    """Scale gradients down to ``max_grad_norm``, all together or each role's by themselves.

    Args:
        parameters: role -> name -> parameter; what two roles train is counted, and clipped, once.
        settings: say whether and how.

    Returns:
        The norm of all gradients before, a scalar.
    """
    limit = settings.max_grad_norm or math.inf
    owned = _each_once(parameters)
    if not settings.clip_per_role:
        return nn.utils.clip_grad_norm_([p for members in owned.values() for p in members], limit)
    norms = [nn.utils.clip_grad_norm_(members, limit) for members in owned.values() if members]
    return torch.linalg.vector_norm(torch.stack([norm.to(norms[0].device) for norm in norms]))


def _each_once(parameters: Mapping[Role, Mapping[str, nn.Parameter]]) -> dict[Role, list[nn.Parameter]]:
    """Every parameter under the first role that trains it."""
    seen: set[int] = set()
    owned: dict[Role, list[nn.Parameter]] = {}
    for role, named in parameters.items():
        owned[role] = [p for p in named.values() if id(p) not in seen]
        seen |= {id(p) for p in owned[role]}
    return owned

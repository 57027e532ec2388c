"""What the sampler writes down so that it need not be asked again."""

from __future__ import annotations

import torch

from posttrain.models.heads import ScalarHead
from posttrain.models.quantize import is_quantized
from posttrain.models.roles import Roles
from posttrain.types import Role


def recorded_value_head(roles: Roles) -> ScalarHead | None:
    """The critic's head where sampling passes by its trunk anyway; None where the critic has to be consulted.

    The head stands on the actor's trunk and wears what the actor wears, and the weights that are sampled from compute
    as those that train: merged half-precision weights are rounded, and quantised ones are not merged.
    """
    if Role.CRITIC not in roles or len(roles.together((Role.ACTOR, Role.CRITIC))) > 1:
        return None
    trunk = roles.backbone_of(Role.ACTOR)
    if trunk.dtype != torch.float32 or is_quantized(trunk):
        return None
    return roles.head("value")

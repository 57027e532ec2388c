"""PPO's roles over several models: full fine-tuning, and reward models that stand on another backbone."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager

from torch import Tensor, nn
from transformers import PreTrainedModel

from posttrain.models.heads import ScalarHead
from posttrain.models.packing import Packing
from posttrain.models.roles import Roles, SharedRoles
from posttrain.models.split import LowerPart
from posttrain.types import Batch, Outputs, Role


class SeparateRoles(Roles):
    """Several backbones, each with the roles that live on it; every role lives on exactly one.

    A member may hold one role (a fully trained critic) or several (a frozen backbone that reference and reward share).
    """

    def __init__(self, members: Mapping[str, SharedRoles]) -> None:
        """Put the members side by side.

        Args:
            members: name -> the roles of one backbone; names become part of parameter names.

        Raises:
            ValueError: if two members have the same role.
        """
        super().__init__()
        self.members = nn.ModuleDict(dict(members))
        self._homes: dict[Role, str] = {}
        for name, member in members.items():
            for role in member.costumes:
                if role in self._homes:
                    raise ValueError(f"role {role} lives on {self._homes[role]} and on {name}")
                self._homes[role] = name

    def member(self, role: Role) -> SharedRoles:
        """The member that a role lives on."""
        found = self.members[self._homes[role]]
        assert isinstance(found, SharedRoles)
        return found

    def __contains__(self, role: object) -> bool:
        """See ``Roles``."""
        return role in self._homes

    def parameters_of(self, role: Role) -> dict[str, nn.Parameter]:
        """See ``Roles``."""
        owned = self.member(role).parameters_of(role)
        return {f"members.{self._homes[role]}.{name}": parameter for name, parameter in owned.items()}

    def backbone_of(self, role: Role) -> PreTrainedModel:
        """See ``Roles``."""
        return self.member(role).backbone

    def head(self, name: str) -> ScalarHead:
        """See ``Roles``."""
        return next(self.member(role).head(name) for role in self._homes if name in self.member(role).heads)

    @property
    def num_reward_models(self) -> int:
        """See ``Roles``."""
        return self.member(Role.REWARD).num_reward_models if Role.REWARD in self else 0

    def member_scores(self, batch: Batch, member: int) -> Tensor:
        """See ``Roles``."""
        return self.member(Role.REWARD).member_scores(batch, member)

    def lower_part(self, role: Role) -> LowerPart | None:
        """See ``Roles``."""
        return self.member(role).lower_part(role)

    def lower_states(self, role: Role, plan: Packing) -> Tensor:
        """See ``Roles``."""
        return self.member(role).lower_states(role, plan)

    def wearing(self, role: Role) -> AbstractContextManager[None]:
        """See ``Roles``."""
        return self.member(role).wearing(role)

    def sampling_as(self, role: Role) -> AbstractContextManager[PreTrainedModel]:
        """See ``Roles``."""
        return self.member(role).sampling_as(role)

    def together(self, roles: tuple[Role, ...]) -> list[tuple[Role, ...]]:
        """See ``Roles``."""
        groups: dict[tuple[str, tuple[str, ...]], tuple[Role, ...]] = {}
        for role in roles:
            key = (self._homes[role], self.member(role).costumes[role].wears)
            groups[key] = (*groups.get(key, ()), role)
        return list(groups.values())

    def forward(self, batch: Batch, roles: tuple[Role, ...], *, temperature: float = 1.0) -> Outputs:
        """See ``Roles``."""
        if len({self._homes[role] for role in roles}) != 1:
            raise ValueError(f"roles {', '.join(roles)} live on different models and cannot share a forward")
        out = self.member(roles[0])(batch, roles, temperature=temperature)
        assert isinstance(out, Outputs)
        return out

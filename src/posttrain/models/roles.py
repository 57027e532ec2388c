"""PPO's roles as a table over one backbone: who wears which adapters, which head answers, who trains."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PreTrainedModel

from posttrain.models.adapters import adapter_parameters, check_stack, lora_layers, merged, wear
from posttrain.models.forward import answer, runs_in_parts
from posttrain.models.heads import ScalarHead
from posttrain.models.packing import Packing
from posttrain.models.split import LowerPart, lower, num_frozen, worn_below
from posttrain.types import Batch, Outputs, Role


@dataclass(frozen=True, kw_only=True)
class Costume:
    """What one role puts on.

    Attributes:
        wears: adapters, all active at once: its recorded parents, then its own; () is the bare backbone.
        head: "lm_head", "score" or "value".
        trains: the adapter of ``wears`` that trains, "base" for backbone weights (full and freeze fine-tuning), or
            None for a frozen role. A trained role's own scalar head trains with it.
    """

    wears: tuple[str, ...]
    head: str
    trains: str | None = None


class Roles(nn.Module, ABC):
    """What loops, algorithms and rewards see of the roles, however many models stand behind them."""

    @abstractmethod
    def __contains__(self, role: object) -> bool:
        """Whether this role is there to be asked."""

    @abstractmethod
    def parameters_of(self, role: Role) -> dict[str, nn.Parameter]:
        """Name -> parameter of what this role trains: its adapter or base weights, and its scalar head."""

    @abstractmethod
    def backbone_of(self, role: Role) -> PreTrainedModel:
        """The model that this role runs on; the sampler decodes with the actor's."""

    @abstractmethod
    def head(self, name: str) -> ScalarHead:
        """The "score" or "value" head."""

    @property
    @abstractmethod
    def num_reward_models(self) -> int:
        """How many reward models there are: the reward role's, and those of the ensemble around it."""

    @abstractmethod
    def member_scores(self, batch: Batch, member: int) -> Tensor:
        """[B] scores of one reward model of the ensemble; 0 is the reward role's own."""

    @abstractmethod
    def lower_part(self, role: Role) -> LowerPart | None:
        """The layers beneath everything that trains on the role's model, which a batch may keep the states of.

        None where something trains in the first layer, where nothing trains, or where the model only runs whole.
        """

    @abstractmethod
    def lower_states(self, role: Role, plan: Packing) -> Tensor:
        """[N, D] the states of packed tokens behind the role's lower part, without gradients."""

    @abstractmethod
    def wearing(self, role: Role) -> AbstractContextManager[None]:
        """Hold a role's adapters around forward AND backward: recomputed activations need them too."""

    @abstractmethod
    def sampling_as(self, role: Role) -> AbstractContextManager[PreTrainedModel]:
        """The role's backbone with its adapters merged into the weights for the time of the context."""

    @abstractmethod
    def together(self, roles: tuple[Role, ...]) -> list[tuple[Role, ...]]:
        """Roles grouped by what answers them, in order: one forward for each group."""

    @abstractmethod
    def forward(self, batch: Batch, roles: tuple[Role, ...], *, temperature: float = 1.0) -> Outputs:
        """What these roles say of a batch.

        Args:
            batch: [B, T].
            roles: one role, or several of one group.
            temperature: the sampling policy's, for log-probabilities.

        Raises:
            ValueError: if the roles cannot share a forward.
        """


class SharedRoles(Roles):
    """One backbone; ``forward(batch, roles)`` runs it in those roles' costume.

    Roles with equal ``wears`` share one forward and one backward. Scalar heads stand outside the backbone.
    """

    def __init__(
        self,
        backbone: PreTrainedModel,
        costumes: Mapping[Role, Costume],
        heads: Mapping[str, ScalarHead],
        *,
        base_trains: frozenset[str] = frozenset(),
        ensemble: Sequence[Costume] = (),
    ) -> None:
        """Dress the backbone.

        Args:
            backbone: a causal language model with every adapter named in ``costumes`` already in it.
            costumes: the role table.
            heads: "score" and "value" heads, as the table needs them.
            base_trains: names of the backbone parameters that train where a costume says "base".
            ensemble: further reward models; each has a head of its own among ``heads``.
        """
        super().__init__()
        self.backbone = backbone
        self.costumes = dict(costumes)
        self.heads = nn.ModuleDict(dict(heads))
        self.ensemble = tuple(ensemble)
        self._base_trains = base_trains
        self._has_adapters = any(True for _ in lora_layers(backbone))
        self._worn: tuple[str, ...] | None = None
        for costume in (*self.costumes.values(), *self.ensemble):
            check_stack(backbone, costume.wears)
        self._trainable = frozenset(name for role in self.costumes for name in self.parameters_of(role))
        self._num_lower: int | None = None
        self._parts: dict[tuple[str, ...], LowerPart] = {}
        self.wear(())

    def __contains__(self, role: object) -> bool:
        """See ``Roles``."""
        return role in self.costumes

    def backbone_of(self, role: Role) -> PreTrainedModel:
        """The one backbone."""
        return self.backbone

    def parameters_of(self, role: Role) -> dict[str, nn.Parameter]:
        """Name -> parameter of what this role trains: its adapter or base weights, and its scalar head."""
        costume = self.costumes[role]
        if costume.trains is None:
            return {}
        if costume.trains == "base":
            owned = {n: p for n, p in self.backbone.named_parameters() if n in self._base_trains}
        else:
            owned = adapter_parameters(self.backbone, costume.trains)
        named = {f"backbone.{name}": parameter for name, parameter in owned.items()}
        if costume.head in self.heads:
            head = self.heads[costume.head]
            named |= {f"heads.{costume.head}.{name}": p for name, p in head.named_parameters()}
        return named

    def head(self, name: str) -> ScalarHead:
        """The "score" or "value" head."""
        head = self.heads[name]
        assert isinstance(head, ScalarHead)
        return head

    @property
    def num_reward_models(self) -> int:
        """See ``Roles``."""
        return (Role.REWARD in self.costumes) + len(self.ensemble)

    def member_scores(self, batch: Batch, member: int) -> Tensor:
        """See ``Roles``."""
        costume = (self.costumes[Role.REWARD], *self.ensemble)[member]
        self.wear(costume.wears)
        head, below = {"score": self.heads[costume.head]}, self._part(costume.wears) if batch.lower_states else None
        scores = answer(self.backbone, head, batch, wants=("score",), below=below).scores
        assert scores is not None
        return scores

    def lower_part(self, role: Role) -> LowerPart | None:
        """See ``Roles``."""
        return self._part(self.costumes[role].wears)

    def _part(self, wears: tuple[str, ...]) -> LowerPart | None:
        if self._num_lower is None:
            names = [name.removeprefix("backbone.") for name in self._trainable if name.startswith("backbone.")]
            depth = num_frozen(self.backbone, names)
            self._num_lower = depth if depth and runs_in_parts(self.backbone, depth) else 0
        if not self._num_lower:
            return None
        if wears not in self._parts:
            worn = worn_below(self.backbone, wears, self._num_lower)
            self._parts[wears] = LowerPart(self.backbone, self._num_lower, worn)
        return self._parts[wears]

    def lower_states(self, role: Role, plan: Packing) -> Tensor:
        """See ``Roles``."""
        part = self.lower_part(role)
        if part is None:
            raise ValueError(f"role {role} has no lower part")
        self.wear(self.costumes[role].wears)
        return lower(self.backbone, plan, part.num_layers)

    def wear(self, names: tuple[str, ...]) -> None:
        """Activate exactly these adapters, then restore ``requires_grad`` from the role table.

        peft ties active to trainable in both directions, so the table is applied after every switch.
        """
        if names != self._worn:
            if self._has_adapters:
                wear(self.backbone, names)
            self._worn = names
            for name, parameter in self.named_parameters():
                parameter.requires_grad_(name in self._trainable)

    @contextmanager
    def wearing(self, role: Role) -> Iterator[None]:
        """Hold a role's adapters around forward AND backward: recomputed activations need them too."""
        self.wear(self.costumes[role].wears)
        yield

    @contextmanager
    def sampling_as(self, role: Role) -> Iterator[PreTrainedModel]:
        """The backbone with a role's adapters merged into its weights for the time of the context."""
        training = self.backbone.training
        self.backbone.eval()
        with merged(self.backbone, self.costumes[role].wears) if self._has_adapters else _nothing():
            self._worn = None
            try:
                yield self.backbone
            finally:
                self.backbone.train(training)
                self.wear(())

    def together(self, roles: tuple[Role, ...]) -> list[tuple[Role, ...]]:
        """Roles grouped by equal costume, in order: one forward for each group."""
        groups: dict[tuple[str, ...], tuple[Role, ...]] = {}
        for role in roles:
            wears = self.costumes[role].wears
            groups[wears] = (*groups.get(wears, ()), role)
        return list(groups.values())

    def forward(self, batch: Batch, roles: tuple[Role, ...], *, temperature: float = 1.0) -> Outputs:
        """What these roles say of a batch.

        Args:
            batch: [B, T].
            roles: one role, or several with the same costume.
            temperature: the sampling policy's, for log-probabilities.

        Raises:
            ValueError: if the roles wear different adapters.
        """
        if len(self.together(roles)) != 1:
            raise ValueError(f"roles {', '.join(roles)} wear different adapters and cannot share a forward")
        self.wear(self.costumes[roles[0]].wears)
        wants = tuple(self.costumes[role].head for role in roles)
        below = self.lower_part(roles[0]) if batch.lower_states else None
        heads = dict(self.heads.items())
        return answer(self.backbone, heads, batch, wants=wants, temperature=temperature, below=below)


@contextmanager
def _nothing() -> Iterator[None]:
    yield

"""What a loop asks of an algorithm."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

from posttrain.types import AlgorithmState, LossTerm, Outputs, Role, RolloutBatch


class Algorithm(Protocol):
    """A frozen dataclass whose fields are its hyperparameters.

    Attributes:
        trains: the roles that have a loss.
        consults: the roles whose answers fill columns of the batch before training.
    """

    trains: ClassVar[tuple[Role, ...]]
    consults: ClassVar[tuple[Role, ...]]

    def loss(self, role: Role, out: Outputs, batch: Any) -> LossTerm:
        """The unreduced loss of one of the roles in ``trains`` on its own answer to ``batch``."""
        ...


class OnlineAlgorithm(Algorithm, Protocol):
    """An algorithm that learns from completions of the policy itself."""

    @property
    def group_size(self) -> int:
        """How many completions of one prompt it compares."""
        ...

    def initial_state(self) -> AlgorithmState:
        """The state before the first iteration."""
        ...

    def credit(self, batch: RolloutBatch, state: AlgorithmState) -> tuple[RolloutBatch, AlgorithmState]:
        """Fill ``advantages`` and ``returns`` of the whole experience of all ranks, and move the state on."""
        ...

    def statistics(self, batch: RolloutBatch, state: AlgorithmState) -> dict[str, float]:
        """What the log says about a credited batch; ``state`` is the one that ``credit`` was given."""
        ...

"""What a loop asks of an algorithm."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

from posttrain.types import AlgorithmState, LossTerm, Outputs, Role, RolloutBatch


class Algorithm(Protocol):
    """A frozen dataclass whose fields are its hyperparameters.

    Attributes:
        trains: the roles that have a loss.
        consults: the roles whose answers fill columns of the batch before training.
        rows_together: neighbouring rows that one loss compares; a batch is never cut between them.
    """

    trains: ClassVar[tuple[Role, ...]]
    consults: ClassVar[tuple[Role, ...]]
    rows_together: ClassVar[int]

    def loss(self, role: Role, out: Outputs, batch: Any) -> LossTerm:
        """The unreduced loss of one of the roles in ``trains`` on its own answer to ``batch``."""
        ...


class OnlineAlgorithm(Algorithm, Protocol):
    """An algorithm that learns from completions of the policy itself.

    Attributes:
        greedy_baseline: whether ``credit`` needs ``baseline_rewards``.
    """

    greedy_baseline: ClassVar[bool]

    @property
    def group_size(self) -> int:
        """How many completions of one prompt it compares."""
        ...

    @property
    def trained_group(self) -> int:
        """How many of them train, as neighbours in one minibatch."""
        ...

    def initial_state(self) -> AlgorithmState:
        """The state before the first iteration."""
        ...

    def credit(self, batch: RolloutBatch, state: AlgorithmState) -> tuple[RolloutBatch, AlgorithmState]:
        """Fill ``advantages`` (and ``returns``) of the whole experience of all ranks, and move the state on.

        Rows that the update should leave out are False in ``trains``.
        """
        ...

    def statistics(self, batch: RolloutBatch, state: AlgorithmState) -> dict[str, float]:
        """What the log says about a credited batch; ``state`` is the one that ``credit`` was given."""
        ...

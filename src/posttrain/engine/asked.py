"""What a batch asks for at least: its tokens with shared beginnings counted once, whatever the engine makes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from posttrain.models.anatomy import Anatomy
from posttrain.models.roles import Roles
from posttrain.models.split import LowerPart
from posttrain.models.work import current, seen
from posttrain.types import Batch, Role

_GIVES_LOGPROBS = (Role.ACTOR, Role.REFERENCE)


@dataclass(frozen=True)
class Live:
    """The tokens of a batch, a beginning that rows share counted once.

    Attributes:
        spans: of each row, the tokens that no row before it begins with: (first, end).
        rows: tokens of all rows, each in full. targets: tokens whose log-probability is asked for.
    """

    spans: tuple[tuple[int, int], ...]
    rows: int
    targets: int

    @classmethod
    def of(cls, batch: Batch) -> Live:
        """Count a batch's."""
        lengths = batch.lengths.tolist()
        rows = sorted(ids[:n] for ids, n in zip(batch.input_ids.tolist(), lengths, strict=True))
        before: Sequence[int] = []
        spans = []
        for row in rows:
            spans.append((_shared(row, before), len(row)))
            before = row
        return cls(tuple(spans), sum(lengths), int(batch.loss_mask[:, 1:].sum()))

    @cached_property
    def tokens(self) -> int:
        """How many they are."""
        return sum(end - first for first, end in self.spans)

    def seen(self, window: int | None) -> int:
        """How many tokens each of them sees, itself included, summed."""
        return sum(seen(first, end, window) for first, end in self.spans)


class Asked:
    """Adds to the work of the open phase what calls of the engine ask for."""

    def __init__(self, roles: Roles) -> None:
        """For the roles of one engine."""
        self._roles = roles
        self._bodies: dict[tuple[tuple[Role, ...], bool], Anatomy] = {}

    def add(self, batch: Batch, *groups: tuple[Role, ...], trains: bool = False) -> None:
        """Count one forward of each group over the batch, and its backward where it trains.

        Args:
            batch: the whole of it, before it is cut; layers whose states it keeps are not asked again.
            groups: roles that answer from one forward. trains: whether their own weights take gradients.
        """
        work = current()
        if work is None or not groups:
            return
        live = Live.of(batch)
        work.tokens += live.rows
        for group in groups:
            body = self._body(group, trains)
            part = self._roles.lower_part(group[0]) if batch.lower_states else None
            if part is not None and part in batch.lower_states[0].kept.tables:
                body = body.above(part.num_layers)
            targets = live.targets if any(role in _GIVES_LOGPROBS for role in group) else 0
            count = body.training if trains else body.forward
            work.ideal_flops += count(live.tokens, live.seen, targets)

    def add_lower(self, batch: Batch, parts: Mapping[LowerPart, Role]) -> None:
        """Count one forward of each lower part over the batch."""
        work = current()
        if work is not None:
            live = Live.of(batch)
            for part, role in parts.items():
                lower = self._body((role,), False).below(part.num_layers)
                work.ideal_flops += lower.forward(live.tokens, live.seen, 0)

    def _body(self, group: tuple[Role, ...], trains: bool) -> Anatomy:
        if (group, trains) not in self._bodies:
            owned = [p for role in group for p in self._roles.parameters_of(role).values()] if trains else []
            self._bodies[group, trains] = Anatomy.of(self._roles.backbone_of(group[0]), {id(p) for p in owned})
        return self._bodies[group, trains]


def _shared(row: Sequence[int], other: Sequence[int]) -> int:
    """Length of the longest common beginning, by halving: comparing slices is quick."""
    low, high = 0, min(len(row), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if row[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low

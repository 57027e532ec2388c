"""What one layer's attention is asked to do, and who attends to whom, as every backend of it sees them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor


@dataclass(frozen=True)
class Terms:
    """The numbers of one call.

    Attributes:
        scale: factor on the scores.
        dropout: probability on attention weights.
        window: a token sees this many last tokens including itself; None is all.
        softcap: s -> softcap * tanh(s / softcap) on scores; None is none.
    """

    scale: float
    dropout: float = 0.0
    window: int | None = None
    softcap: float | None = None


class Run(Protocol):
    """A segment; see ``posttrain.models.packing.Segment``."""

    @property
    def length(self) -> int: ...

    @property
    def prefix(self) -> int | None: ...


class Layout(Protocol):
    """A packed row; see ``posttrain.models.packing.Packing``."""

    @property
    def segments(self) -> tuple[Run, ...]: ...

    @property
    def cache(self) -> dict[Any, Any]: ...

    @property
    def starts(self) -> tuple[int, ...]: ...

    @property
    def past(self) -> tuple[int, ...]: ...

    @property
    def ends(self) -> tuple[int, ...]: ...

    @property
    def until(self) -> Tensor: ...

    @property
    def position_ids(self) -> Tensor: ...

    @property
    def shares(self) -> bool: ...

    @property
    def num_tokens(self) -> int: ...

    def chain(self, number: int) -> list[int]:
        """A segment and all its prefixes, the outermost first."""

    def allowed(self, rows: Tensor, columns: Tensor, window: int | None) -> Tensor:
        """Whether the token at a packed position may look at another."""

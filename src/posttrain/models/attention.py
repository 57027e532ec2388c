"""The attention hook: transformers calls it in every layer, a *plan* passed along the forward call does the work."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "posttrain"


class AttentionPlan(Protocol):
    """Who attends to whom in a packed row of tokens.

    A plan travels as the keyword argument ``plan`` of the trunk's forward, so recomputation under activation
    checkpointing sees the same one.
    """

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scaling: float | None,
        dropout: float,
        sliding_window: int | None,
        softcap: float | None,
    ) -> Tensor:
        """One layer's attention.

        Args:
            layer: index of the layer (for caches).
            query: [1, Hq, N, D]; key, value: [1, Hkv, N, D], positions already applied; Hkv divides Hq.
            scaling: factor on the scores; None is D ** -0.5.
            dropout: probability on attention weights (0 outside training).
            sliding_window: a token sees this many last tokens including itself; None is all.
            softcap: s -> softcap * tanh(s / softcap) on scores; None is none.

        Returns:
            [1, N, Hq, D].
        """
        ...


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    plan: AttentionPlan,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The function behind ``attn_implementation="posttrain"``; see ``AttentionPlan.attend``.

    Raises:
        ValueError: for attention sinks (``s_aux``), which no plan honours.
    """
    if s_aux is not None:
        raise ValueError("the model's attention has sinks, which packed attention does not know")
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    out = plan.attend(
        layer, query, key, value, scaling=scaling, dropout=dropout, sliding_window=sliding_window, softcap=softcap
    )
    return out, None


def no_mask(*_: Any, **__: Any) -> None:
    """The plan knows who attends to whom: no mask tensor is ever built."""
    return None


def register() -> None:
    """Make ``attn_implementation="posttrain"`` known to transformers: attention and mask function, always both."""
    ALL_ATTENTION_FUNCTIONS.register(NAME, attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, no_mask)

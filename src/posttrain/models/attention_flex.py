"""Packed attention by PyTorch's FlexAttention: one fused kernel for trees of prefixes, windows and soft-caps."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import flex_attention as flex

from posttrain.models.attention_terms import Layout, Terms


def flex_refusal(plan: Layout, query: Tensor, terms: Terms) -> str:
    """Why FlexAttention does not take this call; "" where it does."""
    if query.device.type == "cpu" and torch.is_grad_enabled() and query.requires_grad:
        return "FlexAttention has no backward on a CPU"
    if terms.dropout:
        return "FlexAttention knows no dropout"
    if query.device.type == "cuda" and query.shape[-1] < 16:
        return f"FlexAttention's kernels want heads of at least 16 numbers, not {query.shape[-1]}"
    return ""


def flex_attention(plan: Layout, query: Tensor, key: Tensor, value: Tensor, terms: Terms) -> Tensor:
    """Exact attention over a packed row; compiled on a GPU, by plain operations elsewhere.

    Args and result as in ``tile_attention``.
    """
    address = ("flex", terms.window)
    if address not in plan.cache:
        plan.cache[address] = block_mask(plan, terms.window, query.device)
    function = _compiled if query.device.type == "cuda" else _plain
    out: Tensor = function()(
        query,
        key,
        value,
        score_mod=None if terms.softcap is None else _capped(terms.softcap),
        block_mask=plan.cache[address],
        scale=terms.scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out.transpose(1, 2)


def block_mask(plan: Layout, window: int | None, device: torch.device) -> flex.BlockMask:
    """Who attends to whom as FlexAttention wants it: blocks that nobody sees are left out, whole ones unmasked."""
    until, positions = plan.until.to(device), plan.position_ids[0]
    reach = plan.num_tokens if window is None else window

    def seen(batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return (column <= row) & (row < until[column])

    def seen_in_window(batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return (column <= row) & (row < until[column]) & (positions[row] - positions[column] < reach)

    count = plan.num_tokens
    rule = seen if window is None else seen_in_window
    return flex.create_block_mask(rule, None, None, count, count, device=device)


def _plain() -> Callable[..., Any]:
    return flex.flex_attention


@cache
def _compiled() -> Callable[..., Any]:
    return torch.compile(flex.flex_attention, dynamic=True)


@cache
def _capped(softcap: float) -> Callable[..., Tensor]:
    def cap(score: Tensor, batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    return cap

"""Packed attention segment by segment with PyTorch's fused kernel: exact on every device, and the fallback."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from posttrain.models.attention_terms import Layout, Terms


def segment_attention(plan: Layout, query: Tensor, key: Tensor, value: Tensor, terms: Terms) -> Tensor:
    """Exact attention over a packed row; segments of one length behind equally long prefixes are one batch.

    Args and result as in ``tile_attention``.
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    lengths = [segment.length for segment in plan.segments]
    # split, not slices: its backward is one concatenation instead of a full-size zero tensor per segment
    queries, keys, values = (x.split(lengths, dim=2) for x in (query, key, value))
    alike: dict[tuple[int, int], list[int]] = {}
    for number, (length, past) in enumerate(zip(lengths, plan.past, strict=True)):
        alike.setdefault((length, past), []).append(number)
    outs: dict[int, Tensor] = {}
    for members in alike.values():
        chains = [plan.chain(number) for number in members]
        q = _batched([queries[number] for number in members])
        k = _batched([_row([keys[link] for link in chain]) for chain in chains])
        v = _batched([_row([values[link] for link in chain]) for chain in chains])
        outs.update(zip(members, _causal(plan, q, k, v, terms).split(1), strict=True))
    return torch.cat([outs[number] for number in range(len(lengths))], dim=2).transpose(1, 2)


def _batched(rows: list[Tensor]) -> Tensor:
    return rows[0] if len(rows) == 1 else torch.cat(rows)


def _row(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def _causal(plan: Layout, q: Tensor, k: Tensor, v: Tensor, terms: Terms) -> Tensor:
    """Causal attention of the last tokens of sequences: [n, H, S, D] queries over [n, H, C + S, D] keys."""
    ends, total = q.shape[2], k.shape[2]
    window = None if terms.window is None or terms.window >= total else terms.window
    if terms.softcap is None:
        # is_causal aligns the mask top-left, which is right only for a square
        square = ends == total and window is None
        mask = None if square else _mask(plan, ends, total, window, q.device)
        return F.scaled_dot_product_attention(q, k, v, mask, terms.dropout, is_causal=square, scale=terms.scale)
    scores = q @ k.transpose(-1, -2) * terms.scale
    scores = terms.softcap * torch.tanh(scores / terms.softcap)
    scores = scores.masked_fill(~_mask(plan, ends, total, window, q.device), float("-inf"))
    return F.dropout(scores.softmax(dim=-1), terms.dropout) @ v


def _mask(plan: Layout, ends: int, total: int, window: int | None, device: torch.device) -> Tensor:
    """[S, C + S] bool, True where a query may look; the same one serves all layers."""
    address = ("mask", ends, total, window)
    if address not in plan.cache:
        distance = torch.arange(total - ends, total, device=device)[:, None] - torch.arange(total, device=device)
        seen = distance >= 0
        plan.cache[address] = seen if window is None else seen & (distance < window)
    mask: Tensor = plan.cache[address]
    return mask

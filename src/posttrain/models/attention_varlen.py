"""Packed attention by PyTorch's variable-length FlashAttention: half precision on a GPU, rows that share nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from posttrain.models.attention_terms import Layout, Terms


def varlen_refusal(plan: Layout, query: Tensor, terms: Terms) -> str:
    """Why the kernel does not take this call; "" where it does."""
    if query.device.type != "cuda":
        return f"variable-length FlashAttention runs on CUDA devices, not on {query.device.type}"
    if query.dtype not in (torch.bfloat16, torch.float16):
        return f"variable-length FlashAttention takes half precision, not {query.dtype}"
    if query.shape[-1] > 256 or query.shape[-1] % 8:
        return f"variable-length FlashAttention has no kernel for heads of {query.shape[-1]} numbers"
    if terms.dropout or terms.softcap is not None:
        return "variable-length FlashAttention knows neither dropout nor a soft-cap"
    if plan.shares:
        return "variable-length FlashAttention knows no shared prefixes"
    return ""


def varlen_attention(plan: Layout, query: Tensor, key: Tensor, value: Tensor, terms: Terms) -> Tensor:
    """Exact attention over a packed row.

    Args and result as in ``tile_attention``.
    """
    from torch.nn.attention.varlen import varlen_attn

    address = ("varlen",)
    if address not in plan.cache:
        edges = torch.tensor([*plan.starts, plan.num_tokens], dtype=torch.int32, device=query.device)
        plan.cache[address] = edges, max(segment.length for segment in plan.segments)
    edges, longest = plan.cache[address]
    # a window of n tokens, itself among them, reaches n - 1 back; 0 ahead is what makes it causal
    back = -1 if terms.window is None else terms.window - 1
    q, k, v = (x[0].transpose(0, 1).contiguous() for x in (query, key, value))
    out = varlen_attn(
        q,
        k,
        v,
        edges,
        edges,
        longest,
        longest,
        scale=terms.scale,
        window_size=(back, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(out, Tensor)
    return out[None]
